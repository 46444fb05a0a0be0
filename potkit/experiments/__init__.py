"""Comparisons as data: experiments and their arms, the grid of runs, who runs it, what its
numbers say.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "arms",
        "audit",
        "baselines",
        "break_even",
        "calibration",
        "choosing",
        "clusters",
        "convergence",
        "dry_run",
        "experiment",
        "given_validation",
        "numerics",
        "operations",
        "packing",
        "scheduler",
        "search",
        "shipped",
        "simulations",
        "statistics",
        "tasks",
        "time_curves",
        "uncertainty",
        "yaml_form",
    ],
    submod_attrs={"experiment": ["Experiment", "compare", "leakage", "run"]},
)
