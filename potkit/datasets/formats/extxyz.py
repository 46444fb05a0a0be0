"""Extended XYZ: a count, a comment of key=value pairs with Properties=…, then a line per atom.
Energies in eV, forces in eV/Å, unless units are given. Plain XYZ, without Properties, too.

The layout is that of libAtoms and ASE. Read here without per-frame objects: the atom lines of many
frames go through one C parser. Understood: Properties, Lattice, pbc, charge, system, energy and
forces under the names of `label_names`, stress and virial (six numbers in Voigt's order or nine;
the stress in ASE's sign and the file's unit of energy per Å³, the virial −stress · volume). A
column of three reals that is not read is named in ``info["unread"]``. A frame with a Lattice and no
pbc is periodic, as in ASE; a Lattice with pbc="F F F" is dropped. Plain XYZ has element x y z in
its first four columns.
"""

from __future__ import annotations

import io
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from ...errors import ConfigError, DataError
from ...structures.arrays import MAIN_LABELS
from ...structures.ase_io import whole_charge
from ...structures.geometry import water_molecules
from ...structures.store import Structures
from . import label_names
from .common import (
    NUMBERS,
    Units,
    checked_numbers,
    chosen_units,
    named_stress,
    numbers_of,
    require_finite,
    sized,
    system_name,
)
from .packer import Packer

NAME = "extxyz"
DESCRIPTION = "XYZ and extended XYZ: Properties=…, energy eV, forces eV/Å, or geometries alone"
STRESS_KEYS = ("stress", "Stress", "REF_stress", "ref_stress", "dft_stress")
VIRIAL_KEYS = ("virial", "virials", "Virial", "REF_virial", "ref_virial", "dft_virial")
UNNAMED = "unnamed"  # columns of plain XYZ behind the position
CHARGE_KEYS = ("charge", "total_charge")
SYSTEM_KEYS = ("system", "name")
BLOCK = 4_000_000  # bytes of atom lines parsed at once
LONGEST = 12  # digits of a count
PAIR = re.compile(r"""([^\s=]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S+))?""")


class Frame(NamedTuple):
    """One frame as it stands in the file: its atom lines are still text."""

    index: int
    n: int
    info: dict[str, str]
    lines: list[bytes]


def sniff(path: Path) -> bool:
    """Whether the file starts with a count and a comment that holds Properties=, or that atom lines
    of plain XYZ follow.
    """
    head = first_lines(path)
    if len(head) < 2 or not is_count(head[0]):
        return False
    return "Properties=" in head[1] or (len(head) > 2 and _is_atom(head[2].split()))


def is_count(text: str | bytes) -> bool:
    """Whether it is a whole number that can count the atoms of a file."""
    text = text.strip()
    return text.isascii() and text.isdigit() and len(text) <= LONGEST


def _is_atom(words: list[str]) -> bool:
    """Whether it is an element (symbol or number) and three numbers or more."""
    if len(words) < 4 or not (words[0].isalpha() or words[0].isdigit()):
        return False
    try:
        [float(word) for word in words[1:4]]
    except ValueError:
        return False
    return words[0].isdigit() or words[0].capitalize() in NUMBERS


def _plain(line: bytes) -> str:
    """Properties of plain XYZ, by one of its atom lines."""
    words = line.split()
    element = "Z:I:1" if words and words[0].isdigit() else "species:S:1"
    further = len(words) - 4
    if further < 1:
        return f"{element}:pos:R:3"
    kind = "R" if further == 3 and _is_atom(["H", *map(bytes.decode, words[4:])]) else "S"
    return f"{element}:pos:R:3:{UNNAMED}:{kind}:{further}"


def first_lines(path: Path, count: int = 3) -> list[str]:
    """The first lines of a file, without a byte order mark and blank lines before them; [] if it is
    not a text file.
    """
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        every = (_unmarked(line) for line in iter(lambda: file.readline(1 << 20), b""))
        lines = list(islice(dropwhile(_is_blank, every), count))
    try:
        return [] if any(b"\0" in line for line in lines) else [line.decode() for line in lines]
    except UnicodeDecodeError:
        return []


