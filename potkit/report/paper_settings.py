"""What the two papers set, each value typed once, with its source.

    D, M    denoise paper (arXiv 2303.02216), masked paper (arXiv 2402.15921), by section
    D code  the published code of D and its configurations; M code: that of M

`SETTINGS` are those of data and training, `NETWORKS` those of the presets that carry a paper's
name. Where the published code contradicts its paper, ``code`` has what the code does. What is
nowhere stated is `UNKNOWN`: whoever runs it has to guess, and to say so.

A test holds all presets, profiles ``paper`` and shipped experiments to these tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


class _Word:
    """A value that is no value."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


UNKNOWN = _Word("not stated")
SAME = _Word("the same")

ANI = ("ani-1", "ani-1x")
AS_STORED = ("iso17", "spice-1", "md22")
WATER = ("rpbe-water", "tip3p")
ALL_PARTS = ("backbone", "energy_head", "vector_readout")
WITHIN = "structure-within-system"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value of a paper.

    ``name`` is that of a spec (`potkit.experiments.yaml_form`), such as "pretrain.lr"; warm-up and
    flat part are in epochs, as the papers have them. ``data`` and ``model``: the sets and networks
    it is for; () for all.
    """

    paper: str
    name: str
    value: Any
    source: str
    data: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    code: Any = SAME


def _denoise() -> list[Setting]:
    def row(name: str, value: Any, source: str, data: tuple[str, ...] = (), code: Any = SAME):
        return Setting("denoise", name, value, source, data, code=code)

    stage = [
        row(f"{stage}.{name}", value, source)
        for stage in ("pretrain", "finetune")
        for name, value, source in (
            ("optimizer", "adamw", "D §3.2"),
            ("min_lr", 1e-7, "D code"),
            ("schedule", "cosine", "D §3.2"),
            ("weight_decay", 0.0, "D §3.2"),
            ("clip", None, "D code"),
            ("ema", 0.0, "D code"),
            ("freeze", 0.0, "D code"),
            ("layer_decay", 1.0, "D code"),
            ("validate_epochs", 1, "D code"),
        )
    ]
    told = (*ANI, "iso17", "spice-1")
    return [
        *stage,
        row("pretrain_on", ANI, "D §3.1"),
        row("pretrain.epochs", 5, "D §3.2"),
        row("pretrain.batch_size", 256, "D §3.2"),
        row("pretrain.lr", 2e-4, "D §3.2"),
        row("pretrain.warmup_epochs", 0.7, "D code"),
        row("pretrain.flat_epochs", 0.3, "D code"),
        row("pretrain.valid_fraction", 0.05, "D §3.1"),
        row("finetune.epochs", 10, "D §3.2", ANI),
        row("finetune.epochs", 50, "D §3.2", ("iso17", "spice-1")),
        row("finetune.epochs", UNKNOWN, "D §3.2 points to its supplement", ("md22",)),
        row("finetune.batch_size", 256, "D §3.2", told),
        row("finetune.batch_size", UNKNOWN, "D §3.2: settings of its own for MD22", ("md22",)),
        row("finetune.lr", 2e-4, "D code", told),
        row("finetune.lr", UNKNOWN, "D §3.2: settings of its own for MD22", ("md22",)),
        row("finetune.warmup_epochs", 0.3, "D code"),
        row("finetune.flat_epochs", 0.7, "D code"),
        row("finetune.references", "isolated", "D code", ANI),
        row("finetune.references", "none", "D code", AS_STORED),
        row("finetune.normalization", "mean-std", "D code"),
        row("supervised.energy", 1, "D §3.2"),
        row("supervised.forces", 0, "D §3.2"),
        row("supervised.loss_function", "mse", "D code"),
        row("split", (WITHIN, (0.8, 0.1, 0.1)), "D §3.1", (*ANI, "spice-1", "md22")),
        row("split", ("published", ("train", "valid", "test_other")), "D §3.1; D code", ("iso17",)),
        row("model.preset", "denoise-paper", "D §3.2"),
        row("model.formal_charges", True, "D code: 28 types of atoms", ("spice-1",)),
        row("denoise.sigma", 0.2, "D §3.6"),
        row("denoise.normalize", False, "D code"),
        row("parts", ("backbone",), "D §3.2", code=("backbone", "energy_head")),
        row("seeds", 1, "D code"),
        row("longer", None, "D has no such arm"),
    ]


def _masked() -> list[Setting]:
    def row(name: str, value: Any, source: str, data: tuple[str, ...] = (), code: Any = SAME):
        return Setting("masked", name, value, source, data, code=code)

    def ratio(model: str, value: float, source: str, data: str):
        return Setting("masked", "masked.ratio", value, source, (data,), (model,))

    rmd17 = ("rmd17",)
    epochs = (
        ("rpbe-water", 100, 300, 16, "M §3.1"),
        ("tip3p", 25, 50, 10, "M §3.1"),
        ("rmd17", 15, 200, 32, "M §3.5"),
    )
    sizes = []
    for data, before, after, batch, source in epochs:
        sizes += [
            row("pretrain.epochs", before, source, (data,)),
            row("finetune.epochs", after, source, (data,)),
            row("pretrain.batch_size", batch, source, (data,)),
            row("finetune.batch_size", batch, source, (data,)),
        ]
    stage = [
        row(f"{stage}.{name}", value, source, data)
        for stage in ("pretrain", "finetune")
        for name, value, source, data in (
            ("lr", 1e-4, "M §3.1, §3.5", ()),
            ("warmup_epochs", 0.0, "M code", ()),
            ("flat_epochs", 0.0, "M code", ()),
            ("schedule", "cosine", "M code", ()),
            ("clip", None, "M code", ()),
            ("ema", 0.0, "M code", ()),
            ("freeze", 0.0, "M code", ()),
            ("layer_decay", 1.0, "M code", ()),
            ("validate_epochs", 1, "M code", ()),
            ("weight_decay", 1e-4, "M §3.1", WATER),
            ("min_lr", 5e-5, "M §3.5", rmd17),
            ("optimizer", "adam", "M §3.5", rmd17),
        )
    ]
    unstated = [
        row(f"{stage}.weight_decay", UNKNOWN, "M states none; M code", rmd17, 1e-4)
        for stage in ("pretrain", "finetune")
    ]
    return [
        *sizes,
        *stage,
        *unstated,
        row("pretrain.optimizer", "adamw", "M §3.1", WATER, "adam"),
        row("finetune.optimizer", "adamw", "M §3.1", WATER),
        row("pretrain.min_lr", 1e-7, "M §3.1", WATER),
        row("finetune.min_lr", 1e-7, "M §3.1", WATER, 5e-5),
        row("pretrain.valid_fraction", 0.1, "M §3.1", WATER),
        row("pretrain.valid_fraction", 1 / 51, "M §3.5", rmd17),
        row("pretrain_on", SAME, "M §3.1"),
        row("finetune.references", "none", "M code"),
        row("finetune.normalization", "per-atom-mean-std", "M code", ("rpbe-water",)),
        row("finetune.normalization", "mean-std", "M code", ("tip3p", "rmd17")),
        row("supervised.energy", 1, "M code", WATER),
        row("supervised.forces", 500, "M code", WATER),
        row("supervised.energy", 15, "M §3.5", rmd17),
        row("supervised.forces", 40, "M §3.5", rmd17),
        row("supervised.loss_function", "l1", "M code"),
        row("split", ("structure", (0.81, 0.09, 0.1)), "M §3.1", ("rpbe-water",)),
        row("split", ("system", (0.8, 0.1, 0.1)), "M code; M §3.1 says 81/9/10", ("tip3p",)),
        row("split", (WITHIN, (50_000, 1_000, None)), "M §3.5", rmd17),
        row("model.preset", "masked-paper", "M §3.1"),
        row("model.cutoff", 3.4, "M §3.1", WATER, 3.5),
        row("model.cutoff", UNKNOWN, "M §3.1 speaks of water alone", rmd17),
        ratio("egnn", 0.25, "M Table 1", "rpbe-water"),
        ratio("gns", 0.5, "M Table 1", "rpbe-water"),
        ratio("forcenet", 0.5, "M Table 1", "rpbe-water"),
        ratio("egnn", 0.9, "M Table 1", "tip3p"),
        ratio("gns", 0.5, "M Table 1", "tip3p"),
        ratio("forcenet", 0.5, "M Table 1", "tip3p"),
        ratio("egnn", 0.5, "M §3.5", "rmd17"),
        row("masked.by", "molecule", "M §2.2", WATER),
        row("masked.by", "atom", "M code", rmd17),
        row("denoise.sigma", 0.5, "M §3.4", WATER),
        row("denoise.sigma", UNKNOWN, "M has no denoise arm on rMD17", rmd17),
        row("denoise.normalize", False, "M code"),
        row("parts", ALL_PARTS, "M §3.1"),
        row("seeds", 4, "M §3.2", WATER),
        row("seeds", UNKNOWN, "M does not say for rMD17", rmd17),
        row("longer", None, "M Figure 2 alone has such an arm"),
    ]


SETTINGS: tuple[Setting, ...] = (*_denoise(), *_masked())

# network and preset -> option -> (value, source). An option that a preset does not name counts as
# the constructor's default; words such as "envelope" are those of potkit's networks.
_CODE_D, _CODE_M = "D code, configuration", "M code, configuration"
NETWORKS: dict[tuple[str, str], dict[str, tuple[Any, str]]] = {
    ("schnet", "denoise-paper"): {
        "hidden": (256, _CODE_D),
        "filters": (256, _CODE_D),
        "layers": (5, _CODE_D),
        "radial": (32, _CODE_D),
        "cutoff": (5.0, _CODE_D),
        "envelope": ("cosine", "D code (PyG's SchNet)"),
        "head": ("schnet", "D code (PyG's SchNet)"),
        "vector": ("gradient", "D §2.4"),
    },
    ("se3_transformer", "denoise-paper"): {
        "channels": (8, _CODE_D),
        "max_degree": (3, _CODE_D),
        "layers": (3, _CODE_D),
        "heads": (2, _CODE_D),
        "division": (4, _CODE_D),
        "cutoff": (5.0, _CODE_D),
        "kernels": ("pairwise", "D code, modules.py"),
        "radial": (0, "D code, modules.py"),
        "radial_hidden": (32, "D code, modules.py"),
        "one_hot": (True, "D code, 28 inputs"),
        "head": ("relu", "D code"),
        "vector": ("gradient", "D §2.4"),
    },
    ("egnn", "denoise-paper"): {
        "hidden": (256, _CODE_D),
        "layers": (5, _CODE_D),
        "attention": (True, _CODE_D),
        "tanh": (True, "D code, configuration beside the published weights"),
        "aggregate": ("mean", "D code, models/egnn.py"),
        "bias": (False, "D code, models/egnn.py"),
        "radial": (0, "D code, models/egnn.py"),
        "cutoff": (5.0, _CODE_D),
        "vector": ("coordinate", "D §2.4"),
    },
    ("torchmd_et", "denoise-paper"): {
        "hidden": (256, _CODE_D),
        "layers": (6, _CODE_D),
        "radial": (32, _CODE_D),
        "heads": (8, _CODE_D),
        "cutoff": (5.0, _CODE_D),
        "vector": ("gated", "D §2.4"),
    },
    ("egnn", "masked-paper"): {
        "hidden": (128, "M §3.1"),
        "layers": (5, _CODE_M),
        "attention": (False, "M code, models/egnn.py"),
        "tanh": (False, "M code, models/egnn.py"),
        "aggregate": ("mean", "M code, models/egnn.py"),
        "bias": (False, "M code, models/egnn.py"),
        "radial": (0, "M code, models/egnn.py"),
        "cutoff": (3.4, "M §3.1; M code 3.5"),
        "head_norm": (True, "M code, models/egnn.py"),
        "vector": ("gradient", "M §2.1"),
    },
    ("gns", "masked-paper"): {
        "hidden": (128, "M §3.1"),
        "layers": (10, _CODE_M),
        "cutoff": (3.4, "M §3.1"),
        "radial": (0, "M code, learned_simulator.py"),
        "activation": ("relu", "M code, GNS.py"),
        "shared_decoder": (False, "M code, GNS.py"),
        "head": ("gns", "M code, GNS.py"),
        "vector": ("direct", "M §2.1"),
        "forces": ("vector", "M §2.1"),
    },
    ("forcenet", "masked-paper"): {
        "hidden": (128, "M §3.1"),
        "layers": (5, _CODE_M),
        "cutoff": (3.4, "M §3.1"),
        "max_n": (3, _CODE_M),
        "frequencies": (50, "M code, models/forcenet.py"),
        "radii": ("atomic", "M code, models/forcenet.py"),
        "clip": (True, "M code, models/forcenet.py"),
        "envelope": ("quarter-cosine", "M code, models/forcenet.py"),
        "norm": ("batch", "M code, models/forcenet.py"),
        "basis_layer": (True, "M code, models/forcenet.py"),
        "xavier": (True, "M code, models/forcenet.py"),
        "head": ("forcenet", "M code, models/forcenet.py"),
        "vector": ("direct", "M §2.1"),
        "forces": ("vector", "M §2.1"),
    },
}


def of(paper: str, data: str, model: str | None = None) -> dict[str, Setting]:
    """What ``paper`` sets for a data set and a network, by name; without ``model`` only what is the
    same for all networks.
    """
    return {
        s.name: s
        for s in SETTINGS
        if s.paper == paper and (not s.data or data in s.data) and (not s.model or model in s.model)
    }


def differences(
    observed: Mapping[str, Any],
    paper: str,
    data: str,
    model: str | None = None,
    notes: Iterable[str] = (),
) -> list[str]:
    """A line for each ``observed`` setting that is not the paper's, is unknown to the table, or is
    a guess, and that ``notes`` (names of settings) do not speak of; [] where all is said.
    """
    known = of(paper, data, model)
    said = set(notes)
    lines = []
    for name, value in observed.items():
        if covered(name, said):
            continue
        setting = known.get(name)
        if setting is None:
            lines.append(f"{data}: {name} = {value!r}: the table has no such setting of the paper")
        elif setting.value is UNKNOWN:
            lines.append(f"{data}: {name} = {value!r}: a guess without a note ({setting.source})")
        elif not _equal(value, setting.value):
            lines.append(
                f"{data}: {name} = {value!r}, but {setting.value!r} in {setting.source}, "
                "without a note"
            )
    return lines


def covered(name: str, notes: Iterable[str]) -> bool:
    """Whether one of ``notes`` speaks of the setting ``name``: by its name, without the objective
    ("sigma" for "denoise.sigma"), or by a longer one that ends in it
    ("by_set.md22.finetune.epochs").
    """
    parts_of_schedule = name.endswith(("warmup_epochs", "flat_epochs"))
    plain = name.removesuffix("_epochs") if parts_of_schedule else name
    group, _, short = plain.partition(".")
    names = {plain, short} if group in ("denoise", "masked") else {plain}
    return any(note in names or note.endswith(f".{plain}") for note in notes)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    number = (int, float)
    if isinstance(a, number) and isinstance(b, number) and not isinstance(a, bool):
        return abs(a - b) <= 1e-9 + 1e-6 * abs(b)
    return a == b


def table(paper: str) -> pd.DataFrame:
    """The settings of ``paper``, as people read them."""
    rows = [
        {
            "setting": s.name,
            "for": ", ".join((*s.data, *s.model)) or "all",
            "value": _in_words(s.value),
            "source": s.source,
            "published code": "" if s.code is SAME else _in_words(s.code),
        }
        for s in SETTINGS
        if s.paper == paper
    ]
    return pd.DataFrame(rows)


def networks() -> pd.DataFrame:
    """The settings of the networks, a row per preset, in the words of its options."""
    rows = []
    for (network, preset), options in NETWORKS.items():
        sources: dict[str, list[str]] = {}
        for name, (value, source) in options.items():
            sources.setdefault(source, []).append(f"{name} {_in_words(value)}")
        settings = "; ".join(f"{', '.join(said)} ({source})" for source, said in sources.items())
        rows.append({"network": network, "preset": preset, "settings": settings})
    return pd.DataFrame(rows)


def _in_words(value: Any) -> str:
    if value is None:
        return "none"
    if value is SAME:
        return "what is fine-tuned on"
    if isinstance(value, tuple):
        return ", ".join(map(_in_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
