"""The map of the two papers: for every table, figure and claim, the experiment that repeats it, the
notebook and figure with its question, the stored results that answer it here, and both numbers.

denoise: arXiv 2303.02216. masked: arXiv 2402.15921. Our numbers are read from the stored results,
theirs from `published_numbers`; what stands here by hand is only what belongs to what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..experiments import shipped
from ..models import faults as network_faults
from ..objectives import faults as objective_faults
from . import published_numbers
from .tables import stored

GPU = "a GPU"


@dataclass(frozen=True)
class Item:
    """One table, figure or claim of a paper.

    ``specs`` are the shipped experiments that repeat it. ``notebook`` and ``figures`` (names in
    figures/, without ending) have its question. ``stored`` are results here that come near it:
    name -> the arms that are compared with scratch. ``theirs`` are columns of
    `published_numbers.changes` that single out its printed changes, ``printed`` says them where
    they are in no table. ``needs`` is what a run of ``specs`` takes that this repository has not.
    ``only`` keeps of a stored grid the cells with these values: name -> column -> values.
    ``metric`` is the error that the paper is about; ours are given in it.
    """

    paper: str
    name: str
    what: str
    specs: tuple[str, ...] = ()
    notebook: str = ""
    figures: tuple[str, ...] = ()
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    printed: str = ""
    needs: str = ""
    only: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    metric: str = "forces_mae"


ANI_SETS = "ANI-1, ANI-1x"
TIP3P_NEEDS = "TIP3P frames (`potkit data make`)"

ITEMS = (
    Item(
        "denoise",
        "Table 1",
        "the data sets",
        notebook="01_explore_datasets",
        figures=("01_sizes",),
        printed="sizes of five sets; `potkit data list` has them",
    ),
    Item(
        "denoise",
        "Table 2",
        "four networks on ANI-1 and ANI-1x",
        ("denoise-table2",),
        "05_data_efficiency",
        ("05_data_efficiency",),
        {"study-denoise": ("denoise",), "data-efficiency": ("denoise",)},
        dict(paper="denoise", table="Table 2", model="average of 4"),
        needs=f"{ANI_SETS}, {GPU}",
        only={"study-denoise": {"target": ("ani1x",)}},
        metric="energy_mae",
    ),
    Item("denoise", "Figure 1", "a scheme", printed="no numbers"),
    Item(
        "denoise",
        "Figure 2 a, b",
        "ISO17: isomers no run has seen",
        ("denoise-figure2-iso17",),
        "04_transfer",
        ("04_transfer",),
        {
            "transfer": ("denoise",),
            "study-denoise": ("denoise",),
            "denoise-3bpa-curve": ("denoise",),
        },
        printed="SE(3)-Transformer about −50 % (energies)",
        needs=f"{ANI_SETS}, ISO17, {GPU}",
        # sets whose molecules the pretraining has not seen
        only={
            "transfer": {"data": ("iso17-mini",)},
            "study-denoise": {"target": ("3bpa", "ethanol", "transition1x")},
        },
        metric="energy_mae",
    ),
    Item(
        "denoise",
        "Figure 2 c, d",
        "SPICE: other elements, charges",
        ("denoise-figure2-spice",),
        "04_transfer",
        ("04_transfer",),
        {"transfer": ("denoise",), "denoise-dipeptides-curve": ("denoise",)},
        printed="average of four networks −15.3 % (energies)",
        needs=f"{ANI_SETS}, SPICE 1.1.3, {GPU}",
        only={"transfer": {"data": ("spice-mini",)}},
        metric="energy_mae",
    ),
    Item(
        "denoise",
        "Figure 3",
        "the seven molecules of MD22",
        ("denoise-figure3",),
        "04_transfer",
        ("04_transfer",),
        {"transfer": ("denoise",)},
        printed="buckyball catcher −39.3 %, nanotube −47.3 % on average (energies)",
        only={"transfer": {"data": ("md22-mini",)}},
        needs=f"{ANI_SETS}, MD22, {GPU}",
        metric="energy_mae",
    ),
    Item(
        "denoise",
        "Figure 4",
        "error against the number of labels",
        ("denoise-figure4",),
        "05_data_efficiency",
        ("05_data_efficiency", "05_labels_saved"),
        {"data-efficiency": ("denoise",), "denoise-3bpa-curve": ("denoise",)},
        dict(paper="denoise", table="text 3.5"),
        needs=f"{ANI_SETS}, MD22, {GPU}",
        metric="energy_mae",
    ),
    Item(
        "denoise",
        "Figure 5",
        "the noise scale σ",
        ("denoise-figure5",),
        "02_noise_scale",
        ("02_noise_scale", "02_noise_scale_error"),
        {
            "alkanes-to-3bpa": (
                "denoise 0.05 Å",
                "denoise 0.1 Å",
                "denoise 0.2 Å",
                "denoise 0.4 Å",
            )
        },
        printed="0.2 Å best, 0.01 to 0.5 Å help, larger ones harm",
        needs=f"{ANI_SETS}, {GPU}",
        metric="energy_mae",
    ),
    Item(
        "denoise",
        "S4",
        "what the networks cost",
        printed="not at hand; ours: [speed of all networks](../RESULTS.md#all-networks-one-table)",
    ),
    Item(
        "denoise",
        "S5",
        "fine-tuning for more epochs",
        ("denoise-s5",),
        stored={"study-denoise-doubled": ("denoise",), "denoise-3bpa-long": ("denoise",)},
        printed="not at hand",
        needs=f"{ANI_SETS}, {GPU}",
    ),
    Item(
        "denoise",
        "S6",
        "how much repeats differ",
        ("denoise-s6",),
        "10_calibration",
        ("10_calibration",),
        stored={
            "study-denoise": ("spread of denoise",),
            "alkanes-to-3bpa": ("spread of denoise 0.2 Å",),
        },
        printed="not at hand",
        needs=f"{ANI_SETS}, MD22, {GPU}",
    ),
    Item(
        "masked",
        "Table 1, RPBE",
        "three networks on RPBE-D3 water",
        ("masked-table1-rpbe",),
        "06_masked_versus_denoise",
        ("06_water",),
        {"masked-water": ("masked",)},
        dict(paper="masked", table="Table 1", data="RPBE", quantity="forces"),
        needs=f"the RPBE-D3 set, {GPU}",
    ),
    Item(
        "masked",
        "Table 1, TIP3P",
        "three networks on classical water",
        ("masked-table1-tip3p",),
        "06_masked_versus_denoise",
        ("06_water",),
        {"masked-water": ("masked",)},
        dict(paper="masked", table="Table 1", data="TIP3P", quantity="forces"),
        needs=f"{TIP3P_NEEDS}, {GPU}",
    ),
    Item(
        "masked",
        "Table 2",
        "EGNN on the molecules of rMD17",
        ("masked-table2",),
        "06_masked_versus_denoise",
        ("06_rmd17",),
        {"masked-or-denoise-rmd17": ("masked",)},
        theirs=dict(paper="masked", table="text 3.5", data="rMD17", quantity="forces"),
        needs=f"rMD17, {GPU}",
    ),
    Item("masked", "Figure 1", "a scheme", printed="no numbers"),
    Item(
        "masked",
        "Figure 2",
        "training from scratch for more epochs",
        ("masked-figure2",),
        "06_masked_versus_denoise",
        ("06_water",),
        {"masked-water": ("scratch-longer", "masked")},
        printed="RPBE: pretrained stays ahead of 400 epochs; TIP3P: the gap shrinks",
        needs=f"the RPBE-D3 set, {TIP3P_NEEDS}, {GPU}",
    ),
    Item(
        "masked",
        "Figure 3",
        "masked against denoise",
        ("masked-figure3",),
        "06_masked_versus_denoise",
        ("06_water",),
        {"masked-water": ("masked", "denoise")},
        printed="RPBE: alike; TIP3P, EGNN: energy RMSE 241.85 (masked), 2442.75 meV (denoise)",
        needs=f"the RPBE-D3 set, {TIP3P_NEEDS}, {GPU}",
    ),
    Item(
        "masked",
        "§3.2: convergence",
        "pretrained networks converge faster and more stably",
        ("masked-table1-rpbe", "masked-table1-tip3p"),
        "06_masked_versus_denoise",
        ("06_time",),
        printed="said of all, shown for ForceNet in S2",
        needs=f"the RPBE-D3 set, {GPU}",
    ),
    Item(
        "masked",
        "Table 1: spread",
        "four seeds differ less after pretraining",
        ("masked-table1-rpbe", "masked-table1-tip3p"),
        stored={"masked-water": ("spread of masked",)},
        printed="EGNN on RPBE: standard deviation 81.3 → 8.3 meV/Å",
        needs=f"the RPBE-D3 set, {GPU}",
    ),
    Item(
        "masked",
        "§3.1: batches",
        "EGNN is sensitive to large batches",
        ("masked-text-batch",),
        printed="said, no numbers",
        needs=f"the RPBE-D3 set, {GPU}",
    ),
    Item(
        "masked",
        "§3.2: ForceNet",
        "ForceNet converges only after pretraining",
        ("masked-table1-rpbe",),
        printed="RPBE: no number from scratch, 231.3 meV/Å pretrained; its published code sees one "
        "element only (fault all-oxygen)",
        needs=f"the RPBE-D3 set, {GPU}",
    ),
    Item(
        "masked",
        "§2.2: oxygen",
        "masking oxygen instead of hydrogen is unstable",
        ("masked-text-oxygen",),
        "03_mask_ratio",
        ("03_all_arms",),
        printed="said, no numbers",
        needs=f"the RPBE-D3 set, {GPU}",
    ),
    Item(
        "masked",
        "§3.5, S1: ratio",
        "which mask ratio",
        ("masked-text-ratio", "masked-s1"),
        "03_mask_ratio",
        ("03_mask_ratio",),
        printed="0.25 to 0.9 by network and set; rMD17: 0.5 of three",
        needs=f"the RPBE-D3 set, rMD17, {GPU}",
    ),
)


def table(folder: str | Path = "data/results") -> pd.DataFrame:
    """A row per item, as Markdown: where it is answered, ours beside theirs, what a run needs."""
    rows = []
    for item in ITEMS:
        own = [name for name in item.specs if (Path(folder) / f"{name}.csv").is_file()]
        near = {name: arms for name, arms in item.stored.items() if name not in own}
        ours = [ours_in_words(name, None, folder, metric=item.metric) for name in own]
        ours += [
            f"near it: {ours_in_words(name, arms, folder, item.only.get(name), item.metric)}"
            for name, arms in near.items()
        ]
        missing = [name for name in item.specs if name not in own]
        rows.append(
            {
                "item": f"{item.name}: {item.what}",
                "`potkit compare`": ", ".join(f"`{name}`" for name in item.specs),
                "notebook, figures": _links(item),
                "theirs": theirs_in_words(item),
                "ours": "; ".join(ours),
                "not run here, needs": item.needs if missing else "",
            }
        )
    return pd.DataFrame(rows)


def of_paper(paper: str, folder: str | Path = "data/results") -> pd.DataFrame:
    """`table` for one paper."""
    keep = [item.paper == paper for item in ITEMS]
    return table(folder)[keep].reset_index(drop=True)


def _links(item: Item) -> str:
    links = [f"[{item.notebook[:2]}](../notebooks/{item.notebook}.ipynb)"] if item.notebook else []
    links += [f"[{name}](../figures/{name}.png)" for name in item.figures]
    return ", ".join(links)


def theirs_in_words(item: Item) -> str:
    """What the paper prints: changes of its table, or the item's own words."""
    if not item.theirs:
        return item.printed
    rows = published_numbers.changes()
    for column, value in item.theirs.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        raise DataError(f"{item.paper} paper, {item.name}: no printed change for {item.theirs}")
    return "; ".join(
        f"{row.data}{'' if row.labels == 'all' else f' ({row.labels} of the labels)'}, "
        f"{row.model}: {row.quantity} {row.metric} {row.computed:+.0f} %"
        for row in rows.itertuples()
    )


