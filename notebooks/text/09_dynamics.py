# %% [markdown]
# # 09 · Does it run?
#
# A network is there to move atoms. Its force error on stored structures says how it does where
# somebody looked; a simulation goes where the network itself leads. Here networks trained on
# equally many labels, **from scratch** and **pretrained** by denoising, move a molecule and a box
# of water: until a bond breaks, atoms fuse or the temperature runs away (NVT), with or without a
# drift of the total energy (NVE), and with bond lengths and neighbours to compare.
#
# **The answer in one picture** is the first figure: how long the copies of each network ran,
# against its force error.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | study | paper
data = None  # set with the molecules' trajectories; None: what the profile says
molecules = None  # of that set
sigma = None  # Å
device = "auto"
labels = None  # one budget, validation included
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import numpy as np
import pandas as pd

from potkit import experiments, notebooks, profiles
from potkit.analysis import dynamics
from potkit.notebooks import dynamics_profiles

run = notebooks.settings(
    profile,
    **dynamics_profiles.DYNAMICS,
    data=data,
    molecules=molecules,
    sigma=sigma,
    labels=labels,
    seeds=seeds,
    jobs=jobs,
)
# a wrong molecule or σ stops here, before anything is trained
grid, cases = dynamics_profiles.cases(run, device)
run

# %% [markdown]
# ## What is trained, and what it moves
#
# In `quick` and `study` the molecules' labels are those of GFN2-xTB, a semi-empirical method
# (`rmd17-mini`), and water's those of AMOEBA, a force field in which no bond can break
# (`water-mini`). They show what simulations tell of networks; they carry no conclusion about
# chemistry. The reference are held-out frames of the same molecule, and of a box that no training
# sees.

# %%
pd.DataFrame(
    [
        e.columns
        | {
            "labels": e.labels[0],
            "atoms": int(c.starts.n_atoms[0]),
            "copies": c.plan.copies,
            "temperature (K)": c.plan.temperature,
            "NVT (ps)": c.plan.nvt,
            "NVE (ps)": c.plan.nve,
            "frames of the reference": len(c.reference),
        }
        for e, c in zip(grid, cases, strict=True)
    ]
)

# %% [markdown]
# What is measured, on numbers whose answer is known: a total energy that rises by twelve meV a
# picosecond for six atoms, and bond lengths that are all too long by a hundredth of an Ångström.

# %%
# NBVAL_CHECK_OUTPUT
time = np.linspace(0, 2, 200)
print("drift:", round(dynamics.drift(time, 0.012 * time, 6), 6), "meV/atom/ps")
centres = np.linspace(0.9, 1.3, 41)
off = dynamics.distance_of_histograms(centres, np.eye(41)[21], np.eye(41)[20])
print("bond lengths off:", round(1000 * off, 6), "mÅ")

# %% [markdown]
# ## Run (finished runs and simulations are loaded, not repeated)

# %%
runs = profiles.complete(experiments.run(grid))
# declared before anything was moved
declared = {"arm": "denoise", "against": "scratch", "metric": "bonds"}
kept = notebooks.keep_simulations(run, grid, runs, cases, "dynamics", "09_dynamics", declared)

# %%
kept.chart("held", "09_dynamics", title="Does a smaller force error mean a longer run?")

# %% [markdown]
# A marker is a network. The dashed line is how long the simulations were: a network on it lost no
# copy in that time, which says that ends are rarer than the time could show, not that there are
# none.
#
# ## When do they end?

# %%
kept.chart("survival", "09_survival", title="Copies that still run (NVT)")

# %% [markdown]
# ## Where do they go?

# %%
kept.chart("distributions", "09_distributions", title="Bond lengths and neighbours (NVT)")

# %% [markdown]
# Frames after the first fifth of NVT, of copies that had not ended yet, so that a network that
# loses many shows its better side here. Where water's runs are as short as in `quick`, molecules
# hardly move: its radial distribution then tells whether the start was kept, not whether the
# liquid is right. The molecules' places in that reference are a classical model's, too.
#
# ## In numbers

# %%
kept.say("simulations")

# %%
kept.say("moved")

# %% [markdown]
# **What it means.** Tables, sentences and pictures are made of the stored simulations
# (`dynamics-simulations`), and `potkit verify` makes them again. A mean absolute error weighs all
# atoms of stored structures alike; a simulation ends at the one bond that is too soft where no
# label was, and a distribution is off where errors point the same way. So the first figure is to
# be read for networks of like error that run for different times. Few ends are
# few different rates: where networks ended fewer than three times each, the interval of the rate
# is at least as wide as a Poisson law for all of them has it. The drift tests the integrator's step and that forces are the gradient of
# an energy; a network that is wrong everywhere may have none. Simulations of `quick` are a small
# part of a picosecond: rare ends, slow drifts and the structure of the liquid are beyond them.
# `study` has picoseconds and six seeds, `paper` rMD17 itself; neither has been run here. Whether
# pretraining is worth its own cost is the question of notebook 05.
