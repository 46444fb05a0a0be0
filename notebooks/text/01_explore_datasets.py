# %% [markdown]
# # 01 · What is in the data, and what do noise and masks do to it?
#
# Both pretraining methods need nothing but structures. How far these lie from equilibrium decides how much there is to learn from
# them: the same σ can be large against the vibrations of one set and small against those of another. This notebook looks at all
# embedded sets (a set that is added to `data/` appears here by itself), and at what `Denoise` and `Masked` make of them. It trains nothing.
#
# **The answer in one picture** is the first figure: the C–H bonds of `ani-mini` as they are, and after noise of several σ.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | paper
sets = None  # names of registered sets; None: all embedded ones
data = "ani-mini"  # molecules for the noise: any registered set, or a file
water = "tip3p-mini"  # a periodic set of water for the masks
sigmas = None  # Å
seed = None

# %% tags=["setup"]
import numpy as np
import pandas as pd
import torch

import potkit
from potkit import analysis, notebooks, plots, profiles, specs
from potkit.structures import SYMBOLS

run = notebooks.settings(
    profile,
    smoke=dict(sigmas=[0.05, 0.2], seed=0, n_structures=100, n_frames=2, n_systems=2),
    quick=dict(sigmas=[0.02, 0.05, 0.1, 0.2], seed=0, n_structures=3000, n_frames=60, n_systems=40),
    paper=dict(
        sigmas=[0.02, 0.05, 0.1, 0.2, 0.5], seed=0, n_structures=20_000, n_frames=600, n_systems=400
    ),
    sigmas=sigmas,
    seed=seed,
)
objectives = {f"σ = {s:g} Å": potkit.Denoise(sigma=s) for s in run.sigmas}  # a wrong σ stops here
known = potkit.datasets.names()
names = (
    list(known.name[(known.kind == "embedded") & (known.state == "ready")])
    if sets is None
    else [sets]
    if isinstance(sets, str)
    else sets
)
# a missing set stops here
whole = {name: specs.named_or_file(name) for name in dict.fromkeys([*names, data, water])}
molecules, liquid = whole[data], whole[water]
generator = torch.Generator().manual_seed(run.seed)
run

# %% [markdown]
# ## What noise does to a bond

# %%
sample = molecules.split((min(run.n_structures, len(molecules)),), seed=run.seed)[0]
i, j = analysis.bonds(sample, "C", "H", cutoff=1.4)


def bond_lengths(objective=None):
    batch = sample.batch(dtype=torch.float64)
    pos = (objective.corrupt(batch, generator) if objective else batch).pos.numpy()
    return np.linalg.norm(pos[i] - pos[j], axis=1)


lengths = {"as sampled": bond_lengths()} | {name: bond_lengths(o) for name, o in objectives.items()}
plots.show(
    plots.distribution(
        lengths,
        "C–H distance (Å)",
        title="Noise against the spread that is there already",
        limits=(0.7, 1.6),
    ),
    "01_noise_on_bonds",
)

# %%
table = pd.DataFrame(
    {
        "C–H mean (Å)": {k: v.mean() for k, v in lengths.items()},
        "C–H standard deviation (Å)": {k: v.std() for k, v in lengths.items()},
    }
)
table.round(4)

# %% [markdown]
# The structures carry a spread of their own. Noise adds to the length of a bond with variance 2σ² (two atoms move), so σ at which noise
# doubles the variance that is there marks the scale where the two are alike. Below it the network has to tell noise from vibration; far
# above it the vibration is a detail and the network only learns bond lengths.

# %%
own = lengths["as sampled"].std()
print(
    f"C–H spread in the data: {own:.3f} Å; noise of the same size on both atoms: σ = "
    f"{own / np.sqrt(2):.3f} Å"
)


# %% [markdown]
# ## The sets

# %%
def row(s):
    sizes = (
        f"{s.n_atoms.min()}–{s.n_atoms.max()}"
        if s.n_atoms.min() < s.n_atoms.max()
        else str(s.n_atoms[0])
    )
    rms = (
        float(np.sqrt(np.mean(np.square(s.forces, dtype=float))))
        if s.forces is not None
        else np.nan
    )
    return {
        "structures": len(s),
        "systems": len(np.unique(s.system)),
        "atoms per structure": sizes,
        "atoms": int(s.n_atoms.sum()),
        "elements": " ".join(analysis.element_counts(s)),
        "periodic": "yes" if s.pbc.any() else "no",
        "level of theory": s.info.get("level_of_theory") or s.info.get("level", ""),
        "force rms (eV/Å)": rms,
    }


pd.DataFrame({name: row(s) for name, s in whole.items()}).T.infer_objects().round(3)

# %%
# NBVAL_CHECK_OUTPUT
for name in ("ani-mini", "tip3p-mini"):
    s = potkit.load(name)
    print(
        name,
        len(s),
        "structures of",
        len(np.unique(s.system)),
        "systems,",
        s.n_atoms.min(),
        "to",
        s.n_atoms.max(),
        "atoms",
    )
    print("   atoms by element:", analysis.element_counts(s))
