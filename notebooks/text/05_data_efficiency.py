# %% [markdown]
# # 05 · How many labels does pretraining save?
#
# A label costs a quantum-chemical calculation. If pretraining on unlabelled structures brings the
# same error with fewer labels, the difference is what it is worth. The denoise paper shows this for
# EGNN (its Fig. 4). Here: learning curves, error against label budget, from scratch, from scratch for
# longer, and pretrained; a power law fitted to each; and the number of labels that training from
# scratch, and from scratch for longer, needs for the error that pretraining reaches.
#
# In `quick` the labels are real, ωB97X/6-31G(d) of small molecules (`dft-mini`), and the pretrained
# networks are shipped ones (`potkit weights list`), which learned on other molecules (`ani-mini`)
# without labels, or with cheap ones (GFN2-xTB).
#
# **The answer in one picture** is the first figure.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
sets = None  # registered sets or files
model = None
sigma = None  # Å; given in quick: pretrained here with it, instead of shipped weights
device = "auto"
labels = None  # budgets, validation included; a float is a share of the training part
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import pandas as pd

import potkit
from potkit import experiments, notebooks, profiles, specs, statistics
from potkit.experiments.arms import DOUBLED

# network, data and training settings that notebooks 02, 04, 05 and 07 have in common
shared = profiles.MOLECULES
run = notebooks.settings(
    profile,
    smoke=shared["smoke"] | dict(sets=["ani-mini"], molecules={}, labels=[10, 20], shipped=[]),
    quick=shared["quick"]
    | dict(
        sets=["dft-mini"],
        molecules={},
        labels=[10, 50, 200],
        # arms that start from the shipped weights MODEL-PRESET-ARM (data/studies/weights.yaml)
        shipped=["denoise", "cheap-labels"],
        networks=profiles.SHIPPED,
        parts=[0.7, 0.3],
        # the first rate of the study's search, for all arms
        finetune=dict(steps=1000, batch_size=4, lr=1e-3, compile=True, eval_batch_size=256),
    ),
    paper=shared["paper"]
    | dict(
        sets=["ani-1x", "md22"],
        molecules={"md22": ["AT-AT", "Ac-Ala3-NHMe", "buckyball-catcher"]},
        labels=[0.05, 0.1, 0.25, 0.5, 1.0],
        shipped=[],
    ),
    sets=sets,
    model=model,
    sigma=sigma,
    labels=labels,
    seeds=seeds,
    jobs=jobs,
)
# a wrong σ stops here, before anything is trained
objectives = {"denoise": potkit.Denoise(sigma=run.sigma)}
shipped = run.shipped if sigma is None else []
weights = {arm: f"{run.model}-{run.preset}-{arm}" for arm in shipped}
arms = weights or objectives
# the control: scratch for the operations of the pretraining as well; where that was done before,
# scratch with twice the steps
longer = DOUBLED if weights else "scratch-longer"
network = profiles.network(run)
cases = [(name, molecule) for name in run.sets for molecule in run.molecules.get(name, [None])]
targets = {
    " ".join(filter(None, c)): specs.DataSpec(data=c[0], systems=c[1] and [c[1]]).load()
    for c in cases
}
# one of 10 labels is too few to choose a state by
pretraining = dict(weights=weights, convergence=True, valid_min=3)
if not weights:
    pool, _ = profiles.parts(run)  # as in notebook 02, so that its runs are found
    pretraining = dict(objectives=objectives, pretrain_on=profiles.unlabelled(run, pool))
run


# %% [markdown]
# ## The set-up, as data
#
# A tenth of the labels validates, but three at least. The settings of pretraining above are used with
# a σ of one's own (`-p sigma`): the shipped weights were pretrained for longer, on all of `ani-mini`
# (`docs/weights.md`).

# %%
def experiment(name):
    train, test = profiles.parts(run, targets[name])
    return profiles.experiment(
        run,
        device,
        model=network,
        columns={"data": name},
        train=train,
        test=test,
        **pretraining,
    )


