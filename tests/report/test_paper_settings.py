"""What carries a paper's name has the paper's settings, by one table, or says where it has not."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import potkit
from potkit import models
from potkit.experiments import shipped
from potkit.experiments.yaml_form import DataSpec, ExperimentSpec
from potkit.models import faults as network_faults
from potkit.notebooks import profiles
from potkit.objectives import faults as objective_faults
from potkit.report import paper_settings
from potkit.report.paper_settings import NETWORKS, SAME, SETTINGS, UNKNOWN, covered, differences
from potkit.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(potkit.__file__).parent
STAGE = (
    "optimizer",
    "lr",
    "min_lr",
    "schedule",
    "weight_decay",
    "clip",
    "ema",
    "freeze",
    "layer_decay",
    "validate_epochs",
    "batch_size",
    "epochs",
)


# --- what is set ------------------------------------------------------------------------------


def stage(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training as the papers name them: parts of the schedule in epochs."""
    config = TrainConfig(**values)
    out = {f"{name}.{key}": getattr(config, key) for key in STAGE}
    epochs = config.epochs or 0.0
    out[f"{name}.warmup_epochs"] = config.warmup * epochs
    out[f"{name}.flat_epochs"] = config.flat * epochs
    if name == "pretrain":
        out["pretrain.valid_fraction"] = config.valid_fraction
    else:
        out["finetune.references"] = config.references
        out["finetune.normalization"] = config.normalization
    return out


def objective(name: str, values: dict[str, Any]) -> dict[str, Any]:
    made = potkit.objectives.from_dict(values)
    keys = dict(denoise=("sigma", "normalize"), masked=("ratio", "by")).get(made.name, ())
    return {f"{made.name}.{key}": getattr(made, key) for key in keys}


def split_of(by: str, fractions: list[Any]) -> tuple[Any, ...]:
    """Counts of systems as shares: eight of ten seeds are 0.8."""
    counts = by == "system" and all(isinstance(n, int) for n in fractions)
    return by, tuple(n / sum(fractions) if counts else n for n in fractions)


def short(data: str) -> str:
    return {"$POTKIT_DATA/tip3p.h5": "tip3p", "tip3p-mini": "tip3p"}.get(data, data)


def split_of_spec(spec: ExperimentSpec) -> tuple[Any, ...]:
    parts = [spec.train, spec.valid, spec.test]
    assert all(isinstance(p, DataSpec) for p in parts), "train, valid and test are named"
    assert len({p.data for p in parts}) == 1 and len({str(p.systems) for p in parts}) == 1
    if spec.train.published:
        return "published", tuple(p.published for p in parts)
    same = {p.part.model_copy(update=dict(index=0)).model_dump_json() for p in parts}
    assert len(same) == 1 and [p.part.index for p in parts] == [0, 1, 2]
    return split_of(spec.train.part.by, spec.train.part.fractions)


def of_spec(spec: ExperimentSpec) -> dict[str, Any]:
    """What an experiment sets, by the names of the table; without arms."""
    out = stage("pretrain", spec.pretrain) | stage("finetune", spec.finetune)
    out |= {f"supervised.{key}": value for key, value in spec.supervised.items()}
    out |= {"seeds": len(spec.seeds), "longer": spec.longer, "split": split_of_spec(spec)}
    sets = spec.pretrain_on.data
    same = sets == spec.train.data
    out["pretrain_on"] = SAME if same else tuple(sets)
    out["model.preset"] = spec.model["preset"]
    if "masked" in spec.model["preset"]:
        preset = models.presets(spec.model["name"])[spec.model["preset"]]
        out["model.cutoff"] = spec.model.get("cutoff", preset["cutoff"])
    if short(str(spec.train.data)) == "spice-1":
        out["model.formal_charges"] = spec.model.get("formal_charges", False)
    return out


SPECS = [
    pytest.param(name, spec, id="-".join([name, *columns.values()]))
    for name in shipped.names()
    for columns, spec in shipped.read(name).specs
]


@pytest.mark.parametrize("name, spec", SPECS)
def test_shipped_experiments_have_the_papers_settings(name, spec):
    paper = name.partition("-")[0]
    data, model = short(str(spec.train.data)), spec.model["name"]
    extra = spec.model.keys() - {"name", "preset", "formal_charges"}
    assert not extra, "an option of the network beside the preset is not the paper's"
    observed = [of_spec(spec)]
    for arm, values in spec.arms.items():
        parts = tuple(spec.parts.get(arm, ("backbone",)))
        observed.append(objective(arm, values) | {"parts": parts})
    for part in observed:
        assert differences(part, paper, data, model, notes=spec.notes) == []
        assert strange(name, part, paper, data, model) == []


