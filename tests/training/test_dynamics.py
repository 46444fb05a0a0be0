"""Simulations: known dynamics, the same trajectory after an interruption, one line when the
structure blows up, and folders that are left alone.
"""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from springs import REST, STIFF, dimers, springs, water

import potkit
from potkit import MDConfig, simulate
from potkit.errors import ConfigError, DataError, Interrupted, SimulationError
from potkit.training import dynamics
from potkit.units import AMU, BOLTZMANN

NVE = MDConfig(ensemble="nve", temperature=0.0, timestep=0.25, steps=400, every=5)


def frames(done: dynamics.Simulation) -> potkit.Structures:
    return potkit.read(done.trajectory)


def same(a: dynamics.Simulation, b: dynamics.Simulation) -> bool:
    """Whether two simulations wrote the same, byte by byte."""
    names = ("trajectory.extxyz", "energies.csv")
    return all((a.path / n).read_bytes() == (b.path / n).read_bytes() for n in names)


# -- physics -------------------------------------------------------------------------------------
def test_a_harmonic_dimer_swings_as_it_must(tmp_path):
    """From rest and stretched: the length is a cosine of the known frequency, the energy kept."""
    stretch = 0.1
    done = simulate(springs(), dimers(1, REST + stretch), NVE, tmp_path / "md", progress=False)
    table = done.energies
    pos = np.array(frames(done).pos, float).reshape(-1, 2, 3)
    length = np.linalg.norm(pos[:, 1] - pos[:, 0], axis=1)
    reduced = 1.008 * 15.999 / (1.008 + 15.999) * AMU
    omega = np.sqrt(STIFF / reduced)  # 1/fs
    assert len(length) == 81 and omega * 100 > 2 * np.pi  # several periods
    # velocity Verlet swings a little faster than the bond: at this frequency, exactly
    of_verlet = 2 / NVE.timestep * np.arcsin(omega * NVE.timestep / 2)
    expected = REST + stretch * np.cos(of_verlet * 1000 * table["time_ps"])
    np.testing.assert_allclose(length, expected, atol=1e-5)
    total = table["total_eV"]
    assert total.iloc[0] == pytest.approx(STIFF / 2 * stretch**2, rel=1e-6)
    assert np.abs(total - total.iloc[0]).max() < 0.01 * total.iloc[0]
    assert table["kinetic_eV"].max() == pytest.approx(total.iloc[0], rel=0.02)
    assert "meV/atom/ps" in repr(done)


def test_the_thermostat_has_its_temperature(tmp_path):
    config = MDConfig(temperature=400, timestep=1.0, steps=1500, every=5, friction=0.1, seed=3)
    start = dimers(1)
    done = simulate(springs(), start, config, tmp_path / "md", progress=False)
    table = done.energies.iloc[20:]
    # six degrees of freedom and about 1.5 ps / 20 fs independent values: 7 % at one sigma
    assert table["temperature_K"].mean() == pytest.approx(400, rel=0.2)
    # one harmonic degree of freedom holds kT/2, the centrifugal force a little more
    assert table["potential_eV"].mean() == pytest.approx(BOLTZMANN * 400 / 2, rel=0.35)


def test_no_net_momentum_without_thermostat(tmp_path):
    config = MDConfig(ensemble="nve", temperature=300, steps=10, every=10)
    done = simulate(springs(), water(), config, tmp_path / "md", progress=False)
    from ase.io import read

    first = read(done.trajectory, 0)
    np.testing.assert_allclose(first.get_momenta().sum(0), 0, atol=1e-7)
    assert first.get_temperature() == pytest.approx(300, rel=1e-6)


def test_ase_and_potkit_read_the_trajectory(tmp_path):
    from ase.io import read

    done = simulate(springs(), dimers(1, 1.1), NVE, tmp_path / "md", progress=False)
    again = read(done.trajectory, ":")
    ours = frames(done)
    assert len(again) == len(ours) == 81
    np.testing.assert_allclose(ours.energy, done.energies["potential_eV"], atol=1e-7)
    np.testing.assert_allclose(again[7].get_forces(), ours[7].forces, atol=1e-6)
    assert again[7].info["step"] == 35


