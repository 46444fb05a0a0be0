"""`potkit md`: from a fine-tuned run to a trajectory, and one line for every mistake."""

from __future__ import annotations

import numpy as np
import pytest

import potkit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has seen labels of methane-like frames, enough for a few steps of dynamics."""
    from tiny import molecules

    folder = tmp_path_factory.mktemp("trained")
    model = potkit.build("egnn", hidden=8, layers=1, radial=4, cutoff=4.0, seed=0)
    config = potkit.TrainConfig(steps=3, batch_size=4, progress=False, device="cpu")
    potkit.finetune(model, molecules(12), molecules(4, seed=1), config, out=folder / "run")
    molecules(3, seed=2).save(folder / "start.h5")
    return folder


SHORT = "--steps 6 --every 2 --timestep 0.1 --temperature 50 --threads 1".split()


def test_from_a_run_to_a_trajectory(run, trained):
    arguments = ["md", trained / "run", "--start", trained / "start.h5", *SHORT]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "Simulation(runs/md: 6 steps" in out and "runs/md/trajectory.extxyz" in out
    frames = potkit.read("runs/md/trajectory.extxyz")
    assert len(frames) == 4
    start = potkit.Structures.open(trained / "start.h5")
    np.testing.assert_allclose(frames[:1].pos, start[2:3].pos, atol=1e-6)  # the last one
    code, again, err = run(*arguments)
    assert code == 0 and again == out and "not repeated" in err
    code, _, err = run(*arguments, "--frame", 0)
    assert code == 1 and "runs/md holds another simulation (different start" in err
    code, out, err = run(*arguments, "--frame", 0, "--out", "first", "--ensemble", "nve")
    assert code == 0 and "meV/atom/ps" in out, err


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--frame", 3], "--frame 3: "),
        (["--frame", -4], "--frame -4: "),
        (["--ensemble", "npt"], "ensemble must be nvt or nve"),
        (["--temperature", -3], "temperature must be a number"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--threads", 0], "threads must be a whole number"),
        (["--start", "nothing.xyz"], "'nothing.xyz' is neither"),
        (["--start", "water-mini", "--energy-unit", "eV"], "for files of your own"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(run, trained, tmp_path, wrong, said):
    given = {"--start": trained / "start.h5"}
    options = [x for pair in given.items() for x in pair] if "--start" not in wrong else []
    code, out, err = run("md", trained / "run", *options, *SHORT, *wrong)
    lines = err.strip().splitlines()
    assert code == 1 and not out and len(lines) == 1 and lines[0].startswith("error: ")
    assert said in lines[0], lines[0]
    assert not (tmp_path / "runs").exists()  # nothing half-written


def test_a_missing_run_and_one_without_energies(run, trained, tmp_path):
    from tiny import molecules

    code, _, err = run("md", "nowhere", "--start", trained / "start.h5")
    assert code == 1 and "nowhere: no such checkpoint" in err
    model = potkit.build("egnn", hidden=8, layers=1, radial=4, cutoff=4.0, seed=0)
    config = potkit.TrainConfig(steps=1, batch_size=4, progress=False, device="cpu")
    potkit.pretrain(model, molecules(8), potkit.Denoise(sigma=0.1), config, out=tmp_path / "pre")
    code, _, err = run("md", tmp_path / "pre", "--start", trained / "start.h5")
    assert code == 1 and "only pretrained" in err
