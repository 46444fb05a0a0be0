"""Error against fine-tuning steps, operations and seconds, for every arm: how fast each converges.

Every run writes its validation errors down while it trains; here they are gathered from the run
store. They are errors on the run's own validation structures, which come from its labels: test
structures are looked at once, at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import operations
from .statistics import UNIT, interval

if TYPE_CHECKING:
    from .experiment import Experiment

MEASURES = ("valid_loss", "valid_forces_mae", "valid_energy_mae")


def of_experiments(grid: Sequence[Experiment], runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run and validation: the experiment's columns, arm, labels, seeds, ``step``,
    ``seconds`` of training so far, ``operations`` so far (where the experiment counts in them), and
    the validation errors in eV and eV/Å.

    The cost of pretraining is not in them: it stands in ``pretrain_seconds`` and
    ``pretrain_operations`` of each row. Runs whose metrics are gone are left out.
    """
    rows: list[dict[str, Any]] = []
    for e in grid:
        part = runs
        for column, value in e.columns.items():
            part = part[part[column] == value]
        for run in part[part["status"] == "ok"].to_dict("records"):
            rows += _of_run(e, run)
    return pd.DataFrame(rows)


def _of_run(experiment: Experiment, run: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(experiment.store) / str(run["run"]) / "metrics.jsonl"
    if not path.is_file():
        return []
    counted = experiment.longer == "operations"
    per_step = operations.of_finetuning_step(experiment, run["labels"]) if counted else np.nan
    source = experiment.arms[run["arm"]].pretrained_as if run["arm"] in experiment.arms else None
    before = operations.of_pretraining(experiment, source) if counted and source else 0.0
    named = (*experiment.columns, "arm", "labels", "seed", "pretrain_seed", "label_draw")
    known = {key: run[key] for key in named}
    known |= {"pretrain_seconds": run.get("pretrain_seconds", 0.0), "pretrain_operations": before}
    rows = []
    for line in path.read_text().splitlines():
        logged = json.loads(line)
        if "valid_loss" in logged:
            rows.append(
                known
                | {"step": logged["step"], "seconds": logged["seconds"]}
                | {"operations": logged["step"] * per_step}
                | {name: logged.get(name, np.nan) for name in MEASURES}
            )
    return rows


def over_seeds(curves: pd.DataFrame, measure: str = "valid_forces_mae") -> pd.DataFrame:
    """Geometric mean and 95 % interval over pretrainings of ``measure`` at each step, by
    experiment, arm and label budget; the logarithms of a pretraining's label draws are averaged
    first.

    The intervals are those of single steps: the band as a whole holds the whole curve less often.
    """
    by = list(curves.columns[: list(curves.columns).index("seed")])
    rows = []
    for group, part in curves.groupby([*by, "step"], sort=False, observed=True):
        logs = np.log(part.set_index(UNIT)[measure]).groupby(level=UNIT).mean()
        mean, low, high = np.exp(interval(logs))
        rows.append(
            dict(zip([*by, "step"], group, strict=True))
            | {"seeds": len(logs), "operations": part["operations"].mean()}
            | {"seconds": part["seconds"].mean(), "mean": mean, "low": low, "high": high}
        )
    return pd.DataFrame(rows)
