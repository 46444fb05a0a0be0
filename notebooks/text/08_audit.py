# %% [markdown]
# # 08 · An audit
#
# **What do the papers' published faults and our own choices do to the gain from pretraining?** The published codes differ from their papers in many
# places, and potkit chooses some things as neither paper does. Each such difference may change what pretraining brings, and nobody has measured how much.
# Here one thing is changed at a time: scratch and denoise are both trained again, and what denoise gains on scratch is compared with the gain *as it is*,
# seed by seed.
#
# **The answer in one picture** is the first figure. It shows the stored study, on real labels: the denoise paper's EGNN equations at a small size, pretrained on
# `ani-mini` without its labels, fine-tuned on 50 structures of 3BPA at 300 K (ωB97X/6-31G(d)), tested on 300 to 1200 K.

# %% tags=["parameters"]
profile = "quick"  # smoke | quick | study | paper
device = None  # None: what the specs say
labels = None  # labelled structures for fine-tuning, validation included
seeds = None
jobs = None  # runs side by side

# %% tags=["setup"]
import pandas as pd

from potkit import notebooks, plots, report
from potkit.experiments import audit
from potkit.notebooks import audit_profiles

run = notebooks.settings(profile, **audit_profiles.AUDIT, labels=labels, seeds=seeds, jobs=jobs)
grid = audit_profiles.grid(run, device)
stored = {name: audit_profiles.stored(name) for name in audit_profiles.STUDIES}
studies = {audit_profiles.STUDIES[name]: runs for name, (runs, _) in stored.items()}
run

# %%
about = [
    dict(study=name) | audit_profiles.described(runs, how) for name, (runs, how) in stored.items()
]
plots.show(
    report.audits.figure(studies, title="What denoise gains, one thing changed at a time"),
    "08_audit",
)
pd.DataFrame(about).set_index("study")

# %% [markdown]
# Each marker is the mean over seeds of denoise's force error against scratch's **under that setting**, with its 95 % interval; left of zero is a gain. The dashed
# line is the gain as it is. A filled marker other than *as it is* is a setting whose gain is told from it, with all settings of its study counted
# (Holm). The markers' own intervals do not tell that: they hold what seeds share, and the comparison below is made within seeds.
#
# In sentences, made from the stored runs. A ratio that rises means that less is gained; the bracket is the interval of that comparison alone, the one after *not
# told from 0* the interval at the level Holm tests at. The last line asks more strictly, with the settings of both studies counted together.

# %%
# NBVAL_CHECK_OUTPUT
for title, runs in studies.items():
    print(title.upper())
    for sentence in report.audits.sentences(runs):
        print("-", sentence)
print(report.audits.together(studies))

# %% [markdown]
# ## The published faults
#
# All that potkit knows of, each with a switch of its own name where there is something to switch (`faults=("pooled", …)` of a network, an objective or a function; `faithful=True` for all
# of a network's). None is on by default. The last column is the setting of the study that switches it on. First those of networks:

# %%
# NBVAL_CHECK_OUTPUT
switched = report.audits.audited(*(how for _, how in stored.values()))
models = report.audits.faults_of_models(switched)
objectives = report.audits.faults_of_objectives(switched)
print(f"{len(models)} faults of networks, {len(objectives)} of objectives, data and evaluation;")
print("audited:", ", ".join(f"{fault} ({setting})" for fault, setting in switched.items()))

# %%
pd.set_option("display.max_colwidth", None)
models.set_index("fault")

# %% [markdown]
# Then those of objectives, data and evaluation (D: the denoise paper's code, M: the masked paper's):

# %%
objectives.set_index("fault")

# %% [markdown]
# *Coordinate read-out* is no fault: it is what the denoise paper's EGNN is pretrained with (its displacement of coordinates predicts the noise), where *as it is* takes −∂E/∂x, which also
# trains what the energy needs. It stands here because the paper's tables were made with it.
#
# ## The audit in numbers
#
# Changes against *as it is*, within seeds; for errors below zero is better, and for the gain below zero means that more is gained. Where a setting changes pretraining alone, its scratch runs are those of *as it is*, and only denoise is compared.