grid = [experiment(name) for name in targets]
pd.DataFrame(
    [
        {
            "data": e.columns["data"],
            "to learn from": len(e.train),
            "to test on": len(e.test),
            "molecules to test on": len(set(e.test.system.tolist())),
            "label budgets": e.labels,
            "starts": ", ".join(e.weights.values()) or "pretrained here",
        }
        for e in grid
    ]
)

# %%
# NBVAL_CHECK_OUTPUT
from potkit.datasets import splits

few = splits.label_budget(potkit.load("ani-mini"), [25, 100, 400], seed=0)
print("budgets are nested:", set(few[25]) < set(few[100]) < set(few[400]))
known = pd.DataFrame(
    [
        {"arm": arm, "seed": s, "labels": n, "forces_mae": a / n**0.5}
        for arm, a in (("scratch", 4.0), ("denoise", 2.0))
        for s in (0, 1)
        for n in (25, 100, 400, 1600)
    ]
)
saved = statistics.labels_saved(known)
print(
    "half the error at slope −1/2 saves a factor of",
    saved.factor[0].round(3),
    "and needs",
    saved.needs.round(1).tolist(),
    "labels from scratch",
)
print("slopes:", statistics.learning_curves(known).slope.round(3).tolist())

# %% [markdown]
# ## Run (finished runs are loaded, not repeated)

# %%
runs = profiles.complete(experiments.run(grid))
metric = profiles.metric(run)
# declared before the runs
against = "scratch" if weights else longer
declared = {"arm": next(iter(arms)), "against": against, "metric": metric}
# every arm against scratch and scratch for longer, and two kinds of shipped weights with each other
asked = [(arm, baseline) for arm in arms for baseline in ("scratch", longer)]
asked += [("cheap-labels", "denoise")] if len(weights) > 1 else [(longer, "scratch")]
kept = notebooks.keep_runs(
    run, grid, runs, "data-efficiency", "05_data_efficiency", contrasts=asked, primary=declared
)

# %%
kept.chart("curves", "05_data_efficiency", title=f"Error against label budget ({run.model})")

# %% [markdown]
# Both axes are logarithmic; means over seeds with 95 % intervals; forces above, energies of whole
# structures below, with the predictions that need no network. All arms of a budget share labelled
# structures, initial weights and test set. The same number of fine-tuning steps at every budget: with
# few labels they are many passes, with many labels few (in `paper` it is the passes that are the
# same, so that few labels have few steps). The gain at each budget, paired over seeds:

# %%
for k, name in enumerate(targets):
    kept.chart(
        "gain",
        "05_change" + (f"_{k + 1}" if k else ""),
        title=f"Change against scratch ({name})",
        metric=metric,
        group=name,
    )

# %% [markdown]
# ## Labels saved: how many labels a baseline has to have for the same error
#
# Against training from scratch, and against training from scratch for longer: for as many operations
# more as the pretraining had, or, where it was done before, for twice the steps. The intervals invert
# the paired t test; a bound beyond the budgets that were tried is open, drawn as an arrow without a
# cap. Where more labels are not told to help the baseline, the question has no answer: slopes are
# those of power laws, error = a · labels^slope.

# %%
for baseline, figure in (("scratch", "05_labels_saved"), (longer, "05_labels_saved_longer")):
    kept.chart(
        "saved", figure, title=f"Labels saved against {baseline}", metric=metric, baseline=baseline
    )

# %% [markdown]
# ## In numbers

# %%
kept.say("results", "test")

# %%
kept.say("saved", "verdicts")
if weights:
    kept.say("convergence")

# %% [markdown]
# **What it means.** Tables and sentences above are made of the stored runs; numbers with > or < lie
# outside the budgets that were tried, and nothing is extrapolated. A slope difference above zero says
# that the arms come together as labels grow: pretraining is worth most where labels are few. Shipped
# weights cost whoever starts from them nothing. Whether a pretraining is worth its own cost is what
# the comparison with scratch for as many operations says, in the study that notebook 04 opens with.
# There the rates are searched for every arm as well, on other seeds. The denoise paper reports for
# EGNN on 5 % of ANI-1x 10.04 instead of 39.37 kcal/mol; `paper` repeats that with its network, data
# and epochs.