def ours_in_words(
    name: str,
    arms: tuple[str, ...] | None,
    folder: str | Path,
    only: Mapping[str, tuple[str, ...]] | None = None,
    metric: str = "forces_mae",
) -> str:
    """The changes of ``metric`` (energies, where no force is tested) against scratch in the stored
    result ``name``, by ``arms`` (default: all), in the cells with the values of ``only`` (column ->
    values; default: all). Raises DataError where it is not stored.
    """
    if arms and arms[0].startswith("spread of "):
        return f"`{name}`: {_spread(name, arms[0].removeprefix('spread of '), folder)}"
    if (Path(folder) / f"{name}-effects.csv").is_file():
        rows, _ = stored(f"{name}-effects", folder)
        rows = rows[rows["against"] == "scratch"]
        budget = ""
    else:
        rows, _ = stored(name, folder)
        most = rows["labels"].max()
        rows = rows[(rows["labels"] == most) & rows["change_%"].notna()]
        budget = f" at {most} labels"
    forces = metric == "forces_mae" and metric in set(rows["metric"])
    rows = rows[rows["metric"] == ("forces_mae" if forces else "energy_mae")]
    if arms is not None:
        rows = rows[rows["arm"].isin(arms)]
    for column, values in (only or {}).items():
        rows = rows[rows[column].isin(values)]
    if rows.empty:
        raise DataError(f"{name}: no arm of {', '.join(arms or ('any',))} is stored")
    columns = list(rows.columns)
    first = min(columns.index(c) for c in ("arm", "labels") if c in columns)
    words = [
        f"{' '.join(str(row[c]) for c in columns[:first])} {row['arm']} {_change(row)}".strip()
        for _, row in rows.iterrows()
    ]
    return f"`{name}`{budget}, {'force' if forces else 'energy'} MAE: {', '.join(words)}"


