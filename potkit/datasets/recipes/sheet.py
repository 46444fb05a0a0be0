"""The data sheet of a generated set: written by the recipe from what it made, never by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...structures import outputs
from ...structures.elements import SYMBOLS
from ...structures.outputs import Kind
from ...structures.storage import replacing
from ...structures.store import Structures

if TYPE_CHECKING:
    from .common import Recipe

_WRITTEN = "This sheet was written by the recipe together with the data; do not edit it."
_INDEX = "# Embedded data sets"
_INDEX_WRITTEN = "`write_index` in `sheet.py` there."


def _is_sheet(path: Path) -> bool:
    lines = outputs.head(path).splitlines()
    return lines[0].startswith("# ") and lines[2] == _WRITTEN


def _is_index(path: Path) -> bool:
    text = outputs.head(path)
    return text.startswith(_INDEX + "\n") and _INDEX_WRITTEN in text


SHEET = Kind("a data sheet that a recipe wrote", _is_sheet)
INDEX = Kind("the list of the data sets in its folder that potkit wrote", _is_index)


def sheet_path(data: Path) -> Path:
    """Where the data sheet of the set stored at ``data`` lies."""
    return data.with_suffix(".md") if data.suffix == ".h5" else data.with_name(data.name + ".md")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of all files of a folder in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _per_element(made: Structures) -> list[str]:
    size = np.linalg.norm(made.forces.astype(np.float64), axis=1)
    rows = [
        "| element | atoms | RMS of the force vector (eV/Å) | largest (eV/Å) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for z in made.elements:
        of_element = size[made.z == z]
        rms = np.sqrt(np.mean(of_element**2))
        rows.append(f"| {SYMBOLS[z]} | {len(of_element):,} | {rms:.3f} | {of_element.max():.2f} |")
    return rows


def symbols_of(structures: Structures) -> str:
    """The elements of a set as text, such as "H C N O"."""
    return " ".join(SYMBOLS[z] for z in structures.elements)


def _facts(recipe: Recipe, made: Structures, data: Path, cost: dict[str, float]) -> dict[str, str]:
    """What the first table of the sheet says, by row."""
    info = made.info
    settings = info["recipe"]
    scale, seed = settings["scale"], settings["seed"]
    files = [data] if data.is_file() else data.iterdir()
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    command = f"potkit data make {recipe.name} --scale {scale} --seed {seed} --jobs {cost['jobs']}"
    options = " ".join(f"{key}={json.dumps(value)}" for key, value in settings["options"].items())
    sizes = made.n_atoms
    per_atom = made.energy / sizes
    systems = len(np.unique(made.system))
    counts = np.bincount(made.system)
    return {
        "file": f"`{data.name}`, {megabytes:.2f} MB, packed store (`potkit.Structures.open`)",
        "sha256": f"`{sha256(data)}`",
        "command": f"`{command} --out {data.name}`"
        + (f" with options {options}" if options else ""),
        "recipe revision, seed, scale": f"{recipe.revision}, {seed}, {scale}",
        "versions": ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
        "cost": (
            f"{cost['wall'] / 60:.1f} min wall with {cost['jobs']} process(es); "
            f"{cost['work'] / 60:.1f} min of work in all parts"
        ),
        "level of theory": info["level_of_theory"],
        "units": "positions and cell Å, energy eV (total), forces eV/Å",
        "rounding": (
            f"positions and forces to {info['grid']:.2e} (2⁻¹⁴), before labelling; "
            "energy to 1e-6 eV"
        ),
        "structures": (
            f"{len(made):,} of {systems:,} systems ({counts.min()} to {counts.max()} per system)"
        ),
        "atoms": (
            f"{len(made.z):,}; {sizes.min()} to {sizes.max()} per structure; "
            f"elements {symbols_of(made)}"
        ),
        "energy per atom (eV)": (
            f"{per_atom.min():.4f} to {per_atom.max():.4f}, mean {per_atom.mean():.4f}"
        ),
        "licence": info["licence"],
    }


def write_sheet(
    path: Path, recipe: Recipe, made: Structures, data: Path, cost: dict[str, float]
) -> None:
    """Write the data sheet of ``made``, stored at ``data``, to ``path``.

    ``cost`` holds the seconds of "wall" time and of "work" in all parts, and the number of "jobs".
    """
    info = made.info
    lines = [
        f"# {recipe.name}: {recipe.title}",
        "",
        _WRITTEN,
        "",
        recipe.story,
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in _facts(recipe, made, data, cost).items()),
        "",
        *_per_element(made),
        "",
    ]
    if "atomic_energies" in info:
        energies = [f"{symbol} {eV:.6f}" for symbol, eV in info["atomic_energies"].items()]
        lines += [
            "Energies of isolated atoms at the same level (eV), ground-state multiplicity: ",
            ", ".join(energies) + ".",
            "",
        ]
    for head, table in info.get("tables", {}).items():
        lines += [f"## {head}", "", table, ""]
    lines += ["## Caveats", "", *(f"- {note}" for note in info["notes"]), ""]
    with replacing(path, SHEET) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def index_text(folder: Path) -> str:
    """The Markdown table of all packed sets (``*.h5``) in ``folder``, each linked to its sheet."""
    lines = [
        _INDEX,
        "",
        (
            "Made by the recipes in `potkit/datasets/recipes/`; `potkit data make NAME --scale X` "
            "makes them again at any size. The sheet of"
        ),
        (
            "each set says recipe, versions, seed, units, counts and caveats. This page is written "
            "by `write_index` in `sheet.py` there."
        ),
        "",
        "| set | structures | systems | atoms per structure | elements | labels | MB | sheet |",
        "| --- | ---: | ---: | --- | --- | --- | ---: | --- |",
    ]
    for file in sorted(folder.glob("*.h5")):
        made = Structures.open(file)
        sizes = made.n_atoms
        span = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()}–{sizes.max()}"
        cells = [
            f"{made.info['name']}: {made.info['title']}",
            f"{len(made):,}",
            f"{len(np.unique(made.system)):,}",
            span,
            symbols_of(made),
            made.info["level_of_theory"],
            f"{file.stat().st_size / 1e6:.1f}",
            f"[{file.stem}.md]({file.stem}.md)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def write_index(folder: str | Path) -> Path:
    """Write ``README.md`` in ``folder`` (see `index_text`) and return its path. Raises DataError
    where there is another README.md.
    """
    path = Path(folder) / "README.md"
    text = index_text(Path(folder))
    with replacing(path, INDEX) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
