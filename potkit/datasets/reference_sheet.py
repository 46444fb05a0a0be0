"""docs/reference-sets.md: the data sheets of the reference sets, written from their records.

python -m potkit.datasets.reference_sheet docs/reference-sets.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from .records import CITATIONS, RECORDS, Record
from .registry import part_names

_HEAD = """\
# Reference sets

Small pieces of public quantum-chemistry data, in the formats they were published in. They are not
part of potkit: their licences differ. Put the files into a folder, name it, and load them by name:

```bash
export POTKIT_REFERENCE_DATA=/where/they/are     # holds 3bpa/train_300K.xyz, qm22/Ethanol.zip, …
potkit data list                                 # `state` says which are there
potkit data list 3bpa                            # everything about one: files, checksums, citation
potkit data fetch 3bpa                           # where `data list` has an address
```

```python
potkit.load("3bpa")  # all of it
potkit.load("3bpa/train_300K")  # one of its files, without the ending
potkit.load("3bpa/test")  # a published part
potkit.load("spice-subsets", files=["spice_water.xyz", "spice_pubchem.xyz"])
```

The same names stand in experiments (`data: 3bpa/train_300K`) and in commands. Whatever the files
hold, `Structures` are in Å, eV and eV/Å. Each file is held to its sha256 when it is loaded. Two
levels of theory in one file or folder are two sets here, so that they cannot be mixed by accident.
Where a system is a formula, `split(by="system")` gives formulas that were never trained on;
`potkit.datasets.filters.unseen_formulas(test, pretraining)` leaves out those that another set has,
and `potkit.datasets.splits.leakage_report` finds the same geometries.

This page is written by `python -m potkit.datasets.reference_sheet docs/reference-sets.md`.

"""


def text() -> str:
    """The page: a table of all reference sets, then a section on each."""
    sets = [r for r in RECORDS if r.kind == "reference"]
    lines = [
        "| set | structures | molecules | atoms | elements | level of theory | labels | licence |",
        "| --- | ---: | ---: | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(r) for r in sets]
    return _HEAD + "\n".join(lines) + "\n\n" + "\n".join(_section(r) for r in sets)


def _range(r: Record) -> str:
    low, high = r.atoms or (0, 0)
    return f"{low}–{high}" if low != high else str(low)


def _labels(r: Record) -> str:
    if not r.labelled:
        return "none"
    return "energy, forces" if r.forces else "energy"


def _row(r: Record) -> str:
    cells = (
        f"[{r.name}](#{r.name})",
        f"{r.structures:,}",
        f"{r.molecules:,}",
        _range(r),
        r.elements,
        r.level,
        _labels(r),
        r.licence,
    )
    return "| " + " | ".join(cells) + " |"


def _section(r: Record) -> str:
    entries = [CITATIONS[key] for key in r.citation]
    keys = [entry[entry.index("{") + 1 : entry.index(",")] for entry in entries]
    facts = {
        "level of theory": r.level,
        "units of the files": r.units,
        "format": r.format,
        "published at": f"<{r.source}>",
        "licence": r.licence,
        "cite": f"{', '.join(keys)} (`potkit data list {r.name}` prints the entries)",
        "split": r.split,
        "note": r.note,
    }
    lines = [f"## {r.name}", "", f"{r.title[:1].upper()}{r.title[1:]}.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if value]
    parts = [p for p in part_names(r) if p not in {f.path for f in r.files}]
    if len(r.files) > 1 and parts:
        lines.append(f"- parts: {', '.join(f'`{r.name}/{part}`' for part in parts)}")
    lines += ["", "```text"]
    folder = r.folder or r.name
    lines += [f"{(f.checksum or '').partition(':')[2]}  {folder}/{f.path}" for f in r.files]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text())
