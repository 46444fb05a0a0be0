"""Right labels of every set pass; flipped signs and other units are named."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import potkit
from potkit import units
from potkit.datasets import label_checks
from potkit.datasets.checks import check
from potkit.datasets.records import RECORDS
from potkit.errors import DataError
from potkit.structures.store import Structures

EMBEDDED = [r.name for r in RECORDS if r.kind == "embedded" and r.forces]
REFERENCE = [r.name for r in RECORDS if r.kind == "reference" and r.forces]
PARTS = [  # of sets that are a trajectory and a sample of one, or one temperature and several
    "3bpa/train_300K",
    "md17-ethanol/mlff_ethanol",
    "md17-ethanol/md17_ethanol_sample",
    "ani1-alkanes/nms/C2H6_DFT+Force_NMS",
]
WRONG = ["hartree/bohr", "kcal/mol/Å", "kJ/mol/nm"]


def changed(s: Structures, energy: float = 1.0, forces: float = 1.0) -> Structures:
    """``s`` with its labels times these."""
    out = copy.copy(s)
    out.energy = None if s.energy is None else np.asarray(s.energy) * energy
    out.forces = np.asarray(s.forces, np.float64) * forces
    return out


def all_told(name: str) -> None:
    s = potkit.load(name)
    right = label_checks.judge(s)
    assert right.state == "right", right
    # what fine-tuning asks must not stop it either, however few the labels
    for few in (s, s[:50]):
        assert label_checks.judge(few, thorough=False).state in ("right", "cannot be told")
    flipped = label_checks.judge(changed(s, forces=-1.0))
    assert flipped.state == "wrong" and "are gradients, +dE/dx" in flipped.says, flipped
    assert "unit" not in flipped.says
    for unit in WRONG[:1] if len(s.elements) == 2 else WRONG:  # boxes take longer
        scaled = label_checks.judge(changed(s, forces=1 / units.factor(unit)))
        assert scaled.state == "wrong" and f"the forces are in {unit}" in scaled.says, scaled
        assert "gradients" not in scaled.says


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name):
    all_told(name)


@pytest.mark.parametrize("name", REFERENCE + PARTS)
def test_reference_sets(name, reference_data):
    all_told(name)


def test_both_labels_in_another_unit():
    """Energies and forces fit each other; known forces and the size of totals tell."""
    s = potkit.load("iso17-mini")
    for energy, forces in (("hartree", "hartree/bohr"), ("kcal/mol", "kcal/mol/Å")):
        verdict = label_checks.judge(changed(s, 1 / units.factor(energy), 1 / units.factor(forces)))
        assert verdict.state == "wrong"
        assert f"the forces are in {forces}" in verdict.says
        assert f"the energies are in {energy}" in verdict.says
    verdict = label_checks.judge(changed(s, 1 / units.HARTREE))
    assert verdict.state == "wrong" and verdict.says.startswith("the energies are in hartree")


def test_forces_alone():
    s = potkit.load("ani-mini")[:300]
    s.energy = None
    assert label_checks.judge(s).state == "right"
    assert "whether the energies have that unit is not told" in label_checks.judge(s).says
    assert "are gradients" in label_checks.judge(changed(s, forces=-1.0)).says


def test_what_cannot_be_told():
    """Two rigid argon dimers: no neighbours, no bonds to hydrogen, no model of them."""
    pos = np.array([[0, 0, 0], [3.8, 0, 0], [0, 0, 0], [4.8, 0, 0]], float)
    s = Structures(
        np.full(4, 18), pos, [0, 2, 4], np.array([-1.0, -2.0]), 0.1 * pos[::-1], pbc=None
    )
    verdict = label_checks.judge(s, thorough=False)
    assert verdict.state == "cannot be told"
    assert "0 pairs of structures lie within 0.25 Å" in verdict.says
    assert "12 are needed" in verdict.says
    zero = changed(potkit.load("rmd17-mini")[:200], forces=0.0)
    said = label_checks.judge(zero)
    assert said.state == "cannot be told" and said.says == "all forces are 0"
    random = potkit.load("rmd17-mini")[:200]
    random.forces = np.random.default_rng(0).normal(size=random.forces.shape)
    assert label_checks.judge(random).state in ("cannot be told", "unclear")


def test_neighbours_across_a_periodic_boundary():
    """An atom that leaves the box on one side comes in on the other."""
    rng = np.random.default_rng(1)
    d = 1.1 + 0.05 * rng.normal(size=60)
    pos = np.zeros((60, 2, 3))
    pos[:, 1, 0] = d
    forces = np.zeros((60, 2, 3))
    forces[:, 1, 0] = -30 * (d - 1.1)
    forces[:, 0] = -forces[:, 1]
    pos = (pos + np.array([8.4, 0, 0])) % 9.5  # the second atom swings through the boundary
    s = Structures(
        np.tile([6, 1], 60),
        pos.reshape(-1, 3),
        np.arange(61) * 2,
        15 * (d - 1.1) ** 2,
        forces.reshape(-1, 3),
        cell=np.tile(9.5 * np.eye(3), (60, 1, 1)),
        pbc=np.ones((60, 3), bool),
    )
    found = label_checks.along_neighbours(s)
    assert found.value == pytest.approx(1.0, abs=0.02) and found.counts


def test_rows_of_the_report(reference_data):
    right = potkit.load("3bpa")
    for s, state, verdict in ((right, "right", "ok"), (changed(right, forces=-1), "wrong", "bad")):
        rows = check(s, duplicates=False).set_index("check")
        assert rows.loc["sign and units of the labels", "value"] == state
        assert rows.loc["sign and units of the labels", "verdict"] == verdict
        stretching = rows.loc["stretching of bonds to hydrogen"]
        assert stretching["verdict"] == verdict and "correlation" in stretching["where"]


def test_fine_tuning_refuses_gradients(tmp_path):
    s = changed(potkit.load("rmd17-mini")[:60], forces=-1.0)
    model = potkit.build("egnn", preset="small", layers=1, hidden=8)
    config = potkit.TrainConfig(steps=1, batch_size=4, device="cpu", progress=False)
    with pytest.raises(DataError) as refused:
        potkit.finetune(model, s[:40], s[40:], config, out=tmp_path / "run")
    message = str(refused.value)
    assert "\n" not in message and "are gradients, +dE/dx" in message
    assert "check_labels" in message and not (tmp_path / "run").exists()
    allowed = config.replace(check_labels=False)
    assert potkit.finetune(model, s[:40], s[40:], allowed, out=tmp_path / "run").checkpoint.exists()
    # energies alone are not touched by it
    alone = potkit.Supervised(forces=0.0)
    potkit.finetune(model, s[:40], s[40:], config, out=tmp_path / "alone", objective=alone)