# %%
tables = [audit.table(runs).assign(study=title) for title, runs in studies.items()]
report.audits.in_words(pd.concat(tables)).set_index(["setting", "error"])

# %% [markdown]
# Forces were what the study was made to look at; energies stand beside them. Holm counts the settings of one study for one quantity and one error, not both studies or both errors together.
#
# ## What follows for the defaults
#
# Three choices of ours: two are defaults of every training (`clip`, `references`), one of EGNN's preset `small` (`aggregate`). What each does to the errors, and what the intervals allow to say.
# The errors of the two arms speak for or against a choice; the gain does not, because it also grows where scratch gets worse.

# %%
# NBVAL_CHECK_OUTPUT
for sentence in report.audits.on_defaults(studies["choices of ours"]):
    print("-", sentence)

# %% [markdown]
# *Isolated atoms* leaves the whole binding energy to the network; least squares fits most of it before training. (The denoise paper's code goes on to take off the mean and to divide
# by the standard deviation of the training part, for ANI's energies; this setting does not.) *Sum over neighbours* is how EGNN's preset `small` moves coordinates; *as it is* takes the
# mean, as both papers do. The study has one network at one size, so it says what these choices do there, and is a reason for defaults elsewhere only in so far as nothing better is known.
#
# ## The same grids here
#
# What the machinery gives in this profile: in `smoke` and `quick` a part of the two specs on **embedded structures with synthetic labels (GFN2-xTB)** and for few steps. It shows how such an
# audit runs, and carries no conclusion about the papers or about potkit's defaults. `study` runs the two specs as they are (3BPA's files in the folder that
# `POTKIT_REFERENCE_DATA` names; the hours stand in the first table); `paper` takes the denoise paper's own EGNN, steps and rates on ANI-1x, wants a GPU, and has not been run.
# Finished runs are loaded, not repeated.

# %%
own = audit_profiles.run_all(grid)
embedded = run.data.get("train", {}).get("data") == "ani-mini"
source = "GFN2-xTB labels, synthetic" if embedded else "real labels"
verdicts = run.profile != "smoke"

# %%
titled = {audit_profiles.STUDIES[name]: runs for name, runs in own.items()}
plots.show(
    report.audits.figure(titled, run.metric, f"In profile {run.profile}: {source}", verdicts),
    "08_audit_here",
)

# %%
here = pd.concat([audit.table(runs) for runs in own.values()])
report.audits.in_words(here, verdicts).set_index(["setting", "error"])

# %% [markdown]
# ## What was not audited
#
# | what | why not, and what it takes |
# | --- | --- |
# | `smiles-order` (SPICE's elements in RDKit's order) | needs SPICE 1 with its SMILES: `potkit.read(path, format="spice", faults=("smiles-order",))`, then the same grid with that set to pretrain on |
# | `neighbours-32` | the limit binds only where an atom has more than 32 neighbours: dense or large molecules and liquids at a cutoff of 5 Å and more, as MD22's or water's. 3BPA has 27 atoms and the pretraining molecules fewer, so it never binds there |
# | GNS, ForceNet and their faults (`edges-doubled`, `wrapped-positions`, `all-oxygen`, `mask-shift`) | belong to masked pretraining on water: RPBE or TIP3P frames, and steps for networks that know no rotations. Hours, better on a GPU |
# | SE(3)-Transformer's faults | the same grid with another `model` |
# | `detached-norm`, and all faults together (`faithful=True`) | one more line each in `audit-faults.yaml` |
# | the papers' sizes, steps and label counts | profile `paper`: the denoise paper's EGNN has 2.4 million weights, and ANI-1x five million structures. Days on a GPU |
# | the denoise paper's whole normalisation of labels | one more setting of `audit-choices.yaml`: `finetune: {references: isolated, normalization: mean-std, isolated_energies: …}` |
# | other label counts, data and networks | the study has 50 labels, one molecule and one network; what a fault does may depend on all three |
#
# **What it means.** What stands in the sentences above was measured with a small EGNN, 50 labels, one set and short training, and with settings that no study chose as primary beforehand. *Not told* is no absence: the intervals say how much a fault may still do,
# and narrower ones take more seeds (`potkit plan` says how many).
