# %% [markdown]
# # 07 · Beyond the papers
#
# Four questions that neither paper asks. Does it help to **tell the network the forces** of the structure that was noised, which says which clean structure
# is meant (DeNS, arXiv 2403.09549)? Should the noise be **narrow along bonds** and wide across, as vibrations are (AniDS, arXiv 2510.22123)? Does
# denoising help as an **auxiliary loss while fine-tuning** (Noisy Nodes, arXiv 2106.07971), or does it matter how the pretrained weights are let go? And is
# anything left of the gain for **stronger networks**?
#
# **The answer in one picture** is the first figure: the change of the force error by each, at the same number of labels and fine-tuning steps. Whether one is better than
# plain denoising is asked seed by seed, against its own control.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
data = None  # labelled set with forces; None: what the profile says
models = None  # further networks
sigma = None  # Å
along = None  # width of anisotropic noise along bonds, as a share of that across
device = "auto"
# labelled structures for fine-tuning, validation included; a float is a share of the training part
labels = None
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import torch

import potkit
from potkit import experiments, notebooks, profiles

# shared with notebook 02
shared, nequip = (
    profiles.searched("molecules"),
    dict(channels=8, layers=2, max_degree=1, cutoff=4.0),
)
nets = {
    p: shared[p]["networks"] | {"nequip": nequip | change}
    for p, change in (("smoke", dict(channels=4, layers=1)), ("quick", {}))
}
more = dict(
    models=["painn", "nequip"],
    along=0.5,
    auxiliary=dict(sigma=0.05, weight=1.0),
    frozen=0.3,
    layer_decay=0.7,
)
published = dict(
    networks=dict(egnn={}, painn=dict(preset="paper"), nequip=dict(preset="paper")),
    pretrain_data=["ani-1x"],
)
run = notebooks.settings(
    profile,
    smoke=shared["smoke"] | more | dict(networks=nets["smoke"], labels=[20]),
    quick=shared["quick"]
    | more
    # notebook 04 has PaiNN
    | dict(models=["nequip"], networks=nets["quick"], labels=[100]),
    paper=shared["paper"]
    | more
    | published
    | dict(labels=[0.05], supervised=dict(energy=1, forces=100, loss_function="mse")),
    data=data,
    models=models,
    sigma=sigma,
    along=along,
    labels=labels,
    seeds=seeds,
    jobs=jobs,
)
# a wrong σ stops here, before anything is trained
arms = {
    "denoise": potkit.Denoise(sigma=run.sigma),
    "force-conditioned": potkit.ForceConditionedDenoise(
        sigma=run.sigma, probability=1.0, energy=0.0, forces=0.0
    ),
    "anisotropic": potkit.AnisotropicDenoise(sigma=run.sigma, along=run.along),
}
networks = {name: profiles.network(run, name) for name in [run.model, *run.models]}

# %% tags=["setup"]
pool, test = profiles.parts(run)
unlabelled = profiles.unlabelled(run, pool)
supervised, noisy = (
    potkit.Supervised(**run.supervised),
    potkit.NoisyNodes(**run.supervised, **run.auxiliary),
)
arms["force-conditioned"].check(unlabelled)
# anisotropic noise as wide as the isotropic one, averaged over atoms and directions
like = profiles.at_most(unlabelled, 500).batch()
width = float(
    (arms["anisotropic"].corrupt(like, torch.Generator().manual_seed(0)).pos - like.pos)
    .square()
    .mean()
    .sqrt()
)
arms["anisotropic"] = potkit.AnisotropicDenoise(
    sigma=round(run.sigma**2 / width, 3), along=run.along
)
print(
    f"anisotropic noise: {arms['anisotropic'].sigma:g} Å across bonds, {run.along:g} of that "
    f"along them, as wide as {run.sigma:g} Å in all directions"
)
run

# %% [markdown]
# ## The objectives, as formulas
#
# Isotropic noise is the same in all directions; anisotropic noise has a covariance of its own on each atom, narrow along its bonds. (At the same σ it
# is narrower on the whole, as printed below; the comparison widens it to the same average.) Force-conditioned denoising gets the forces of
# the clean structure as an input, so it needs a pretraining set **with forces**: its pretraining is not free of labels, and belongs where a large
# labelled set exists already.

