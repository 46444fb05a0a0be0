"""What all recipes share: cutting the work into parts, running them in parallel, resuming, storing,
and the data sheet.

A recipe cuts a data set into independent tasks (a molecule, a trajectory). Each finished task lies
as a small packed file in ``<out>.parts/`` until the whole set is written, so a killed generation
goes on where it stopped. What a task yields depends on its own settings only, never on the other
tasks, their order or the number of processes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.outputs import Kind, check, is_a, is_temporary
from ...structures.progress import bar as progress_bar
from ...structures.settings import LARGEST_SEED, shown
from ...structures.storage import STORE, STORE_FILE
from ...structures.store import Structures, concatenate
from .sheet import SHEET, sheet_path, write_sheet

# Å and eV/Å: 6.1e-5, finer than 1e-4, exact in float32 below 512, and its zero bits compress well
GRID = 2.0**-14
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS")


@dataclass(frozen=True)
class Recipe:
    """How one embedded data set is made.

    ``plan(scale, seed, **options)`` gives the tasks: JSON-able dicts with a unique ``label``;
    ``scale`` is a number or "paper". ``work(task)`` makes the structures of one task; what it
    leaves in ``info`` is handed to ``describe``. ``describe(tasks, infos)`` gives the set's
    ``info`` (level of theory, references, ...); plain sentences under "notes" and Markdown under
    "tables" (by heading) reach the data sheet. ``arrange``, if given, puts the finished set into
    its final order. ``revision`` rises whenever the same settings would give other data. The set of
    a ``costly`` recipe keeps what its parts left in ``info``, under "parts", so that a later
    generation takes them from the set instead of making them again; such a recipe has no
    ``arrange``.
    """

    name: str
    title: str
    story: str  # the recipe in prose, for the data sheet
    packages: tuple[str, ...]
    plan: Callable[..., list[dict[str, Any]]]
    work: Callable[[dict[str, Any]], Structures]
    describe: Callable[[list[dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]
    revision: int = 1
    arrange: Callable[[Structures], Structures] | None = None
    costly: bool = False


def on_grid(values: np.ndarray) -> np.ndarray:
    """``values`` rounded to multiples of `GRID`, as float32: what is stored was labelled."""
    return (np.round(np.asarray(values, np.float64) / GRID) * GRID).astype(np.float32)


def joined(frames: list[np.ndarray]) -> np.ndarray:
    """``frames`` [N,3] one after the other, [F·N,3]; float32 [0,3] where there are none."""
    return np.concatenate(frames) if frames else np.zeros((0, 3), np.float32)


def parse_scale(name: str, scale: float | str) -> float | str:
    """A positive number, or "paper". Raises DataError."""
    if scale == "paper":
        return scale
    try:
        number = float(scale)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < float("inf"):
        raise DataError(f"{name}: scale must be a positive number or 'paper', got {scale!r}")
    return number


def require(recipe: Recipe) -> None:
    """Raise DataError if a package that the recipe runs on is not installed."""
    missing = [p for p in recipe.packages if importlib.util.find_spec(p) is None]
    if missing:
        raise DataError(
            f"{recipe.name}: {', '.join(missing)} is not installed; generators need the extra "
            "potkit[generate] "
            "(pip install 'potkit[generate]')"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread per process while the block runs: sums keep their order, so results do not depend
    on the machine's load.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _part_path(folder: Path, recipe: Recipe, task: dict[str, Any]) -> Path:
    text = json.dumps([recipe.name, recipe.revision, task], sort_keys=True)
    return folder / f"{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.h5"


def _is_parts_folder(path: Path) -> bool:
    return all(_PART_NAME.fullmatch(name) or is_temporary(name) for name in os.listdir(path))


_PART_NAME = re.compile(r"[0-9a-f]{20}\.h5")
PARTS = Kind("a folder with the parts of a recipe's unfinished work", _is_parts_folder, folder=True)


def _remove_parts(folder: Path, paths: list[Path]) -> None:
    """Remove the parts ``paths``, those of earlier work with other settings, and their folder."""
    for path in list(folder.iterdir()):
        if (
            path in paths
            or is_temporary(path.name)
            or (_PART_NAME.fullmatch(path.name) and is_a(STORE_FILE, path))
        ):
            path.unlink()
    with suppress(OSError):  # what nobody knows stays
        folder.rmdir()


def _run_part(
    work: Callable[[dict[str, Any]], Structures],
    task: dict[str, Any],
    path: Path,
    versions: dict[str, str],
) -> None:
    path.unlink(missing_ok=True)  # a damaged one: those that can be read are not made again
    start = time.process_time()  # not the clock: other work on the machine is no cost of the set
    part = work(task)
    part.info["seconds"] = time.process_time() - start
    part.info["versions"] = versions
    part.save(path)


def _versions(recipe: Recipe) -> dict[str, str]:
    """The versions of the packages that the recipe runs on, and of numpy."""
    return {package: version(package) for package in (*recipe.packages, "numpy")}


def _joined_versions(versions: list[dict[str, str]]) -> dict[str, str]:
    """The versions that made the parts, by package: more than one where parts were taken over."""
    return {
        package: " and ".join(sorted({of_part[package] for of_part in versions}))
        for package in versions[0]
    }


def _take_over(
    earlier: Path, settings: dict[str, Any], tasks: list[dict[str, Any]], paths: list[Path]
) -> None:
    """Write the parts that the set ``earlier`` holds to their ``paths``, if it was made with the
    same ``settings`` and they are not there.
    """
    made = Structures.open(earlier)
    if made.info.get("recipe") != json.loads(json.dumps(settings)):
        return
    path_of = {task["label"]: path for task, path in zip(tasks, paths, strict=True)}
    first = 0
    for label, info in made.info.get("parts", {}).items():
        after = first + info["structures"]
        path = path_of[label]
        if _open_part(path) is None:
            path.unlink(missing_ok=True)
            part = made[first:after]
            part.system = np.zeros(len(part), np.int32)
            part.info = {key: value for key, value in info.items() if key != "structures"}
            part.save(path)
        first = after


def _open_part(path: Path) -> Structures | None:
    """A finished part, or None if there is none that can be read (then it is made again)."""
    try:
        return Structures.open(path) if path.exists() else None
    except DataError:
        return None


def _run_all(
    recipe: Recipe, tasks: list[dict[str, Any]], paths: list[Path], jobs: int, progress: bool
) -> None:
    versions = _versions(recipe)
    todo = [i for i, path in enumerate(paths) if _open_part(path) is None]
    bar = progress_bar(
        total=len(tasks),
        initial=len(tasks) - len(todo),
        desc=recipe.name,
        unit="part",
        shown=progress,
    )
    with one_thread(), bar:
        if jobs == 1 or len(todo) <= 1:
            for i in todo:
                _run_part(recipe.work, tasks[i], paths[i], versions)
                bar.update()
            return
        # not fork: children would inherit thread pools that torch and OpenMM have started
        spawn = multiprocessing.get_context("spawn")
        others = multiprocessing.active_children()
        pool = ProcessPoolExecutor(min(jobs, len(todo)), mp_context=spawn)
        try:
            futures = [
                pool.submit(_run_part, recipe.work, tasks[i], paths[i], versions) for i in todo
            ]
            for future in as_completed(futures):
                future.result()
                bar.update()
        except KeyboardInterrupt:
            # a part may take minutes; one that is not whole is made again by the next call
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def generate(
    recipe: Recipe,
    out: str | Path,
    *,
    scale: float | str = 1.0,
    seed: int = 0,
    jobs: int = 1,
    progress: bool = True,
    finished: bool = False,
    **options: Any,
) -> Structures:
    """Make the set, save it to ``out`` (a ``.h5`` file, else a folder) with a data sheet
    ``<out>.md`` beside it, and return it.

    ``scale`` multiplies the structures per molecule or trajectory; "paper" asks for the papers' own
    number. ``jobs`` processes share the tasks. The same scale, seed, options and package versions
    give the same file, whatever ``jobs``. An earlier set and its sheet are replaced; of a costly
    recipe, what the earlier set holds of the same revision, scale, seed and options is taken over.
    ``finished`` makes no new part: it writes the set of those that are done, up to the first that
    is not, leaves them where they are, and the sheet says how many are missing. Raises DataError
    for a bad argument, a missing package, other files in the places of set, sheet or parts, or when
    nothing could be made.
    """

    out = Path(out)
    scale = parse_scale(recipe.name, scale)
    if jobs < 1:
        raise DataError(f"{recipe.name}: jobs must be at least 1, got {jobs}")
    if not 0 <= seed <= LARGEST_SEED:
        raise DataError(f"{recipe.name}: seed must be in 0…2^64 − 1, got {shown(seed)}")
    require(recipe)
    check(out, STORE_FILE if out.suffix == ".h5" else STORE)
    folder, sheet = out.with_name(out.name + ".parts"), sheet_path(out)
    check(sheet, SHEET)
    check(folder, PARTS)
    start = time.perf_counter()
    try:
        tasks = recipe.plan(scale, seed, **options)
    except TypeError as error:
        raise DataError(f"{recipe.name}: unknown or ill-typed option ({error})") from error
    settings = {
        "name": recipe.name,
        "revision": recipe.revision,
        "scale": scale,
        "seed": seed,
        "options": options,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_part_path(folder, recipe, task) for task in tasks]
    if recipe.costly and out.exists():
        _take_over(out, settings, tasks, paths)
    n_planned = len(tasks)
    if finished:
        paths = list(itertools.takewhile(lambda path: _open_part(path) is not None, paths))
        tasks = tasks[: len(paths)]
    else:
        _run_all(recipe, tasks, paths, jobs, progress)
    parts = [Structures.open(path) for path in paths]
    infos = [dict(part.info) for part in parts]
    kept = [part for part in parts if len(part)]
    if not kept:
        raise DataError(f"{recipe.name}: none of the {n_planned} parts gave a structure")
    if recipe.costly:
        kept_infos = {
            task["label"]: info | {"structures": len(part)}
            for task, info, part in zip(tasks, infos, parts, strict=True)
        }
    seconds = [info.pop("seconds") for info in infos]
    versions = [info.pop("versions") for info in infos]
    made = concatenate(kept)
    made.info = {
        "name": recipe.name,
        "title": recipe.title,
        "recipe": settings,
        "units": {"pos": "Å", "cell": "Å", "energy": "eV", "forces": "eV/Å"},
        "grid": GRID,
        "versions": _joined_versions(versions),
        "licence": "MIT",
        "systems": made.info["systems"],
        **recipe.describe(tasks, infos),
    }
    if recipe.costly:
        made.info["parts"] = kept_infos
    n_missing = n_planned - len(tasks)
    if n_missing:
        made.info["missing_parts"] = n_missing
        made.info["notes"] = [
            f"Not finished: {n_missing} of {n_planned} parts are still to be made.",
            *made.info["notes"],
        ]
    if recipe.arrange is not None:
        made = recipe.arrange(made)
    made.validate().save(out)
    cost = {"wall": time.perf_counter() - start, "work": sum(seconds), "jobs": jobs}
    write_sheet(sheet, recipe, made, out, cost)
    if not finished:
        _remove_parts(folder, paths)
    return made
