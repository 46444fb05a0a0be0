"""Audits as people read them: the tables of published faults, what each setting does to the gain
from pretraining, in a picture, a table and sentences.

All of it follows from the runs of `experiments.audit`. A sentence says "told from 0" only where
Holm over the settings does, and gives the interval everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..experiments import audit, statistics
from ..models import egnn
from ..models import faults as of_models
from ..objectives import faults as of_objectives
from ..training.config import TrainConfig
from . import figures
from .tables import UNITS

LEVEL = 0.05
NEAREST = 3  # settings whose p a sentence names
NO_VERDICT = "no verdict from a few steps"
# settings of data/results/audit-choices.yaml -> what is chosen there, in the base and in them
CHOICES = {
    "no clipping": ("largest gradient norm", "10", "none"),
    "isolated atoms": ("reference energies", "least-squares", "isolated"),
    "sum over neighbours": ("EGNN's step of coordinates", "mean", "sum"),
}


# -- the published faults ------------------------------------------------------------------------
def faults_of_models(settings: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The faults of the networks in the published codes: what each does, where, its source, and in
    which of the audited ``settings`` (see `audited`) it is switched on.
    """
    rows = []
    for fault in of_models.FAULTS.values():
        where = ", ".join(
            f"{network} ({' and '.join(p.removesuffix('-paper') for p in presets)})"
            for network, presets in fault.networks.items()
        )
        rows.append({"fault": fault.name, "network (paper)": where, "does": fault.does})
        rows[-1] |= {"source": fault.source, "audited as": (settings or {}).get(fault.name, "–")}
    return pd.DataFrame(rows)


