"""The generators of the embedded sets, and the committed sets themselves."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy_recipe import TOY, toy_work

from potkit.datasets import recipes
from potkit.datasets.recipes import ani_mini, common, sheet, tip3p_mini
from potkit.errors import DataError
from potkit.structures.store import Structures
from potkit.units import BOHR, BOLTZMANN, HARTREE

DATA = Path(__file__).resolve().parents[2] / "data"


def needs(*packages: str):
    """Marks a test that runs a generator; skipped where ``packages`` are not installed."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"needs potkit[generate]: {', '.join(missing)}")
    return lambda test: pytest.mark.generate(skip(test))


# -- the machinery, with a recipe that needs nothing ---------------------------------------------


def test_interrupted_generation_resumes_to_the_same_file(tmp_path):
    done: list[int] = []

    def interrupted(task: dict) -> Structures:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task["k"])
        return toy_work(task)

    def counted(task: dict) -> Structures:
        done.append(task["k"])
        return toy_work(task)

    out = tmp_path / "toy.h5"
    with pytest.raises(KeyboardInterrupt):
        common.generate(dataclasses.replace(TOY, work=interrupted), out, progress=False)
    assert not out.exists() and len(list((tmp_path / "toy.h5.parts").glob("*.h5"))) == 2
    # a damaged part is made again
    next((tmp_path / "toy.h5.parts").glob("*.h5")).write_bytes(b"cut")
    made = common.generate(dataclasses.replace(TOY, work=counted), out, progress=False)
    assert len(done) == 2 + 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.h5", "toy.md"]
    again = tmp_path / "again" / "toy.h5"
    common.generate(TOY, again, progress=False)
    assert out.read_bytes() == again.read_bytes()
    assert made.info["systems"] == ["part-0", "part-1", "part-3"] and len(made) == 6
    text = (tmp_path / "toy.md").read_text()
    assert sheet.sha256(out) in text and "Random numbers." in text and "4 parts." in text


@needs("rdkit", "tblite")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads processes from /proc")
def test_an_interrupted_generation_leaves_no_worker(tmp_path):
    """Also where only the parent hears of it, and parts take long."""
    line = [sys.executable, "-m", "potkit", "data", "make", "ani-mini"]
    line += ["--scale", "paper", "--jobs", "2", "--out", str(tmp_path / "big.h5")]
    made = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{made.pid}/task/{made.pid}/children")
    try:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("*.parts")) or len(children.read_text().split()) < 2:
            assert made.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        workers = children.read_text().split()
        time.sleep(2)
        made.send_signal(signal.SIGINT)
        said = made.communicate(timeout=30)[1]
        assert made.returncode and "Traceback" not in said
        end = time.monotonic() + 10  # multiprocessing's own tracker ends a moment later
        while [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < end, "a worker is alive"
            time.sleep(0.2)
    finally:
        if made.poll() is None:
            os.killpg(made.pid, signal.SIGKILL)


def test_settings_change_the_parts_that_are_reused(tmp_path):
    paths = {
        common._part_path(tmp_path, recipe, {"k": 0, "seed": seed})
        for recipe in (TOY, dataclasses.replace(TOY, revision=2))
        for seed in (0, 1)
    }
    assert len(paths) == 4


def test_folder_output(tmp_path):
    common.generate(TOY, tmp_path / "toy", progress=False)
    assert len(Structures.open(tmp_path / "toy")) == 6 and (tmp_path / "toy.md").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "ani-maxi"}, ["ani-maxi", "ani-mini", "tip3p-mini"]),
        ({"scale": 0}, ["scale", "0"]),
        ({"scale": "huge"}, ["scale", "huge"]),
        ({"scale": float("nan")}, ["scale", "nan"]),
        ({"jobs": 0}, ["jobs", "0"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"colour": "red"}, ["colour"]),
    ],
)
def test_wrong_arguments_get_one_line(tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(common, "require", lambda recipe: None)
    with pytest.raises(DataError) as caught:
        recipes.make(**{"name": "ani-mini", "out": tmp_path / "x.h5", "progress": False} | change)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_package_names_the_extra(tmp_path):
    needy = dataclasses.replace(TOY, packages=("numpy", "no_such_package"))
    fault = r"toy: no_such_package is not installed.*potkit\[generate\]"
    with pytest.raises(DataError, match=fault):
        common.generate(needy, tmp_path / "x.h5", progress=False)
    assert not list(tmp_path.iterdir())


def test_grid_is_exact_in_float32():
    values = np.random.default_rng(0).uniform(-40, 40, 1000)
    stored = common.on_grid(values)
    assert stored.dtype == np.float32 and np.abs(stored - values).max() <= common.GRID / 2
    assert (stored.astype(np.float64) / common.GRID % 1 == 0).all()


# -- normal modes on springs whose answer is known -----------------------------------------------


class Springs:
    """Atoms joined by springs of stiffness 1; called like `ani_mini.XTB`."""

    def __init__(self, *bonds: tuple[int, int, float]) -> None:
        self.bonds = bonds

    def __call__(self, positions):
        x = np.asarray(positions, float).reshape(-1, 3)
        energy = 0.0
        gradient = np.zeros_like(x)
        for i, j, length in self.bonds:
            d = x[i] - x[j]
            r = np.linalg.norm(d)
            energy += 0.5 * (r - length) ** 2
            gradient[i] += (r - length) * d / r
            gradient[j] -= (r - length) * d / r
        return energy, gradient


def test_normal_modes_of_a_linear_molecule():
    springs = Springs((0, 1, 1.0), (1, 2, 1.0))
    masses = np.array([16.0, 12.0, 16.0])
    positions = np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]]) + 3.0
    second = ani_mini.hessian(springs, positions)
    force_constants, modes = ani_mini.normal_modes(second, positions, masses)
    assert modes.shape == (4, 3, 3)  # 3N - 5
    np.testing.assert_allclose(np.linalg.norm(modes, axis=(1, 2)), 1)
    np.testing.assert_allclose(np.einsum("a,mak->mk", masses, modes), 0, atol=1e-10)  # no drift
    rotation = np.cross(positions - 3.0, masses[:, None] * modes).sum(1)
    np.testing.assert_allclose(rotation, 0, atol=1e-10)
    symmetric = modes[np.argmin(np.abs(force_constants - 1))]  # outer atoms apart: eᵀHe = 1
    np.testing.assert_allclose(np.abs(symmetric[:, 0]), [0.5**0.5, 0, 0.5**0.5], atol=1e-8)
    antisymmetric = np.array([1, -2 * 16 / 12, 1]) / np.linalg.norm([1, 2 * 16 / 12, 1])
    np.testing.assert_allclose(
        force_constants.max(), 2 * (antisymmetric[0] - antisymmetric[1]) ** 2, rtol=1e-4
    )


