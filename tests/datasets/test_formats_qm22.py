"""QM-22's zip archives: units, the sign of gradients, and what can be wrong."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from potkit.datasets import read
from potkit.datasets.formats import guess
from potkit.errors import DataError

# spelled out here, so that a wrong factor in potkit shows
HARTREE, BOHR = 27.211386, 0.52917721
FRAME = """\
    3
  -76.{k}
O   0.0   0.0   0.0   0.00   0.00   0.25
H   0.0   0.8   0.6   0.00  -0.03  -0.10
H   0.0  -0.8   0.6   0.00   0.03  -0.15
"""
TEXT = "".join(FRAME.format(k=40 + k) for k in range(3))


def zipped(path, text: str = TEXT, names=("Water.xyz",)):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, text)
    return path


def test_gradients_become_forces(tmp_path):
    path = zipped(tmp_path / "a.zip")
    assert guess(path) == "qm22"
    s = read(path, dtype=np.float64)
    assert len(s) == 3 and s.system_names() == ["Water"] and s.z[:3].tolist() == [8, 1, 1]
    assert s.energy[1] == pytest.approx(-76.41 * HARTREE, rel=1e-7)
    assert s.pos[1].tolist() == [0.0, 0.8, 0.6]
    assert s.forces[0, 2] == pytest.approx(-0.25 * HARTREE / BOHR, rel=1e-7)
    assert s.forces[1, 1] == pytest.approx(0.03 * HARTREE / BOHR, rel=1e-7)


def test_unpacked_it_is_read_where_the_format_is_named(tmp_path):
    path = tmp_path / "Water.xyz"
    path.write_text(TEXT)
    assert len(read(path, format="qm22")) == 3
    # the layout is sGDML's, which holds forces in kcal/mol/Å: by itself nobody can tell them apart
    with pytest.raises(DataError, match=r"frame 0: energy -76.4 is the size of Hartree.*'qm22'"):
        read(path)


@pytest.mark.parametrize(
    "text, message",
    [
        (TEXT[:-20], "frame 2, atom 2: expected 7 columns"),
        (TEXT.rsplit("\n", 2)[0] + "\n", "frame 2: the file ends after 2 of 3 atoms"),
        (TEXT.replace("-76.41", "E=1 F=2"), "frame 1: the line after the count"),
        (TEXT.replace("-76.41", "-76.41 0"), "frame 1: the line after the count"),
        (TEXT.replace("-76.41", "nan"), "frame 1: energy=nan is not a finite number"),
        (TEXT.replace("0.25", "inf"), "frame 0: gradient of atom 0 is not a finite number"),
        (TEXT.replace("-76.", "-2079."), "frame 0: energy -2079.4 is the size of ev"),
        (TEXT.replace("-76.", "-9."), "frame 0: energy -9.4 is the size of no unit"),
        (TEXT.replace("O  ", "Q  "), "frame 0: unknown element 'Q' at atom 0"),
    ],
)
def test_errors(tmp_path, text, message):
    path = zipped(tmp_path / "a.zip", text)
    with pytest.raises(DataError) as error:
        read(path, format="qm22")
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_archive_that_holds_something_else(tmp_path):
    path = zipped(tmp_path / "a.zip", names=("a.xyz", "b.xyz"))
    assert guess(path) is None
    with pytest.raises(DataError, match=r"needs one .xyz inside, holds a.xyz, b.xyz"):
        read(path, format="qm22")
    assert guess(zipped(tmp_path / "b.zip", TEXT.replace("-76.", "-47900."))) is None


def test_a_damaged_archive(tmp_path):
    path = zipped(tmp_path / "a.zip", TEXT * 200)
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(DataError, match="zip archive is damaged"):
        read(path, format="qm22")
