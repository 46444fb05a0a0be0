"""``potkit data …``: packing, checking, leakage and published splits from a shell."""

from __future__ import annotations

import warnings

import ase.io
import numpy as np
import pytest
from tiny import molecules, one_line, water

import potkit
from potkit.cli import main as cli
from potkit.cli.data import _beside, check_source
from potkit.datasets import splits
from potkit.datasets.reading import UnitWarning
from potkit.datasets.records import RECORDS
from potkit.errors import ConfigError
from potkit.structures.store import Structures


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Calls the command in an empty folder and returns exit code, stdout and the line on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(["data", *[str(a) for a in arguments]])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err.strip().splitlines()[-1] if err.strip() else ""

    return call


@pytest.mark.parametrize("name", [r.name for r in RECORDS if r.kind != "embedded"])
def test_everything_about_one_set(run, name):
    code, out, _ = run("list", name)
    record = next(r for r in RECORDS if r.name == name)
    assert code == 0
    facts = (record.title, record.level, record.licence, record.split, record.used_for)
    for word in (*facts, "@", record.source):
        assert word in out
    for file in record.files:
        assert file.path in out
        assert (file.checksum or "never published: the first download's is recorded") in out
        assert file.url is None or file.url in out


def test_unknown_set(run):
    known = ", ".join(r.name for r in RECORDS)
    assert f"unknown data set 'ani-7': known are {known}" in run("list", "ani-7")[2]


def test_convert_a_file_of_ones_own(run, tmp_path):
    whole = molecules(30)
    whole.save(tmp_path / "own.h5")
    assert "--out is needed to pack 'own.h5'" in run("convert", "own.h5")[2]
    assert "--out is for files of your own" in run("convert", "rmd17", "--out", "x")[2]
    line = run("convert", "none.h5", "--out", "x")[2]
    assert "'none.h5' is neither a file or folder nor a data set" in line
    code, out, _ = run("convert", "own.h5", "--out", "packed")
    assert code == 0 and out.strip() == "packed"
    assert np.array_equal(Structures.open(tmp_path / "packed").energy, whole.energy)
    line = run("convert", "rmd17")[2]
    assert "data set 'rmd17' is not on this machine: `potkit data fetch rmd17`" in line


def test_molecules_of_water_are_numbered_where_asked(run, tmp_path):
    boxes = water(2)
    ase.io.write(tmp_path / "boxes.xyz", boxes.to_ase(), columns=["symbols", "positions"])
    code, _, _ = run("convert", "boxes.xyz", "--out", "numbered", "--waters", "yes")
    assert code == 0
    numbered = Structures.open(tmp_path / "numbered")
    assert len(np.unique(numbered[0].molecule)) == numbered.n_atoms[0] / 3
    code, _, err = run("convert", "boxes.xyz", "--out", "wrong", "--waters", "maybe")
    assert code == 1 and one_line(err) and "--waters must be yes or no" in err


def test_boxes_narrower_than_twice_the_cutoff(run, tmp_path):
    s = water(3)  # boxes of 6.2 Å
    s.save(tmp_path / "boxes.h5")
    assert run("check", "boxes.h5", "--cutoff", "3.0")[0] == 0
    code, out, line = run("check", "boxes.h5", "--cutoff", "3.4")
    assert code == 1 and "boxes narrower than 2 × 3.4 Å" in out
    wide = "its periodic box is 6.20 Å wide, less than twice the cutoff of 3.4 Å"
    assert f"boxes.h5: structure 0: {wide} (3 of 3 structures)" in line
    assert (
        "--cutoff must be a positive number, got -1.0"
        in run("check", "boxes.h5", "--cutoff", "-1")[2]
    )


def test_check_reports_instead_of_stopping_at_the_first_fault(run, tmp_path):
    s = molecules(10)
    s.pos[3], s.energy[7] = np.nan, np.inf
    s.save(tmp_path / "ill.h5")
    code, out, line = run("check", "ill.h5")
    assert code == 1
    assert "structures 0" in out
    assert "structures 7" in out
    assert "ill.h5: the report above has rows that are bad" in line


def test_leakage(run, tmp_path):
    train, test = molecules(20), molecules(6, seed=5)
    train.save(tmp_path / "train.h5")
    test.save(tmp_path / "test.h5")
    code, out, _ = run("leakage", "train.h5", "test.h5")
    assert code == 0 and "0 of 6 structures" in out
    (test + train[[4, 9]]).save(tmp_path / "leaky.h5")
    code, out, line = run("leakage", "train.h5", "leaky.h5", "--out", "pairs.csv")
    assert code == 1 and "2 of 8 structures (25.00 %) are in both sets within 0.001 Å" in line
    assert (tmp_path / "pairs.csv").read_text().splitlines()[0] == "a,b,system"
    assert len((tmp_path / "pairs.csv").read_text().split()) >= 3