PROFILES = [
    (profiles.MOLECULES["paper"], "denoise", ("ani-1", "ani-1x", "iso17", "spice-1", "md22")),
    (profiles.WATER["paper"], "masked", ("rpbe-water", "tip3p-mini")),
    (profiles.RMD17["paper"], "masked", ("rmd17",)),
]
# what a note of a profile speaks of, where its key does not tell
SPEAKS_OF = {
    "networks": ["parts", "model.formal_charges"],
    "network.preset": ["model.cutoff"],
    "sigma": ["denoise.normalize"],
}

# What differs from the papers on purpose. A note says why; the values stand here, so that another
# value under an old note is noticed. Profiles by their paper, experiments by name.
GUESSED = {"finetune.lr": [2e-4], "finetune.batch_size": [256], "finetune.epochs": [50]}
ADAM = {"pretrain.optimizer": ["adam"]}
UNSTATED = {
    "pretrain.weight_decay": [1e-4],
    "finetune.weight_decay": [1e-4],
    "model.cutoff": [3.4],
}
OURS: dict[str, dict[str, list[Any]]] = {
    "profile denoise": {
        **GUESSED,
        "denoise.normalize": [True],
        "longer": ["operations"],
        "seeds": [3],
        "model.formal_charges": [False],
    },
    "profile masked": {**ADAM, **UNSTATED, "longer": ["steps"], "denoise.sigma": [0.5]},
    "denoise-figure3": GUESSED,
    "denoise-figure4": GUESSED,
    "denoise-figure5": {"denoise.sigma": [0.01, 0.05, 0.1, 0.5, 1.0]},
    "denoise-s5": {"finetune.epochs": [20]},
    "denoise-s6": {**GUESSED, "seeds": [3]},
    "masked-figure2": {**ADAM, "longer": ["steps"]},
    "masked-figure3": ADAM,
    "masked-s1": {**ADAM, "masked.ratio": [0.25, 0.5, 0.75, 0.9]},
    "masked-table1-rpbe": ADAM,
    "masked-table1-tip3p": ADAM,
    "masked-table2": {**UNSTATED, "seeds": [1]},
    "masked-text-batch": {**ADAM, "finetune.batch_size": [64, 256]},
    "masked-text-oxygen": ADAM,
    "masked-text-ratio": {**UNSTATED, "seeds": [1], "masked.ratio": [0.25, 0.75]},
}


def strange(where: str, observed: dict[str, Any], paper: str, data: str, model: str) -> list[str]:
    """What differs from the paper and is not in OURS."""
    lines = differences(observed, paper, data, model)
    names = [line.partition(": ")[2].partition(" = ")[0] for line in lines]
    ours = OURS.get(where, {})
    odd = [name for name in names if observed[name] not in ours.get(name, [])]
    return [f"{name} = {observed[name]!r}" for name in odd]


def of_profile(profile: dict[str, Any], data: str) -> dict[str, Any]:
    own = profile.get("by_set", {}).get(data, {})

    def setting(name: str) -> Any:
        given = own.get(name, profile.get(name))
        if isinstance(given, dict):
            return profile.get(name, {}) | given
        return given

    out = stage("pretrain", setting("pretrain")) | stage("finetune", setting("finetune"))
    out |= {f"supervised.{key}": value for key, value in profile["supervised"].items()}
    for key, name in (("sigma", "denoise.sigma"), ("normalize", "denoise.normalize")):
        if key in profile:
            out[name] = profile[key]
    if "pretrain_data" in profile:  # its notebooks write Denoise(sigma=run.sigma)
        out["denoise.normalize"] = potkit.Denoise().normalize
    if "ratio" in profile:
        out["masked.ratio"] = profile["ratio"]
    if "longer" in profile:
        out["longer"] = profile["longer"]
    if "seeds" in profile:
        out["seeds"] = len(profile["seeds"])
    if "pretrain_data" in profile:
        out["pretrain_on"] = tuple(profile["pretrain_data"])
    preset = profile["network"]["preset"] if "network" in profile else profile["preset"]
    out["model.preset"] = preset
    if preset == "masked-paper":
        out["model.cutoff"] = models.presets("egnn")[preset]["cutoff"]
    if data == "spice-1":
        out["model.formal_charges"] = False
    if "published" in own:
        out["split"] = "published", tuple(own["published"])
    elif data == "rmd17":  # what learns, then the share of it that validates
        learn, rest = profile["parts"]
        valid = round(profile["valid_fraction"] * learn)
        out["split"] = "structure-within-system", (learn - valid, valid, rest)
    else:
        out["split"] = split_of(setting("split"), setting("parts"))
    return out


