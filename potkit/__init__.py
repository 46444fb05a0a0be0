"""potkit: does self-supervised pretraining help my neural potential, which kind, and by how much?

Everything is imported when it is first used, so ``import potkit`` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Structures": "structures", "Batch": "structures", "concatenate": "structures",
    "load": "datasets", "read": "datasets",
    "build": "models", "Potential": "models", "Prediction": "models",
    "Denoise": "objectives", "Masked": "objectives", "MaskedDenoise": "objectives", "Supervised": "objectives",
    "AnisotropicDenoise": "objectives", "ForceConditionedDenoise": "objectives", "NoisyNodes": "objectives",
    "TrainConfig": "config", "pretrain": "training", "finetune": "training", "Run": "runs",
    "evaluate": "evaluation", "predict": "evaluation", "calculator": "evaluation",
    "compare": "experiments",
}  # fmt: skip
_MODULES = (
    "analysis", "arms", "checkpoints", "datasets", "errors", "evaluation", "experiments", "models", "neighbors", "noise", "notebooks", "objectives",
    "papers", "plots", "report", "runs", "specs", "scheduler", "statistics", "testing", "training", "uncertainty",
    "units",
)  # fmt: skip

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'potkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_MODULES])
