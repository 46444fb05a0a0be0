"""Sentences and small tables that say what stored runs say: each change with its interval, each
verdict as `statistics.verdict` words it.

Every function takes tables as they are stored and returns Markdown, so that `blocks.fill` can write
a page or a notebook's output anew, and `verify` can compare.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import DataError
from ..experiments import (
    calibration,
    choosing,
    convergence,
    planning,
    statistics,
    structure_errors,
)
from ..experiments.arms import DOUBLED
from .tables import UNITS, markdown

OWN = ("scratch", "scratch-longer")


MOST = 999  # %: an end of an interval beyond it says no more than that


def percent(value: float) -> str:
    """ "+13" or "−5": a change in %, with the sign that the verdicts have; "> +999" beyond."""
    return f"> +{MOST}" if value > MOST else f"{value:+.0f}".replace("-", "−")


def _shortened(verdict: str) -> str:
    """A verdict of `statistics.verdict` without an end of so many digits that nobody reads it."""
    return re.sub(r"\+(?:\d{4,}|inf)", f"> +{MOST}", verdict)


def change(row: Any) -> str:
    """ "−10 % (−22 to +3 %)" of a row with change_% and its interval."""
    text = f"{percent(row['change_%'])} %"
    if pd.isna(row["change_low_%"]):
        return text
    return f"{text} ({percent(row['change_low_%'])} to {percent(row['change_high_%'])} %)"


def verdicts(effects: pd.DataFrame) -> str:
    """A line for each arm and baseline of a table of `statistics.effects`: both metrics, each
    change with its interval and its verdict. Raises DataError for a table without verdicts.
    """
    if "verdict" not in effects:
        raise DataError("a table of effects without the column 'verdict' says nothing")
    by = list(effects.columns[: list(effects.columns).index("arm")])
    seeds = sorted(set(effects["seeds"]))
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    given = _given_weights(effects)
    unit = "seeds" if given else "pretrainings"
    lines = [
        f"Changes over {over} {unit}, in brackets the 95 % interval of one comparison alone. "
        "What is not told from 0 has behind it the interval that counts all comparisons of its "
        f"family (Holm).{given}"
    ]
    declared = effects[effects["family"] == "primary"]
    if len(declared):
        first = declared.iloc[0]
        lines[0] += (
            f" Declared before the runs: {first['arm']} against {first['against']}, "
            f"{UNITS[first['metric']][0]}"
        )
        if len(declared) > 1:
            lines[0] += f", a family of {len(declared)}"
        lines[0] += f"; the other {len(effects) - len(declared)} are one family."
    else:
        lines[0] += f" The {len(effects)} comparisons here are one family."
    if effects.attrs.get("interval", "t") != "t":
        lines[0] += f" Intervals in brackets are by {effects.attrs['interval']}, verdicts by t."
    lines.append("")
    for key, part in effects.groupby([*by, "arm", "against"], sort=False):
        *where, arm, against = key
        name = ", ".join(map(str, where))
        said = [
            f"{structure_errors.NAMES[r['metric']][0]} {change(r)}: {_shortened(r['verdict'])}"
            for r in part.to_dict("records")
        ]
        lines.append(
            f"- {f'{name}: ' if name else ''}**{arm}** against {against}: {'; '.join(said)}"
        )
    seen = sight(effects)
    return "\n".join([*lines, "", seen] if seen else lines)


def gains(effects: pd.DataFrame, arm: str = "denoise") -> str:
    """One sentence: the change of the force error by ``arm`` against each of its baselines, cell by
    cell. Raises DataError for a table without such rows.
    """
    forces = effects[(effects["arm"] == arm) & (effects["metric"] == "forces_mae")]
    if not len(forces):
        raise DataError(f"a table of effects without force errors of {arm!r}")
    by = list(effects.columns[: list(effects.columns).index("arm")])
    baselines = list(dict.fromkeys(forces["against"]))
    cells = forces.groupby(by, sort=False) if by else [((), forces)]
    said = []
    for key, rows in cells:
        of = rows.set_index("against")
        each = [
            f"{percent(of.loc[b, 'change_%'])} %"
            # told from 0, all comparisons counted
            + ("" if of.loc[b, "verdict"] in ("better", "worse") else " (not told)")
            for b in baselines
            if b in of.index
        ]
        said.append(f"{' '.join(map(str, key))} {' / '.join(each)}".strip())
    what = f"Change of the force error by {arm}, against {' / '.join(baselines)}"
    return textwrap.fill(f"{what}: {', '.join(said)}.", 100, break_on_hyphens=False)


def _given_weights(effects: pd.DataFrame) -> str:
    """A sentence on what the seeds of given weights change, and what not; "" where arms pretrain
    themselves.
    """
    names = effects["weights"].dropna().unique() if "weights" in effects else ()
    if not len(names):
        return ""
    return (
        " A seed changes the labels, new heads and the order of batches; the weights to start from "
        f"({', '.join(names)}) are of one pretraining each, and what another would give is in no "
        "interval."
    )


def sight(effects: pd.DataFrame, metric: str | None = None) -> str:
    """What so many pretrainings can see of ``metric`` (default: forces, or else energies), at the
    spread that the intervals of a table of `statistics.effects` have: the half width to expect, and
    how often a change by a tenth is told. "" where no row has an interval.
    """
    both = ("forces_mae", "energy_mae")
    metric = metric or next((m for m in both if (effects["metric"] == m).any()), "")
    rows = effects[(effects["metric"] == metric) & effects["change_low_%"].notna()]
    said = []
    for seeds, part in rows.groupby("seeds"):
        ends = np.log1p(part[["change_low_%", "change_high_%"]].to_numpy() / 100)
        error = (ends[:, 1] - ends[:, 0]) / 2 / stats.t.ppf(0.975, seeds - 1)
        deviation = float(np.sqrt(np.mean(error**2) * seeds))
        if deviation == 0:
            continue
        half = np.expm1(planning.expected_half_width(deviation, seeds))
        tenth = planning.power(np.log(0.9), deviation, seeds)
        least = -np.expm1(-planning.detectable(deviation, seeds))
        unit = "seeds" if _given_weights(effects) else "pretrainings"
        said.append(
            f"What {seeds} {unit} see of {UNITS[metric][0]} at the spread of these runs "
            f"({100 * np.expm1(deviation):.0f} % between {unit}): an interval is "
            f"± {100 * half:.0f} % on average; alone, a true −10 % is told from 0 in "
            f"{100 * tenth:.0f} of 100 such comparisons, −{100 * least:.0f} % in 80."
        )
    return " ".join(said)


def test_set(table: pd.DataFrame) -> str:
    """A table of `structure_errors.summarise`: an arm per row, a column per metric, and what the
    test set is worth.
    """
    by = list(table.columns[: list(table.columns).index("arm")])
    rows = []
    for key, part in table.groupby([*by, "arm"], sort=False):
        row = dict(zip([*by, "arm"], key, strict=True))
        for r in part.to_dict("records"):
            name, unit, scale = structure_errors.NAMES[r["metric"]]
            text = f"{scale * r['mean']:.3g}"
            if np.isfinite(r["low"]) and r["clusters"] >= structure_errors.FEWEST:
                text += f" [{scale * r['low']:.3g} to {scale * r['high']:.3g}]"
            row[f"{name} ({unit})"] = text
        row["test structures"] = worth(part)
        rows.append(row)
    note = (
        "In brackets 95 % intervals over the systems (or stretches of a trajectory) of the test "
        "set, for these networks: what other ones would do. So many structures are worth as many "
        "independent ones as the last column says. Relative energies are centred in each system."
    )
    if (table["clusters"] < structure_errors.FEWEST).any():
        note += (
            f" Fewer than {structure_errors.FEWEST} groups have no interval that can be trusted."
        )
    return f"{markdown(pd.DataFrame(rows).fillna(''))}\n\n{note}"


SHOWN = 16  # molecules of a table, at most: of hundreds those with the largest errors


def broken_down(table: pd.DataFrame) -> str:
    """A table of `structure_errors.breakdowns`: for each kind of group (molecule, size, element …)
    a table with a group per row, its force MAE (energy MAE per atom where there are no forces) from
    scratch and the other arms' changes.
    """
    metric = "forces_mae" if (table["metric"] == "forces_mae").any() else "energy_mae_per_atom"
    name, unit, scale = structure_errors.NAMES[metric]
    table = table[table["metric"] == metric]
    columns = list(table.columns)
    before = [c for c in columns[: columns.index("arm")] if c not in ("by", "group")]
    told = []
    for by, of_kind in table.groupby("by", sort=False):
        rows = []
        for key, part in of_kind.groupby([*before, "group"], sort=False):
            of = part.set_index("arm")
            base = of.loc["scratch"]
            row = dict(zip([*before, by], key, strict=True))
            row["structures"] = f"{base['structures']:.0f}"
            row["_"] = base["mean"]
            row[f"{name} of scratch ({unit})"] = f"{scale * base['mean']:.0f}"
            row |= {arm: change(r) for arm, r in of.iterrows() if arm != "scratch"}
            rows.append(row)
        left = len(rows) - SHOWN if by == "molecule" else 0
        if left > 0:
            rows = sorted(rows, key=lambda row: -row["_"])[:SHOWN]
        told.append(markdown(pd.DataFrame(rows).drop(columns="_").fillna("")))
        if left > 0:
            told.append(
                f"The {SHOWN} with the largest errors; {left} more are in the stored table."
            )
    note = (
        "Changes are against scratch, for these networks (errors averaged over seeds), in brackets "
        "the 95 % interval over the systems (or stretches of a trajectory) in the group, where "
        f"there are {structure_errors.FEWEST} or more. They say where errors lie; verdicts are "
        "those over seeds."
    )
    return "\n\n".join([*told, note])


def astray(runs: pd.DataFrame) -> str:
    """A line for each run that ended badly (`statistics.astray`), with the median of its arm; or
    one that says there is none. Of arms with too few runs to tell, it says that.
    """
    far, counts = statistics.astray(runs), statistics.run_counts(runs)
    few = counts[counts["runs"] < statistics.JUDGES]
    cannot = ""
    if len(few):
        names = ", ".join(dict.fromkeys(map(str, few["arm"])))
        cannot = (
            f"Of fewer than {statistics.JUDGES} runs of an arm and label budget it cannot be told "
            f"whether one ended badly: {names}."
        )
    if len(few) and len(few) == len(counts):
        return cannot
    if not len(far):
        none = (
            f"No run that ended has an error of more than {statistics.FAR:g} times the median of "
            "its arm."
        )
        return f"{none} {cannot}" if cannot else none
    lines = []
    for r in far.to_dict("records"):
        where = [f"{r[c]}" for c in far.columns[: list(far.columns).index("arm")] if c != "labels"]
        label, unit, scale = UNITS[r["metric"]]
        seed = f"seed {r['seed']}"
        if "label_draw" in r:
            seed += f", draw {r['label_draw']} of labels"
        lines.append(
            f"- {_where(where)}**{r['arm']}**, {r['labels']} labels, {seed}: {label} "
            f"{scale * r['error']:.4g} {unit}, {r['times']:.1f} times the median of "
            f"{scale * r['median']:.4g}"
        )
    return "\n".join([*lines, "", cannot] if cannot else lines)


def worth(table: pd.DataFrame) -> str:
    """ "300 structures of 78 systems, worth 93" of rows of `structure_errors.summarise`: forces, or
    else energies. Never worth more than there are, and of too few groups it is not said.
    """
    metric = "forces_mae" if (table["metric"] == "forces_mae").any() else "energy_mae"
    r = table[table["metric"] == metric].iloc[0]
    text = f"{r['structures']:.0f} structures of {r['clusters']:.0f} {r['of']}"
    if not np.isfinite(r["effective"]) or r["clusters"] < structure_errors.FEWEST:
        return text
    return f"{text}, worth {min(r['effective'], r['structures']):.0f}"


def choice(runs: pd.DataFrame, metric: str | None = None) -> str:
    """What was chosen on validation molecules, of the runs of `choosing.on_validation`."""
    metric = metric or statistics.metric_of(runs)
    label, unit, scale = UNITS[metric]
    arms = [a for a in dict.fromkeys(runs["arm"]) if a not in OWN]
    found = choosing.ranked(runs, arms, metric)
    rows = []
    for r in found.table.to_dict("records"):
        text = f"{scale * r['mean']:.1f}"
        if np.isfinite(r["low"]):
            text += f" [{scale * r['low']:.1f} to {scale * r['high']:.1f}]"
        chosen = r["arm"] == found.name
        told = "worse" if r["verdict"] == "worse" else "not told from it"
        against = "" if chosen else f"{change(r)}: {told}"
        rows.append(
            {
                "arm": r["arm"],
                "seeds": r["seeds"],
                f"{label} on validation molecules ({unit})": text,
                f"against {found.name}": "chosen" if chosen else against,
            }
        )
    note = (
        "In brackets 95 % intervals; those of the changes hold for all candidates at once (Tukey), "
        "because the numbers that compare also made the winner."
    )
    return f"{markdown(pd.DataFrame(rows))}\n\n{note}\n\n{chosen_in_words(found)}"


def chosen_in_words(found: choosing.Choice) -> str:
    """ "Chosen: denoise 0.1. Not told from it: …" of a `choosing.Choice`, and which candidates were
    dropped.
    """
    text = f"Chosen, because it has the smallest mean error: {found.name}."
    if found.left:
        text += f" Not told from it: {', '.join(found.left)}."
    elif found.others:
        text += " All others are told to be worse."
    if found.dropped:
        text += f" Dropped, as no seed has all its runs: {', '.join(found.dropped)}."
    return text


def converged(checked: pd.DataFrame) -> str:
    """A line for each row of a table of `convergence.table`: what more steps change, with its
    interval and the verdict that it decides.
    """
    lines = "\n".join(f"- {line}" for line in convergence.lines(checked))
    for metric in set(checked["metric"]):
        lines = lines.replace(metric, UNITS[metric][0])
    return lines


def saved(runs: pd.DataFrame, metric: str | None = None) -> str:
    """What labels are worth to scratch, to scratch-longer and to scratch for twice the steps, and
    the learning curves' slopes, a line each.
    """
    metric = metric or statistics.metric_of(runs)
    by = [c for c in statistics.grouping(runs) if c != "labels"]
    lines = []
    laws = statistics.learning_curves(runs, metric, by)
    for key, part in laws.groupby(by, sort=False) if by else [((), laws)]:
        said = ", ".join(_slope(r) for r in part.to_dict("records"))
        lines.append(f"- {_where(key)}slopes of {UNITS[metric][0]} over labels: {said}")
    baselines = (*OWN, DOUBLED)
    for baseline in [b for b in baselines if b in set(runs["arm"])]:
        table = statistics.labels_saved(runs, metric, by, baseline)
        table = table[~table["arm"].isin(baselines)]
        for key, part in table.groupby([*by, "arm"], sort=False):
            *where, arm = key
            said = list(dict.fromkeys(_saved_in_words(r) for r in part.to_dict("records")))
            lines.append(f"- {_where(where)}**{arm}** against {baseline}: {'; '.join(said)}")
    return "\n".join(lines).replace("-0.", "−0.")


def _slope(row: dict[str, Any]) -> str:
    """ "denoise −0.20 (−0.24 to −0.16), +0.05 (−0.01 to +0.11) more than scratch"."""
    text = f"{row['arm']} {row['slope']:.2f} ({row['slope_low']:.2f} to {row['slope_high']:+.2f})"
    if pd.isna(row.get("slope_change")):
        return text
    low, high = row["slope_change_low"], row["slope_change_high"]
    return f"{text}, {row['slope_change']:+.2f} ({low:+.2f} to {high:+.2f}) to scratch's"


def learned(runs: pd.DataFrame) -> str:
    """The pretraining's own loss on validation structures, a row per arm that was pretrained."""
    good = runs[runs["pretrain_loss"].notna()]
    by = [c for c in statistics.grouping(runs) if c != "labels"]
    rows = []
    # the runs of all label budgets and variants share a pretraining
    for key, part in good.groupby([*by, "arm"], sort=False):
        unit = "pretrain_seed" if "pretrain_seed" in part else "seed"
        losses = part.drop_duplicates(unit)["pretrain_loss"]
        mean, low, high = np.exp(statistics.interval(np.log(losses)))
        row = dict(zip([*by, "arm"], key, strict=True)) | {"seeds": len(losses)}
        text = f"{mean:.3f}" + ("" if np.isnan(low) else f" [{low:.3f} to {high:.3f}]")
        rows.append(row | {"loss of pretraining (validation)": text})
    return markdown(pd.DataFrame(rows))


