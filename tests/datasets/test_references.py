"""Reference energies: tables, fits, round trips, and that a fit sees only what it is given."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from potkit import units
from potkit.datasets.references import ReferenceEnergies, isolated_atoms
from potkit.datasets.splits import split
from potkit.errors import DataError
from potkit.structures.elements import composition
from potkit.structures.store import Structures


def molecules(formulas: list[list[int]], energy: list[float] | None = None) -> Structures:
    z = np.concatenate([np.array(f) for f in formulas])
    ptr = np.cumsum([0] + [len(f) for f in formulas])
    return Structures(z, np.random.default_rng(0).normal(size=(len(z), 3)), ptr, energy=energy)


def test_isolated_atoms_by_level():
    for name in ("wB97X/6-31G(d)", "ωB97X/6-31g(d)"):
        table = isolated_atoms(name)
        assert table[6] == -37.8302333826 * units.HARTREE and sorted(table) == [1, 6, 7, 8]
    with pytest.raises(DataError, match=r"neither a file nor a level .*wB97X"):
        isolated_atoms("B3LYP/sto-3g")


def test_isolated_atoms_from_file(tmp_path):
    path = tmp_path / "atoms.xyz"
    path.write_text(
        "1\n"
        "Properties=species:S:1:pos:R:3 energy=-13.6\n"
        "H 0 0 0\n"
        "1\n"
        "Properties=species:S:1:pos:R:3 energy=-1029.5\n"
        "C 0 0 0\n"
    )
    assert isolated_atoms(path) == {1: -13.6, 6: -1029.5}
    path.write_text("2\nProperties=species:S:1:pos:R:3 energy=-27\nH 0 0 0\nH 0 0 1\n")
    with pytest.raises(DataError, match="structure 0 has 2 atoms"):
        isolated_atoms(path)


def test_composition_and_energy():
    s = molecules([[6, 1, 1, 1, 1], [8, 1, 1]], [0.0, 0.0])
    np.testing.assert_array_equal(composition(s), [[4, 1, 0], [2, 0, 1]])
    reference = ReferenceEnergies({1: -1.0, 6: -10.0, 8: -100.0})
    np.testing.assert_array_equal(reference.energy(s), [-14.0, -102.0])
    assert reference.energy(s).dtype == np.float64
    with pytest.raises(DataError, match=r"no reference energy for O .*structure 1.* H, C"):
        ReferenceEnergies({1: -1.0, 6: -10.0}).energy(s)


def test_fit_recovers_the_table():
    true = ReferenceEnergies({1: -13.6, 6: -1029.5, 8: -2041.9})
    formulas = [[6, 1, 1, 1, 1], [8, 1, 1], [6, 8], [6, 6, 1, 1], [8, 8]]
    s = molecules(formulas, true.energy(molecules(formulas)))
    fitted = ReferenceEnergies.fit(s)
    for z in true.table:
        assert fitted.table[z] == pytest.approx(true.table[z], abs=1e-8)


def test_fit_weighs_structures_as_plain_least_squares():
    rng = np.random.default_rng(1)
    formulas = [[6] * int(a) + [1] * int(b) for a, b in rng.integers(1, 6, (60, 2))]
    s = molecules(formulas, rng.normal(size=60))
    expected = np.linalg.lstsq(composition(s), s.energy, rcond=None)[0]
    fitted = ReferenceEnergies.fit(s)
    np.testing.assert_allclose([fitted.table[1], fitted.table[6]], expected, atol=1e-10)


def test_one_composition_is_met_exactly_and_stays_small():
    s = molecules([[6, 1, 1, 1, 1]] * 3, [-40.0, -41.0, -42.0])
    fitted = ReferenceEnergies.fit(s)
    np.testing.assert_allclose(fitted.energy(s), -41.0, atol=1e-10)
    # of all tables with h·4 + c = −41 the shortest: along (4, 1)
    np.testing.assert_allclose(
        [fitted.table[1], fitted.table[6]], np.array([4, 1]) * -41 / 17, atol=1e-10
    )
    prior = ReferenceEnergies({1: -1.0, 6: -30.0})
    near = ReferenceEnergies.fit(s, prior)
    np.testing.assert_allclose(near.energy(s), -41.0, atol=1e-10)
    np.testing.assert_allclose(
        [near.table[1] + 1, near.table[6] + 30], np.array([4, 1]) * -7 / 17, atol=1e-10
    )


def test_validation_and_test_energies_never_reach_the_references(tmp_path):
    """Fine-tuning twice, the second time with other energies in everything but the training part:
    the references are the same.
    """
    import potkit

    config = potkit.TrainConfig(steps=1, batch_size=2, progress=False, device="cpu")
    train = tiny.molecules(8, offset=-1000.0)
    valid = tiny.molecules(4, seed=1, offset=-1000.0)
    tables = []
    for k, shift in enumerate((0.0, 500.0)):
        valid.energy[:] += shift
        model = tiny.egnn()
        potkit.finetune(model, train, valid, config, out=tmp_path / f"run{k}")
        tables.append((model.references.clone(), model.scale.clone()))
    assert (tables[0][0] == tables[1][0]).all() and tables[0][1] == tables[1][1]
    expected = ReferenceEnergies.fit(train)
    for z, value in expected.table.items():
        assert float(tables[0][0][z]) == pytest.approx(value, rel=1e-6)


def test_a_split_is_fitted_on_its_first_part_only():
    s = molecules(
        [[6, 1, 1, 1, 1], [8, 1, 1], [6, 8], [6, 6, 1, 1], [8, 8]] * 6,
        np.random.default_rng(0).normal(size=30) - 500,
    )
    train, _, _ = s.split((0.8, 0.1, 0.1), seed=1)
    before = ReferenceEnergies.fit(train).table
    held = np.setdiff1d(np.arange(30), split(s, (0.8, 0.1, 0.1), seed=1)[0])
    s.energy[held] = 1e6
    train, _, _ = s.split((0.8, 0.1, 0.1), seed=1)
    assert ReferenceEnergies.fit(train).table == before
    assert ReferenceEnergies.fit(s).table != before


def test_isolated_atoms_of_a_data_set(reference_data):
    import potkit

    mini = potkit.load("ani-mini")[:50]
    own = ReferenceEnergies.isolated(mini)
    assert own.energy(mini) == pytest.approx(
        ReferenceEnergies.from_isolated("GFN2-xTB").energy(mini)
    )
    # the level of 3BPA has the name of ANI's, but another program's energies
    frames = potkit.load("3bpa")[:3]
    assert ReferenceEnergies.isolated(frames).table == isolated_atoms("wB97X/6-31G(d), 3BPA")
    alkanes = potkit.load("ani1-alkanes", files=["core/gdb_HC_s01.h5"])
    assert ReferenceEnergies.isolated(alkanes).table == isolated_atoms("wB97X/6-31G(d)")
    # also joined to another set of its level
    joined = alkanes + Structures(
        alkanes.z, alkanes.pos, alkanes.ptr, info={"name": "more", "level": "wB97X/6-31G(d)"}
    )
    assert ReferenceEnergies.isolated(joined).table == isolated_atoms("wB97X/6-31G(d)")
    with pytest.raises(DataError, match=r"different levels of theory: wB97X/6-31G\(d\), wB97X"):
        ReferenceEnergies.isolated(alkanes[:2] + frames)
    water = potkit.load("water-mini")[:2]
    with pytest.raises(DataError, match=r"water-mini.* H, O .*AMOEBA.*isolated_energies"):
        ReferenceEnergies.isolated(water)
    given = ReferenceEnergies.isolated(water, {"H": -1.0, "O": -2.0})
    assert given.table == {1: -1.0, 8: -2.0} and given.origin == "isolated atoms, given"


def test_every_way_to_choose():
    s = molecules([[6, 1, 1, 1, 1], [8, 1, 1]], [-40.0, -76.0])
    assert ReferenceEnergies.choose(s, "fit") == ReferenceEnergies.fit(s)
    assert ReferenceEnergies.choose(s, "least-squares") == ReferenceEnergies.fit(s)
    assert ReferenceEnergies.choose(s, "none").table == {1: 0.0, 6: 0.0, 8: 0.0}
    table = {"H": -1.0, "C": -2.0, "O": -3.0}
    assert ReferenceEnergies.choose(s, "isolated", table).table == {1: -1.0, 6: -2.0, 8: -3.0}
    assert 6 in ReferenceEnergies.choose(s, "wB97X/6-31G(d)").table
    with pytest.raises(DataError, match="neither a file nor a level"):
        ReferenceEnergies.choose(s, "isolatd")


def test_fit_needs_labels():
    with pytest.raises(DataError, match="labelled"):
        ReferenceEnergies.fit(molecules([[1]]))


def test_round_trip():
    reference = ReferenceEnergies({1: -13.6, 53: -8100.25}, "somewhere")
    again = ReferenceEnergies.from_dict(json.loads(json.dumps(reference.to_dict())))
    assert again == reference and again.origin == "somewhere"
    assert np.isnan(reference.array()[6]) and reference.array()[53] == -8100.25
    with pytest.raises(DataError, match="unknown element"):
        ReferenceEnergies.from_dict({"unit": "eV", "energies": {"Hx": 1.0}})
    with pytest.raises(DataError, match="expected 'eV'"):
        ReferenceEnergies.from_dict({"unit": "Hartree", "energies": {"H": 1.0}})


def test_real_isolated_atoms(reference_data):
    from potkit.datasets import read
    from potkit.datasets.references import LEVELS

    path = reference_data / "3bpa" / "iso_atoms.xyz"
    assert isolated_atoms(path) == LEVELS["wB97X/6-31G(d), 3BPA"]
    s = read(reference_data / "3bpa" / "train_300K.xyz")
    atomisation = (s.energy - ReferenceEnergies.from_isolated(path).energy(s)) / s.n_atoms
    # eV per atom, as organic molecules have
    assert -5.5 < atomisation.min() < atomisation.max() < -4.5
