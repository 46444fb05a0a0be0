"""LAMMPS answers to an exported network as the calculator does, where there is a LAMMPS with
`pair_style metatomic`: POTKIT_LAMMPS is its command, POTKIT_LAMMPS_BEGIN what it has to read first.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess

import ase
import ase.data
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.lammps import convert
from ase.io.lammpsdata import write_lammps_data

import potkit

pytestmark = [
    pytest.mark.skipif(
        "POTKIT_LAMMPS" not in os.environ,
        reason="POTKIT_LAMMPS names no LAMMPS with pair_style metatomic (docs/export.md)",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("metatomic") is None,
        reason="metatomic-torch is not installed (extra `metatomic`)",
    ),
]

REFERENCES = {1: -13.0, 6: -1000.0, 7: -1500.0, 8: -2000.0}  # eV
SAME = 1e-5  # eV, eV/Å
PRESSURE = 1e-6  # relative: the unit has another last digit in LAMMPS
SCRIPT = """
units metal
atom_style atomic
atom_modify map array
boundary {boundary} {boundary} {boundary}
{begin}
read_data {folder}/start.data
pair_style metatomic {folder}/model.pt device cpu {options}
pair_coeff * * {numbers}
neighbor 1.0 bin
neigh_modify one 8000 page 100000
thermo_style custom step pe ke etotal pxx pyy pzz pxy pxz pyz
thermo_modify format float %.15g
timestep 0.0005
dump all all custom 1000000 {folder}/forces.dump id x y z fx fy fz
dump_modify all sort id format float %.17g
run 0
velocity all create 300 4928
fix all all nve
thermo 20
run {steps}
"""


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    atoms.set_cell([40.0, 40.0, 40.0])
    atoms.center()
    return atoms


def box():
    cell = np.array([[7.0, 0, 0], [1.0, 8.0, 0], [0.5, -0.7, 9.0]])
    rng = np.random.default_rng(0)
    places = np.array([[i, j, k] for i in range(3) for j in range(3) for k in range(3)]) / 3
    positions = places @ cell + rng.normal(0, 0.1, (27, 3))
    atoms = ase.Atoms("OH2NCH3C" * 3, positions, cell=cell, pbc=True)
    atoms.wrap()
    return atoms


def lammps(model, atoms, folder, steps=0):
    """Positions and forces of the first step, and the rows that LAMMPS prints."""
    potkit.export(model, folder / "model.pt")
    symbols = sorted(set(atoms.symbols), key=ase.data.atomic_numbers.get)
    write_lammps_data(
        folder / "start.data", atoms, specorder=symbols, masses=True, atom_style="atomic"
    )
    text = SCRIPT.format(
        boundary="p" if atoms.pbc.all() else "f",
        begin=os.environ.get("POTKIT_LAMMPS_BEGIN", ""),
        folder=folder,
        options="non_conservative forces" if model.forces_mode == "vector" else "",
        numbers=" ".join(str(ase.data.atomic_numbers[s]) for s in symbols),
        steps=steps,
    )
    (folder / "in.lammps").write_text(text)
    command = [*shlex.split(os.environ["POTKIT_LAMMPS"]), "-in", "in.lammps", "-log", "none"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    rows = np.array([r for r in rows if len(r) == 10 and r[0].isdigit()], dtype=float)
    lines = (folder / "forces.dump").read_text().splitlines()[9 : 9 + len(atoms)]
    atom = np.array([line.split() for line in lines], dtype=float)
    return atom[:, 1:4], atom[:, 4:7], rows


@pytest.mark.parametrize("start", [ethanol, box])
@pytest.mark.parametrize("name", potkit.models.names())
def test_lammps_answers_as_the_calculator_does(name, start, tmp_path):
    """Energy, forces and, of boxes, the pressure tensor in float64."""
    model = potkit.build(name, seed=0).set_references(REFERENCES, 2.0)
    atoms = start()
    positions, forces, rows = lammps(model, atoms, tmp_path)
    atoms.positions = positions
    calc = potkit.calculator(model, dtype=torch.float64)
    calc.calculate(atoms, ["energy"])
    assert rows[0, 1] == pytest.approx(calc.results["energy"], abs=SAME)
    np.testing.assert_allclose(forces, calc.results["forces"], rtol=0, atol=SAME)
    assert np.abs(forces).max() > 100 * SAME
    if atoms.pbc.all() and model.forces_mode == "gradient":
        stress = calc.results["stress"][[0, 1, 2, 5, 4, 3]]  # LAMMPS: xx, yy, zz, xy, xz, yz
        bar = -convert(stress, "pressure", "ASE", "metal")
        np.testing.assert_allclose(rows[0, 4:], bar, rtol=0, atol=PRESSURE * np.abs(bar).max())


def test_lammps_keeps_the_energy_of_a_molecule(tmp_path):
    """200 steps of half a femtosecond: the total energy does not run away from its start."""
    model = potkit.build("painn", seed=0).set_references(REFERENCES, 2.0)
    _, _, rows = lammps(model, ethanol(), tmp_path, steps=200)
    total, kinetic = rows[-11:, 3], rows[-11:, 2]
    assert np.ptp(kinetic) > 0.02  # eV: something moves
    assert np.abs(total - total[0]).max() < 0.1 * np.ptp(kinetic)