def _saved_in_words(row: dict[str, Any]) -> str:
    if not row["given"]:
        return f"what labels are worth is not told: {row['why']}"
    return f"{row['labels']} labels do as well as {statistics.needs_in_words(row)}"


def _where(key: Any) -> str:
    parts: Sequence = key if isinstance(key, (tuple, list)) else (key,)
    name = ", ".join(map(str, parts))
    return f"{name}: " if name else ""


# -- ensembles -----------------------------------------------------------------------------------
QUANTITIES = {"forces": ("forces", "meV/Å"), "energy": ("energies", "meV")}
SAID = {
    "spearman": "rank correlation",
    "area": "miscalibration area",
    "area_scaled": "miscalibration area after the recalibration",
    "nll": "NLL",
    "nll_scaled": "NLL after the recalibration",
}


def ensembles(table: pd.DataFrame) -> str:
    """A table of `calibration.summarise`: an arm per row, for forces and for energies, and another
    with the shares of labels inside. Every number has its interval.
    """
    by = list(table.columns[: list(table.columns).index("arm")])
    numbers, shares = [], []
    for key, part in _nested(table, [*by, "quantity"], ["arm"]):
        *where, quantity, arm = key
        name, unit = QUANTITIES[quantity]
        of = part.set_index("statistic")
        about = dict(zip(by, where, strict=True)) | {"of": f"{name} ({unit})", "arm": arm}
        numbers.append(
            about
            | {
                "RMSE": _with_ends(of, "rmse", 1e3),
                "sharpness": _with_ends(of, "sharpness", 1e3),
                "rank correlation": _with_ends(of, "spearman"),
                "area": _with_ends(of, "area"),
                "NLL": _with_ends(of, "nll"),
                "factor": _with_ends(of, "factor"),
                "sharpness, scaled": _with_ends(of, "sharpness_scaled", 1e3),
                "area, scaled": _with_ends(of, "area_scaled"),
                "NLL, scaled": _with_ends(of, "nll_scaled"),
            }
        )
        for stage, ending in (("as it is", ""), ("scaled", "_scaled")):
            row = about | {"of": name, "spread": stage}
            for inside in calibration.INSIDE:
                level = inside.removeprefix("inside_")
                ends = (f"{100 * of.loc[inside + ending, c]:.0f}" for c in ("value", "low", "high"))
                row[f"inside {level} % intervals (%)"] = "{} [{} to {}]".format(*ends)
            shares.append(row)
    judged = f"{_span(table['structures'])} structures"
    if set(table["of"]) != {"structures"}:
        judged += f" of {_span(table['clusters'])} {' or '.join(dict.fromkeys(table['of']))}"
    note = (
        f"Ensembles of {_span(table['members'])} seeds, judged on {judged}; the factor is found on "
        "others. In brackets 95 % intervals over these. Sharpness is the root "
        "mean square of the spread, the area lies between the calibration curve and the diagonal, "
        "NLL is −log of the predicted density at the label in nats (per eV, per eV/Å)."
    )
    tables = (markdown(pd.DataFrame(rows)) for rows in (numbers, shares))
    return "\n\n".join([*tables, note])


