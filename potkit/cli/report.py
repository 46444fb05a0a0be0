"""What `finetune` and `evaluate` print and store of a network's errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import Potential
    from ..structures.store import Structures
    from ..training.evaluation import Evaluation


def name_of(data: str, split: Path | None = None) -> str:
    """What errors on ``data`` (or on the test part of a split of it) are stored under."""
    from ..report import run_report

    name = run_report.plain(data)
    return f"{name}-{run_report.plain(split.stem)}-test" if split else name


def course(run: Path) -> None:
    """Draw the learning curves of a run into its folder."""
    from ..report import run_report

    run_report.write_training(run)


def errors(
    run: Path | None, name: str, result: Evaluation, structures: Structures, model: Potential
) -> None:
    """Print the errors on ``structures``; store and draw them in the folder ``run``, if given."""
    written = []
    if run is not None:  # before anything is printed: whoever reads may be gone
        from ..report import run_report

        references = model.references.detach().cpu().double().numpy()
        written = run_report.write_errors(run, name, result, structures, references)
    print(f"{name}: {result}")
    for row in result.summary().itertuples():
        print(f"  {row.quantity:16}  MAE {row.mae:8.2f}  RMSE {row.rmse:8.2f} {row.unit}")
    if written:
        print(f"  stored in {written[0].parent}: ", end="")
        print(", ".join(path.name for path in written))
