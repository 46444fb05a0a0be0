# %% [markdown]
# # 04 · Does it carry over to other molecules?
#
# Pretraining pays most if one pretrained network serves many tasks. The denoise paper pretrains on
# small molecules (ANI-1 and ANI-1x) and fine-tunes on isomers (ISO17), drug-like molecules with
# elements the pretraining never saw (SPICE) and molecules ten times as large (MD22): its Figs 2 and
# 3. Here first **the study**: one pretraining on `ani-mini` without its labels, then 50
# quantum-chemical labels of real sets. Then the paper's own targets with their embedded stand-ins,
# fine-tuned with few labels, against training from scratch and from scratch for longer. In `quick`
# the pretrained networks there are the shipped ones (`potkit weights list`).
#
# **The answer in one picture** is the first figure: the change of the force error by pretraining, for
# each real set and network.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
sets = None  # to fine-tune on: registered sets or files
models = None  # names of networks; None: what the profile says
sigma = None  # Å; given in quick: pretrained here with it, instead of shipped weights
device = "auto"
# labelled structures for fine-tuning, validation included; a float is a share of the training part
labels = None
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import numpy as np
import pandas as pd

import potkit
from potkit import analysis, experiments, notebooks, papers, profiles, specs
from potkit.experiments.arms import DOUBLED

