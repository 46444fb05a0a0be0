# %% [markdown]
# # 04 · Does it carry over to other molecules?
#
# Pretraining pays most if one pretrained network serves many tasks. The denoise paper pretrains on small molecules (ANI-1 and ANI-1x) and
# fine-tunes on isomers (ISO17), drug-like molecules with elements the pretraining never saw (SPICE) and molecules ten times as large
# (MD22): its Figs 2 and 3. The same here with the embedded stand-ins: pretrain on `ani-mini` once, fine-tune on each of the other
# sets with few labels, against training from scratch and from scratch for as many steps more as the pretraining had.
#
# **The answer in one picture** is the first figure: the change of the error by pretraining, for each set and network.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
sets = None  # to fine-tune on: registered sets or files
models = None  # names of networks; None: what the profile says
sigma = None  # Å
device = "auto"
# labelled structures for fine-tuning, validation included; a float is a share of the training part
labels = None
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import numpy as np
import pandas as pd

import potkit
from potkit import analysis, experiments, notebooks, papers, plots, profiles, report, specs

minis, few = (
    ["iso17-mini", "spice-mini", "md22-mini"],
    dict(
        models=["egnn", "painn"],
        separate=[],
        n_target=30,
        share=0.09,
        within="structure-within-system",
    ),
)
# network, data and training settings that notebooks 02, 04, 05 and 07 have in common
shared = profiles.MOLECULES
run = notebooks.settings(
    profile,
    smoke=shared["smoke"] | few | dict(sets=minis, labels=[10], n_target=6, share=0.3),
    quick=shared["quick"]
    | few
    | dict(
        sets=minis,
        labels=[80],
        finetune=shared["quick"]["finetune"] | dict(steps=120, batch_size=2, eval_batch_size=16),
    ),
    paper=shared["paper"]
    | few
    | dict(
        models=list(shared["paper"]["networks"]),
        sets=["iso17", "spice-1", "md22"],
        separate=["md22"],
        labels=[1.0],
        n_target=None,
        share=0.0,
    ),
    sets=sets,
    models=models,
    sigma=sigma,
    labels=labels,
    seeds=seeds,
    jobs=jobs,
)
# a wrong σ stops here, before anything is trained
arms = {"denoise": potkit.Denoise(sigma=run.sigma)}
networks = {name: profiles.network(run, name) for name in run.models}
pool, _ = profiles.parts(run)  # as in notebook 02, so that its pretrained networks are found
unlabelled = profiles.unlabelled(run, pool)
targets = {name: profiles.common(specs.named_or_file(name), run.share) for name in run.sets}
run

# %% [markdown]
# ## The sets to fine-tune on
#
# Sets named in `separate` are fine-tuned molecule by molecule, as the paper does with MD22. Both parts hold conformations of the same molecules (the
# papers' split; ISO17 comes with its own). With few labels, structures with elements that less than a share `share` of the set's structures have are
# left out: nothing could be learned about these.

# %%
for name in [t for t in targets if t in run.separate]:
    whole = targets.pop(name)
    targets |= {
        f"{name} {system}": whole[whole.system == k]
        for k, system in enumerate(whole.system_names())
    }


halved = {name: profiles.pool_and_test(run, s, split=run.within) for name, s in targets.items()}
rows = {"pretraining": unlabelled} | targets
pd.DataFrame(
    {
        k: {
            "structures": len(s),
            "systems": len(np.unique(s.system)),
            "atoms": f"{s.n_atoms.min()}–{s.n_atoms.max()}",
            "elements": " ".join(analysis.element_counts(s)),
            "new elements": " ".join(
                e
                for e in analysis.element_counts(s)
                if e not in analysis.element_counts(unlabelled)
            )
            or "–",
        }
        for k, s in rows.items()
    }
).T

# %%
# NBVAL_CHECK_OUTPUT
train, test = potkit.load("ani-mini").split((0.8, 0.2), seed=0, by="structure-within-system")
print(
    len(train), len(test), "both parts hold all molecules:", set(train.system) == set(test.system)
)