def test_a_saddle_point_is_left():
    bent = Springs((0, 1, 1.0), (1, 2, 1.0), (0, 2, 1.5))  # straight is stationary, bent is lower
    straight = np.array([[-0.9, 0, 0], [0, 0, 0], [0.9, 0, 0]])
    positions, energy, force_constants, modes = ani_mini.find_minimum(
        bent, straight, np.array([1.0, 12.0, 1.0])
    )
    assert energy < 1e-8 and modes.shape[0] == 3 and force_constants.min() > 0
    assert abs(np.linalg.norm(positions[0] - positions[2]) - 1.5) < 1e-3


def test_displacements_obey_the_formula():
    rng = np.random.default_rng(0)
    modes = np.linalg.qr(rng.normal(size=(12, 12)))[0][:6].reshape(6, 4, 3)
    force_constants = np.array([1e-3, 0.5, 1.0, 5.0, 20.0, 50.0])
    used = np.maximum(force_constants, ani_mini.K_FLOOR)
    drawn = [ani_mini.displacements(rng, force_constants, modes, 600.0) for _ in range(4000)]
    amplitudes = np.array([np.tensordot(modes, displacement, 2) for displacement in drawn])
    energy = 0.5 * (used * amplitudes**2).sum(1) / (1.5 * 4 * BOLTZMANN * 600.0)
    assert energy.max() <= 1 + 1e-9
    # uniform in [0, 1]
    assert abs(energy.mean() - 0.5) < 0.02 and abs(np.mean(energy < 0.25) - 0.25) < 0.03
    shares = 0.5 * used * (amplitudes**2).mean(0) / (1.5 * 4 * BOLTZMANN * 600.0)
    np.testing.assert_allclose(shares, 0.5 / 6, rtol=0.12)  # no mode is favoured
    assert np.abs(np.sign(amplitudes).mean(0)).max() < 0.06


# -- the molecules and the real generators -------------------------------------------------------


@needs("rdkit")
def test_the_molecule_list():
    from rdkit import Chem

    molecules = [Chem.MolFromSmiles(s) for s in ani_mini.MOLECULES]
    assert all(m is not None for m in molecules)
    assert len({Chem.MolToSmiles(m) for m in molecules}) == len(molecules) >= 300
    assert {a.GetSymbol() for m in molecules for a in m.GetAtoms()} == {"C", "N", "O"}
    assert all(1 <= m.GetNumHeavyAtoms() <= 8 and Chem.GetFormalCharge(m) == 0 for m in molecules)
    assert not any(a.GetNumRadicalElectrons() for m in molecules for a in m.GetAtoms())