def _unmarked(line: bytes) -> bytes:
    """``line`` without the byte order mark that editors put at the start of a text."""
    return line.removeprefix(BOM_UTF8)


def _is_blank(line: bytes) -> bool:
    return not line.strip()


def parse_comment(comment: str) -> dict[str, str]:
    """The key=value pairs of a comment line, quotes removed; a bare word counts as "T"."""
    return {m[1]: "T" if m[2] is None else m[2].strip("\"'{}[]") for m in PAIR.finditer(comment)}


def frames(file: BinaryIO, path: Path) -> Iterator[Frame]:
    """The frames of an open file, one after the other. Raises DataError where the file ends too
    early or a count is no count. Blank lines before and between frames are skipped.
    """
    index = 0
    while True:
        line = file.readline()
        if not line:
            return
        count = _unmarked(line)
        if _is_blank(count):
            continue
        if not is_count(count):
            raise DataError(
                f"{path}: frame {index}: expected the number of atoms, found {_shown(count)}"
            )
        n = int(count)
        if n < 1:
            raise DataError(f"{path}: frame {index}: has {n} atoms")
        comment = file.readline().decode("utf-8", "replace")
        lines = list(islice(file, n))
        if len(lines) < n:
            raise DataError(f"{path}: frame {index}: the file ends after {len(lines)} of {n} atoms")
        yield Frame(index, n, parse_comment(comment), lines)
        index += 1


def columns(properties: str, where: str) -> dict[str, tuple[str, slice]]:
    """The columns that "species:S:1:pos:R:3:…" describes: name -> (type letter, columns)."""
    parts = properties.split(":")
    if len(parts) % 3 or not all(map(is_count, parts[2::3])):
        raise DataError(f"{where}: Properties={properties!r} is not a list of name:type:columns")
    layout: dict[str, tuple[str, slice]] = {}
    start = 0
    for name, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if name in layout:
            raise DataError(f"{where}: Properties names {name!r} twice")
        layout[name] = (kind, slice(start, start + int(width)))
        start += int(width)
    return layout


def parse_lines(
    block: Sequence[Frame], species: int | None, numeric: Sequence[int], width: int, path: Path
) -> tuple[list[str] | None, np.ndarray]:
    """The atom lines of ``block``: the strings of column ``species`` and the numbers of the
    columns ``numeric`` [N, len].
    """
    lines = [line for frame in block for line in frame.lines]
    text = b"".join(lines)
    numeric = list(numeric)
    try:  # the quick way; whatever it stumbles over goes the exact way, which names the place
        table = pd.read_csv(
            io.BytesIO(text),
            sep=r"\s+",
            header=None,
            dtype={} if species is None else {species: str},
            na_filter=False,
            quoting=3,
        )
    except (ValueError, pd.errors.ParserError):
        table = pd.DataFrame()
    if table.shape == (len(lines), width) and all(table[c].dtype.kind in "if" for c in numeric):
        symbols = None if species is None else table[species].tolist()
        return symbols, table[numeric].to_numpy(np.float64)
    if any(len(line.split()) != width for line in lines):
        _explain(block, numeric, width, path)
    words = np.array(text.split()).reshape(len(lines), width)
    try:
        numbers = words[:, numeric].astype(np.float64)
    except ValueError:
        _explain(block, numeric, width, path)
    symbols = None if species is None else [word.decode() for word in words[:, species]]
    return symbols, numbers


def _explain(block: Sequence[Frame], numeric: Sequence[int], width: int, path: Path) -> None:
    """Raise the DataError that names frame and atom of the first line that is not what Properties
    says.
    """
    for frame in block:
        for i, line in enumerate(frame.lines):
            words = line.split()
            where = f"{path}: frame {frame.index}, atom {i}"
            if len(words) != width:
                raise DataError(
                    f"{where}: expected {width} columns, found {len(words)} in {_shown(line)}"
                )
            for c in numeric:
                try:
                    float(words[c])
                except ValueError:
                    raise DataError(
                        f"{where}: column {c + 1} is not a number: {_shown(words[c])}"
                    ) from None
    raise DataError(f"{path}: frames {block[0].index}…{block[-1].index} cannot be parsed")


