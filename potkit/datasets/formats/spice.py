"""SPICE HDF5, versions 1 and 2: a group per molecule with atomic_numbers [a], conformations [n,a,3]
Bohr, energies Hartree.

P. Eastman et al., Sci. Data 10, 11 (2023), 10.1038/s41597-022-01882-6. ``dft_total_gradient``
[n,a,3] Hartree/Bohr is minus the force; ``formation_energy`` is relative to free atoms or ions,
``dft_total_energy`` is not. A data set's ``units`` attribute, where there is one, is believed. The
elements are ``atomic_numbers``: the atoms of ``smiles`` stand in another order, and each carries
the number (from 1) of its row in the arrays. By these numbers the formal charges of the SMILES come
to their atoms; the denoise paper's networks see them (28 pairs of element and formal charge).

The denoise paper's code (arXiv 2303.02216, dataset_spice.py) does not go by those numbers, which
can be repeated: `FAULTS`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ... import units
from ...errors import ConfigError, DataError
from ...structures.array_files import check_texts, load_hdf5, open_hdf5
from ...structures.elements import SYMBOLS
from ...structures.store import Structures
from .common import checked_numbers, groups_with, require_finite, text_of
from .packer import Packer

NAME = "spice"
DESCRIPTION = (
    "SPICE 1 and 2 HDF5: conformations Bohr, formation_energy or dft_total_energy Hartree, "
    "gradient Hartree/Bohr"
)
ENERGIES = {"formation": "formation_energy", "total": "dft_total_energy"}
# published faults that the option ``faults`` repeats: name -> what it does
FAULTS = {
    "smiles-order": "elements and formal charges in RDKit's order of the SMILES's atoms, added "
    "hydrogens last, beside coordinates in the file's order: wrong elements on most atoms",
}
_BRACKET = re.compile(r"\[[^\]]*\]")
_SIGN = re.compile(r"(\++|-+)(\d*)")


def sniff(path: Path) -> bool:
    """Whether the first groups of a file hold conformations and atomic_numbers."""
    from .hdf5 import first_keys

    keys = first_keys(path) if path.is_file() else set()
    return {"conformations", "atomic_numbers"} <= {k.replace(" ", "_") for k in keys}


def charge_of(smiles: str) -> int:
    """The total charge of a SMILES: the sum over its bracket atoms. Which atom carries it is not
    asked.
    """
    total = 0
    for atom in _BRACKET.findall(smiles):
        signs = _SIGN.search(atom.split(":")[0].rstrip("]"))
        if signs:
            size = int(signs[2]) if signs[2] else len(signs[1])
            total += size if signs[1][0] == "+" else -size
    return total


def read(
    path: Path,
    dtype: Any = np.float32,
    energy: str = "formation",
    subsets: Sequence[str] | None = None,
    max_force: float | None = None,
    formal_charges: bool = True,
    faults: Sequence[str] = (),
) -> Structures:
    """Read all molecules, or those whose ``subset`` contains one of ``subsets`` ("Dipeptides",
    "PubChem" …).

    ``energy``: "formation" or "total"; groups that have neither are geometries alone.
    ``max_force`` (eV/Å) drops conformations with a larger force component. Charges come from MBIS
    charges or else from the SMILES. ``formal_charges``: read those of the atoms from the SMILES (by
    RDKit); left out for the whole set, with a note, if a group has no SMILES or one without atom
    numbers. ``faults``: those of `FAULTS` to repeat. Groups without conformations (the public files
    have one) are skipped and named in ``info["notes"]``.
    Raises DataError naming file and group for whatever else does not fit, such as a SMILES whose
    numbered atoms are not ``atomic_numbers``; ConfigError where RDKit is needed and not installed.
    """
    faults = _checked_faults(faults)
    if formal_charges or faults:
        _require_rdkit(path)
    if energy not in ENERGIES:
        raise ConfigError(f"energy must be 'formation' or 'total', got {energy!r}")
    packer = Packer(dtype)
    dropped = 0
    seen: set[str] = set()  # subsets
    unnumbered: list[str] = []  # groups whose SMILES does not say which atom is which
    check_texts(path)
    with open_hdf5(path) as file:
        for group in groups_with(file, "conformations", path):
            where = f"{path}: group {group.name}"
            get = _fields(group)
            subset = "" if get("subset") is None else _text(get("subset"), path)
            seen.add(subset)
            if subsets is not None and not any(s.lower() in subset.lower() for s in subsets):
                continue
            # geometries alone will do; of two energies the wrong one will not
            unlabelled = not any(get(name) is not None for name in ENERGIES.values())
            required = () if unlabelled else (ENERGIES[energy],)
            for needed in ("atomic_numbers", "conformations", *required):
                if get(needed) is None:
                    raise DataError(
                        f"{where} has no {needed!r} (it has: {', '.join(group) or 'nothing'})"
                    )
            z = checked_numbers(load_hdf5(get("atomic_numbers"), path), where)
            pos = _converted(get("conformations"), "length", "bohr", path)
            if pos.ndim and not len(pos):
                packer.notes.append(
                    f"group {group.name} skipped: conformations have shape {pos.shape}"
                )
                continue
            if pos.shape[1:] != (len(z), 3):
                raise DataError(
                    f"{where}: conformations have shape {pos.shape}, {len(z)} atomic_numbers ask "
                    f"for (n, {len(z)}, 3)"
                )
            value = None
            if not unlabelled:
                value = _converted(get(ENERGIES[energy]), "energy", "hartree", path)
                require_finite(value, ENERGIES[energy], where)
            if value is not None and value.shape != (len(pos),):
                raise DataError(
                    f"{where}: {ENERGIES[energy]} has shape {value.shape}, {len(pos)} "
                    f"conformations ask for ({len(pos)},)"
                )
            forces = None
            if get("dft_total_gradient") is not None:
                forces = -_converted(get("dft_total_gradient"), "forces", "hartree/bohr", path)
                if forces.shape != pos.shape:
                    raise DataError(
                        f"{where}: dft_total_gradient has shape {forces.shape}, conformations "
                        f"{pos.shape}"
                    )
                require_finite(forces, "dft_total_gradient", where)
            charge = _charge(get, path, where, pos.shape[:2])
            formal = None
            if formal_charges and get("smiles") is not None:
                formal = formal_charges_of(_text(get("smiles"), path), z, where)
                if formal is None:
                    unnumbered.append(group.name)
                elif int(formal.sum()) != charge:
                    raise DataError(
                        f"{where}: formal charges of the SMILES add up to {int(formal.sum()):+d}, "
                        f"mbis_charges to {charge:+d}; formal_charges=False reads without them"
                    )
            if "smiles-order" in faults:
                smiles = None if get("smiles") is None else _text(get("smiles"), path)
                z, formal = _in_smiles_order(smiles, z, formal, where)
            require_finite(pos, "conformations", where)
            keep = np.ones(len(pos), bool)
            if max_force is not None and forces is not None:
                keep = np.abs(forces).max((1, 2)) <= max_force
                dropped += int((~keep).sum())
            if keep.any():
                name = group.name.strip("/")
                packer.add(
                    z,
                    pos[keep],
                    packer.system(name),
                    None if value is None else value[keep],
                    None if forces is None else forces[keep],
                    charge=charge,
                    formal_charge=formal,
                )
    if subsets is not None and not packer.n_structures:
        raise ConfigError(
            f"{path}: no subset matches {list(subsets)} (it has: {', '.join(sorted(seen))})"
        )
    if dropped:
        packer.notes.append(f"{dropped} conformations with a force above {max_force} eV/Å dropped")
    if unnumbered:
        packer.notes.append(
            f"formal_charge unknown for {len(unnumbered)} groups, such as {unnumbered[0]}: the "
            "atoms of their SMILES are not numbered"
        )
    info = {"faults": list(faults)} if faults else {}
    return packer.finish(str(path), name=path.stem, source_format=NAME, energy_kind=energy, **info)


def formal_charges_of(smiles: str, z: np.ndarray, where: str) -> np.ndarray | None:
    """The formal charge (e) of each atom, [a] int8, in the order of the SMILES's atom numbers,
    which is that of ``z`` [a]; None for a SMILES without such numbers.

    Raises DataError for a SMILES that RDKit cannot read, or whose numbered atoms are not ``z``.
    """
    from rdkit import Chem, rdBase

    as_written = Chem.SmilesParserParams()
    as_written.sanitize = False
    as_written.removeHs = False
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles, as_written)
    if molecule is None:
        raise DataError(f"{where}: RDKit cannot read the SMILES {smiles!r}")
    atoms = list(molecule.GetAtoms())
    numbers = np.array([atom.GetAtomMapNum() for atom in atoms])
    if not numbers.any():
        return None
    hint = "formal_charges=False reads without them"
    if not np.array_equal(np.sort(numbers), np.arange(1, len(z) + 1)):
        raise DataError(
            f"{where}: the atoms of the SMILES are not numbered 1 to {len(z)}, each once; {hint}"
        )
    order = np.argsort(numbers)
    written = np.array([atom.GetAtomicNum() for atom in atoms])[order]
    different = np.flatnonzero(written != z)
    if len(different):
        i = int(different[0])
        raise DataError(
            f"{where}: atom {i} is {SYMBOLS[z[i]]} in atomic_numbers and {SYMBOLS[written[i]]} in "
            f"the SMILES; {hint}"
        )
    return np.array([atom.GetFormalCharge() for atom in atoms], np.int8)[order]


def _in_smiles_order(
    smiles: str | None, z: np.ndarray, formal: np.ndarray | None, where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Elements and (where they are known at all) formal charges as the denoise paper's code takes
    them: in RDKit's order of the SMILES's atoms, with hydrogens added last.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        heavy = None if smiles is None else Chem.MolFromSmiles(smiles)
    if heavy is None:
        raise DataError(f"{where}: the fault 'smiles-order' needs a SMILES that RDKit can read")
    atoms = list(Chem.AddHs(heavy).GetAtoms())
    if len(atoms) != len(z):
        raise DataError(
            f"{where}: the SMILES has {len(atoms)} atoms, atomic_numbers {len(z)}: the fault "
            "'smiles-order' cannot be repeated"
        )
    elements = np.array([atom.GetAtomicNum() for atom in atoms], np.uint8)
    if formal is not None:
        formal = np.array([atom.GetFormalCharge() for atom in atoms], np.int8)
    return elements, formal


def _checked_faults(faults: Sequence[str]) -> tuple[str, ...]:
    faults = (faults,) if isinstance(faults, str) else tuple(faults)
    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise ConfigError(f"format {NAME} has no fault {unknown[0]!r}; it has {', '.join(FAULTS)}")
    return faults


def _require_rdkit(path: Path) -> None:
    if find_spec("rdkit") is None:
        raise ConfigError(
            f"{path}: SPICE's formal charges are read from its SMILES by RDKit, which is not "
            "installed: pip install rdkit, or read with formal_charges=False"
        )


def _fields(group: h5py.Group):
    names = {name.replace(" ", "_").lower(): name for name in group}

    def get(key: str) -> h5py.Dataset | None:
        return group[names[key]] if key in names else None

    return get


def _converted(data: h5py.Dataset, kind: str, default: str, path: Path) -> np.ndarray:
    unit = text_of(data.attrs.get("units", default))
    return load_hdf5(data, path).astype(np.float64) * units.factor(unit, kind)


def _text(data: h5py.Dataset, path: Path) -> str:
    return text_of(load_hdf5(data, path, text=True))


def _charge(get: Any, path: Path, where: str, shape: tuple[int, int]) -> int:
    if get("mbis_charges") is not None:
        charges = load_hdf5(get("mbis_charges"), path).astype(np.float64)
        if charges.shape not in (shape, (*shape, 1)):
            raise DataError(
                f"{where}: mbis_charges have shape {charges.shape}, expected {(*shape, 1)}"
            )
        total = charges.reshape(shape).sum(1)
        if len(total) and np.isfinite(total).all():
            charge = np.round(np.median(total))
            if abs(np.median(total) - charge) > 0.25:
                raise DataError(
                    f"{where}: mbis_charges add up to {np.median(total):.2f}, not to a whole charge"
                )
            return int(charge)
    return 0 if get("smiles") is None else charge_of(_text(get("smiles"), path))