def _nested(
    table: pd.DataFrame, outer: list[str], inner: list[str]
) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """The groups of ``table`` by both, those of one outer group together."""
    for first, part in table.groupby(outer, sort=False):
        for second, rows in part.groupby(inner, sort=False):
            yield (*first, *second), rows


def _with_ends(of: pd.DataFrame, statistic: str, scale: float = 1.0) -> str:
    """ "0.39 [0.36 to 0.43]" of a row of `calibration.summarise`."""
    value, *ends = (_digits(scale * of.loc[statistic, c]) for c in ("value", "low", "high"))
    return value if "nan" in ends else f"{value} [{ends[0]} to {ends[1]}]"


def _digits(value: float, sign: str = "") -> str:
    """A number to whole ones from 10 on, else to two places (three below 0.1)."""
    size = abs(value)
    places = 0 if size >= 10 else 2 if size >= 0.1 else 3
    text = f"{value:{sign}.{places}f}".replace("-", "−")
    return text if text.strip("+−0.") else text.lstrip("+−")  # 0 has no sign


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def calibrated(contrasts: pd.DataFrame) -> str:
    """A line for each arm, baseline and quantity of a table of `calibration.contrasts`: each
    difference with its interval, what leaving out a seed makes of it, and its verdict.
    """
    by = list(contrasts.columns[: list(contrasts.columns).index("arm")])
    declared = contrasts[contrasts["family"] == "primary"]
    others = len(contrasts) - len(declared)
    head = (
        "Differences between ensembles, in brackets the 95 % interval over what is judged, of one "
        "comparison alone. Verdicts count all comparisons of a family (Holm), and what is not told "
        "from 0 has behind it the interval that counts them. They are about these seeds: *a seed "
        "left out* is from where to where a difference goes when one seed is left out of both."
    )
    if len(declared):
        first = declared.iloc[0]
        head += (
            f" Declared beforehand: {first['arm']} against {first['against']}, "
            f"{SAID[first['statistic']]} of {QUANTITIES[first['quantity']][0]}; the other {others} "
            "are one family."
        )
    else:
        head += f" The {others} comparisons here are one family."
    lines = [head, ""]
    for key, part in _nested(contrasts, [*by, "quantity"], ["arm", "against"]):
        *where, quantity, arm, against = key
        said = "; ".join(_difference(r) for r in part.to_dict("records"))
        name = QUANTITIES[quantity][0]
        lines.append(f"- {_where(where)}**{arm}** against {against}, {name}: {said}")
    return "\n".join(lines)


