"""The guides: their commands and options exist, their code runs, and the walk on one's own data
runs as it is written, with fewer steps.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.main import get_command

import potkit
from potkit.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "guide").glob("*.md"))
GUIDES = [page for page in PAGES if page.parent.name == "guide"]
OWN_DATA = ROOT / "docs" / "guide" / "03-own-data.md"
FINE_TUNING = ROOT / "docs" / "guide" / "05-fine-tuning.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The potkit commands of a page's shell blocks, as words behind ``potkit``."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "potkit" in words and words[0] in ("potkit", "srun", "torchrun"):
                found.append(words[words.index("potkit") + 1 :])
    return found


SHOWN = [(page, words) for page in (*PAGES, ROOT / "README.md") for words in commands(page)]


@pytest.mark.parametrize(
    "page, words", SHOWN, ids=[f"{page.stem} {' '.join(words[:2])}" for page, words in SHOWN]
)
def test_commands_and_options_exist(page, words):
    command, rest = get_command(cli.app), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    assert not hasattr(command, "commands"), f"{page.name}: {' '.join(words)}: no such command"
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    unknown = [w for w in rest if w.startswith("-") and w.partition("=")[0] not in known]
    assert not unknown, f"{page.name}: potkit {' '.join(words)}: {unknown}"


def test_commands_were_found():
    assert len(SHOWN) > 30 and {page for page, _ in SHOWN} >= {OWN_DATA, FINE_TUNING}


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """The files that the guides speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    s = potkit.load("rmd17-mini")
    s = s[s.system == s.system[0]][:240]
    other = potkit.load("ani-mini")[:9:3]
    lines = []
    for part in (s, other):
        for i in range(len(part)):
            atoms = slice(part.ptr[i], part.ptr[i + 1])
            lines.append((part.z[atoms], part.pos[atoms], part.energy[i], part.forces[atoms]))

    def write(path, energy: str, forces: str, unit: float, labelled: bool = True) -> None:
        text = []
        for z, pos, e, f in lines:
            columns = f"species:S:1:pos:R:3:{forces}:R:3" if labelled else "species:S:1:pos:R:3"
            label = f" {energy}={e / unit:.9f}" if labelled else ""
            text += [str(len(z)), f"Properties={columns}{label}"]
            rows = np.hstack([pos, f / unit]) if labelled else pos
            for number, row in zip(z, rows, strict=True):
                symbol = {1: "H", 6: "C", 7: "N", 8: "O"}[int(number)]
                text.append(symbol + " " + " ".join(f"{x:.7f}" for x in row))
        Path(path).write_text("\n".join(text) + "\n")

    write("my.xyz", "energy", "forces", 1.0)
    write("named.xyz", "E_pbe", "F_pbe", potkit.units.KCAL_MOL)
    write("geometries.xyz", "", "", 1.0, labelled=False)
    return tmp_path


# the tour's last line needs a trained run; the README's test runs the same
WITH_CODE = [g for g in GUIDES if blocks(g, "python") and "tour" not in g.stem]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page, own_files, monkeypatch):
    """All Python of a guide, in order, on a small part of the sets, with two steps; blocks that
    begin with the name of a file are files.
    """
    monkeypatch.syspath_prepend(own_files)
    code = ""
    for block in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)\n", block):
            (own_files / named[1]).write_text(block)
        else:
            code += block
    code = re.sub(r"steps=\d+", "steps=2, progress=False, device='cpu'", code)
    whole = potkit.load
    monkeypatch.setattr(potkit, "load", lambda name: whole(name)[::60])
    exec(compile(code, page.name, "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("page", [OWN_DATA, FINE_TUNING], ids=lambda page: page.stem)
def test_commands_run_on_own_data(page, own_files, capsys):
    """The walk of a guide: every command ends with exit code 0."""
    (own_files / "curve.yaml").write_text(blocks(FINE_TUNING, "yaml")[0])
    (own_files / "test.xyz").write_text((own_files / "my.xyz").read_text())
    (own_files / "train.xyz").write_text((own_files / "my.xyz").read_text())
    done = 0
    for words in commands(page):
        if "--steps" in words:
            words[words.index("--steps") + 1] = "2"
        if words[0] in ("pretrain", "finetune"):
            words += ["--device", "cpu"]
        if words[0] == "finetune":
            words += ["--no-figures"]  # tested where they are drawn; each takes seconds
        if words[0] == "pretrain":
            words += ["--batch-size", "4"]
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        said = capsys.readouterr()
        assert (stop.value.code or 0) == 0, f"potkit {' '.join(words)}: {said.err}"
        if words[:2] == ["data", "check"]:
            assert re.search(r"sign and units of the labels +right", said.out)
        done += 1
    assert done >= 4


def test_units_of_the_table():
    """The guide's factors are those of the package."""
    table = dict(re.findall(r"^\| ([^|]+) \| ([0-9.]+) \|$", OWN_DATA.read_text(), re.MULTILINE))
    assert len(table) == 6
    for unit, value in table.items():
        assert float(value) == pytest.approx(potkit.units.factor(unit), rel=1e-5), unit


def test_yaml_of_the_guides_is_read():
    for page in GUIDES:
        for block in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(block), dict), page.name