box = potkit.load("tip3p-mini")
print(
    "box (Å):",
    box.cell[0].diagonal().round(3).tolist(),
    "every molecule is O H H:",
    bool((np.bincount(box.molecule[:774]) == 3).all()),
)

# %% [markdown]
# ## One structure of each set
#
# Drag to turn, scroll to zoom; the legend switches elements on and off. The largest structure of each set is shown; where a set has several
# frames of it, the slider steps through some, with their energies above the lowest.

# %%
for name in names:
    s = whole[name]
    largest = int(np.argmax(s.n_atoms))
    same = np.flatnonzero((s.system == s.system[largest]) & (s.n_atoms == s.n_atoms[largest]))
    frames = (
        s[np.sort(same[np.linspace(0, len(same) - 1, min(5, len(same))).astype(int)])]
        if s.n_atoms[largest] < 100
        else s[largest]
    )
    title = f"{name}: {s.system_names()[s.system[largest]]}, {s.n_atoms[largest]} atoms"
    plots.show(plots.structure3d(frames, title=title), f"01_structure_{name}")

# %% [markdown]
# ## Sizes and elements

# %%
few = {
    name: s.split(
        (min(run.n_structures if not s.pbc.any() else run.n_frames, len(s)),), seed=run.seed
    )[0]
    for name, s in whole.items()
}
share = pd.DataFrame({name: analysis.element_counts(s) for name, s in whole.items()}).fillna(0)
share = share.loc[sorted(share.index, key=SYMBOLS.index)] / share.sum() * 100
bars = share.reset_index(names="element").melt("element", var_name="set", value_name="mean")
chart = plots.bars(
    bars,
    "element",
    arm="set",
    x_title="element",
    y_title="share of atoms (%)",
    title="Elements of each set",
)
# a set has one colour in all figures of this notebook
for trace, colour in zip(chart.data, plots.colours(len(whole)), strict=True):
    trace.marker.color = colour
plots.show(chart, "01_elements")

# %%
chart = plots.figure("atoms per structure", "structures", "Sizes")
for (name, s), colour in zip(whole.items(), plots.colours(len(whole)), strict=True):
    sizes, counts = np.unique(s.n_atoms, return_counts=True)
    chart.add_scatter(
        x=sizes, y=counts, name=name, mode="markers", marker=dict(size=8, color=colour)
    )
chart.update_xaxes(type="log", dtick="D2").update_yaxes(type="log", dtick=1)
plots.show(chart, "01_sizes")

# %% [markdown]
# ## How far from equilibrium

# %%
with_energy = {
    name: analysis.energy_above_minimum(s) for name, s in whole.items() if s.energy is not None
}
chart = plots.distribution(
    with_energy,
    "energy above the lowest of the same system (eV/atom)",
    title="How far from equilibrium: energies",
    limits=(0, 0.25),
)
chart.update_yaxes(type="log", range=[-1.5, 3], dtick=1)
plots.show(chart, "01_energy_above_minimum")

# %%
norms = {
    name: np.concatenate(list(analysis.force_norms(s).values()))
    for name, s in few.items()
    if s.forces is not None
}
plots.show(
    plots.distribution(
        norms, "force on an atom (eV/Å)", title="How far from equilibrium: forces", limits=(0, 6)
    ),
    "01_force_norms",
)
quartiles = {name: np.percentile(v, [25, 50, 75, 99]).round(2) for name, v in norms.items()}
pd.DataFrame(quartiles, index=["25 %", "median", "75 %", "99 %"]).T.rename_axis(
    "force on an atom (eV/Å)"
)


# %% [markdown]
# ## Distances between atoms

# %%
def heavy(s):
    counts = {e: c for e, c in analysis.element_counts(s).items() if e != "H"}
    return max(counts, key=counts.get)


curves = {}
for name, s in few.items():
    r = analysis.pair_distances(s, heavy(s), heavy(s), cutoff=6.0)
    counts, edges = np.histogram(r, bins=240, range=(0.8, 6.0))
    middle = 0.5 * (edges[1:] + edges[:-1])
    curves[f"{name} {heavy(s)}–{heavy(s)}"] = (
        middle,
        counts / (4 * np.pi * middle**2 * np.diff(edges)) / (s.z == SYMBOLS.index(heavy(s))).sum(),
    )
chart = plots.rdf(
    curves,
    title="Radial distributions: the commonest heavy element around itself",
    y_title="atoms per volume (1/Å³)",
)
chart.update_yaxes(type="log", range=[-4, 1.5], dtick=1, tickformat="~g")
plots.show(chart, "01_radial_distributions")