@pytest.mark.parametrize(
    "profile, paper, data",
    [
        pytest.param(profile, paper, data, id=f"{paper}-{data}")
        for profile, paper, sets in PROFILES
        for data in sets
    ],
)
def test_profiles_paper_have_the_papers_settings(profile, paper, data):
    notes = [*profile["guesses"], *profile["remarks"]]
    notes += [name for key in notes for name in SPEAKS_OF.get(key, ())]
    observed = of_profile(profile, data)
    assert differences(observed, paper, short(data), "egnn", notes) == []
    assert strange(f"profile {paper}", observed, paper, short(data), "egnn") == []


def paper_presets() -> list[tuple[str, str]]:
    return [
        (name, preset)
        for name in models.names()
        for preset in models.presets(name)
        if preset in ("denoise-paper", "masked-paper")
    ]


def default(network: str, option: str) -> Any:
    recipe = dict(name=network, options={})
    backbone = models.backbone_options(recipe)
    if option in backbone:
        return backbone[option]
    return inspect.signature(models.Potential).parameters[option].default


def preset_differences(network: str, options: dict[str, Any], told: dict[str, Any]) -> list[str]:
    lines = [f"{name} is not in the table" for name in options if name not in told]
    for name, (value, source) in told.items():
        ours = options.get(name, default(network, name))
        if ours != value:
            lines.append(f"{name} = {ours!r}, but {value!r} in {source}")
    return lines


@pytest.mark.parametrize("network, preset", paper_presets())
def test_presets_have_the_papers_settings(network, preset):
    options = models.presets(network)[preset]
    assert preset_differences(network, options, NETWORKS[network, preset]) == []


def test_every_network_of_the_table_is_a_preset():
    assert set(NETWORKS) == set(paper_presets())


# --- the table and the walk can fail ----------------------------------------------------------


def test_the_table_names_each_setting_once():
    """For a set and a network there is one value."""
    sets = {d for s in SETTINGS for d in s.data}
    nets = {m for s in SETTINGS for m in s.model} | {None}
    for paper in ("denoise", "masked"):
        own = [s for s in SETTINGS if s.paper == paper]
        for data in sets & {d for s in own for d in s.data}:
            for model in nets:
                fitting = [
                    s.name
                    for s in own
                    if (not s.data or data in s.data) and (not s.model or model in s.model)
                ]
                assert len(fitting) == len(set(fitting)), (paper, data, model)
    assert all(s.source for s in SETTINGS)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"finetune": {"clip": 10.0}}, "finetune.clip"),
        ({"pretrain": {"lr": 1e-3}}, "pretrain.lr"),
        ({"finetune": {"references": "least-squares"}}, "finetune.references"),
        ({"finetune": {"ema": 0.99}}, "finetune.ema"),
        ({"longer": "time"}, "longer"),
        ({"model": {"name": "egnn", "preset": "small"}}, "model.preset"),
    ],
)
def test_a_changed_setting_is_noticed(change, word):
    columns, spec = shipped.read("denoise-table2").specs[2]
    assert columns == {"data": "ANI-1", "model": "egnn"}
    values = spec.model_dump()
    for key, value in change.items():
        added = isinstance(value, dict) and key != "model"
        values[key] = values[key] | value if added else value
    changed = ExperimentSpec(**values)
    lines = differences(of_spec(changed), "denoise", "ani-1", "egnn", notes=spec.notes)
    assert len(lines) == 1 and word in lines[0]
    assert differences(of_spec(changed), "denoise", "ani-1", "egnn", [*spec.notes, word]) == []


def test_another_value_under_an_old_note_is_noticed():
    """The remark on sigma is about its sign."""
    profile = profiles.MOLECULES["paper"] | dict(sigma=0.3)
    observed = of_profile(profile, "ani-1x")
    notes = profile["remarks"]
    assert not [
        d for d in differences(observed, "denoise", "ani-1x", "egnn", notes) if "sigma" in d
    ]
    assert strange("profile denoise", observed, "denoise", "ani-1x", "egnn") == [
        "denoise.sigma = 0.3"
    ]


def test_a_changed_preset_is_noticed():
    told = NETWORKS["egnn", "denoise-paper"]
    options = models.presets("egnn")["denoise-paper"]
    assert preset_differences("egnn", options | dict(aggregate="sum"), told)
    assert preset_differences("egnn", {k: v for k, v in options.items() if k != "bias"}, told)
    assert preset_differences("egnn", options | dict(charge=True), told)


def test_guesses_need_a_note():
    value = {"finetune.epochs": 50.0}
    assert "a guess without a note" in differences(value, "denoise", "md22")[0]
    assert differences(value, "denoise", "md22", notes=["by_set.md22.finetune.epochs"]) == []
    assert differences({"finetune.luck": 1}, "denoise", "md22")


def test_notes_speak_of_what_they_name():
    assert covered("finetune.warmup_epochs", ["finetune.warmup"])
    assert covered("denoise.sigma", ["sigma"]) and covered("model.cutoff", ["model.cutoff"])
    for note in ("finetune", "pretrain.lr", "lr", "tune.lr"):
        assert not covered("finetune.lr", [note])
    assert not covered("denoise.sigma", ["denoise"]) and not covered("seeds", ["draws"])


