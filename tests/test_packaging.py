"""The outside of the project: dependencies agree wherever they are written down, and the entry
points are there.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

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
        if line.startswith("-e"):
            continue
        requirement = Requirement(line)
        assert requirement.specifier == declared[requirement.name].specifier, line


def test_environment_names_every_wanted_package(environment, repository, declared):
    named = {Requirement(line).name for line in pip_part(environment) if not line.startswith("-e")}
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


def test_torch_is_pinned_everywhere_alike(declared, environment, repository):
    assert str(declared["torch"].specifier) == "==2.13.0"
    assert "torch==2.13.0" in pip_part(environment)
    shown = subprocess.run(
        ["make", "-n", "setup", "VENV=no-such-folder"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert '"torch==2.13.0"' in shown.stdout, shown.stderr


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


def test_no_machine_paths_or_hosts_in_the_outside(repository):
    files = [
        "pyproject.toml",
        "environment.yml",
        "Makefile",
        ".ci/run",
        "CITATION.cff",
        "CHANGELOG.md",
        ".gitignore",
    ]
    text = "\n".join((repository / name).read_text() for name in files)
    assert not re.search(r"/(work|tmp|root|home)/|https?://", text)
