"""A user's mistake is one line that names the culprit, and leaves nothing half-written behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny import egnn, molecules, one_line

import potkit
from potkit import TrainConfig, errors
from potkit.errors import CheckpointError, ConfigError, DataError, PotkitError, TrainingError

TINY = TrainConfig(steps=2, batch_size=2, progress=False, device="cpu")


def refused(action, *words: str, kind: type = PotkitError) -> str:
    with pytest.raises(kind) as caught:
        action()
    text = one_line(caught.value)
    assert all(w in text for w in words), f"{words} not all in: {text}"
    return text


def test_every_kind_is_one_that_programs_and_notebooks_understand():
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert set(kinds) == {
        PotkitError,
        DataError,
        ConfigError,
        CheckpointError,
        TrainingError,
        errors.SimulationError,
        errors.Interrupted,
        errors.Busy,
    }
    for kind in kinds:
        assert kind("what is wrong")._render_traceback_() == [f"{kind.__name__}: what is wrong"]
    assert issubclass(DataError, ValueError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(TrainingError, RuntimeError)


# -- structures that cannot be trained on --------------------------------------------------------
def spoilt(how: str) -> potkit.Structures:
    s = molecules(6)
    at = int(s.ptr[3]) + 2  # third atom of structure 3
    if how == "NaN position":
        s.pos[at, 1] = np.nan
    elif how == "infinite force":
        s.forces[at, 0] = np.inf
    elif how == "NaN energy":
        s.energy[3] = np.nan
    elif how == "overlap":
        s.pos[at] = s.pos[at - 1] + [0.01, 0, 0]
    elif how == "same place":
        s.pos[at] = s.pos[at - 1]
    elif how == "empty":
        s = potkit.Structures(s.z, s.pos, np.insert(s.ptr, 3, s.ptr[3]))
    return s


SPOILT = {
    "NaN position": ["pos of structure 3, atom 2"],
    "infinite force": ["forces of structure 3, atom 2"],
    "empty": ["structure 3 has no atoms"],
    "NaN energy": ["energy of structure 3"],
    "overlap": ["atoms 1 and 2 of structure 3", "0.1 Å"],
    "same place": ["atoms 1 and 2 of structure 3"],
}


@pytest.mark.parametrize("role", ["train", "valid"])
@pytest.mark.parametrize("how", SPOILT)
def test_bad_structures_are_named_before_anything_is_written(tmp_path, how, role):
    bad, good, out = spoilt(how), molecules(6), tmp_path / "run"
    train, valid = (bad, good) if role == "train" else (good, bad)
    model = egnn()
    refused(
        lambda: potkit.pretrain(model, train, potkit.Denoise(), TINY, out, valid),
        *SPOILT[how],
        kind=DataError,
    )
    assert not out.exists()
    if bad.energy is not None:
        refused(lambda: potkit.finetune(model, train, valid, TINY, out=out), kind=DataError)
        assert not out.exists()


def test_overlap_across_a_periodic_boundary(tmp_path):
    s = potkit.Structures(
        [8, 1], [[0.02, 2, 2], [3.99, 2, 2]], [0, 2], cell=4 * np.eye(3)[None], pbc=[[True] * 3]
    )
    refused(
        lambda: potkit.pretrain(egnn(), s, potkit.Denoise(), TINY, tmp_path / "r"),
        "atoms 0 and 1 of structure 0",
    )


def test_atoms_that_no_element_has():
    for z in (0, 119, -1):
        refused(
            partial(potkit.Structures, [1, z], np.eye(2, 3), [0, 2]),
            "structure 0",
            f"atomic number {z}",
            kind=DataError,
        )


def test_arrays_that_do_not_fit():
    refused(
        lambda: potkit.Structures([1, 1], np.eye(3), [0, 2]),
        "pos",
        "(2, 3)",
        "(3, 3)",
        kind=DataError,
    )
    refused(
        lambda: potkit.Structures([1, 1], np.eye(2, 3), [0, 2], energy=[1, 2]),
        "energy",
        "(1,)",
        "(2,)",
        kind=DataError,
    )
    refused(
        lambda: potkit.Structures([1, 1], np.eye(2, 3), [0, 2], pbc=[[True] * 3]),
        "pbc",
        "cell",
        kind=DataError,
    )
    refused(lambda: molecules(3).batch([0, 7]), "7", "3", kind=DataError)


def test_a_periodic_box_without_volume(tmp_path):
    for pbc in ([True, True, True], [True, True, False]):
        s = potkit.Structures(
            [8, 1],
            np.eye(2, 3),
            [0, 2],
            cell=np.array([[[4.0, 0, 0], [8.0, 0, 0], [0, 0, 4.0]]]),
            pbc=[pbc],
        )
        train = partial(potkit.pretrain, egnn(), s, potkit.Denoise(), TINY, tmp_path / "r")
        refused(train, "no volume", kind=DataError)


def test_no_structures_at_all(tmp_path):
    refused(
        lambda: potkit.pretrain(egnn(), molecules(3)[:0], potkit.Denoise(), TINY, tmp_path / "r"),
        "no structures",
        kind=DataError,
    )


# -- files ---------------------------------------------------------------------------------------
def test_a_missing_file_is_named(tmp_path):
    for action in (
        lambda: potkit.read(tmp_path / "none.h5"),
        lambda: potkit.Structures.open(tmp_path / "none"),
    ):
        refused(action, "none", kind=DataError)
    refused(lambda: potkit.load("anni-mini"), "anni-mini")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_store_is_refused(tmp_path, share):
    whole = molecules(50).save(tmp_path / "whole.h5").read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole[: int(share * len(whole))])
    refused(lambda: potkit.Structures.open(cut), "cut.h5", kind=DataError)
    refused(lambda: potkit.read(cut), "cut.h5", kind=DataError)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_damaged_store_folder_is_refused(tmp_path, mmap):
    whole = molecules(5).save(tmp_path / "whole")

    def after(damage, *words):
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        damage(copy)
        refused(lambda: potkit.Structures.open(copy, mmap=mmap), "copy", *words, kind=DataError)
        shutil.rmtree(copy)

    after(lambda p: (p / "potkit.json").unlink())
    after(lambda p: (p / "potkit.json").write_text("{"))
    after(lambda p: (p / "potkit.json").write_text('{"version": 99, "info": {}}'), "99")
    after(lambda p: (p / "pos.npy").unlink(), "pos")
    after(lambda p: (p / "pos.npy").write_bytes(b""))
    after(lambda p: (p / "pos.npy").write_bytes((p / "pos.npy").read_bytes()[:-20]))
    after(lambda p: np.save(p / "more.npy", np.zeros(3)), "more")
    after(lambda p: np.save(p / "energy.npy", np.zeros(99)), "energy")


def test_a_store_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = molecules(3).save(tmp_path / "s.h5")
    before = path.read_bytes()
    s = molecules(4)
    s.info["systems"] = [object()]  # written as text, as JSON cannot hold it
    s.save(path)
    assert len(potkit.Structures.open(path)) == 4
    (tmp_path / "file").write_text("")
    refused(lambda: s.save(tmp_path / "file" / "s.h5"), "cannot be written", kind=DataError)
    assert path.read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "s.h5"]


def test_extxyz_frames_with_faults_are_named(tmp_path):
    head = "Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0\n"
    frame = f"2\n{head}C 0 0 0 0 0 0\nO 1.1 0 0 0 0 0\n"
    faults = {
        "energy": frame.replace("energy=-1.0", "energy=low"),
        "Qq": frame.replace("O 1.1", "Qq 1.1"),
        "finite": frame.replace("1.1", "nan"),
        "frame": frame[: len(frame) // 2],
    }
    for word, text in faults.items():
        path = tmp_path / "data.xyz"
        path.write_text(frame + text)
        refused(partial(potkit.read, path), "data.xyz", "frame 1", word, kind=DataError)


# -- settings and networks -----------------------------------------------------------------------
def test_networks_and_options_that_do_not_exist():
    refused(lambda: potkit.build("egn"), "'egn'", "egnn", kind=ConfigError)
    refused(
        lambda: potkit.build("egnn", preset="paper"), "'paper'", "denoise-paper", kind=ConfigError
    )
    refused(lambda: potkit.build("egnn", hiden=3), "'hiden'", "hidden", kind=ConfigError)
    for wrong in (
        dict(cutoff=0),
        dict(cutoff=-1.0),
        dict(cutoff=float("nan")),
        dict(layers=0),
        dict(hidden=0),
        dict(vector="gated"),
        dict(vector="sideways"),
        dict(forces="none"),
    ):
        refused(partial(potkit.build, "egnn", **wrong), kind=ConfigError)


def test_the_command_line_says_one_line_and_fails(tmp_path):
    """The real process, as a shell sees it: exit code 1, one line on stderr, nothing on disk."""
    root = Path(potkit.__file__).parents[1]
    molecules(4).save(tmp_path / "data.h5")
    command = [
        sys.executable,
        "-m",
        "potkit",
        "pretrain",
        "--data",
        "data.h5",
        "--objective",
        "masked",
        "--ratio",
        "1.5",
        "--out",
        "run",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "ratio must be in (0, 1], got 1.5" in lines[0], done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.h5"]
