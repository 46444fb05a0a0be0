"""Running notebooks headlessly, and what a notebook needs in order to be run so.

How a notebook takes its parameters
-----------------------------------
The first code cell is tagged ``parameters`` and assigns literals only; ``None`` stands for "what
the profile says"::

    profile = "quick"  # smoke | quick | paper
    device = "auto"
    seeds = None
    steps = None

The next cell, or the next few, are tagged ``setup``. They turn parameters into the settings of this
run, and are where a wrong parameter stops the notebook with one line, before anything is trained::

    from potkit import notebooks
    run = notebooks.settings(
        profile,
        smoke=dict(seeds=[0, 1], steps=20),
        quick=dict(seeds=[0, 1, 2], steps=600),
        paper=dict(seeds=[0, 1, 2, 3], steps=200_000),
        seeds=seeds, steps=steps,
    )
    run  # shows a table; run.profile, run.seeds, run.steps from here on

`execute` (the command ``potkit run``) has papermill put new values behind the first cell. nbval
knows no parameters, therefore the environment variable POTKIT_PROFILE goes before the cell's
profile: ``make test`` executes the notebooks under nbval with POTKIT_PROFILE=smoke, while the
outputs stored in the repository are those of ``quick``. A cell whose output is to be compared
carries the comment ``# NBVAL_CHECK_OUTPUT`` on its first line and prints what no profile changes:
counts of embedded data, shapes, rounded estimators on whole sets, exact identities, ``True``.
"""

from __future__ import annotations

import ast
import copy
import html
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import ConfigError, DataError
from ..report import gallery
from ..structures.outputs import PART, Kind, check, check_folder, read_json, reason
from ..structures.settings import parse
from ..structures.storage import replacing, workspace

PROFILES = ("smoke", "quick", "paper")
STUDY = "study"  # only of notebooks that have stored runs to make again
COMMITTED_PROFILE = "quick"  # the one whose outputs are stored in the repository
CHECKED = "NBVAL_CHECK_OUTPUT"


class Settings(SimpleNamespace):
    """The settings of one notebook run as attributes; shown as a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in vars(self).items()
        )
        return f"<table><tr><th>setting</th><th>value</th></tr>{rows}</table>"


def check_profile(profile: str) -> str:
    """``profile`` itself, or ConfigError with the known ones."""
    known = (*PROFILES, STUDY)
    if profile not in known:
        raise ConfigError(f"profile {profile!r} is unknown; known: {', '.join(known)}")
    return profile


def settings(
    profile: str,
    *,
    smoke: dict,
    quick: dict,
    paper: dict,
    study: dict | None = None,
    **parameters: Any,
) -> Settings:
    """The settings of ``profile`` (POTKIT_PROFILE, if set, goes before it), each replaced by a
    parameter that is not None.

    The profiles must set the same names and ``parameters`` may only use these. A parameter must be
    a list where the profile has a list, a number where it has a number. Raises ConfigError
    otherwise, and for the profile study where the notebook has none.
    """
    profile = check_profile(os.environ.get("POTKIT_PROFILE") or profile)
    table = dict(smoke=smoke, quick=quick, paper=paper)
    if study is not None:
        table[STUDY] = study
    if profile not in table:
        raise ConfigError(f"this notebook has no profile {profile!r}; it has {', '.join(table)}")
    for name, values in table.items():
        if values.keys() != quick.keys():
            differing = ", ".join(sorted(values.keys() ^ quick.keys()))
            raise ConfigError(f"profiles quick and {name} do not set the same names: {differing}")
    chosen = dict(table[profile])
    for name, value in parameters.items():
        if name not in chosen:
            raise ConfigError(
                f"parameter {name!r} is not one of the profile's settings: {', '.join(chosen)}"
            )
        if value is None:
            continue
        if not _same_kind(chosen[name], value):
            raise ConfigError(
                f"parameter {name}={value!r} does not fit: expected something like {chosen[name]!r}"
            )
        chosen[name] = value
    return Settings(profile=profile, **chosen)


def _same_kind(expected: Any, value: Any) -> bool:
    kinds: tuple[tuple[type, ...], ...] = ((bool,), (int, float), (list, tuple), (str,), (dict,))
    for kind in kinds:
        if isinstance(expected, kind):
            return isinstance(value, kind) and (kind == (bool,) or not isinstance(value, bool))
    return True


# --- reading a notebook -------------------------------------------------------------------------


def read(path: str | Path) -> Any:
    """The notebook at ``path`` (nbformat 4). Raises DataError for a missing or unreadable file."""
    import nbformat

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such notebook")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds, all meaning the same to the user
        raise DataError(f"{path}: not a notebook ({_first_line(error)})") from error


def tagged(path: str | Path, tag: str) -> list[str]:
    """The sources of the code cells with ``tag``, in order. Raises DataError if there is none."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    sources = [cell.source for cell in cells if tag in cell.metadata.get("tags", [])]
    if not sources:
        raise DataError(f"{path}: no cell is tagged {tag!r}")
    return sources