@needs("rdkit", "tblite")
def test_ani_mini_is_the_same_for_any_number_of_jobs(tmp_path):
    settings = dict(scale=0.15, molecules=["O", "C#N", "[X", "CCO"], progress=False)
    made = recipes.make("ani-mini", tmp_path / "one.h5", jobs=1, **settings)
    recipes.make("ani-mini", tmp_path / "two.h5", jobs=2, **settings)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    other = recipes.make("ani-mini", tmp_path / "other.h5", seed=1, **settings)
    assert not np.array_equal(made.energy, other.energy)
    assert made.info["systems"] == ["O", "C#N", "CCO"] and list(made.info["failures"]) == ["[X"]
    assert np.bincount(made.system).tolist() == [3, 4, 6]  # round(0.15 · 10 · (heavy atoms + 1))
    for k, name in enumerate(made.info["systems"]):
        assert (made.energy[made.system == k] > made.info["minimum_energies"][name]).all()


@needs("rdkit", "tblite")
def test_ani_mini_labels_are_derivatives_at_the_stored_positions(tmp_path):
    made = recipes.make(
        "ani-mini", tmp_path / "x.h5", scale=0.1, molecules=["NC=O"], progress=False
    )
    rng = np.random.default_rng(0)
    for one in made:
        x = one.pos.astype(float)
        xtb = ani_mini.XTB(one.z, one.pos / BOHR)
        assert abs(xtb(x / BOHR)[0] * HARTREE - one.energy[0]) < 2e-6
        direction = rng.normal(size=x.shape)
        ahead, _ = xtb((x + 1e-3 * direction) / BOHR)
        behind, _ = xtb((x - 1e-3 * direction) / BOHR)
        slope = (ahead - behind) * HARTREE / 2e-3
        assert abs(slope + (direction * one.forces).sum()) < 2e-3


@needs("rdkit", "tblite")
def test_the_committed_structures_come_out_of_the_recipe(tmp_path):
    committed = Structures.open(DATA / "ani-mini.h5")
    names = ["NC=O", "C1CC1"]
    made = recipes.make("ani-mini", tmp_path / "x.h5", molecules=names, progress=False)
    if made.info["versions"] != committed.info["versions"]:
        pytest.skip(f"made with {committed.info['versions']}, here are {made.info['versions']}")
    systems = [committed.info["systems"].index(name) for name in names]
    rows = np.concatenate([np.flatnonzero(committed.system == system) for system in systems])
    stored = committed[rows]
    np.testing.assert_allclose(made.pos, stored.pos, atol=1e-3)
    np.testing.assert_allclose(made.energy, stored.energy, atol=1e-2)


@needs("rdkit", "tblite")
def test_nothing_made_is_an_error(tmp_path):
    with pytest.raises(DataError, match="none of the 1 parts"):
        recipes.make("ani-mini", tmp_path / "x.h5", molecules=["[X"], progress=False)
    assert not (tmp_path / "x.h5").exists()


@needs("tblite")
def test_free_atoms():
    """H at GFN2-xTB is -0.3935 Hartree (Bannwarth, Ehlert, Grimme 2019)."""
    energies = ani_mini.atomic_energies()
    assert abs(energies["H"] / HARTREE + 0.393483) < 1e-5
    assert set("HCNO") <= set(energies) and all(e < 0 for e in energies.values())


@needs("openmm")
@pytest.mark.parametrize("rigid", [True, False])
def test_tip3p_trajectory(tmp_path, rigid):
    made = recipes.make(
        "tip3p-mini",
        tmp_path / "x.h5",
        scale=0.03,
        seeds=1,
        equilibration_ps=0.02,
        rigid=rigid,
        progress=False,
    )
    assert len(made) == 2 and made.n_atoms.tolist() == [774, 774] and made.pbc.all()
    assert made.z[:6].tolist() == [8, 1, 1, 8, 1, 1]
    assert made.molecule[:6].tolist() == [0, 0, 0, 1, 1, 1]
    x = made.pos[:774].astype(float).reshape(-1, 3, 3)
    lengths = np.linalg.norm(x[:, 1:] - x[:, :1], axis=-1)
    assert np.abs(lengths - 0.9572).max() < (3e-4 if rigid else 0.2)
    assert (np.ptp(lengths) > 0.01) == (not rigid)
    assert ((x.mean(1) > -1) & (x.mean(1) < 21)).all()  # whole molecules in the cell
    label = tip3p_mini.Labeller(rigid)
    flat = x.reshape(-1, 3)
    energy, forces = label(flat)
    assert abs(energy - made.energy[0]) < 2e-6
    assert np.abs(forces - made.forces[:774]).max() <= common.GRID
    direction = np.random.default_rng(0).normal(size=flat.shape)
    direction /= np.linalg.norm(direction)
    ahead, _ = label(flat + 0.05 * direction)  # 1e-3 Å per coordinate
    behind, _ = label(flat - 0.05 * direction)
    assert abs((ahead - behind) / 0.1 + (direction * forces).sum()) < 2e-3
    image = flat.reshape(-1, 3, 3).copy()
    image[7] += [20.0, 0, -40.0]
    assert abs(label(image.reshape(-1, 3))[0] - energy) < 1e-5  # periodic