# -- going on ------------------------------------------------------------------------------------
@pytest.mark.parametrize("ensemble", dynamics.ENSEMBLES)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_simulation_goes_on_to_the_same(tmp_path, monkeypatch, ensemble, threads):
    config = MDConfig(ensemble=ensemble, steps=60, every=7)
    whole = simulate(
        springs(), water(), config, tmp_path / "whole", n_threads=threads, progress=False
    )

    taken = 0
    made = dynamics._dynamics

    def interrupted(*arguments):
        found = made(*arguments)
        step = found.step

        def counted():
            nonlocal taken
            taken += 1
            if taken == 33:
                signal.raise_signal(signal.SIGINT)
            return step()

        found.step = counted
        return found

    monkeypatch.setattr(dynamics, "_dynamics", interrupted)
    arguments = (springs(), water(), config, tmp_path / "broken")
    with pytest.raises(Interrupted, match="after step 33"):
        simulate(*arguments, n_threads=threads, progress=False)
    half = (tmp_path / "broken" / "energies.csv").read_text().splitlines()
    assert len(half) == 1 + 5  # header, steps 0, 7, 14, 21, 28
    again = simulate(*arguments, n_threads=threads, progress=False)
    assert taken == 60 and same(whole, again)


def test_a_killed_simulation_goes_on_from_its_last_state(tmp_path, monkeypatch):
    """Killed right after frames that no state knows of: they are cut off and made again."""
    monkeypatch.setattr(dynamics, "SECONDS", 0.0)
    config = MDConfig(steps=40, every=2)
    whole = simulate(springs(), water(), config, tmp_path / "whole", progress=False)

    class Killed(BaseException):
        pass

    stored = dynamics._Run._store

    def dies(self, atoms, step):
        stored(self, atoms, step)
        if step == 22:
            with self.trajectory.open("a") as file:
                file.write("3\nhalf a fra")
            raise Killed

    monkeypatch.setattr(dynamics._Run, "_store", dies)
    with pytest.raises(Killed):
        simulate(springs(), water(), config, tmp_path / "broken", progress=False)
    monkeypatch.setattr(dynamics._Run, "_store", stored)
    again = simulate(springs(), water(), config, tmp_path / "broken", progress=False)
    assert same(whole, again)


def test_a_finished_one_is_found_and_goes_on_to_more_steps(tmp_path, capfd):
    out = tmp_path / "md"
    short, long = MDConfig(steps=25, every=10), MDConfig(steps=60, every=10)
    simulate(springs(), water(), short, out)
    before = (out / "trajectory.extxyz").read_bytes()
    found = simulate(springs(), water(), short, out)
    assert "finished (25 steps), not repeated" in capfd.readouterr().err
    assert found.energies["step"].tolist() == [0, 10, 20, 25]
    assert (out / "trajectory.extxyz").read_bytes() == before
    more = simulate(springs(), water(), long, out)
    assert "goes on after step 25 of 60" in capfd.readouterr().err
    assert same(more, simulate(springs(), water(), long, tmp_path / "at once"))


# -- what goes wrong -----------------------------------------------------------------------------
def test_a_structure_that_blows_up_ends_with_one_line_and_keeps_its_frames(tmp_path):
    config = MDConfig(temperature=3000, steps=2000, every=5, timestep=1.0, friction=0.1)
    with pytest.raises(SimulationError) as caught:
        simulate(springs(stiff=1.0), water(), config, tmp_path / "md", progress=False)
    line = str(caught.value)
    assert "\n" not in line and "blew up at step" in line and "frames are kept" in line
    assert "broken" in line or "fused" in line
    steps = json.loads((tmp_path / "md" / "summary.json").read_text())["steps"]
    assert 0 < steps < 2000
    rows = dynamics.Simulation(tmp_path / "md", {}).energies
    assert rows["step"].iloc[-1] == steps
    with pytest.raises(SimulationError, match=f"blew up at step {steps} "):  # found, not repeated
        simulate(springs(stiff=1.0), water(), config, tmp_path / "md", progress=False)


