"""A recipe that needs no package and no time."""

from __future__ import annotations

import numpy as np

from potkit.datasets.recipes import common
from potkit.structures.store import Structures


def toy_work(task: dict) -> Structures:
    rng = np.random.default_rng([task["seed"], task["k"]])
    part = Structures(
        z=np.full(4, 1),
        pos=common.on_grid(rng.normal(size=(4, 3))),
        ptr=[0, 2, 4],
        energy=rng.normal(size=2),
        forces=common.on_grid(rng.normal(size=(4, 3))),
        info={"systems": [task["label"]]},
    )
    return part[:0] if task["k"] == 2 else part


TOY = common.Recipe(
    name="toy",
    title="toy",
    story="Random numbers.",
    packages=("numpy",),
    work=toy_work,
    plan=lambda scale, seed, parts=4: [
        {"label": f"part-{k}", "k": k, "seed": seed} for k in range(parts)
    ],
    describe=lambda tasks, infos: {"level_of_theory": "none", "notes": [f"{len(infos)} parts."]},
)
