"""The faults of the two papers' published codes in objectives, data and evaluation, one name each,
and what each of them does. Those of networks stand in `potkit.models`.

Nothing here has any of them by default. An objective takes the names of its own, to measure what
each does:

    potkit.Denoise(sigma=0.2, faults=("wrong-sign", "sum"))
    potkit.Masked(ratio=0.5, by="atom", faults=("mask-direction",))

``how`` says for each row where it is switched on, or why there is nothing to switch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Fault:
    """A fault of a published code, or a choice of it that its paper does not tell.

    ``objectives`` names those that have it. ``source`` is the published code's file and line (D:
    denoise paper, M: masked paper). ``shown_by`` is the test that shows its effect, FILE::NAME
    below tests/; empty where there is no switch.
    """

    name: str
    does: str
    objectives: tuple[str, ...]
    how: str
    source: str
    shown_by: str


_TABLE = (
    Fault(
        "wrong-sign",
        "The vector read-out is trained on +ε instead of −ε. Where it is −∂E/∂x, the learned "
        "energy has its maximum at the clean structure, the opposite of a potential; for other "
        "read-outs the sign is a matter of taste.",
        ("denoise", "masked-denoise"),
        "faults of the objective; for denoise also faithful=True, its older word",
        "D pretrain.py, loss_fn (all networks); M masked_pretrain_forcefield_noised.py:155-173, of "
        "its denoise baseline (−∂E/∂x) and of masked + denoise (x_L − x̃)",
        "objectives/test_objective_faults.py::test_wrong_sign",
    ),
    Fault(
        "sum",
        "The loss is the sum over atoms and axes of a batch instead of their mean: batches of more "
        "atoms count for more, and a limit on the gradient's norm means something else.",
        ("denoise",),
        "faults of the objective",
        "D pretrain.py, loss_fn (reduction='sum'); M takes the mean",
        "objectives/test_objective_faults.py::test_sum",
    ),
    Fault(
        "floor",
        "Of n molecules int(ρ n) lose an atom, not the nearest whole number: 6 instead of 7 of 27 "
        "at ρ = 0.25. (The code stops where that is 0; here one loses its atom then.)",
        ("masked", "masked-denoise"),
        "faults of the objective, by molecule",
        "M dataset/dataset_water.py:435",
        "objectives/test_objective_faults.py::test_floor",
    ),
    Fault(
        "mask-direction",
        "By atom the target points from the removed atom to the one that remains; by molecule from "
        "the remaining to the removed one, as it should.",
        ("masked",),
        "faults of the objective, by atom",
        "M dataset/dataset_md17.py:165",
        "objectives/test_objective_faults.py::test_mask_direction",
    ),
    Fault(
        "constant-one",
        "By atom the atoms of a structure that lost nothing count with a target of zero length, "
        "which adds 1 for each to the sum of 1 − cos and teaches nothing.",
        ("masked",),
        "faults of the objective, by atom",
        "M dataset/dataset_md17.py, get_rel_disp (its corner case)",
        "objectives/test_objective_faults.py::test_constant_one",
    ),
    Fault(
        "smiles-order",
        "Elements are taken from RDKit's order of the SMILES's atoms, coordinates from the file: "
        "wrong elements on wrong atoms in nine of ten molecules.",
        (),
        "potkit.read(path, format='spice', faults=('smiles-order',))",
        "D dataset/dataset_spice.py, get_data_loaders",
        "datasets/test_formats_hdf5.py::test_the_fault_smiles_order_puts_elements_on_wrong_atoms",
    ),
    Fault(
        "float32-labels",
        "Total energies are rounded to float32 before isolated atoms are taken off: the labels of "
        "molecules of 256 to 512 Hartree come in steps of 0.02 kcal/mol.",
        (),
        "potkit.datasets.published_labels.float32_labels(structures)",
        "D dataset/dataset_ani1.py, ANI1.__getitem__",
        "datasets/test_published_labels.py::test_float32_labels_are_total_energies_rounded",
    ),
    Fault(
        "test-in-pretraining",
        "Pretraining draws its part of every molecule with a seed of its own, and so sees "
        "conformations that fine-tuning tests on.",
        (),
        "potkit.datasets.published_splits.pretraining_rows(…, faults=('test-in-pretraining',)); in "
        "YAML a pretrain part of the whole set",
        "D dataset/dataset_pretrain.py beside dataset_ani1.py, get_data_loaders",
        "datasets/test_splits.py::test_pretraining_rows_leave_out_what_is_tested_on",
    ),
    Fault(
        "normalizer-lost",
        "The weights are saved without the mean and standard deviation of the labels: loaded "
        "again, they speak in another unit.",
        (),
        "potkit.evaluate(…, faults=('normalizer-lost',)); potkit's checkpoints hold references "
        "and scale",
        "D train.py and M train_forcefield.py, train (the state dict alone is saved)",
        "training/test_evaluation.py::test_normalizer_lost",
    ),
    Fault(
        "normalized-twice",
        "EGNN and ForceNet scale and shift each atom's output by the labels' mean and standard "
        "deviation, while the labels they are trained on are normalised too, and evaluation "
        "de-normalises once more. What is evaluated is right, but the network has to learn to undo "
        "the first of the two.",
        (),
        "no switch: a model's references and scale serve training and evaluation alike, once",
        "M train_forcefield.py, set_scalar_stat and loss_fn",
        "",
    ),
    Fault(
        "last-state",
        "What is called the best checkpoint is the last one: pretraining overwrites it every 50 "
        "steps (D), and the best validation error is never updated (M).",
        (),
        "no validation structures: finetune(valid=None), pretrain(valid=structures[:0]) end with "
        "the last state",
        "D pretrain.py, train; M train_forcefield.py, train",
        "objectives/test_objective_faults.py::test_last_state",
    ),
    Fault(
        "redrawn-validation",
        "Validation noise is drawn anew at every epoch, so that losses of two epochs differ by "
        "luck as well.",
        (),
        "no switch: potkit.training.validation draws the same corruption at every call",
        "D dataset/dataset_pretrain.py, PretrainData.__getitem__",
        "",
    ),
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _TABLE}


def of(objective: str) -> tuple[str, ...]:
    """The faults that the published codes have in ``objective``, by its name."""
    return tuple(fault.name for fault in _TABLE if objective in fault.objectives)


def check(objective: str, faults: Iterable[str]) -> tuple[str, ...]:
    """``faults`` in the table's order, each once, so that their order tells no runs apart.

    Raises ConfigError for one that is unknown or is not of ``objective``, and for what is no list.
    """
    if not isinstance(faults, Iterable):
        raise ConfigError(f"{objective}: faults must be a list of names, got {faults!r}")
    given = [faults] if isinstance(faults, str) else list(faults)
    known = of(objective)
    wrong = [name for name in given if name not in known]
    if wrong:
        has = ", ".join(known) if known else "none"
        raise ConfigError(f"{objective} has no published fault {wrong[0]!r}; it has {has}")
    return tuple(name for name in known if name in given)