def parameters(path: str | Path) -> dict[str, Any]:
    """Names and default values of the cell tagged ``parameters``. Raises DataError where there
    is no such cell.
    """
    return dict(_assignments(tagged(path, "parameters")[0], path))


def _assignments(source: str, path: str | Path) -> Iterator[tuple[str, Any]]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise DataError(
            f"{path}: the parameters cell is not Python (line {error.lineno}: {error.msg})"
        ) from error
    for statement in statements:
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [getattr(statement, "target", None)]
        )
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    yield target.id, ast.literal_eval(statement.value)
                except ValueError as error:
                    raise DataError(
                        f"{path}: parameter {target.id} must be a literal value"
                    ) from error


def parse_parameter(name: str, text: str, option: str = "-p") -> Any:
    """``text`` as YAML, so that numbers, '[0, 1]', 'true' and plain words mean what they look
    like; 1e-4 is a number, too.
    """
    value = parse(text, f"{option} {name}: {text!r}"[:200])
    if isinstance(value, str) and value == text:  # "1_000." and the like
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value


def find(patterns: Iterable[str | Path] = ()) -> list[Path]:
    """The notebooks that ``patterns`` name (files or globs), by default all of this repository's
    notebooks/.
    """
    patterns = [str(p) for p in patterns] or [str(_root() / "notebooks" / "*.ipynb")]
    notebooks: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        try:
            matches = [path] if path.is_file() else sorted(path.parent.glob(path.name))
        except ValueError:  # a pattern of no files, such as "."
            matches = []
        if not matches:
            raise DataError(f"{pattern}: no such notebook")
        notebooks += [path for path in matches if path not in notebooks]
    names = [path.name for path in notebooks]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{name}: named twice in different folders; "
                "the executed copies would overwrite each other"
            )
    return notebooks


def _root() -> Path:
    """The repository this module is installed from, or else the working directory."""
    above = Path(__file__).resolve().parents[2]
    return above if (above / "notebooks").is_dir() else Path.cwd()


# --- executing ----------------------------------------------------------------------------------


def _is_executed(path: Path) -> bool:
    """Whether `execute` made the notebook ``path``: papermill notes the parameters, and ours always
    hold the profile.
    """
    return read_json(path)["metadata"]["papermill"]["parameters"]["profile"] in (*PROFILES, STUDY)


EXECUTED = Kind("a notebook that `potkit run` executed", _is_executed)


@dataclass
class Outcome:
    """What became of one notebook: ``error`` is empty if it ran to its end."""

    notebook: str
    seconds: float
    error: str
    path: Path

    @property
    def status(self) -> str:
        """ "ok" or "failed"."""
        return "failed" if self.error else "ok"


_say = partial(print, flush=True)