def test_published_split(run, tmp_path, reference_data):
    code, out, _ = run("split", "spice-dipeptides", "--by", "published", "--out", "s.npz")
    assert code == 0 and out.strip() == "s.npz: train 495, valid 55, test 50"
    from potkit.datasets import load

    s = load("spice-dipeptides")
    parts = splits.load_indices(tmp_path / "s.npz", s)
    assert len(np.concatenate(list(parts.values()))) == 600
    assert list(parts) == ["train", "valid", "test"]
    test = load("spice-dipeptides", files=["spice-dipep-dipolar_test.xyz"])
    assert np.array_equal(s[parts["test"]].energy, test.energy)
    line = run("split", "rpbe-water-sample", "--by", "published", "--out", "t.npz")[2]
    assert "has no published split; recommended: by structure" in line


def test_messages_are_single_lines(run, tmp_path):
    (tmp_path / "junk").write_bytes(b"\x00\x01junk")
    for arguments in (
        ("info", "junk"),
        ("check", "junk"),
        ("convert", "junk", "--out", "o"),
        ("leakage", "junk", "junk"),
    ):
        code, _, line = run(*arguments)
        assert code == 1 and "junk" in one_line(ValueError(line))
    assert not (tmp_path / "o").exists()


def test_leakage_reads_as_told(run, tmp_path):
    """Both files in Bohr; without the option atoms would lie nearly twice as far apart."""
    s = water(4)
    for name in ("a.xyz", "b.xyz"):
        lines = []
        for i in range(len(s)):
            atoms = slice(s.ptr[i], s.ptr[i + 1])
            lines += [str(atoms.stop - atoms.start), "Properties=species:S:1:pos:R:3"]
            lines += [
                ("H " if z == 1 else "O ") + " ".join(f"{x / 0.529177210544:.8f}" for x in p)
                for z, p in zip(s.z[atoms], s.pos[atoms], strict=True)
            ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    code, _, line = run("leakage", "a.xyz", "b.xyz", "--length-unit", "bohr", "--format", "extxyz")
    assert code == 1 and "4 of 4 structures" in line
    assert "has no option 'type_map'" in run("leakage", "a.xyz", "b.xyz", "--type-map", "O H")[2]
    line = run("leakage", "ani-mini", "ani-mini", "--length-unit", "bohr")[2]
    assert "--length-unit is for files of your own" in line


def test_a_file_in_doubtful_units_gets_a_line(run, tmp_path, capsys):
    """From a shell once, from Python as a warning."""
    atoms = "".join(
        f"atom {x} 0 0 {e} 0 0 0 0 0\n" for x, e in ((0, "O"), (0.96, "H"), (-0.96, "H"))
    )
    (tmp_path / "input.data").write_text(f"begin\n{atoms}energy -2000\ncharge 0\nend\n")
    for command in ("info", "check"):
        with pytest.raises(SystemExit):
            cli.main(["data", command, "input.data"])
        said = capsys.readouterr().err
        assert said.count("is length_unit=angstrom") == 1, said
        assert said.count("is energy_unit=eV") == 1 and "Warning" not in said
    with pytest.warns(UnitWarning, match="length_unit=angstrom"):
        potkit.read(tmp_path / "input.data")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potkit.read(tmp_path / "input.data", length_unit="angstrom", energy_unit="eV")


def test_registered_sets_beside_files_of_ones_own(run, tmp_path):
    molecules(30).save(tmp_path / "own.h5")
    line = run("info", "own.h5,")[2]
    assert "'own.h5,': a name is missing beside a comma" in line
    line = run("info", "ani-mini", "--format", "extxyz")[2]
    assert "--format is for files of your own; 'ani-mini' is a registered set" in line
    check_source("3bpa/train_300K")  # a part: no complaint before it is loaded
    with pytest.raises(ConfigError, match="neither a file or folder nor a data set"):
        check_source("4bpa/train_300K")
    with pytest.raises(ConfigError, match="--format is for files"):
        _beside("ani-mini", "tip3p-mini", "extxyz", None)
    assert len(_beside("tip3p-mini", "own.xyz", "extxyz", {"energy_unit": "ev"})) > 0
