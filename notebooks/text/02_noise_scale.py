# %% [markdown]
# # 02 · Which noise scale σ?
#
# Denoise pretraining has one setting that matters: the standard deviation σ of the Gaussian noise. The denoise paper scanned 0.01 to 1 Å
# and took 0.2 Å (its Fig. 5). Here the same scan runs on the embedded molecules: pretrain without labels at several σ, fine-tune on few
# labelled structures, test on **molecules that no run has seen**, against training from scratch and against training from scratch for
# as much longer as the pretraining took. Beside the scan stands the σ that an estimator proposes from the structures alone.
#
# **The answer in one picture** is the first figure below: by how much pretraining changes the force error, against σ.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
data = None  # labelled set, any registered one or a file; None: what the profile says
model = None
device = "auto"
sigmas = None  # Å
# labelled structures for fine-tuning, validation included; a float is a share of the training part
labels = None
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import numpy as np

import potkit
from potkit import experiments, noise, notebooks, plots, profiles, report

# network, data and training settings that notebooks 02, 04, 05 and 07 have in common
shared = profiles.MOLECULES
run = notebooks.settings(
    profile,
    smoke=shared["smoke"] | dict(sigmas=[0.05, 0.2], labels=[20], n_sigma=None),
    quick=shared["quick"] | dict(sigmas=[0.02, 0.05, 0.1, 0.2, 0.4], labels=[100], n_sigma=None),
    paper=shared["paper"]
    | dict(
        model="torchmd_et", sigmas=[0.01, 0.05, 0.1, 0.2, 0.5, 1.0], labels=[1.0], n_sigma=500_000
    ),
    data=data,
    model=model,
    sigmas=sigmas,
    labels=labels,
    seeds=seeds,
    jobs=jobs,
)
# a wrong σ stops here, before anything is trained
arms = {f"denoise {s:g}": potkit.Denoise(sigma=s) for s in run.sigmas}
pool, test = profiles.parts(run)  # as does a missing set
unlabelled = profiles.unlabelled(run, pool)
network = profiles.network(run)
run

# %% [markdown]
# ## The set-up, as data

# %%
experiment = profiles.experiment(
    run,
    device,
    model=network,
    pretrain_on=unlabelled,
    train=pool,
    test=test,
    objectives=arms,
)
budget = experiment.labels[-1]
unseen = f"split by {run.split}" + (": molecules no run has seen" if run.split == "system" else "")
print(
    f"pretraining: {len(unlabelled)} unlabelled structures; fine-tuning: {experiment.labels}; "
    f"test: {len(test)} structures, {unseen}"
)

# %%
# NBVAL_CHECK_OUTPUT
a, b = potkit.load("ani-mini").split((0.8, 0.2), seed=0, by="system")
print(
    "molecules:", len(np.unique(a.system)), "to learn from,", len(np.unique(b.system)), "to test on"
)
print("shared:", len(np.intersect1d(a.system, b.system)))
added = potkit.Denoise(sigma=0.1).corrupt(a[:2000].batch()).target
print("noise standard deviation within 2 % of σ:", bool(abs(added.std() / 0.1 - 1) < 0.02))

# %% [markdown]
# ## What the structures propose by themselves
#
# `potkit.noise.propose_sigma` looks at vibrations alone, at neither labels nor networks: `harmonic` is the σ at which a denoiser that knows all
# vibrations exactly could explain most of the noise (a `share` of 0.9), `thermal` noise as wide as the vibrations, `neighbours` a tenth of the distance to the nearest
# atom, `ceiling` the σ beyond which neighbours change places. It has no part in the scan and is compared with it below.

# %%
proposal = noise.propose_sigma(profiles.at_most(unlabelled, run.n_sigma))
marks = {"denoise paper": 0.2, "proposed": proposal.sigma}
proposal

# %% [markdown]
# ## Run (finished runs are loaded, not repeated)

# %%
runs = profiles.complete(experiments.run(experiment))
summary = potkit.compare(runs)

# %%
metric, unit = (
    ("forces_mae", "force MAE (meV/Å)")
    if run.supervised["forces"]
    else ("energy_mae", "energy MAE (meV)")
)
table = summary[(summary.metric == metric) & (summary.labels == budget)].set_index("arm")
change = (
    table.loc[list(arms), ["change_%", "change_low_%", "change_high_%"]]
    .set_axis(["mean", "low", "high"], axis=1)
    .assign(sigma=run.sigmas)
)
chart = plots.scan(
    change,
    "sigma",
    y_title=f"change of {unit.split(' (')[0]} against scratch (%)",
    reference=(0, 0, 0),
    marks=marks,
    title=f"Noise scale: gain after fine-tuning on {budget} structures",
)
longer_change = float(table.loc["scratch-longer", "change_%"])
chart.add_hline(
    y=longer_change,
    line=dict(color=plots.OKABE_ITO["orange"], dash="dash", width=2),
    annotation_text="scratch-longer",
    annotation_position="bottom left",
)
plots.show(chart, "02_noise_scale")