# %%
# NBVAL_CHECK_OUTPUT
sample = potkit.load("ani-mini")[:2000].batch()
for name, objective in {
    "isotropic": potkit.Denoise(sigma=0.2),
    "anisotropic": potkit.AnisotropicDenoise(sigma=0.2, along=0.5),
}.items():
    noise = objective.corrupt(sample, torch.Generator().manual_seed(0)).pos - sample.pos
    widths = {s: noise[sample.z == z].square().mean().sqrt() for s, z in (("H", 1), ("C", 6))}
    print(
        f"{name}: rms displacement per axis "
        f"{', '.join(f'{s} {float(w):.3f} Å' for s, w in widths.items())}"
    )


# %% [markdown]
# ## Run (finished runs are loaded, not repeated)
#
# In `quick` one rate of fine-tuning serves all arms. On other seeds scratch, scratch-longer and
# denoise of EGNN searched their own (`data/studies/quick-rates.yaml`, results in `RESULTS.md`): of
# rates a factor of two apart the best of each is one of the two neighbours of the one taken here. The
# other arms take it over.

# %%
def experiment(model, objectives, objective, tuning, **options):
    return profiles.experiment(
        run,
        device,
        model=networks[model],
        columns={"model": model, "fine-tuning": tuning},
        objectives=objectives,
        supervised=objective,
        pretrain_on=unlabelled,
        train=pool,
        test=test,
        **options,
    )


decayed = f"layer rates × {run.layer_decay:g}"
frozen = f"denoise, frozen for {run.frozen:.0%}"
variants = {
    frozen: {"like": "denoise", "freeze": run.frozen},
    f"denoise, {decayed}": {"like": "denoise", "layer_decay": run.layer_decay},
    # the control to the one before: what the rates do without pretraining
    f"scratch, {decayed}": {"like": "scratch", "layer_decay": run.layer_decay},
}
one = {"denoise": arms["denoise"]}
grid = [
    experiment(run.model, arms, supervised, "supervised", variants=variants),
    experiment(run.model, one, noisy, "with auxiliary denoising", longer=None),
    *(experiment(model, one, supervised, "supervised") for model in run.models),
]
runs = profiles.complete(experiments.run(grid))


# %%
def tidy(table):
    """What is fine-tuned with the auxiliary loss becomes an arm beside supervised scratch."""
    auxiliary = table["fine-tuning"] == "with auxiliary denoising"
    table = table.drop(columns="fine-tuning")
    if "arm" not in table:  # the baselines are the same for both
        return table[~auxiliary]
    names = table["arm"].astype(str)
    return table.assign(arm=names.where(~auxiliary, names + ", auxiliary denoising"))


declared = {"arm": "denoise", "against": "scratch-longer", "metric": "forces_mae"}
kept = notebooks.keep_runs(
    run,
    grid,
    runs,
    "beyond",
    "07_beyond",
    primary=declared,
    tidy=tidy,
    # every variant against its own control
    contrasts=[
        ("denoise", "scratch-longer"),
        ("denoise", "scratch"),
        ("scratch-longer", "scratch"),
        ("force-conditioned", "denoise"),
        ("anisotropic", "denoise"),
        (frozen, "denoise"),
        (f"denoise, {decayed}", f"scratch, {decayed}"),
        (f"denoise, {decayed}", "denoise"),
        ("scratch, auxiliary denoising", "scratch"),
        ("denoise, auxiliary denoising", "scratch, auxiliary denoising"),
        ("denoise, auxiliary denoising", "denoise"),
    ],
)

# %%
kept.chart("changes", "07_beyond", title=f"{run.model}: what each brings", group=run.model)

# %% [markdown]
# Means over seeds of the change within a seed (same labels, same initial weights), with 95 %
# intervals; below zero is better than supervised training from scratch. A step with the auxiliary
# loss costs about twice as much, force-conditioned pretraining has used forces, and scratch-longer
# has as many operations more as the dearest of these pretrainings.
#
# ## Another network

# %%
kept.chart(
    "errors",
    "07_networks",
    title="Scratch against denoise, network by network",
    arms=["scratch", "scratch-longer", "denoise"],
)

# %% [markdown]
# ## In numbers

# %%
kept.say("results", "test")

# %% [markdown]
# The losses of the pretrainings: the share of the target that is left unexplained.

# %%
kept.say("learned")

# %%
kept.say("verdicts")

# %% [markdown]
# Whether scratch is converged at this length, which decides what "longer" may bring
# (`docs/protocol.md`):

# %%
kept.say("convergence")

# %% [markdown]
# **What it means.** Tables and sentences above are made of the stored runs. A variant is asked about against its own control, seed by seed: whether two intervals
# against scratch overlap is not the question. All arms see the same labels, initial weights and fine-tuning steps; what differs is what came before, and for the auxiliary loss what a step costs. `paper` repeats this at the published widths on ANI-1x, whose forces force-conditioned denoising needs.
