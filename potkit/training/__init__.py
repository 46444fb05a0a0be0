"""Training: one loop for every objective, the folder of a run, checkpoints, memory, evaluation,
molecular dynamics.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "checkpoints",
        "config",
        "dynamics",
        "evaluation",
        "loop",
        "memory",
        "run_folder",
        "step",
        "validation",
    ],
    submod_attrs={
        "config": ["TrainConfig"],
        "dynamics": ["MDConfig", "Simulation", "simulate"],
        "evaluation": ["Evaluation", "calculator", "evaluate", "predict"],
        "loop": ["finetune", "fit", "make_fabric", "pretrain"],
        "run_folder": ["Run"],
        "step": ["batch_indices", "learning_rate"],
        "validation": ["validate"],
    },
)