def faults_of_objectives(settings: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The faults of the published objectives, data and evaluation, as `faults_of_models`."""
    rows = []
    for fault in of_objectives.FAULTS.values():
        where = ", ".join(fault.objectives) or "data and evaluation"
        rows.append({"fault": fault.name, "objective": where, "does": fault.does})
        rows[-1] |= {"switch": fault.how, "source": fault.source}
        rows[-1]["audited as"] = (settings or {}).get(fault.name, "–")
    return pd.DataFrame(rows)


def audited(*studies: Mapping[str, Any]) -> dict[str, str]:
    """Fault -> the setting that switches it on, of the provenances of stored studies."""
    found: dict[str, str] = {}
    for how in studies:
        for part in how["experiment"]:
            objectives = [options.get("faults", ()) for options in part["arms"].values()]
            for names in (part["model"].get("faults", ()), *objectives):
                found |= dict.fromkeys(names, part["grid"]["setting"])
    return found


# -- tables and pictures -------------------------------------------------------------------------
def in_words(table: pd.DataFrame, verdicts: bool = True) -> pd.DataFrame:
    """`experiments.audit.table` as people read it: a row per setting and metric, the changes with
    the intervals of one comparison alone, and the verdict on the gain.
    """
    column = table.columns[0]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _, r in table.iterrows():
        label = UNITS[r["metric"]][0]
        about = {column: r[column], "error": label, "seeds": r["seeds"]}
        row = rows.setdefault((r[column], r["metric"]), about)
        name = "its gain" if r["quantity"] == audit.GAIN else r["quantity"]
        row[f"change of {name}"] = _change(r)
        if r["quantity"] == audit.GAIN:
            row["verdict on the gain"] = _verdict(r) if verdicts else NO_VERDICT
    return pd.DataFrame(rows.values())


def _change(row: Mapping[str, Any]) -> str:
    """ "+23 % (+7 to +41 %)"; "as the base" where the runs are the same."""
    if row["verdict"] == audit.SHARED:
        return "as the base"
    text = f"{_whole(row['change_%'])} %"
    if pd.notna(row["change_low_%"]):
        text += f" ({_whole(row['change_low_%'])} to {_whole(row['change_high_%'])} %)"
    return text


def _whole(percent: float) -> str:
    """A signed number without decimals, but for those near 0, whose sign a reader wants to see."""
    text = f"{percent:+.0f}" if abs(percent) >= 0.95 else f"{percent:+.1f}"
    return text.replace("-", "−")


def _verdict(row: Mapping[str, Any]) -> str:
    """Statistics' verdict, in words that fit a gain."""
    told = {"better": "more is gained", "worse": "less is gained"}
    return told.get(row["verdict"], row["verdict"])


def gains(runs: pd.DataFrame, metric: str = "forces_mae", column: str = "setting") -> pd.DataFrame:
    """The gain itself in every setting, base included: log(arm / scratch) over seeds, in %, with
    the interval of one comparison alone.
    """
    effects = statistics.effects(runs, [metric], against=[audit.SCRATCH])
    arm = audit.pretrained_arm(runs)
    kept = [column, "seeds", "change_%", "change_low_%", "change_high_%"]
    # a contrast that was declared has a row, too, whatever it compares
    asked = (effects["against"] == audit.SCRATCH) & (effects["metric"] == metric)
    return effects.loc[asked & (effects["arm"] == arm), kept].reset_index(drop=True)


def _sizes(studies: Mapping[str, pd.DataFrame]) -> str:
    """How many seeds, labels and test structures are behind the numbers of ``studies``."""
    runs = pd.concat(studies.values())
    said = []
    for column, words in (("seed", "seeds"), ("labels", "labels"), ("n_test", "test structures")):
        values = sorted(runs[column].dropna().unique()) if column in runs else []
        if column == "seed":
            said.append(f"{len(values)} {words}")
        elif len(values):
            said.append(f"{' or '.join(f'{v:.0f}' for v in values)} {words}")
    return f"95 % intervals over seeds; {', '.join(said)}"


def figure(
    studies: Mapping[str, pd.DataFrame],
    metric: str = "forces_mae",
    title: str | None = None,
    verdicts: bool = True,
) -> go.Figure:
    """The gain from pretraining in every setting of the ``studies`` (title -> runs), with 95 %
    intervals over seeds; a dashed line marks the base.

    A study's own base stands once if the base of another has the same name and numbers. Filled
    markers are settings whose gain is told from the base's (Holm).
    """
    arms = {audit.pretrained_arm(runs) for runs in studies.values()}
    x_title = f"{UNITS[metric][0]} of {' or '.join(sorted(arms))} against scratch (%)"
    chart = figures.figure(x_title, "", f"{title or ''}<br><sub>{_sizes(studies)}</sub>")
    chart.update_layout(margin=dict(t=90))
    colours = figures.colours(len(studies))
    drawn: set[tuple[str, float]] = set()
    order = []
    for (name, runs), colour in zip(studies.items(), colours, strict=True):
        base, found = audit.base_of(runs), gains(runs, metric)
        changed = audit.table(runs, metrics=[metric])
        changed = changed[changed["quantity"] == audit.GAIN].set_index("setting")
        told = changed["verdict"].isin(["better", "worse"]) & verdicts
        known = [(r["setting"], r["change_%"]) in drawn for _, r in found.iterrows()]
        found = found[[not k for k in known]]
        drawn |= set(zip(found["setting"], found["change_%"], strict=True))
        order += [s for s in found["setting"] if s not in order]
        symbols = ["square" if told.get(s, s == base) else "square-open" for s in found["setting"]]
        chart.add_scatter(
            x=found["change_%"],
            y=found["setting"],
            error_x=dict(
                array=found["change_high_%"] - found["change_%"],
                arrayminus=found["change_%"] - found["change_low_%"],
            ),
            mode="markers",
            name=name,
            marker=dict(size=12, color=colour, symbol=symbols),
        )
        if len(drawn) == len(found):  # of the first study
            at = float(found.loc[found["setting"] == base, "change_%"].iloc[0])
            chart.add_vline(x=at, line=dict(color="grey", dash="dash"))
    chart.add_vline(x=0, line=dict(color="black"))
    chart.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    return chart


# -- sentences -----------------------------------------------------------------------------------
def sentences(runs: pd.DataFrame, metric: str = "forces_mae") -> list[str]:
    """What the study says about the gain in ``metric``: a sentence for the base, one for each
    setting, one for all of them.
    """
    base, arm, what = audit.base_of(runs), audit.pretrained_arm(runs), UNITS[metric][0]
    own = gains(runs, metric).set_index("setting").loc[base]
    table = audit.table(runs, metrics=[metric])
    changed = table[table["quantity"] == audit.GAIN]
    interval = _change({**own, "verdict": ""})
    said = [f"{base}: {what} of {arm} against scratch {interval}, {own['seeds']:.0f} seeds."]
    for _, row in changed.iterrows():
        line = f"{row['setting']}: the ratio of {arm} to scratch changes by {_change(row)}"
        if row["verdict"] == audit.SHARED:
            said.append(f"{row['setting']}: both arms are the base's own runs.")
            continue
        adjusted = f"; p {row['p']:.2g}, by Holm {row['p_holm']:.2g}"
        said.append(f"{line}{adjusted if pd.notna(row['p']) else ''}: {_verdict(row)}.")
    told = changed.loc[changed["verdict"].isin(["better", "worse"]), "setting"].tolist()
    among = f"of {len(changed)} settings"
    if told:
        said.append(f"Told from the gain as it is, {among}: {', '.join(told)}.")
    else:
        low, high = changed["change_low_%"].min(), changed["change_high_%"].max()
        said.append(
            f"No gain is told from the gain as it is, {among}. That does not make them the same: "
            f"the intervals of single comparisons reach from {_whole(low)} to {_whole(high)} %."
        )
    alone = changed[changed["effect"].isin(["better", "worse"])]["setting"]
    if alone := [setting for setting in alone if setting not in told]:
        said.append(
            f"Asked alone, without counting the other settings: {', '.join(alone)} would leave "
            "out 0."
        )
    return said


def together(studies: Mapping[str, pd.DataFrame], metric: str = "forces_mae") -> str:
    """What is told of the gains if the settings of all ``studies`` (title -> runs) are one family,
    a stricter question than `sentences` ask.
    """
    tables = [audit.table(runs, metrics=[metric]) for runs in studies.values()]
    gain = pd.concat([t[t["quantity"] == audit.GAIN] for t in tables])
    adjusted, _ = statistics.holm(gain["p"])
    gain = gain.assign(p_holm=adjusted).sort_values("p_holm", kind="stable")
    told = gain.loc[gain["p_holm"] <= LEVEL, "setting"].tolist()
    nearest = ", ".join(
        f"{r['setting']} {r['p_holm']:.2g}" for _, r in gain.head(NEAREST).iterrows()
    )
    found = f"told from the gain as it is: {', '.join(told)}" if told else "no gain is told"
    return f"All {gain['p'].notna().sum()} settings as one family: {found} (p by Holm: {nearest})."


def defaults() -> dict[str, str]:
    """Setting of `CHOICES` -> what potkit does by default: clip and references of every training,
    the aggregate of EGNN's preset small.
    """
    clip, references = (TrainConfig.model_fields[f].default for f in ("clip", "references"))
    signature = inspect.signature(egnn.EGNN.__init__).parameters["aggregate"].default
    return {
        "no clipping": "none" if clip is None else f"{clip:g}",
        "isolated atoms": references,
        "sum over neighbours": egnn.PRESETS["small"].get("aggregate", signature),
    }


def on_defaults(runs: pd.DataFrame, metric: str = "forces_mae") -> list[str]:
    """What the study of our own choices allows to say about each default, a sentence each.

    The errors of the arms speak for or against a choice. The gain does not: it also grows where
    scratch gets worse.
    """
    what = UNITS[metric][0]
    table = audit.table(runs, metrics=[metric])
    said = []
    for setting, (choice, base, other) in CHOICES.items():
        rows = table[table["setting"] == setting]
        if not len(rows):
            continue
        chosen = defaults()[setting]
        numbers = "; ".join(f"{r['quantity']} {_change(r)}" for _, r in rows.iterrows())
        line = f"{choice}: {other} instead of {base} changes the {what} ({numbers}). "
        verdicts = rows.set_index("quantity")["verdict"]
        gain = verdicts.pop(audit.GAIN)
        told = verdicts[verdicts.isin(["better", "worse"])]
        if not len(told):
            line += "Neither arm is told from 0: these runs do not decide between the default, "
            line += f"{chosen}, and the other; the intervals say how much is at stake."
        elif told.nunique() > 1:
            line += f"The arms disagree; the default stays {chosen}."
        else:
            names = " and ".join(f"{arm} is {told.iloc[0]}" for arm in told.index)
            best = other if told.iloc[0] == "better" else base
            fits = "the default is that" if best == chosen else f"the default is {chosen}"
            line += f"Told from 0: with {other}, {names}, which speaks for {best}; {fits}."
        if gain in ("better", "worse"):
            size = "larger" if gain == "better" else "smaller"
            line += f" The gain is {size} with {other}, so gains with {other} and with {base} are "
            line += "different quantities."
        said.append(line)
    return said
