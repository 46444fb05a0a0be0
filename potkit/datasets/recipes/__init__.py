"""Recipes: how the embedded data sets are made. A new recipe is one file and one line here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import DataError
from ...structures.store import Structures
from . import (
    ani_mini,
    dft_mini,
    iso17_mini,
    md22_mini,
    rmd17_mini,
    spice_mini,
    tip3p_mini,
    water_mini,
)
from .common import Recipe, generate

_MODULES = (
    ani_mini,
    dft_mini,
    iso17_mini,
    md22_mini,
    rmd17_mini,
    spice_mini,
    tip3p_mini,
    water_mini,
)
RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in _MODULES}


def make(
    name: str,
    out: str | Path,
    *,
    scale: float | str = 1.0,
    seed: int = 0,
    jobs: int = 1,
    progress: bool = True,
    finished: bool = False,
    **options: Any,
) -> Structures:
    """Make the data set ``name`` and save it to ``out``; see `common.generate`. Raises DataError
    for an unknown name.
    """
    if name not in RECIPES:
        raise DataError(f"no recipe called {name!r}; there are {', '.join(RECIPES)}")
    return generate(
        RECIPES[name],
        out,
        scale=scale,
        seed=seed,
        jobs=jobs,
        progress=progress,
        finished=finished,
        **options,
    )