minis, few = (
    ["iso17-mini", "spice-mini", "md22-mini"],
    dict(
        models=["egnn", "painn"],
        shipped=False,
        separate=[],
        n_target=320,
        share=0.09,
        within={"iso17-mini": "block", "md22-mini": "block"},
        block={"md22-mini": 15},
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
        shipped=True,  # weights MODEL-PRESET-denoise (data/studies/weights.yaml)
        networks=profiles.SHIPPED,
        # the first rate of the study's search, for all arms
        finetune=dict(steps=500, batch_size=2, lr=1e-3, compile=True, eval_batch_size=16),
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
        within={},
        block={},
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
shipped = run.shipped and sigma is None
if shipped:
    unlabelled = potkit.load("ani-mini")  # which the shipped weights were pretrained on
else:
    pool, _ = profiles.parts(run)  # as in notebook 02, so that its pretrained networks are found
    unlabelled = profiles.unlabelled(run, pool)
targets = {name: profiles.common(specs.named_or_file(name), run.share) for name in run.sets}
run

# %% [markdown]
# ## The study, on real labels
#
# Stored, not run again here: it takes hours (the spec `data/results/study-denoise.yaml` says how to
# repeat it, and `RESULTS.md` what is in it). Rates were chosen for every arm on seeds that are not
# among the reported ones; scratch-longer costs as many operations as pretraining and fine-tuning
# together.

# %%
study = notebooks.study("study-denoise")
study.chart("changes", "04_study", title="What denoise pretraining brings with 50 real labels")

# %% [markdown]
# Means over seeds of the change within a seed (same labels, same initial weights), with 95 %
# intervals; below zero is better than scratch. In numbers and in sentences:

# %%
study.say("settings", "results", "verdicts")

# %% [markdown]
# ## The paper's targets: the sets to fine-tune on
#
# Sets named in `separate` are fine-tuned molecule by molecule, as the paper does with MD22. Both
# parts hold conformations of the same molecules (the papers' split; ISO17 comes with its own). Frames
# of a trajectory that follow each other are alike, so those of the sets in `within` are split by
# blocks of a twentieth of a trajectory, not one by one. With few labels, structures with elements
# that less than a share `share` of the set's structures have are left out: nothing could be learned
# about these.

# %%
for name in [t for t in targets if t in run.separate]:
    whole = targets.pop(name)
    targets |= {
        f"{name} {system}": whole[whole.system == k]
        for k, system in enumerate(whole.system_names())
    }


def halves(s):
    how = run.within.get(s.info.get("name"), "structure-within-system")
    train, test = profiles.pool_and_test(run, s, split=how)
    return train, profiles.at_most(test, run.n_target)


halved = {name: halves(s) for name, s in targets.items()}
rows = {"pretraining": unlabelled} | targets
pd.DataFrame(
    {
        k: {
            "structures": len(s),
            "molecules": len(np.unique(s.system)),
            "test structures": len(halved[k][1]) if k in halved else "–",
            "test molecules": len(np.unique(halved[k][1].system)) if k in halved else "–",
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
    pretraining = dict(pretrain_on=unlabelled, objectives=arms)
    if shipped:
        # nothing is pretrained here, so the control is scratch with twice the steps, of one network
        weights = {"denoise": f"{model}-{run.preset}-denoise"}
        pretraining = dict(weights=weights, convergence=model == run.models[0])
    return profiles.experiment(
        run,
        device,
        model=networks[model],
        columns={"data": name, "model": model},
        train=train,
        test=test,
        **pretraining,
    )


grid = [experiment(name, model) for name in targets for model in run.models]
runs = profiles.complete(experiments.run(grid))
metric = profiles.metric(run)
# declared before the runs, for each set and network
against = "scratch" if shipped else "scratch-longer"
declared = {"arm": "denoise", "against": against, "metric": metric}
asked = [("denoise", "scratch"), ("denoise", DOUBLED)] if shipped else None
kept = notebooks.keep_runs(run, grid, runs, "transfer", "04_transfer", asked, declared, run.block)

# %%
kept.chart(
    "changes",
    "04_transfer",
    title="What pretraining on small molecules does elsewhere",
    metric=metric,
)

# %% [markdown]
# Means over seeds of the change within a seed (same labels, same initial weights), with 95 %
# intervals; below zero is better than scratch. The errors themselves, beside predictions that need no
# network:

# %%
kept.chart("errors", "04_errors", title="All arms, set by set", metric=metric)

# %% [markdown]
# Energies of whole structures beside least squares over composition, which knows how many atoms of
# each element there are and nothing else. Where an interval reaches over that line, the energies are
# not told from those of counting atoms:

# %%
kept.chart("errors", "04_energies", title="Energies of whole structures", metric="energy_mae")

# %% [markdown]
# ## In numbers

# %%
kept.say("results", "test")

# %% [markdown]
# Beside the paper, where all labels of the public sets were used (its numbers, relative to scratch,
# for energies):

# %%
printed = papers.table(paper="denoise", table="text 3.4")[
    ["data", "model", "quantity", "metric", "value", "unit", "note"]
]
printed

# %%
kept.say("verdicts")
if shipped:
    kept.say("convergence")

# %% [markdown]
# ## Where the errors lie
#
# The same errors by molecule, by size and by element. An error of forces belongs to the atoms it
# acts on; an energy belongs to no element. Changes here are those of these networks on the molecules
# of a group, with intervals over these where there are eight or more; verdicts on pretraining are
# those above, over seeds.

# %%
# the set with the most elements, some of which the pretraining has never seen
varied = max(targets, key=lambda name: len(targets[name].elements))
varied = f"{varied}, {run.models[0]}"
kept.chart(
    "breakdown",
    "04_breakdown",
    title=f"Errors by element ({varied})",
    by="element",
    metric="forces_mae",
    group=varied,
)

# %%
kept.say("breakdown", "astray")

# %% [markdown]
# **What it means.** Tables and sentences above are made of the stored runs; each change stands with
# its interval, and sets and networks are not averaged: they are different questions. One pretraining
# serves every set here, so its cost is shared; the study's arm "scratch-longer" pays it anew for
# each, which is the harder comparison. Where nothing is pretrained, scratch with twice the steps says
# how much longer training would change. The labels of the stand-ins are GFN2-xTB's, so weights
# pretrained on such labels would have an unfair start and are left out. `quick` trains energies and
# forces with few labels; `paper` trains energies alone on all labels, as the paper did, with its four
# networks.