# %%
every = np.linspace(0, len(liquid) - 1, min(run.n_frames, len(liquid))).astype(int)
frames = liquid[every]
curves = {
    f"{a}–{b}": analysis.radial_distribution(frames, a, b)
    for a, b in (("O", "O"), ("O", "H"), ("H", "H"))
}
chart = plots.rdf(curves, title=f"Pair distributions of the water ({water})")
chart.update_yaxes(range=[0, 4])
plots.show(chart, "01_water_rdf")

# %% [markdown]
# The bonds within a molecule are fixed in rigid TIP3P water (the sharp lines at 0.957 and 1.514 Å, cut off above): what energies and
# forces say is between molecules. That is why a noise that is right for bonds is not right for water, and why the masked paper
# looked for another task.
#
# ## Do the sets hold what they say?

# %%
from potkit.datasets import checks

reports = {name: checks.check(s).set_index("check")["value"] for name, s in few.items()}
pd.DataFrame(reports).fillna("")

# %% [markdown]
# ## What masking does

# %%
rows = []
for ratio in (0.25, 0.5, 0.9):
    batch = potkit.Masked(ratio=ratio).corrupt(frames[:2].batch(dtype=torch.float64), generator)
    length = batch.target[batch.has_target].norm(dim=1)
    rows.append(
        {
            "ratio": ratio,
            "atoms before": int(frames.n_atoms[:2].sum()),
            "atoms after": batch.num_nodes,
            "flagged": int(batch.mask.sum()),
            "O → removed H (Å)": float(length.min()),
            "H → removed H (Å)": float(length.max()),
        }
    )
pd.DataFrame(rows).round(4)

# %%
# NBVAL_CHECK_OUTPUT
batch = potkit.Masked(ratio=0.5).corrupt(
    potkit.load("tip3p-mini")[:1].batch(), torch.Generator().manual_seed(0)
)
print(
    "removed hydrogens:",
    774 - batch.num_nodes,
    "of",
    258,
    "molecules; flagged atoms:",
    int(batch.mask.sum()),
)

# %% [markdown]
# ## Is the Gaussian assumption right?
#
# Denoising takes each structure for the centre of a Gaussian cloud. Whether the displacements in a set are Gaussian can be tested: bonded neighbourhoods of all
# structures of a system are turned onto their mean (so that turning about bonds drops out), and what is left is compared with the normal law, along
# the axes of each atom's own covariance. With many numbers every test rejects every real distribution, so the verdict goes by the size
# of the deviation; `potkit.noise.gaussian_test` explains the columns. The stand-ins for ANI were drawn
# along normal modes by recipe, so theirs are near to Gaussian in part because they were made so.

# %%
from potkit import noise
from potkit.errors import DataError

tests, proposals, standardised = {}, {}, {}
for name, s in whole.items():
    chosen = np.random.default_rng(run.seed).permutation(np.unique(s.system))[: run.n_systems]
    part = s[np.isin(s.system, chosen)]
    part = part if not s.pbc.any() else profiles.at_most(part, run.n_frames)
    proposals[name] = noise.propose_sigma(part)
    try:
        tests[name] = noise.gaussian_test(part)
        standardised[name] = noise.displacements(part)["standardised"]
    except DataError as reason:
        print(f"not tested: {reason}")
pd.concat(tests, names=["set", ""]).round(3)

# %%
chart = plots.distribution(
    standardised,
    "displacement over its standard deviation",
    limits=(-4, 4),
    title="Displacements against the normal law",
)
x = np.linspace(-4, 4, 200)
chart.add_scatter(
    x=x,
    y=np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi),
    name="normal law",
    mode="lines",
    line=dict(color="black", dash="dash"),
)
plots.show(chart, "01_gaussian_test")

# %% [markdown]
# The σ that `potkit.noise.propose_sigma` reads from the data alone (notebook 02 compares it with a scan), by three methods, and which it takes:

# %%
methods = {
    name: p.table["all"].to_dict() | {"proposed σ (Å)": p.sigma, "by": p.method}
    for name, p in proposals.items()
}
pd.DataFrame(methods).T.infer_objects().rename_axis("σ in Å").round(3)

# %% [markdown]
# ## In one sentence per set

# %%
for name, v in norms.items():
    s = whole[name]
    lies = f"{1e3 * np.median(with_energy[name]):.0f}" if name in with_energy else "?"
    above = f"a typical structure lies {lies} meV/atom above the lowest of its system"
    verdict = (
        tests[name].set_index("element").verdict.get("all", tests[name].verdict.iloc[0])
        if name in tests
        else "not tested"
    )
    print(
        f"{name}: half of the atoms feel more than {np.median(v):.2f} eV/Å; {above}; Gaussian: "
        f"{verdict}; proposed σ {proposals[name].sigma:.2g} Å"
    )

# %% [markdown]
# **What it means.** None of the sets is at equilibrium, which is what denoising of non-equilibrium structures needs; how far off differs from set to
# set, as the lines above say. Notebook 02 measures which σ pays, notebook 03 which share of hydrogens to mask, 04 what carries over to other sets.