def test_a_temperature_that_runs_away_is_named(tmp_path):
    # from a stretched spring: 0.9 eV in one bond are thousands of K
    config = MDConfig(ensemble="nve", temperature=0, timestep=0.1, steps=500, every=5)
    with pytest.raises(SimulationError, match=r"temperature is .* K, above 1500 K"):
        simulate(springs(stiff=20), dimers(1, 1.3), config, tmp_path / "md", progress=False)
    hotter = MDConfig(**{**vars(config), "max_temperature": 1e5})
    simulate(springs(stiff=20), dimers(1, 1.3), hotter, tmp_path / "hot", progress=False)


def test_predictions_that_are_no_numbers_are_named(tmp_path, monkeypatch):
    from potkit.training.ase_calculator import PotkitCalculator

    calls = 0
    calculate = PotkitCalculator.calculate

    def lost(self, *arguments):
        nonlocal calls
        calls += 1
        if calls > 20:
            raise DataError("the predicted energy or forces are not finite numbers")
        return calculate(self, *arguments)

    monkeypatch.setattr(PotkitCalculator, "calculate", lost)
    with pytest.raises(SimulationError, match=r"at step 20 .*not finite numbers; frames are kept"):
        simulate(springs(), water(), MDConfig(steps=50, every=5), tmp_path / "md", progress=False)
    table = dynamics.Simulation(tmp_path / "md", {}).energies
    assert table["step"].tolist() == [0, 5, 10, 15]


def test_a_structure_in_pieces_is_no_start(tmp_path):
    with pytest.raises(DataError, match=r"to start from: the atoms O0 and H1 are fused \(0.20 Å"):
        simulate(springs(), dimers(1, 0.2), NVE, tmp_path / "md", progress=False)
    assert list((tmp_path / "md").glob("*.json")) == []
    with pytest.raises(DataError, match="one structure, got 2"):
        simulate(springs(), dimers(2), NVE, tmp_path / "md")


def test_other_folders_are_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    with pytest.raises(DataError, match="and it holds thesis"):
        simulate(springs(), water(), NVE, mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    config = MDConfig(steps=5, every=5)
    simulate(springs(), water(), config, tmp_path / "md", progress=False)
    other = MDConfig(steps=5, every=5, seed=1)
    with pytest.raises(ConfigError, match=r"another simulation \(different config.seed\)"):
        simulate(springs(), water(), other, tmp_path / "md")
    with pytest.raises(ConfigError, match=r"different .*weights"):
        simulate(springs(stiff=9.0), water(), config, tmp_path / "md")
    with pytest.raises(ConfigError, match=r"different start"):
        simulate(springs(), dimers(1), config, tmp_path / "md")


@pytest.mark.parametrize(
    "wrong, culprit",
    [
        (dict(ensemble="npt"), "npt"),
        (dict(steps=0), "steps"),
        (dict(every=1.5), "every"),
        (dict(seed=-1), "seed"),
        (dict(temperature=-1.0), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(timestep=0.0), "timestep"),
        (dict(friction=True), "friction"),
        (dict(max_temperature=100.0), "max_temperature"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_settings_are_one_line(wrong, culprit):
    with pytest.raises(ConfigError, match=culprit) as caught:
        MDConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_friction_is_no_part_of_what_has_none():
    a, b = (MDConfig(ensemble="nve", friction=f).identity() for f in (0.1, 0.2))
    assert a == b
    a, b = (MDConfig(friction=f).identity() for f in (0.1, 0.2))
    assert a != b
