"""The runs behind data/results are found again: the hash of a run keeps its value however the
code is arranged.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from potkit.experiments import tasks, yaml_form
from potkit.experiments.arms import LONGER

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
# specs on embedded data, and those that read the public sets in their original formats
EMBEDDED = ["masked-water", "networks", "precision"]
PUBLIC = [
    "alkanes-to-3bpa-long",
    "audit-choices",
    "audit-faults",
    "denoise-3bpa-curve",
    "denoise-3bpa-long",
    "denoise-dipeptides-curve",
]


def identities(name: str) -> list[tuple[str, str]]:
    """(stored name of a run, the name its folder would have today) for every fine-tuning of a
    grid.
    """
    stored = pd.read_csv(RESULTS / f"{name}-runs.csv")
    grid = yaml_form.read(RESULTS / f"{name}.yaml").experiments()
    pairs = []
    for number, experiment in enumerate(grid):
        rows = stored
        for column, value in experiment.columns.items():
            rows = rows[rows[column].astype(str) == value]
        assert len(rows), experiment.columns
        for row in rows.itertuples():
            steps = row.steps if row.arm == LONGER else None
            task = tasks.Task("finetune", row.arm, row.seed, row.labels, steps, number)
            pairs.append((row.run, tasks.finetune_folder(experiment, task).name))
    return pairs


@pytest.mark.parametrize("name", EMBEDDED)
def test_runs_on_embedded_data_keep_their_hashes(name: str) -> None:
    for stored, today in identities(name):
        assert stored == today


@pytest.mark.parametrize("name", PUBLIC)
def test_runs_on_public_data_keep_their_hashes(
    name: str, reference_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTKIT_REFERENCE_DATA", str(reference_data))
    for stored, today in identities(name):
        assert stored == today