def _shown(text: bytes) -> str:
    text = text.decode("utf-8", "replace").strip()
    return repr(text if len(text) < 60 else text[:57] + "…")


def _first(mapping: Any, keys: Sequence[str]) -> str | None:
    """The first of ``keys`` that ``mapping`` has, else None."""
    return next((key for key in keys if key in mapping), None)


def _said(info: dict[str, str]) -> dict[str, str]:
    """Of a comment what has a value: in the free text of plain XYZ a bare word says nothing."""
    if "Properties" in info:
        return info
    return {key: value for key, value in info.items() if value != "T"}


class Names:
    """Which keys of a file are its labels: asked for once per set of keys, not once per frame."""

    def __init__(
        self,
        packer: Packer,
        energy_key: str | None,
        forces_key: str | None,
        required: Sequence[str] = (),
        stress_key: str | None = None,
    ) -> None:
        self.packer = packer
        self.given = (energy_key, forces_key)
        self.stress = stress_key
        self.required = required
        self._known: dict[Any, label_names.Chosen] = {}

    def of(self, info: dict[str, str], layout: dict[str, tuple[str, slice]], where: str):
        """`label_names.Chosen` of a frame with comment ``info`` and columns ``layout``."""
        keys = (tuple(info), tuple(layout))
        if keys not in self._known:
            self._known[keys] = self._choose(info, layout, where)
        return self._known[keys]

    def _choose(self, info: dict[str, str], layout: Any, where: str) -> label_names.Chosen:
        triples = [k for k, (kind, s) in layout.items() if kind == "R" and s.stop - s.start == 3]
        plain = "Properties" not in info
        # a word in the free text of plain XYZ is no label
        keys = [k for k in info if not plain or _is_number(info[k])]
        chosen = label_names.choose(keys, triples, where, *self.given)
        for label, key, there in (
            ("energy", chosen.energy, info),
            ("forces", chosen.forces, layout),
        ):
            if key is not None and key not in there:  # one that was given
                if label in self.required:
                    raise DataError(
                        f"{where}: has no {key!r} (it has: {', '.join([*info, *layout])})"
                    )
                chosen = chosen._replace(**{label: None})
            elif key is None and label in self.required:
                raise DataError(
                    f"{where}: has no {label!r} (it has: {', '.join([*info, *layout])})"
                )
        self.packer.labels.add(chosen)
        for key in triples:
            if key not in ("pos", chosen.forces):
                self.packer.unread[key] = "column of three reals per atom"
        for key in label_names.families(keys, label_names.ENERGY_WORDS).values():
            if key != chosen.energy:
                self.packer.unread[key] = "energy"
        for key in keys:
            named = label_names.family(key, ("stress", "virial", "virials")) is not None
            read = (*STRESS_KEYS, *VIRIAL_KEYS) if self.stress is None else (self.stress,)
            if named and key not in read:
                self.packer.unread[key] = "stress"
        return chosen

    def check(self, path: Path) -> None:
        """Raise DataError for a given key that no frame has."""
        for label, key, k in zip(MAIN_LABELS, self.given, (0, 1), strict=True):
            if key not in (None, "none") and not any(c[k] == key for c in self._known.values()):
                there = dict.fromkeys(k for keys in self._known for part in keys for k in part)
                raise DataError(
                    f"{path}: no frame has {label} under {key!r} (there are: {', '.join(there)})"
                )
        if self.stress not in (None, "none"):
            there = dict.fromkeys(k for info, _ in self._known for k in info)
            if self.stress not in there:
                raise DataError(
                    f"{path}: no frame has a stress under {self.stress!r} (there are: "
                    f"{', '.join(there)})"
                )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read(
    path: Path,
    dtype: Any = np.float32,
    energy_key: str | None = None,
    forces_key: str | None = None,
    energy_unit: str | None = None,
    forces_unit: str | None = None,
    length_unit: str | None = None,
    stress_key: str | None = None,
    require: Sequence[str] | None = (),
    waters: bool = False,
) -> Structures:
    """Read a file of frames.

    ``energy_key``/``forces_key`` name a label where `label_names.choose` would take another one;
    with one of them the other is looked for beside it; "none" reads none. Units are eV and Å where
    none is given, and forces are energy over length unless ``forces_unit`` says otherwise.
    ``stress_key`` names the stress, or the virial if "virial" is in its name; "none" reads none.
    ``require``: what every frame must have, of "energy" and "forces". ``waters``: number the
    molecules of pure water, found from the geometry.

    Raises DataError naming file, frame and atom: unknown element, NaN, a wrong number of columns,
    an early end, energies that are not eV, labels of several methods.
    """
    required = tuple(require or ())
    if unknown := set(required) - {"energy", "forces"}:
        raise ConfigError(f"require may name 'energy' and 'forces', got {sorted(unknown)}")
    packer = Packer(dtype)
    names = Names(packer, energy_key, forces_key, required, stress_key)
    factors = chosen_units(length_unit, energy_unit, forces_unit)
    options = {"names": names, "waters": waters, "check": sized if energy_unit is None else None}
    with open(path, "rb") as file:
        for layout, block in blocks(frames(file, path), _layout):
            pack(block, layout, path, packer, factors, **options)
    names.check(path)
    return packer.finish(str(path), name=path.stem, source_format=NAME)