def _change(row: Any) -> str:
    text = f"{row['change_%']:+.0f} %"
    if pd.notna(row["change_low_%"]):
        text += f" ({row['change_low_%']:+.0f} to {row['change_high_%']:+.0f})"
    return text


def _spread(name: str, arm: str, folder: str | Path) -> str:
    """The standard deviation over seeds, from scratch and after ``arm``, by the parts of a grid."""
    runs, _ = stored(f"{name}-runs", folder)
    runs = runs[runs["labels"] == runs["labels"].max()]
    columns = list(runs.columns)
    by = columns[: columns.index("arm")]
    words = []
    for key, part in runs.groupby(by) if by else [((), runs)]:
        spread = 1e3 * part.groupby("arm")["forces_rmse"].std()
        words.append(
            f"{' '.join(map(str, key))} ± {spread['scratch']:.1f} → "
            f"± {spread[arm]:.1f} meV/Å ({part['seed'].nunique()} seeds)"
        )
    said = "standard deviation of the force RMSE over seeds, scratch → pretrained: "
    return said + ", ".join(words)


def faults() -> pd.DataFrame:
    """Where the networks here depart from the published codes: a row per fault, with the switch
    that brings it back.
    """
    rows = []
    for fault in network_faults.FAULTS.values():
        presets = ", ".join(
            f"{network} {preset}" for network, names in fault.networks.items() for preset in names
        )
        rows.append(
            {
                "what the published code does": fault.does,
                "switch": f'`potkit.build(…, faults=("{fault.name}",))`',
                "of": presets,
                "source": fault.source,
                "shown by": f"tests/{fault.shown_by}",
            }
        )
    return pd.DataFrame(rows)


def other_faults() -> pd.DataFrame:
    """The same for objectives, data and evaluation."""
    rows = []
    for fault in objective_faults.FAULTS.values():
        of = ", ".join(fault.objectives) or "data and evaluation"
        rows.append(
            {
                "what the published code does": fault.does,
                "switch": f"{fault.name}: {fault.how}",
                "of": of,
                "source": fault.source,
                "shown by": f"tests/{fault.shown_by}" if fault.shown_by else "",
            }
        )
    return pd.DataFrame(rows)


def notes() -> pd.DataFrame:
    """What the shipped experiments do not take from a paper, and what they guess."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name in shipped.names():
        for _, spec in shipped.read(name).specs:
            for setting, why in spec.notes.items():
                names = rows.setdefault((setting, why), [])
                if name not in names:
                    names.append(name)
    return pd.DataFrame(
        [
            {"setting": setting, "why": why, "experiments": ", ".join(names)}
            for (setting, why), names in rows.items()
        ]
    )