# -- the committed sets --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_committed_set_and_its_sheet_belong_together(name):
    text = (DATA / f"{name}.md").read_text()
    assert sheet.sha256(DATA / f"{name}.h5") in text
    made = Structures.open(DATA / f"{name}.h5")
    assert f"{len(made):,} of" in text
    assert made.info["recipe"]["revision"] == recipes.RECIPES[name].revision
    assert (DATA / f"{name}.h5").stat().st_size < 9.5e6
    for array in (made.pos, made.forces):
        assert (array.astype(np.float64) / common.GRID % 1 == 0).all()


def test_index_is_current():
    assert (DATA / "README.md").read_text() == sheet.index_text(DATA)


def test_committed_ani_mini():
    made = Structures.open(DATA / "ani-mini.h5").validate()
    assert len(made) >= 10_000
    assert len(np.unique(made.system)) >= 300
    assert made.elements == [1, 6, 7, 8]
    owner = np.repeat(np.arange(len(made)), made.n_atoms)
    net = np.stack([np.bincount(owner, made.forces[:, k]) for k in range(3)])
    assert np.abs(net).max() < 1e-3  # what rounding leaves
    lowest = np.array([made.info["minimum_energies"][n] for n in made.system_names()])[made.system]
    above = made.energy - lowest
    assert (above > 0).all() and above.max() < ani_mini.ENERGY_WINDOW
    free = np.zeros(9)
    free[[1, 6, 7, 8]] = [made.info["atomic_energies"][s] for s in "HCNO"]
    bound = (made.energy - np.bincount(owner, free[made.z])) / made.n_atoms
    assert bound.min() > -10 and bound.max() < -3  # eV per atom; a wrong unit would be far off
    assert 0.5 < np.sqrt(np.mean(made.forces.astype(float) ** 2)) < 2  # eV/Å
    for one in made[:: len(made) // 200]:
        gaps = ani_mini.distances(one.pos.astype(float))[np.triu_indices(len(one.z), 1)]
        assert 0.6 < gaps.min() < 1.6


def test_committed_tip3p_mini():
    made = Structures.open(DATA / "tip3p-mini.h5").validate()
    seeds = len(np.unique(made.system))
    assert seeds >= 5 and len(made) >= 50 * seeds and (made.n_atoms == 774).all() and made.pbc.all()
    assert (made.cell == np.eye(3) * 20.0).all()
    assert np.array_equal(made.molecule[:774], np.repeat(np.arange(258), 3))
    assert (made.z.reshape(-1, 3) == [8, 1, 1]).all()
    water = made.pos.astype(float).reshape(-1, 3, 3)
    assert np.abs(np.linalg.norm(water[:, 1:] - water[:, :1], axis=-1) - 0.9572).max() < 3e-4
    kelvin = list(made.info["mean_temperatures"].values())
    assert abs(np.mean(kelvin) - 300) < 5
    per_water = made.energy / 258
    assert per_water.min() > -0.46
    assert per_water.max() < -0.36
    assert abs(per_water.mean() + 0.41) < 0.01  # -9.5 kcal/mol
    # first peak of g(r) of oxygen: TIP3P has it at 2.77 Å (Jorgensen et al. 1983)
    edges = np.arange(2.4, 5.0, 0.05)
    pairs = np.triu_indices(258, 1)
    counts = 0.0
    for oxygen in water[:, 0].reshape(len(made), 258, 3)[:: len(made) // 40]:
        gap = oxygen[:, None] - oxygen
        gap -= 20.0 * np.round(gap / 20.0)
        counts = counts + np.histogram(np.linalg.norm(gap, axis=-1)[pairs], edges)[0]
    g = counts / (edges[1:] ** 3 - edges[:-1] ** 3)
    middle = (edges[1:] + edges[:-1]) / 2
    assert 2.7 < middle[g.argmax()] < 2.85