def _layout(frame: Frame) -> str:
    return frame.info.get("Properties") or _plain(frame.lines[0])


def blocks(
    every: Iterable[Frame], layout_of: Callable[[Frame], str]
) -> Iterator[tuple[str, list[Frame]]]:
    """Successive frames of one layout, with it: at most BLOCK bytes of atom lines, nearly."""
    block: list[Frame] = []
    size = 0  # bytes of its atom lines, nearly
    layout = ""
    for frame in every:
        this = layout_of(frame)
        if block and (this != layout or size > BLOCK):
            yield layout, block
            block, size = [], 0
        layout = this
        block.append(frame)
        size += sum(map(len, frame.lines[:1])) * frame.n
    if block:
        yield layout, block


def pack(
    block: list[Frame],
    properties: str,
    path: Path,
    packer: Packer,
    factors: Units,
    names: Names,
    waters: bool = False,
    check: Callable[[np.ndarray, float, str, str], Any] | None = None,
    label: str | None = None,
) -> None:
    """Append the frames of ``block``, all of the layout ``properties``, to ``packer``.

    ``check(z, energy in eV, where, key)`` raises DataError where the energy is not of the unit that
    was assumed. ``label``: of the systems, for a file of one molecule (default: as `read` names
    them). Raises DataError as `read` does.
    """
    where = f"{path}: frame {block[0].index}"
    layout = columns(properties, where)
    there = len(block[0].lines[0].split())
    width = max(span.stop for _, span in layout.values())
    if width > there:  # before so many columns are numbered
        raise DataError(f"{where}, atom 0: expected {width} columns, found {there}")
    place = {name: [*range(span.start, span.stop)] for name, (_, span) in layout.items()}
    if len(place.get("pos", ())) != 3:
        raise DataError(f"{where}: Properties has no pos:R:3 (it has: {', '.join(layout)})")
    element = _first(layout, ("species", "Z", "numbers", "atomic_numbers"))
    if element is None:
        raise DataError(
            f"{where}: Properties has neither species nor Z (it has: {', '.join(layout)})"
        )
    found = [names.of(frame.info, layout, f"{path}: frame {frame.index}") for frame in block]
    columns_of = sorted({chosen.forces for chosen in found} - {None})
    by_symbol = layout[element][0] == "S"
    numeric = [*place["pos"], *(c for name in columns_of for c in place[name])]
    if by_symbol:
        symbols, numbers = parse_lines(block, place[element][0], numeric, width, path)
    else:  # by number, which goes into the last column
        symbols, numbers = parse_lines(block, None, [*numeric, place[element][0]], width, path)
    stop = 0
    for frame, chosen in zip(block, found, strict=True):
        where = f"{path}: frame {frame.index}"
        rows = slice(stop, stop + frame.n)
        stop = rows.stop
        if by_symbol:
            z = numbers_of(symbols[rows], where)
        else:
            z = checked_numbers(numbers[rows, -1], where)
        pos = numbers[rows, :3] * factors.length
        require_finite(pos, "position", where, row="atom")
        forces = None
        if chosen.forces is not None:
            first = 3 + 3 * columns_of.index(chosen.forces)
            forces = numbers[rows, first : first + 3]
            require_finite(forces, "force", where, row="atom")
            forces = forces[None] * factors.forces
        said = _said(frame.info)
        cell, pbc = cell_of(said, where)
        cell = None if cell is None else cell * factors.length
        energy = None
        if chosen.energy is not None:
            energy = number(frame.info, chosen.energy, where) * factors.energy
            if check is not None:
                check(z, energy, where, chosen.energy)
        if frame.n == 1 and is_isolated_atom(frame.info):
            packer.isolated.append(packer.n_structures)
        named = _first(said, SYSTEM_KEYS)
        charge = _first(said, CHARGE_KEYS)
        molecule = water_molecules(z, pos, cell, pbc) if waters else None
        system = said[named] if named else system_name(z)
        if label is not None:
            system = (label, system_name(z))
        packer.add(
            z,
            pos[None],
            packer.system(system, label),
            energy,
            forces,
            cell,
            pbc,
            whole_charge(number(frame.info, charge, where), where) if charge else 0,
            0 if molecule is None else molecule,
            stress=_stress(said, cell, where, factors, names.stress),
        )


