"""potkit: does self-supervised pretraining help my neural potential, which kind, and by how much?

The rooms, in the order of the data's journey: structures, datasets, models, kernels, objectives,
testing, analysis, training, experiments, report, bench, notebooks, cli. A room imports only from
those before it. Everything is imported when it is first used, so ``import potkit`` is quick.
"""

from __future__ import annotations

# no more than this: Ctrl-C before the command has begun would show a traceback
import importlib
import sys
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # type checkers take it for true
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

__version__ = "0.1.0"

# public name -> the module that has it
_EXPORTS = {
    "Structures": "structures",
    "Batch": "structures",
    "concatenate": "structures",
    "load": "datasets",
    "read": "datasets",
    "build": "models",
    "Potential": "models",
    "Prediction": "models",
    "Denoise": "objectives",
    "Masked": "objectives",
    "MaskedDenoise": "objectives",
    "Supervised": "objectives",
    "AnisotropicDenoise": "objectives",
    "ForceConditionedDenoise": "objectives",
    "NoisyNodes": "objectives",
    "TrainConfig": "training.config",
    "pretrain": "training.loop",
    "finetune": "training.loop",
    "Run": "training.run_folder",
    "pretrained": "training.pretrained",
    "evaluate": "training.evaluation",
    "predict": "training.evaluation",
    "calculator": "training.evaluation",
    "MDConfig": "training.dynamics",
    "simulate": "training.dynamics",
    "export": "training.export",
    "torch_sim_model": "training.export",
    "compare": "experiments.experiment",
}

_ROOMS = (
    "structures",
    "datasets",
    "models",
    "kernels",
    "objectives",
    "testing",
    "analysis",
    "training",
    "experiments",
    "report",
    "bench",
    "notebooks",
)

# modules with a name of their own at the top, and where they live
_MODULES = {
    "arms": "experiments.arms",
    "checkpoints": "training.checkpoints",
    "errors": "errors",
    "evaluation": "training.evaluation",
    "neighbors": "structures.neighbors",
    "noise": "analysis.noise_scale",
    "papers": "report.published_numbers",
    "profiles": "notebooks.profiles",
    "plots": "report.figures",
    "runs": "training.run_folder",
    "scheduler": "experiments.scheduler",
    "specs": "experiments.yaml_form",
    "statistics": "experiments.statistics",
    "uncertainty": "experiments.uncertainty",
    "units": "units",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module 'potkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_ROOMS, *_MODULES})


class _TopLevelNames:
    """Lets ``import potkit.plots`` find the module that ``potkit.plots`` is, wherever it lives.

    A finder and a loader, without the base classes of `importlib.abc`, which take longer to import
    than all else here.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package == __name__ and _MODULES.get(name, name) != name:
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f".{_MODULES[spec.name.rpartition('.')[2]]}", __name__)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # the import system has put the short name's there
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _TopLevelNames())
