"""The outside of the project: dependencies agree wherever they are written down, and the entry
points are there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import potkit
from potkit.datasets.records import RECORDS

NEEDED = [
    "jupyterlab",
    "papermill",
    "torch",
    "torch-geometric",
    "torch-scatter",
    "e3nn",
    "numpy",
    "pandas",
    "plotly",
    "nbval",
]


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def declared(project) -> dict[str, Requirement]:
    """Every package that pyproject names, in the core or an extra."""
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for entries in lists for text in entries]
    return {r.name: r for r in requirements if r.name != "potkit"}


@pytest.fixture(scope="module")
def environment(repository):
    return yaml.safe_load((repository / "environment.yml").read_text())


def pip_part(environment) -> list[str]:
    return next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))


def test_environment_installs_this_package_with_existing_extras(environment, project):
    editable = [line for line in pip_part(environment) if line.startswith("-e")]
    assert len(editable) == 1
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable[0]).group(1).split(",")
    assert {"notebooks", "generate", "test"} <= set(extras) <= set(project["optional-dependencies"])


def test_environment_agrees_with_pyproject(environment, declared):
    for line in pip_part(environment):
        if line.startswith("-") or line == "torch":
            continue
        requirement = Requirement(line)
        assert requirement.specifier == declared[requirement.name].specifier, line


def test_environment_names_every_wanted_package(environment, repository, declared):
    named = {Requirement(line).name for line in pip_part(environment) if not line.startswith("-")}
    # torch-scatter compiles against the installed torch, so it is a command in the file's head, not
    # an entry of the list
    head = (repository / "environment.yml").read_text().split("name:")[0]
    named |= set(re.findall(r"pip install --no-build-isolation (\S+)", head))
    assert set(NEEDED) <= named
    assert set(NEEDED) <= set(declared)


def test_environment_python_is_allowed(environment, project):
    from packaging.specifiers import SpecifierSet

    python = next(
        e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python=")
    )
    assert python.removeprefix("python=") in SpecifierSet(project["requires-python"])


def constraints(repository) -> dict[str, Requirement]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in requirements}


def test_exact_versions_stand_in_the_constraints_alone(declared, environment, repository):
    exact = constraints(repository)
    assert str(exact["torch"].specifier) == "==2.13.0"
    assert "-c constraints.txt" in pip_part(environment)
    for name, requirement in exact.items():
        (pin,) = requirement.specifier
        assert pin.operator == "==" and pin.version in declared[name].specifier
    pinned = {name for name, r in declared.items() if "==" in str(r.specifier)}
    assert pinned == {"ruff"}
    shown = dry_run(repository, "setup")
    assert '"torch==2.13.0"' in shown and "-c constraints.txt" in shown
    # first and alone, so that nothing else can bring another build of it
    assert shown.index('"torch==2.13.0"') < shown.index("-c constraints.txt")


def test_extra_all_holds_the_others(project):
    named = Requirement(project["optional-dependencies"]["all"][0]).extras
    assert named == set(project["optional-dependencies"]) - {"all", "scatter"}


def test_installed_packages_satisfy_pyproject(project):
    """What runs here is what pyproject allows; else a fresh clone would run something else."""
    from importlib.metadata import PackageNotFoundError, version

    groups = [
        project["dependencies"],
        *(project["optional-dependencies"][n] for n in ("notebooks", "generate", "test")),
    ]
    for text in [t for entries in groups for t in entries]:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue  # for another Python
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if text in project["dependencies"]:
                raise
            continue
        allowed = requirement.specifier.contains(installed, prereleases=True)
        assert allowed, f"{text} but {installed} is installed"


def test_version_stands_in_one_place(project):
    import potkit

    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", potkit.__version__)


def test_citation_names_both_papers(repository):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    by_doi = {entry["doi"]: entry for entry in citation["references"]}
    assert set(by_doi) == {"10.1021/acs.jctc.3c00289", "10.1063/5.0202647"}
    preprints = {i["value"] for entry in by_doi.values() for i in entry["identifiers"]}
    assert preprints == {"arXiv:2303.02216", "arXiv:2402.15921"}
    import potkit

    assert citation["version"] == potkit.__version__


def test_ci_calls_make_test(repository):
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")


def test_old_python_is_named(repository, tmp_path):
    """One line, before anything is made."""
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    fake.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "-s", "setup", f"PYTHON={fake}", f"VENV={venv}"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "potkit needs Python 3.11 or newer, found Python 3.9.1" in done.stdout + done.stderr
    assert not venv.exists()


def dry_run(folder: Path, target: str) -> str:
    """What `make` would do for a target where nothing is set up."""
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", target, "VENV=no-such-folder"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_make_test_lints_before_it_tests(repository):
    commands = dry_run(repository, "test")
    steps = [
        "ruff format --check potkit tests notebooks",
        "ruff check potkit",
        "-m sphinx",
        "-m pytest",
    ]
    assert [commands.find(step) for step in steps] == sorted(commands.find(s) for s in steps)
    assert all(step in commands for step in steps)


def test_quick_tests_are_there_and_leave_out_the_slow_ones(repository):
    command = dry_run(repository, "test-quick").splitlines()[-1]
    paths = re.findall(r"tests/\S+", command)
    assert '-m "not slow and not generate"' in command and len(paths) > 3
    assert [path for path in paths if not (repository / path).exists()] == []


def test_make_takes_every_notebook_whatever_its_number(repository, tmp_path):
    shutil.copy(repository / "Makefile", tmp_path)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    shutil.copy(repository / "constraints.txt", tmp_path)
    (tmp_path / "notebooks").mkdir()
    names = ["notebooks/01_first.ipynb", "notebooks/10_tenth.ipynb"]
    for name in names:
        (tmp_path / name).touch()
    for target in ("reproduce", "test"):
        assert all(name in dry_run(tmp_path, target) for name in names)


def test_one_ruff_is_pinned_and_installed_by_make(project, repository):
    (ruff,) = map(Requirement, project["optional-dependencies"]["lint"])
    assert ruff.name == "ruff" and re.fullmatch(r"==0\.\d+\.\*", str(ruff.specifier))
    extras = re.search(r'-e "\.\[([\w,]+)\]"', dry_run(repository, "setup"))[1].split(",")
    assert {"lint", "test", "notebooks"} <= set(extras)


def test_commit_hooks_use_the_tools_of_the_set_up(repository):
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"]
    assert [source["repo"] for source in hooks] == ["local"]
    entries = [hook["entry"].split()[0] for source in hooks for hook in source["hooks"]]
    assert {Path(entry).name for entry in entries} == {"ruff", "python"}
    assert all(entry.startswith(".venv/bin/") for entry in entries)


def test_no_machine_paths_or_hosts_in_the_outside(repository):
    files = [
        "pyproject.toml",
        "constraints.txt",
        "environment.yml",
        "Makefile",
        ".ci/run",
        "CITATION.cff",
        "CHANGELOG.md",
        ".gitignore",
        ".pre-commit-config.yaml",
        ".git-blame-ignore-revs",
        "CONTRIBUTING.md",
        "docs/architecture.md",
    ]
    text = "\n".join((repository / name).read_text() for name in files)
    assert not re.search(r"/(work|tmp|root|home)/|https?://", text)


# --- the wheel ----------------------------------------------------------------------------------

EMBEDDED = [r for r in RECORDS if r.kind == "embedded"]


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """The wheel that `python -m build` makes of a copy of the checkout: by way of the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy)
    for name in ("potkit", "data"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(repository / name, copy / name, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def surroundings(folder: Path) -> dict[str, str]:
    """An environment in which nothing leads to a checkout or to a user's data."""
    hidden = ("PYTHONPATH", "POTKIT_DATA", "POTKIT_REFERENCE_DATA")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, and what potkit needs from where the tests run."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, env=surroundings(folder))
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    # the packages that lie there, but not what their .pth files add: no editable potkit
    (Path(purelib) / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run_installed(folder: Path, *command: str) -> str:
    """What a command of the fresh environment prints, far from any checkout."""
    done = subprocess.run(
        [str(folder / "venv" / "bin" / command[0]), *command[1:]],
        cwd=folder,
        env=surroundings(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_package_is_in_the_wheel(wheel, repository):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [p for p in (repository / "potkit").rglob("*") if p.is_file()]
    files = [p.relative_to(repository).as_posix() for p in files if "__pycache__" not in p.parts]
    assert len(files) > 100 and [name for name in files if name not in names] == []
    data, inside = repository / "data", "potkit/datasets/embedded/"
    patterns = ("*.h5", "*.md", "weights/*.safetensors", "weights/*.json")
    sets = {p.relative_to(data).as_posix() for pattern in patterns for p in data.glob(pattern)}
    embedded = {n.removeprefix(inside) for n in names if n.startswith(inside)}
    assert embedded == sets and {r.read_from for r in EMBEDDED} <= embedded


def test_the_wheel_loads_embedded_sets_without_a_checkout(installed, repository):
    program = "\n".join(
        [
            "import potkit",
            "print(potkit.__file__)",
            "known = potkit.datasets.names()",
            "for name in known.name[known.kind == 'embedded']:",
            "    print(name, potkit.load(name).fingerprint())",
        ]
    )
    where, *lines = run_installed(installed, "python", "-c", program).splitlines()
    assert Path(where).is_relative_to(installed)
    expected = [f"{r.name} {potkit.load(r.name).fingerprint()}" for r in EMBEDDED]
    assert lines == expected


def test_the_command_of_the_wheel_lists_the_data(installed):
    listed = run_installed(installed, "potkit", "data", "list")
    lines = {line.split()[0]: line for line in listed.splitlines() if line.strip()}
    assert all("ready" in lines[r.name] for r in EMBEDDED), listed


def test_the_wheel_has_what_lies_beside_its_code(installed):
    """Tables and C++ sources that modules look for beside themselves."""
    program = "\n".join(
        [
            "from potkit import kernels, papers",
            "from potkit.structures import SYMBOLS",
            "beside = kernels.build.HERE.iterdir()",
            "sources = sorted(p.name for p in beside if p.suffix in ('.cpp', '.h'))",
            "print(SYMBOLS[1], len(papers.changes()) > 0, *sources)",
        ]
    )
    here = Path(potkit.__file__).parent / "kernels"
    sources = sorted(p.name for p in here.iterdir() if p.suffix in (".cpp", ".h"))
    printed = run_installed(installed, "python", "-c", program).split()
    assert printed == ["H", "True", *sources]