def is_isolated_atom(info: dict[str, Any]) -> bool:
    """Whether a frame says that it is one, as MACE and GAP write it: config_type=IsolatedAtom."""
    kind = re.sub("[^a-z]", "", str(info.get("config_type", "")).lower())
    return kind in ("isolatedatom", "isolatedatoms")


def _stress(
    info: dict[str, str],
    cell: np.ndarray | None,
    where: str,
    factors: Units,
    key: str | None = None,
) -> np.ndarray | None:
    """The stress [3, 3] eV/Å³ of a comment line, or of its virial; None where there is neither.
    ``cell`` [3, 3] Å; ``factors`` bring the file's units to eV and Å; ``key``: the name of it.
    """
    known = (*STRESS_KEYS, *VIRIAL_KEYS) if key is None else (key,)
    key = None if key == "none" else _first(info, known)
    return None if key is None else named_stress(info, key, cell, where, factors)


def number(info: dict[str, str], key: str, where: str) -> float:
    """The finite number behind ``key`` of a comment line."""
    try:
        value = float(info[key])
    except ValueError:
        raise DataError(f"{where}: {key}={info[key]!r} is not a number") from None
    if not np.isfinite(value):
        raise DataError(f"{where}: {key}={info[key]} is not a finite number")
    return value


def cell_of(info: dict[str, str], where: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Lattice [3,3] (rows are vectors, Å) or None, and pbc [3], of a comment line."""
    if "Lattice" not in info:
        if "T" in info.get("pbc", "F").upper().replace("TRUE", "T").split():
            raise DataError(f"{where}: pbc={info['pbc']!r} but there is no Lattice")
        return None, np.zeros(3, bool)
    try:
        cell = np.array(info["Lattice"].replace(",", " ").split(), np.float64).reshape(3, 3)
    except ValueError:
        raise DataError(f"{where}: Lattice={info['Lattice']!r} is not nine numbers") from None
    require_finite(cell, "Lattice", where, row="vector")
    flags = info.get("pbc", "T T T").replace(",", " ").split()
    if len(flags) != 3:
        raise DataError(f"{where}: pbc={info['pbc']!r} is not three of T and F")
    return cell, np.array([f[0] in "Tt1" for f in flags])