def _difference(row: dict[str, Any]) -> str:
    """ "NLL −0.32 (−0.39 to −0.25; a seed left out −0.31 to −0.13): better"."""
    value, low, high = (_digits(row[c], "+") for c in ("change", "low", "high"))
    text = f"{low} to {high}"
    if pd.notna(row["seed_low"]):
        ends = (_digits(row[c], "+") for c in ("seed_low", "seed_high"))
        text += f"; a seed left out {' to '.join(ends)}"
    verdict = row["verdict"]
    if verdict == "not told from 0":
        ends = (_digits(row[c], "+") for c in ("holm_low", "holm_high"))
        verdict += f" ({' to '.join(ends)})"
    else:
        verdict += " for these seeds"
    return f"{SAID[row['statistic']]} {value} ({text}): {verdict}"


# -- simulations ---------------------------------------------------------------------------------
MOVED = {  # measure -> name, unit, factor
    "forces_mae": ("force MAE", "meV/Å", 1e3),
    "ends_per_ps": ("ends", "per ps of a copy", 1.0),
    "drift": ("NVE drift", "meV/atom/ps", 1.0),
    "bonds": ("bond lengths off", "mÅ", 1e3),
    "radial": ("g(r) off", "no unit", 1.0),
}


def simulated(table: pd.DataFrame) -> str:
    """A table of `simulations.summarise`: an arm per row, a column per measure."""
    by = list(table.columns[: list(table.columns).index("arm")])
    rows = []
    for key, part in table.groupby([*by, "arm"], sort=False):
        row = dict(zip([*by, "arm"], key, strict=True))
        of = part.set_index("metric")
        for metric, (name, unit, scale) in MOVED.items():
            if metric not in of.index or pd.isna(of.loc[metric, "mean"]):
                continue
            values = [scale * of.loc[metric, c] for c in ("mean", "low", "high")]
            text = f"{values[0]:.3g}"
            if np.isfinite(values[1]):
                text += f" [{values[1]:.3g} to {values[2]:.3g}]"
            row[f"{name} ({unit})"] = text
        rows.append(row)
    note = (
        "Means over seeds, in brackets 95 % intervals over these. Ends count half an end more than "
        "there were; where networks ended fewer than three times each, the interval is at least a "
        "Poisson law's for all of them; where no copy of any arm ended there is no rate. The drift "
        "is that of copies that ran to the end, the next columns are distances to the reference."
    )
    return f"{markdown(pd.DataFrame(rows).fillna('–'))}\n\n{note}"


def moved(table: pd.DataFrame) -> str:
    """A line for each arm and baseline of a table of `simulations.effects`: each measure's change
    with its interval and its verdict.
    """
    by = list(table.columns[: list(table.columns).index("arm")])
    declared = table[table["family"] == "primary"]
    head = (
        f"Changes over {_span(table['seeds'])} seeds, in brackets the 95 % interval of one "
        "comparison alone; less is better. What is not told from 0 has behind it the interval that "
        "counts all comparisons of its family (Holm)."
    )
    if len(declared):
        first = declared.iloc[0]
        name = MOVED[first["metric"]][0]
        head += f" Declared before the runs: {first['arm']} against {first['against']}, {name}."
    lines = [head, ""]
    for key, part in table.groupby([*by, "arm", "against"], sort=False):
        *where, arm, against = key
        said = [
            f"{MOVED[r['metric']][0]} {change(r)}: {_shortened(r['verdict'])}"
            for r in part.to_dict("records")
        ]
        lines.append(f"- {_where(where)}**{arm}** against {against}: {'; '.join(said)}")
    return "\n".join(lines)
