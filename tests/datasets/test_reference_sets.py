"""The reference sets, one by one: counts as recorded, units and signs by their physics, levels that
are kept apart, and what is said where they are not on this machine.
"""

from __future__ import annotations

import functools
import shutil

import numpy as np
import pytest

import potkit
from potkit.datasets import checks, duplicates, names, reference_sheet, registry, splits
from potkit.datasets.filters import unseen_formulas
from potkit.datasets.records import RECORDS
from potkit.datasets.references import ReferenceEnergies
from potkit.errors import ConfigError, DataError
from potkit.experiments.yaml_form import named_or_file
from potkit.structures.geometry import minimum_image

REFERENCE = [r for r in RECORDS if r.kind == "reference"]
LABELLED = [r for r in REFERENCE if r.forces]
# pseudopotentials, or energies relative to something: no total energies of all electrons
OTHER_ZERO = ("spice-dipeptides", "rpbe-d3-water-192", "scan-water")


@pytest.fixture(scope="module")
def loaded(reference_data):
    """`potkit.load`, once for each name."""
    return functools.cache(potkit.load)


def stretching(s, heavy: int, most: int = 300):
    """−dF/dd (eV/Å²) of the force on hydrogen along its bond to the element ``heavy``, and its
    correlation with the length of the bond; None where there are not enough bonds.
    """
    lengths, forces = [], []
    for i in np.random.default_rng(0).permutation(len(s))[:most]:
        atoms = slice(s.ptr[i], s.ptr[i + 1])
        z, pos = s.z[atoms], np.asarray(s.pos[atoms], float)
        hydrogen, other = np.flatnonzero(z == 1), np.flatnonzero(z > 1)
        if not len(hydrogen) or not len(other):
            continue
        cell = None if s.cell is None else s.cell[i]
        step = minimum_image(pos[hydrogen][:, None] - pos[other], cell, s.pbc[i])
        distance = np.linalg.norm(step, axis=-1)
        partner = distance.argmin(1)
        rows = np.arange(len(hydrogen))
        d = distance[rows, partner]
        along = (s.forces[atoms][hydrogen] * step[rows, partner]).sum(-1) / d
        chosen = z[other[partner]] == heavy
        lengths.append(d[chosen])
        forces.append(along[chosen])
    d, f = np.concatenate(lengths), np.concatenate(forces)
    near = np.abs(d - np.median(d)) < 0.1 if len(d) else np.zeros(0, bool)
    if near.sum() < 100:
        return None
    return -np.polyfit(d[near], f[near], 1)[0], np.corrcoef(d[near], f[near])[0, 1]


@pytest.mark.parametrize("r", LABELLED, ids=lambda r: r.name)
def test_forces_stretch_bonds_as_chemistry_has_it(r, loaded):
    """C–H has about 30 eV/Å² (5 mdyn/Å), O–H 36 in liquid water to 51 free: a wrong unit is a
    factor of 1.9 to 50 away, a gradient has the other sign.
    """
    s = loaded(r.name)
    carbon, oxygen = stretching(s, 6), stretching(s, 8)
    assert carbon or oxygen
    reactive = r.name.startswith("transition1x")  # bonds that are being broken are softer
    if carbon:
        assert (10 if reactive else 26) < carbon[0] < 36 and carbon[1] < -0.6
    if oxygen:
        assert (20 if reactive else 33) < oxygen[0] < 55 and oxygen[1] < -0.6
    force = np.abs(s.forces).max()
    assert 3 < force < 90, f"{force} eV/Å"
    shortest = checks.shortest_distances(s, np.arange(min(len(s), 100)))
    assert 0.6 < shortest.min() < 1.2


@pytest.mark.parametrize(
    "r", [r for r in LABELLED if r.name not in OTHER_ZERO], ids=lambda r: r.name
)
def test_energies_are_those_of_bound_atoms(r, loaded):
    """Total energies lie 2.5 to 6.5 eV per atom below those of free atoms, whichever functional."""
    s = loaded(r.name)
    light = [set(s.z[a:b].tolist()) <= {1, 6, 7, 8} for a, b in zip(s.ptr, s.ptr[1:], strict=False)]
    s = s[np.array(light)]
    free = ReferenceEnergies.from_isolated("wB97X/6-31G(d)").energy(s)
    bound = (s.energy - free) / s.n_atoms
    assert len(s) >= 20 and bound.min() > -6.5 and bound.max() < -2.5