# %% [markdown]
# Points are means over seeds of the change within a seed (same labels, same initial weights), with 95 % intervals; below zero pretraining
# helps. The orange line is the arm without pretraining that trains as many steps more as the pretraining had. The errors themselves, with scratch
# as a band:

# %%
scan = table.loc[list(arms), ["mean", "low", "high"]].mul(1e3).assign(sigma=run.sigmas)
scratch, longer = (
    tuple(1e3 * table.loc[arm, ["mean", "low", "high"]]) for arm in ("scratch", "scratch-longer")
)
plots.show(
    plots.scan(
        scan,
        "sigma",
        y_title=f"test {unit}",
        reference=scratch,
        marks=marks,
        title=f"Noise scale: error after fine-tuning on {budget} structures",
    ),
    "02_noise_scale_error",
)

# %% [markdown]
# The same for energies:

# %%
energies = summary[(summary.metric == "energy_mae") & (summary.labels == budget)].set_index("arm")
scan_energy = energies.loc[list(arms), ["mean", "low", "high"]].mul(1e3).assign(sigma=run.sigmas)
plots.show(
    plots.scan(
        scan_energy,
        "sigma",
        y_title="test energy MAE (meV)",
        marks=marks,
        reference=tuple(1e3 * energies.loc["scratch", ["mean", "low", "high"]]),
        title="Noise scale: energies",
    ),
    "02_noise_scale_energy",
)

# %% [markdown]
# ## What the denoiser learned

# %%
left = (
    runs[runs.arm.isin(list(arms))]
    .groupby("arm", observed=True)["pretrain_loss"]
    .agg(["mean", "min", "max"])
    .loc[list(arms)]
)
chart = plots.figure(
    "noise scale σ (Å)", "share of the noise explained", "What the denoiser learned (validation)"
)
if len(proposal.modes):
    sigma = np.geomspace(0.5 * min(run.sigmas), 2 * max(run.sigmas), 60)
    chart.add_scatter(
        x=sigma,
        y=proposal.explained(sigma),
        mode="lines",
        name="if all vibrations were known",
        line=dict(color="black"),
    )
chart.add_scatter(
    x=run.sigmas,
    y=1 - left["mean"],
    mode="markers",
    name="pretrained network, mean and range over seeds",
    marker=dict(size=10),
    error_y=dict(array=left["mean"] - left["min"], arrayminus=left["max"] - left["mean"]),
)
chart.update_xaxes(
    type="log", tickvals=run.sigmas, ticktext=[f"{s:g}" for s in run.sigmas]
).update_yaxes(range=[0, 1])
chart.update_layout(legend=dict(x=0.02, y=0.98))
plots.show(chart, "02_noise_explained")

# %% [markdown]
# 0 is what predicting no noise at all gets. The line is the estimator's, from the vibrations of the data and without a network. Small noise is hidden among the vibrations and can hardly be told from them; very large noise
# can be ambiguous, because several clean structures may lie behind one noisy one. How well the task is solved and how much it helps are two questions.
#
# ## In numbers

# %%
report.wide(summary)

# %%
best = table.loc[list(arms), "change_%"].idxmin()
verdict = table.loc[best]
print(
    f"Best here: {best} Å: {unit.split(' (')[0]} {1e3 * verdict['mean']:.0f} against "
    f"{scratch[0]:.0f} from scratch, in {unit.split('(')[1][:-1]}; "
    f"change {verdict['change_%']:+.0f} % (95 % interval {verdict['change_low_%']:+.0f} to "
    f"{verdict['change_high_%']:+.0f} %)."
)
clear = [arm for arm in arms if table.loc[arm, "effect"] == "better"]
print(
    "Better than scratch beyond the 95 % interval:",
    ", ".join(clear) or "none",
    f"({len(run.seeds)} seeds)",
)
beats = [arm for arm in arms if table.loc[arm, "change_%"] < longer_change]
print(
    f"Training from scratch for longer changes the error by {longer_change:+.0f} %; pretraining "
    "does better at:",
    ", ".join(beats) or "no σ",
)
ratio = float(best.split()[-1]) / proposal.sigma
print(
    f"Proposed from the data alone: {proposal.sigma:.2g} Å ({proposal.method}); the scan's best σ "
    f"is {ratio:.2g} times that."
)

# %% [markdown]
# **What it means.** The sentences above are computed from the runs. Read them in this order: does pretraining help at the same fine-tuning
# budget, at which σ, and would the same time have been better spent on more training? A small network and a few hundred steps
# are not the paper: `paper` runs the published network, data and epochs. What carries over is the procedure: the same labels, the same budget in every
# arm, and the longer-scratch arm beside.