def test_the_table_is_shown():
    for paper in ("denoise", "masked"):
        shown = paper_settings.table(paper)
        assert len(shown) == sum(s.paper == paper for s in SETTINGS)
    assert any(s.value is UNKNOWN for s in SETTINGS)


# --- what texts call the papers' -----------------------------------------------------------------

# files that may speak of a paper's settings or network, and what holds them to it
CLAIMS = {
    "potkit/notebooks/profiles.py": "test_profiles_paper_have_the_papers_settings",
    "potkit/report/paper_settings.py": "the table",
    "potkit/experiments/shipped.py": "test_shipped_experiments_have_the_papers_settings",
    "potkit/cli/specs.py": "test_shipped_experiments_have_the_papers_settings",
    "potkit/models/faults.py": "tests/models: with all faults the published code's numbers",
    "potkit/models/published_codes": "tests/models/test_published.py",
    "potkit/models/egnn.py": "test_presets_have_the_papers_settings",
    "potkit/models/se3_transformer.py": "test_presets_have_the_papers_settings",
    "potkit/models/gns.py": "test_presets_have_the_papers_settings",
    "potkit/models/forcenet.py": "test_presets_have_the_papers_settings",
    "potkit/bench/step.py": "its cases are presets",
    "potkit/cli/bench.py": "its cases are presets",
    "potkit/cli/weights.py": "tests/models/test_published.py",
    "potkit/datasets/formal_charges.py": "tests/datasets/test_formal_charges.py",
    "potkit/datasets/formats/spice.py": "tests/datasets/test_formal_charges.py",
    "README.md": "profiles and presets",
    "CHANGELOG.md": "profiles and presets",
    "docs/papers.md": "generated from the table, or test_paper_map.py",
    "docs/questions.md": "says where each is held",
    "docs/architecture.md": "says where the published networks are",
    "notebooks/02_noise_scale.ipynb": "test_profiles_paper_have_the_papers_settings",
    "notebooks/03_mask_ratio.ipynb": "test_profiles_paper_have_the_papers_settings",
    "notebooks/05_data_efficiency.ipynb": "test_profiles_paper_have_the_papers_settings",
    "notebooks/06_masked_versus_denoise.ipynb": "test_profiles_paper_have_the_papers_settings",
    "notebooks/07_beyond.ipynb": "test_profiles_paper_have_the_papers_settings",
}
CLAIM = re.compile(
    r"papers?['’]s?(?: own| published)? (?:settings?|networks?|configuration|presets?)"
    r"|published (?:settings?|networks?)\b|settings of the (?:masked |denoise )?papers?",
    re.IGNORECASE,
)


def docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in texts if text]


def texts() -> dict[str, str]:
    """What users read, by file: pages, docstrings, Markdown of notebooks."""
    out = {}
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*.md")):
        out[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    for path in PACKAGE.rglob("*.py"):
        out[f"potkit/{path.relative_to(PACKAGE)}"] = "\n".join(docstrings(path))
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        markdown = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        out[f"notebooks/{path.name}"] = "\n".join(markdown)
    return {name: " ".join(text.split()) for name, text in out.items()}


def test_only_what_is_held_to_a_paper_speaks_of_its_settings():
    """A file that begins to call something a paper's stands in CLAIMS, with what holds it."""
    claiming = {name: CLAIM.findall(text) for name, text in texts().items() if CLAIM.search(text)}
    unheld = {
        name: found
        for name, found in claiming.items()
        if not any(name == known or name.startswith(f"{known}/") for known in CLAIMS)
    }
    assert unheld == {}
    assert CLAIM.search("the paper's settings") and CLAIM.search("as the published network")


def test_names_with_paper_or_faithful_are_the_tables():
    """Presets in texts exist, and `faithful` is offered only where a table of faults has a row."""
    every = texts()
    words = [
        word for text in every.values() for word in re.findall(r"(?<![\w-])(\w+)-paper\b", text)
    ]
    presets = {f"{word}-paper" for word in words}
    assert presets == {"denoise-paper", "masked-paper"}
    for name in models.names():
        published = bool(network_faults.of(name))
        assert published == any(n == name for n, _ in NETWORKS), name
        if not published:
            with pytest.raises(potkit.errors.ConfigError, match="neither paper published it"):
                potkit.build(name, faithful=True)
    known = set(network_faults.FAULTS) | set(objective_faults.FAULTS)
    given = {
        word
        for text in every.values()
        for names in re.findall(r"faults ?= ?\(([^)…]*)\)", text)
        for word in re.findall(r"[\"']([\w-]+)[\"']", names)
    }
    assert given and given - known == set()
