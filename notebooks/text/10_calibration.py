# %% [markdown]
# # 10 · Do ensembles know how wrong they are?
#
# A network that drives a simulation should say where it is not to be trusted. The common way is an
# ensemble: the same network with several seeds, whose spread is taken for the error. Here: a small
# network on few labels of `ani-mini`, over seeds, **from scratch**, **from scratch for longer** and
# **pretrained** by denoising. Does the spread rank the errors? Do labels lie in its intervals as
# often as these claim? Does one factor, found on other molecules, put that right? And does
# pretraining change any of it?
#
# **The answer in one picture** is the first figure: the error in bins of rising spread. Above the diagonal an ensemble is surer of itself than it should be.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
data = None  # labelled set; None: what the profile says
model = None
sigma = None  # Å
device = "auto"
labels = None  # one budget, validation included; a float is a share of the training part
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import numpy as np

import potkit
from potkit import experiments, notebooks, profiles
from potkit.errors import ConfigError
from potkit.experiments import calibration

# network, data and training as notebooks 02, 04, 05 and 07 have them in smoke and paper
shared = profiles.MOLECULES
run = notebooks.settings(
    profile,
    smoke=shared["smoke"] | dict(labels=[20]),
    quick=shared["quick"] | dict(labels=[100]),
    paper=shared["paper"] | dict(labels=[0.05]),
    data=data,
    model=model,
    sigma=sigma,
    labels=labels,
    seeds=seeds,
    jobs=jobs,
)
# a wrong σ stops here, before anything is trained
arms = {"denoise": potkit.Denoise(sigma=run.sigma)}
if len(run.seeds) < 2:
    raise ConfigError("an ensemble needs two seeds or more")
network = profiles.network(run)
pool, test = profiles.parts(run)
unlabelled = profiles.unlabelled(run, pool)
run

# %% [markdown]
# ## What an ensemble claims
#
# With $M$ members, $\bar y$ their mean and $s$ their spread, the label is expected where one more member would be: by Student's $t$ with $M-1$ degrees of freedom,
#
# $$y \sim \bar y + f\, s\, \sqrt{1 + 1/M}\; t_{M-1}, \qquad f = 1 \text{ before a recalibration.}$$
#
# Of three members one spread is itself a rough guess, which is why the intervals are wider than a Gaussian's. What members have in common (the same network, the same labels) is in
# no spread, so $f > 1$ is no surprise. $f$ is what makes half of the errors lie where half should.
#
# The test molecules are dealt into two halves: $f$ is found on one, and all numbers below, before and after, are of the other. No test structure chooses anything else. The
# statistics on Gaussian errors whose width is known, and on the same with spreads half as wide:

# %%
# NBVAL_CHECK_OUTPUT
draw = np.random.default_rng(0)
width = 0.1 * np.exp(0.5 * draw.normal(size=40_000))  # eV/Å
error = width * draw.normal(size=len(width))
molecule = np.arange(len(width)) // 50
for name, spread in {"right": width, "half": width / 2}.items():
    judged = calibration.Judged(error, spread, molecule)
    told = dict(zip(calibration.STATISTICS, judged.statistics(), strict=True))
    for ending in ("", "_scaled"):
        inside = [f"{told[share + ending]:.2f}" for share in calibration.INSIDE]
        factor = f"{told['factor']:.2f}" if ending else "1"
        print(
            f"spread {name}, times {factor}: inside {' '.join(inside)}, "
            f"area {told['area' + ending]:.2f}, NLL {told['nll' + ending]:.2f}"
        )

# %% [markdown]
# ## Run (finished runs are loaded, not repeated)

# %%
grid = profiles.experiment(
    run,
    device,
    model=network,
    columns={"data": run.data},
    pretrain_on=unlabelled,
    objectives=arms,
    train=pool,
    test=test,
)
runs = profiles.complete(experiments.run(grid))
# declared before a calibration was looked at
forces = "forces" if test.forces is not None else "energy"
declared = {"arm": "denoise", "against": "scratch-longer", "quantity": forces, "statistic": "area"}
kept = notebooks.keep_ensembles(run, grid, runs, "calibration", "10_calibration", primary=declared)

# %%
kept.chart(
    "reliability",
    "10_calibration",
    title=f"Does the spread of the seeds tell the error? ({run.model})",
)

# %% [markdown]
# Equally filled bins of rising spread, root mean squares in each, both axes logarithmic. A rising line means that the spread ranks the errors; its place against the diagonal,
# whether it has their size. The line of few members is flatter than the diagonal even where they are drawn like the label: the smallest of many rough spreads are too small, the
# largest too large. The next figure takes that into account.
#
# ## Are labels where the ensembles say?

# %%
kept.chart(
    "coverage",
    "10_coverage",
    title=f"Share of labels inside the ensembles' intervals ({run.model})",
)

# %% [markdown]
# Below the diagonal too few labels lie inside: the ensemble is overconfident. Lines go over all probabilities, markers are 50, 68, 90 and 95 % intervals, with what other
# molecules would make of them. Energies are one number a structure, forces three an atom, hence the width of their intervals.
#
# ## Arm by arm

# %%
kept.chart("calibration", "10_statistics", title=f"Calibration, arm by arm ({run.model})")

# %% [markdown]
# The rank correlation (Spearman) is that of |error| and spread; a spread that is exactly right does not reach 1, because an error is a draw. The miscalibration area lies between the
# curve above and the diagonal. NLL is the mean −log of the predicted density at the label: it also falls where errors get smaller, so it compares arms in accuracy and calibration
# together; the area compares calibration alone.
#
# ## In numbers

# %%
kept.say("ensembles")

# %%
kept.say("calibrated")

# %% [markdown]
# **What it means.** Tables, sentences and pictures are made of the stored errors of every member (`calibration-predictions`), and `potkit verify` makes them again. An area after
# the recalibration whose interval begins at 0 leaves open whether anything is left to put right; where the arms' areas are not told apart after one factor each, the interval of
# their difference says how much more than that factor pretraining may have changed. The intervals are about other molecules. They are not about other seeds: there is one
# ensemble an arm, and what leaving out a seed changes is only a hint. A factor has to be found on labelled molecules like those it will be used for, and it cannot reorder spreads: what
# the rank correlation leaves, it leaves.