def execute(
    notebooks: Iterable[str | Path] = (),
    profile: str = COMMITTED_PROFILE,
    values: dict[str, Any] | None = None,
    out: str | Path | None = None,
    inplace: bool = False,
    report: Callable[[str], None] = _say,
) -> list[Outcome]:
    """Execute notebooks one after the other with papermill; go on after a failure, and say what
    became of each.

    Executed copies go to ``out`` (default runs/notebooks/PROFILE), their figures to
    ``out``/figures; a given ``out`` also has their training runs (store/, unless POTKIT_RUNS names
    another) and tables (results/).

    With ``inplace`` the outputs are written back into the notebooks and the figures go to figures/,
    which is how the committed outputs are made; a notebook that fails, or was changed meanwhile, is
    left as it was. Every notebook is checked for its parameters before the first one starts.

    Raises ConfigError for an unknown profile or parameter, DataError for a missing notebook and
    where a copy would replace anything but an earlier executed copy.
    """
    values = dict(values or {})
    check_profile(profile)
    if inplace and (profile != COMMITTED_PROFILE or values):
        raise ConfigError(
            f"--inplace stores the outputs of profile {COMMITTED_PROFILE}, without other parameters"
        )
    if "profile" in values:
        raise ConfigError("profile is chosen by --profile, not by -p")
    paths = find(notebooks)
    for path in paths:
        known = parameters(path)
        for name in {"profile", *values} - known.keys():
            raise ConfigError(f"{path}: unknown parameter {name!r}; known: {', '.join(known)}")
    folder = Path(out) if out else _root() / "runs" / "notebooks" / profile
    figures = _root() / "figures" if inplace else folder / "figures"
    check_folder(folder)
    check_folder(figures)
    for path in paths:
        if (target := folder / path.name).exists() and target.samefile(path):
            raise ConfigError(
                f"{target}: the executed copy would replace the notebook itself; "
                "choose another folder with --out"
            )
        check(target, EXECUTED)
    if inplace:
        check(figures / "README.md", gallery.GALLERY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({reason(error)})") from error
    outcomes = []
    for number, path in enumerate(paths, start=1):
        report(f"[{number}/{len(paths)}] {path.name} (profile {profile}) ...")
        # the last one silences the debugger of the kernel, which otherwise warns about frozen
        # modules
        with _environment(
            POTKIT_PROFILE=profile,
            POTKIT_FIGURES=str(figures.resolve()),
            PYDEVD_DISABLE_FILE_VALIDATION="1",
            **_places(out),
        ):
            before = path.read_bytes()
            outcome = _execute_one(path, folder / path.name, {"profile": profile, **values})
        if inplace and not outcome.error:
            if path.read_bytes() == before:
                _write_back(outcome.path, path)
                outcome.path = path
            else:
                outcome.error = (
                    f"changed while it was executed; its outputs are in {_shown(outcome.path)}"
                )
        how = f"{outcome.status} after {outcome.seconds:.0f} s {outcome.error}".rstrip()
        report(f"[{number}/{len(paths)}] {path.name} {how}")
        outcomes.append(outcome)
    if inplace:
        gallery.write(figures)
    report(summary(outcomes))
    executed = path.parent if inplace else folder
    report(f"executed notebooks: {_shown(executed)}   figures: {_shown(figures)}")
    return outcomes


def _places(out: str | Path | None) -> dict[str, str]:
    """Where training runs and tables go when ``out`` is to hold everything; a store that the user
    names by POTKIT_RUNS stays the one.
    """
    if out is None:
        return {}
    folder = Path(os.path.realpath(out))
    store = os.environ.get("POTKIT_RUNS") or str(folder / "store")
    return {"POTKIT_RUNS": store, "POTKIT_RESULTS": str(folder / "results")}


def _execute_one(path: Path, target: Path, values: dict[str, Any]) -> Outcome:
    import papermill
    from traitlets.config import Config

    # sockets of the file system, not of the network: nobody else can reach the kernel, and it does
    # not warn that they could
    transport = Config(KernelManager={"transport": "ipc"}) if os.name == "posix" else Config()
    start = time.perf_counter()
    error = ""
    with workspace(target) as folder:
        executed = folder / target.name
        try:
            papermill.execute_notebook(
                str(path),
                str(executed),
                parameters=values,
                language="python",
                # the interpreter that runs this, whatever the notebook was made with
                kernel_name="python3",
                cwd=str(path.parent),
                progress_bar=False,
                config=transport,
            )
        except papermill.PapermillExecutionError as failure:
            error = f"cell {failure.exec_count}: {failure.ename}: {_first_line(failure.evalue)}"
        except Exception as failure:
            # a kernel that died or could not start must not stop the others
            error = f"{type(failure).__name__}: {_first_line(failure)}"
        try:
            _move_executed(executed, target)
        except DataError as failure:  # half of it, or none: the disk may be full
            error = error or str(failure)
    return Outcome(path.name, time.perf_counter() - start, error, target)


def _move_executed(executed: Path, target: Path) -> None:
    """Give a whole executed notebook its name. Raises DataError where it is not whole or there is
    no room.
    """
    import nbformat

    notebook = read(executed)
    notebook.metadata["papermill"]["output_path"] = str(target)
    with replacing(target, EXECUTED) as temporary:
        nbformat.write(notebook, temporary)


def summary(outcomes: list[Outcome]) -> str:
    """One line a notebook: name, duration, status, first error."""
    width = max((len(o.notebook) for o in outcomes), default=0)
    rows = [f"{'notebook':{width}}  {'duration':>9}  status  first error"]
    rows += [
        f"{o.notebook:{width}}  {o.seconds:7.1f} s  {o.status:6}  {o.error}".rstrip()
        for o in outcomes
    ]
    total = sum(o.seconds for o in outcomes)
    failed = sum(bool(o.error) for o in outcomes)
    return "\n".join([*rows, f"{len(outcomes)} notebooks in {total:.0f} s, {failed} failed"])


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _shown(path: Path) -> str:
    """``path`` as seen from the working directory where it lies below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# --- what is stored in the repository -----------------------------------------------------------

_PROGRESS_BAR = re.compile(r"\d+%\||\bit/s\b|\bs/it\b")


def clean(notebook: Any, roots: Iterable[Path] = ()) -> Any:
    """A copy without what differs from run to run or tells of the machine: timings, progress
    bars, injected cells, paths below ``roots``.
    """
    import nbformat

    notebook = copy.deepcopy(notebook)
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            continue
        cell.metadata = {
            key: value
            for key, value in cell.metadata.items()
            if key not in ("papermill", "execution")
        }
        if tags == []:
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress_bar(output)]
        cells.append(cell)
    notebook.cells = cells
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    count = 0
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{position:02d}"
        if cell.cell_type == "code" and cell.execution_count is not None:
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
            cell.outputs = _replace_paths(cell.outputs, [str(root) for root in roots])
    return nbformat.from_dict(notebook)


def _is_progress_bar(output: Any) -> bool:
    if output.output_type == "stream":
        return output.name == "stderr" and bool(_PROGRESS_BAR.search(output.text))
    data = output.get("data", {})
    return "application/vnd.jupyter.widget-view+json" in data and bool(
        _PROGRESS_BAR.search(str(data.get("text/plain", "")))
    )


def _replace_paths(value: Any, roots: list[str]) -> Any:
    if isinstance(value, str):
        for root in roots:
            value = value.replace(root + "/", "").replace(root, ".")
        return value
    if isinstance(value, list):
        return [_replace_paths(item, roots) for item in value]
    if isinstance(value, dict):
        return type(value)(
            {
                key: item if key == "image/png" else _replace_paths(item, roots)
                for key, item in value.items()
            }
        )
    return value


def _write_back(executed: Path, target: Path) -> None:
    import nbformat

    notebook = clean(read(executed), roots=[_root()])
    with replacing(target, PART) as temporary:
        nbformat.write(notebook, temporary)


def store() -> Path:
    """Where notebooks keep their training runs, shared by all of them: POTKIT_RUNS if set, else
    runs/store of the repository.
    """
    return Path(os.environ.get("POTKIT_RUNS") or _root() / "runs" / "store")


def results_folder(profile: str) -> Path:
    """Where a notebook's tables go: data/results where the figures go to figures/ (`potkit run
    --inplace`, JupyterLab), else results/ beside them; runs/results in profile smoke. With
    `potkit run --out`, below that folder.
    """
    if os.environ.get("POTKIT_RESULTS"):
        return Path(os.environ["POTKIT_RESULTS"])
    from ..report import figures as plots

    committed = plots.folder().resolve() == (_root() / "figures").resolve()
    if profile == "smoke":
        return _root() / "runs" / "results"
    return _root() / "data" / "results" if committed else plots.folder().parent / "results"


def command(notebook: str, profile: str) -> str:
    """What makes a notebook's tables anew."""
    return f"potkit run notebooks/{notebook}.ipynb --profile {profile} --inplace"


def keep(table: Any, name: str, notebook: str, profile: str) -> Path:
    """Store a notebook's result with its command, commit and hardware; returns the CSV's path.

    The folder is that of `results_folder`. A comparison's runs are stored by `results.keep_runs`.
    """
    from ..report import tables as report

    return report.store(table, name, command(notebook, profile), results_folder(profile))