@pytest.mark.parametrize(
    "name", ["md17-ethanol/mlff_ethanol", "qm22-ethanol", "qm22-n-methylacetamide"]
)
def test_forces_are_the_slope_of_the_energies(name, loaded):
    slope, correlation, pairs = checks.force_slope(loaded(name), per_system=12_000)
    assert slope == pytest.approx(1.0, abs=0.05) and correlation > 0.98 and pairs >= 50


def test_two_levels_of_one_file_are_two_sets(loaded):
    for one, other, energy, force in (
        ("ani1x-tz-1k", "ani1x-1k", 12.6, 0.18),
        ("transition1x-1k", "transition1x-1k-recomputed", 0.14, 0.03),
    ):
        a, b = loaded(one), loaded(other)
        assert np.array_equal(a.pos, b.pos) and a.info["level"] != b.info["level"]
        # the same units, or forces would be 27 times apart
        assert 0.5 * energy < np.abs(a.energy - b.energy).max() < energy
        assert 0.5 * force < np.sqrt(np.mean(np.square(a.forces - b.forces))) < force
        assert np.corrcoef(a.forces.ravel(), b.forces.ravel())[0, 1] > 0.98
        assert a.fingerprint() != b.fingerprint()


def test_the_one_bad_structure_of_transition1x(loaded):
    a, b = loaded("transition1x-1k"), loaded("transition1x-1k-recomputed")
    apart = np.maximum.reduceat(np.abs(a.forces - b.forces).max(1), a.ptr[:-1])
    assert apart.argmax() == 255 and 2.5 < apart[255] < 2.6 and np.sort(apart)[-2] < 0.028
    # the published one is an excited solution
    assert a.energy[255] - b.energy[255] == pytest.approx(0.136, abs=1e-3)
    net = [np.abs(np.add.reduceat(s.forces.astype(float), s.ptr[:-1])).max() for s in (a, b)]
    assert 0.03 < net[0] < 0.04 and net[1] < 1e-4


def test_rpbe_with_and_without_dispersion(loaded):
    plain, with_d3 = loaded("rpbe-water-n2p2"), loaded("rpbe-d3-water-n2p2")
    assert (plain.info["level"], with_d3.info["level"]) == ("RPBE", "RPBE-D3")
    assert plain.pbc.all() and with_d3.pbc.all()
    shared = splits.leakage(plain, with_d3)
    assert shared[["a", "b"]].to_numpy().tolist() == [[233, 38]]
    waters = with_d3.n_atoms[38] / 3
    assert (with_d3.energy[38] - plain.energy[233]) / waters == pytest.approx(-0.232, abs=1e-3)
    assert len(splits.leakage(plain, loaded("rpbe-water-sample"))) == 1
    for s, dissociated in ((plain, 17), (with_d3, 1)):
        whole = [
            s.molecule[a:b].max() == (b - a) // 3 - 1
            for a, b in zip(s.ptr, s.ptr[1:], strict=False)
        ]
        assert whole.count(False) == dissociated


@pytest.mark.parametrize(
    "name, per_water, density", [("rpbe-d3-water-192", -14.6, 1.0), ("scan-water", -467.4, 1.0)]
)
def test_boxes_of_64_waters(name, per_water, density, loaded):
    s = loaded(name)
    assert s.z.reshape(len(s), -1)[0].tolist().count(8) == 64
    assert s.molecule.reshape(len(s), -1).max(1).tolist() == [63] * len(s)
    assert s.energy / 64 == pytest.approx(per_water, abs=0.2)
    grams = 64 * 18.015 / 6.02214e23  # g
    cm3 = np.abs(np.linalg.det(s.cell)) * 1e-24
    assert grams / cm3 == pytest.approx(density, abs=0.1)