# %% [markdown]
# ## Run (finished runs are loaded, not repeated)

# %%
def experiment(name, model):
    train, test = halved[name]
    return profiles.experiment(
        run,
        device,
        model=networks[model],
        columns={"data": name, "model": model},
        pretrain_on=unlabelled,
        objectives=arms,
        train=train,
        test=profiles.at_most(test, run.n_target),
    )


runs = profiles.complete(
    experiments.run([experiment(name, model) for name in targets for model in run.models])
)
summary = potkit.compare(runs)

# %%
metric, unit = (
    ("forces_mae", "force MAE (meV/Å)")
    if run.supervised["forces"]
    else ("energy_mae", "energy MAE (meV)")
)
chosen = summary[summary.metric == metric]
change = chosen[chosen.arm == "denoise"].assign(
    mean=lambda t: t["change_%"], low=lambda t: t["change_low_%"], high=lambda t: t["change_high_%"]
)
chart = plots.bars(
    change,
    "data",
    arm="model",
    y_title=f"change of {unit.split(' (')[0]} against scratch (%)",
    title="What pretraining on small molecules does elsewhere",
)
chart.add_hline(y=0, line=dict(color="black", width=1))
plots.show(chart, "04_transfer")

# %% [markdown]
# Means over seeds of the change within a seed (same labels, same initial weights), with 95 % intervals; below zero pretraining helps. The errors themselves:

# %%
for model in run.models:
    errors = chosen[chosen.model == model].assign(
        **{c: 1e3 * chosen[c] for c in ("mean", "low", "high")}
    )
    plots.show(
        plots.bars(errors, "data", y_title=f"test {unit}", title=f"{model}: all arms"),
        f"04_errors_{model}",
    )

# %% [markdown]
# ## In numbers

# %%
report.wide(summary, by=["data", "model", "labels"])

# %% [markdown]
# Beside the paper, where all labels of the public sets were used (its numbers, relative to scratch, for energies):

# %%
printed = papers.table(paper="denoise", table="text 3.4")[
    ["data", "model", "quantity", "metric", "value", "unit", "note"]
]
printed

# %%
for model in run.models:
    part = change[change.model == model].set_index("data")
    longer = chosen[(chosen.model == model) & (chosen.arm == "scratch-longer")].set_index("data")[
        "change_%"
    ]
    words = [
        f"{name} {r['mean']:+.0f} % ({r['low']:+.0f} to {r['high']:+.0f}, {r['effect']}; "
        f"from scratch for longer {longer.get(name, np.nan):+.0f} %)"
        for name, r in part.iterrows()
    ]
    print(f"{model}: " + "; ".join(words))
mean = change.groupby("model")["mean"].mean()
print(
    "average over the sets:",
    ", ".join(f"{m} {v:+.0f} %" for m, v in mean.items()),
    f"({len(run.seeds)} seeds, {run.labels[-1]} labels)",
)

# %%
clear = change[change.effect == "better"]
worse = change[change.effect == "worse"]
gap = (
    change.set_index(["data", "model"])["mean"]
    - chosen[chosen.arm == "scratch-longer"].set_index(["data", "model"])["change_%"]
)
print(
    f"Pretraining helps beyond its interval in {len(clear)} of {len(change)} cases and harms in "
    f"{len(worse)}."
)
wins = ", ".join(f"{d} {m}" for d, m in gap.index[gap < 0])
print(
    f"It does better than training longer in {int((gap < 0).sum())} of {len(gap)} cases: "
    f"{wins or 'none'}"
)

# %% [markdown]
# **What it means.** The sentences above are computed from the runs. One pretraining serves every set here, so its cost is shared; the arm
# "scratch-longer" pays it anew for each, which is the harder comparison. `quick` trains energies and forces with few labels; `paper` trains energies
# alone on all labels, as the paper did, with its four networks.
