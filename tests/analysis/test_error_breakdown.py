"""Errors in groups: what is known of the whole must come out of its parts."""

from __future__ import annotations

import numpy as np
import pytest

import potkit
from potkit.analysis import error_breakdown
from potkit.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def case():
    """Structures of some molecules, and predictions with known errors."""
    structures = potkit.load("ani-mini")
    structures = structures[np.isin(structures.system, np.unique(structures.system)[:6])][::4]
    rng = np.random.default_rng(0)
    shift = structures.system * 0.1  # a constant of each molecule
    noise = rng.normal(0, 0.02, len(structures))
    forces = structures.forces + 0.1 * (structures.z == 1)[:, None]
    return structures, {"energy": structures.energy + shift + noise, "forces": forces}, noise


def test_a_constant_of_each_molecule_is_no_relative_error(case):
    structures, predicted, noise = case
    table = error_breakdown.breakdown(structures, predicted)
    for name, part in table.set_index("group").iterrows():
        own = structures.system == structures.system_names().index(name)
        shift = 0.1 * structures.system[own][0]
        assert part["structures"] == own.sum()
        assert part["energy_mae"] == pytest.approx(np.abs(shift + noise[own]).mean())
        left = noise[own] - noise[own].mean()
        if own.sum() > 1:
            assert part["relative_energy_mae"] == pytest.approx(np.abs(left).mean(), rel=1e-6)
        per_atom = np.abs(shift + noise[own]) / structures.n_atoms[own]
        assert part["energy_mae_per_atom"] == pytest.approx(per_atom.mean())
    assert table["energy_mae"].max() > 5 * table["relative_energy_mae"].max()


def test_only_hydrogen_is_wrong(case):
    structures, predicted, _ = case
    table = error_breakdown.breakdown(structures, predicted, "element").set_index("group")
    assert table.loc["H", "forces_mae"] == pytest.approx(0.1, rel=1e-4)
    assert table.drop("H")["forces_mae"].max() < 1e-6
    assert table["atoms"].sum() == len(structures.z)


@pytest.mark.parametrize("by", ["system", "size", "labels"])
def test_groups_make_the_whole(case, by):
    structures, predicted, _ = case
    labels = [f"{300 * (1 + i % 3)} K" for i in range(len(structures))]
    table = error_breakdown.breakdown(structures, predicted, labels if by == "labels" else by)
    assert table["structures"].sum() == len(structures)
    whole = np.abs(predicted["forces"] - structures.forces).mean()
    assert np.average(table["forces_mae"], weights=table["atoms"]) == pytest.approx(whole, rel=1e-6)
    if by == "labels":
        assert table["group"].tolist() == ["300 K", "600 K", "900 K"]
    if by == "size":
        assert 1 < len(table) <= 4 and all("atoms" in name for name in table["group"])


def test_sizes_that_are_asked_for(case):
    structures, predicted, _ = case
    most = int(structures.n_atoms.max())
    table = error_breakdown.breakdown(structures, predicted, "size", sizes=[1, most])
    assert table["group"].tolist() == [f"1 to {most - 1} atoms", f"{most} atoms"] or set(
        table["group"]
    ) == {f"1 to {most - 1} atoms", f"{most} atoms"}
    with pytest.raises(ConfigError, match="sizes begin at"):
        error_breakdown.breakdown(structures, predicted, "size", sizes=[most])


def test_a_molecule_with_one_structure_has_no_relative_energy():
    errors = error_breakdown.centred(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]))
    assert errors[:2].tolist() == [-1.0, 1.0] and np.isnan(errors[2])
    one = error_breakdown.energy_errors(np.array([2.0]), np.array([4]), np.array([0]))
    assert one["energy_mae_per_atom"] == 0.5 and np.isnan(one["relative_energy_mae"])


def test_evaluations_carry_all_three_energies(case):
    structures, _, _ = case
    model = potkit.build("egnn", preset="small", hidden=8, layers=1, radial=4, cutoff=3.0)
    found = potkit.evaluate(model, structures)
    assert found.energies()["energy_mae"] == pytest.approx(found.energy_mae)
    predicted = {"energy": found.structures["predicted_energy"].to_numpy()}
    table = error_breakdown.breakdown(structures, predicted).set_index("group")
    systems = found.systems.set_index("system")
    for column in ("energy_mae", "energy_mae_per_atom", "relative_energy_mae"):
        assert systems[column].to_dict() == pytest.approx(table[column].to_dict(), rel=1e-6)
    assert found.energies()["relative_energy_mae"] < found.energy_mae


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"by": "colour"}, ConfigError, "colour"),
        ({"by": [1, 2]}, ConfigError, "a label for each structure"),
        ({"by": "element", "predicted": {"energy": np.zeros(1)}}, DataError, "forces"),
    ],
)
def test_mistakes_are_named(case, change, error, word):
    structures, predicted, _ = case
    with pytest.raises(error, match=word):
        error_breakdown.breakdown(structures, **{"predicted": predicted} | change)


def test_temperatures_of_3bpa_by_the_order_of_its_file(reference_data):
    """Equipartition: 27 atoms hold (3N − 6)/2 kT of potential energy on average, so the thirds of
    the file lie 300 K and 900 K above the first.
    """
    mixed = potkit.read(reference_data / "3bpa" / "train_mixedT.xyz")
    kelvin = np.repeat([300, 600, 1200], [167, 167, 166])
    expected = (3 * 27 - 6) / 2 * 8.617333e-5
    means = [mixed.energy[kelvin == t].mean() for t in (300, 600, 1200)]
    assert means[1] - means[0] == pytest.approx(expected * 300, rel=0.15)
    assert means[2] - means[0] == pytest.approx(expected * 900, rel=0.15)
    drawn = mixed[np.random.default_rng(0).permutation(500)[:60]]
    found = error_breakdown.labels_by_geometry(drawn, mixed, kelvin)
    low, high = (drawn.energy[np.array(found) == t] for t in (300, 1200))
    assert low.max() < high.min() + 1.0 and len(low) + len(high) < 60
    predicted = {"energy": drawn.energy + 0.01, "forces": drawn.forces}
    table = error_breakdown.breakdown(drawn, predicted, [f"{t} K" for t in found])
    assert set(table["group"]) == {"300 K", "600 K", "1200 K"}
    with pytest.raises(DataError, match="is not in"):
        error_breakdown.labels_by_geometry(drawn, mixed[:5], kelvin[:5])


def test_structures_without_a_label_hide_no_others():
    """One energy and the forces of another structure are not known."""
    s = potkit.load("ani-mini")[:8]
    s.energy, s.forces = s.energy.copy(), np.asarray(s.forces).copy()
    predicted = {"energy": s.energy + 0.1, "forces": s.forces + 0.2}
    s.energy[0] = np.nan
    s.forces[s.ptr[1] : s.ptr[2]] = np.nan
    table = error_breakdown.breakdown(s, predicted, by=["all"] * 8)
    assert table["energy_mae"].item() == pytest.approx(0.1)
    assert table["forces_mae"].item() == pytest.approx(0.2, rel=1e-3)
    assert table["relative_energy_mae"].item() == pytest.approx(0.0, abs=1e-6)