def test_geometries_without_labels_pretrain_a_network(loaded, tmp_path):
    s = loaded("spice-monomers-hcno")
    assert len(s) == 11_600 and s.energy is None and s.forces is None
    # half the bonds would be too long or too short if elements followed the text of the SMILES
    for i in range(0, len(s), 500):
        z = s.z[s.ptr[i] : s.ptr[i + 1]]
        pos = s.pos[s.ptr[i] : s.ptr[i + 1]].astype(float)
        distance = np.linalg.norm(pos[:, None] - pos, axis=-1) + 9 * np.eye(len(z))
        hydrogen = np.flatnonzero(z == 1)
        nearest = distance[hydrogen].min(1)
        assert (nearest > 0.85).all() and (nearest < 1.3).all()
        assert (z[distance[hydrogen].argmin(1)] > 1).all()
    model = potkit.build("egnn", preset="small", layers=1, hidden=8)
    config = potkit.TrainConfig(steps=2, batch_size=4, device="cpu")
    run = potkit.pretrain(model, s[:40], potkit.Denoise(sigma=0.1), config, out=tmp_path / "run")
    assert run is not None
    with pytest.raises(DataError, match="energ"):
        potkit.finetune(model, s[:20], s[20:40], config, out=tmp_path / "fine")


def test_waters_without_labels_are_molecules(loaded):
    s = loaded("spice-conformers-unlabelled/spu_water60")
    assert len(s) == 1000 and (s.n_atoms == 180).all() and s.info["name"].endswith("/spu_water60")
    z, molecule = s.z[:180], s.molecule[:180]
    assert np.bincount(molecule).tolist() == [3] * 60
    pos = s.pos[:180].astype(float)
    for k in range(60):
        oxygen = pos[(molecule == k) & (z == 8)]
        hydrogen = pos[(molecule == k) & (z == 1)]
        assert np.linalg.norm(hydrogen - oxygen, axis=1) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("name", ["ani1x-1k", "ani1x-tz-1k", "transition1x-1k", "spice-subsets"])
def test_a_split_by_system_leaves_unseen_formulas(name, loaded):
    s = loaded(name)
    train, test = s.split([0.8, 0.2], seed=0, by="system")
    assert len(train) > len(test) > 20
    assert len(unseen_formulas(test, train)) == len(test)


def test_formulas_that_the_embedded_set_has_as_well(loaded):
    mini = loaded("ani-mini")
    for name, unseen, shared in (("ani1x-1k", 729, 109), ("transition1x-1k", 228, 87)):
        s = loaded(name)
        rest = unseen_formulas(s, mini)
        assert len(rest) == unseen
        assert len(np.unique(s.system)) - len(np.unique(rest.system)) == shared
    assert len(unseen_formulas(loaded("md17-ethanol"), mini)) == 0
    assert len(unseen_formulas(loaded("3bpa"), mini, loaded("spice-monomers-hcno"))) == 1000
    with pytest.raises(ConfigError, match="needs the sets"):
        unseen_formulas(mini)


def test_what_is_in_two_places(loaded):
    """The overlaps that the records tell of."""
    one = loaded("md17-ethanol/md17_ethanol_sample")
    other = loaded("md17-ethanol/mlff_ethanol")
    assert len(one) == len(other) == 2000 and len(splits.leakage(one, other)) == 3
    hot = loaded("3bpa/train_mixedT")
    assert len(np.unique(splits.leakage(loaded("3bpa/train_300K"), hot)["b"])) == 31
    thirds = [energy.mean() for energy in np.array_split(hot.energy - hot.energy.min(), 3)]
    assert thirds == sorted(thirds) and thirds[2] > 5 * thirds[0]  # by temperature
    dipeptides = loaded("spice-dipeptides/train")
    assert len(splits.leakage(loaded("spice-subsets/spice_dipeptides"), dipeptides)) == 2


def test_one_file_of_ethanol_is_a_sample_and_the_other_a_trajectory(loaded):
    sample, successive = (
        loaded(f"md17-ethanol/{part}") for part in ("md17_ethanol_sample", "mlff_ethanol")
    )
    assert np.median(duplicates.steps_in_time(sample)) > 0.3
    assert np.median(duplicates.steps_in_time(successive)) == pytest.approx(0.012, abs=1e-3)
    train, test = sample.split([0.5, 0.5], seed=0)
    from_time = splits.leakage_by_distance(train, test, trajectory=successive)
    assert "0 % lie nearer to training than that" in from_time.attrs["message"]
    train, test = successive.split([0.5, 0.5], seed=0)
    beside = splits.leakage_by_distance(train, test, trajectory=successive)
    assert np.median(beside.attrs["distances"]) < 0.02


def test_parts_by_name(loaded):
    whole, part = loaded("3bpa"), loaded("3bpa/train_300K")
    assert len(part) == 500 and part.info["name"] == "3bpa/train_300K"
    assert np.array_equal(part.energy, whole.energy[:500])
    assert np.array_equal(loaded("3bpa/test").energy, whole.energy[500:])
    assert np.array_equal(loaded("3bpa/train_mixedT.xyz").energy, whole.energy[500:])
    for text in ("3bpa", "3bpa/test", "3bpa/train_300K"):
        assert registry.is_name(text)
        assert np.array_equal(named_or_file(text).energy, loaded(text).energy)
    with pytest.raises(ConfigError, match=r"'3bpa' has no part 'x' .it has: train, train_300K, "):
        potkit.load("3bpa/x")
    with pytest.raises(ConfigError, match=r"'ani-mini' has no part 'train' .it has: none"):
        potkit.load("ani-mini/train")
    with pytest.raises(ConfigError, match="names a part already"):
        potkit.load("3bpa/test", files=["train_300K.xyz"])
    with pytest.raises(ConfigError, match="has no part 'iso_atoms'"):
        potkit.load("3bpa/iso_atoms")
    with pytest.raises(ConfigError, match="unknown data set '4bpa'"):
        potkit.load("4bpa/test")


def test_a_file_goes_before_a_part_of_the_same_name(reference_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert registry.is_name("3bpa/train_300K.xyz") and not registry.is_name("4bpa/train_300K.xyz")
    (tmp_path / "3bpa").mkdir()
    shutil.copy(reference_data / "3bpa/train_mixedT.xyz", tmp_path / "3bpa/train_300K.xyz")
    assert registry.is_name("3bpa") and not registry.is_name("3bpa/train_300K.xyz")
    mixed = potkit.load("3bpa/train_mixedT")
    assert np.array_equal(named_or_file("3bpa/train_300K.xyz").energy, mixed.energy)


@pytest.mark.parametrize("r", REFERENCE, ids=lambda r: r.name)
def test_a_set_that_is_not_here_says_how_to_get_it(r, monkeypatch, tmp_path):
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    with pytest.raises(DataError) as error:
        potkit.load(r.name)
    message = str(error.value)
    assert "\n" not in message and r.source in message
    if any(f.url for f in r.files):
        assert f"potkit data fetch {r.name}" in message
    else:
        assert "POTKIT_REFERENCE_DATA is not set; set it to a folder with" in message
        assert f"{r.folder or r.name}/{r.files[0].path}" in message
    assert names().set_index("name").loc[r.name, "state"] == "missing"


def test_a_file_that_was_changed_is_refused(reference_data, monkeypatch, tmp_path):
    shutil.copytree(reference_data / "ani1x-tz-1k", tmp_path / "ani1x-tz-1k")
    path = tmp_path / "ani1x-tz-1k/fd_ani_1x_tz.xyz"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("REF_energy=-394.680034845", "REF_energy=-394.6"))
    monkeypatch.setenv("POTKIT_REFERENCE_DATA", str(tmp_path))
    for name in ("ani1x-tz-1k", "ani1x-1k"):
        with pytest.raises(DataError, match="checksum mismatch"):
            potkit.load(name)
    assert len(potkit.load("ani1x-1k", verify=False)) == 1000


@pytest.mark.parametrize("r", REFERENCE, ids=lambda r: r.name)
def test_a_record_says_its_units_and_holds_each_file_to_a_checksum(r):
    older = ("ani1-alkanes", "spice-dipeptides", "3bpa", "rpbe-water-sample")
    assert r.units or r.name in older
    assert all(f.checksum.startswith("sha256:") for f in r.files)
    if r.units:
        assert f"units of the files: {r.units}" in registry.describe(r.name)


def test_the_page_is_what_the_records_say(repository):
    page = (repository / "docs" / "reference-sets.md").read_text()
    assert page == reference_sheet.text(), (
        "python -m potkit.datasets.reference_sheet docs/reference-sets.md writes it anew"
    )
    for r in REFERENCE:
        assert f"\n## {r.name}\n" in page
