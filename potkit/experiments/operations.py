"""What a training run costs in operations: the same number on every machine.

Seconds depend on the machine, on what else runs there, and on kernels. Operations are counted once
per network, objective and batch by the formulas of torch's flop counter, for the products of
matrices in the forward pass, in −∂E/∂x and in the backward pass through both. Sums over edges,
activations and the neighbour list are not counted: they follow the products' sizes in the networks
here. Counted is the network as its file says it, without kernels: kernels change seconds, not what
is computed.

"scratch-longer" is counted in them where an experiment says ``longer="operations"``: a pretraining
of n steps with o operations each buys n · o / (operations of a fine-tuning step) further steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import ConfigError
from ..models import Potential
from ..objectives import Objective, total
from ..structures.outputs import Kind, read_json
from ..structures.storage import replacing
from ..structures.store import Structures
from ..training.run_folder import identity_hash
from ..training.step import batch_indices, draw

if TYPE_CHECKING:
    from .experiment import Experiment

BATCHES = 4  # a mean over some: corruption and the choice of structures change the number of edges
MOST = 32  # structures counted at once; a larger batch costs in proportion

COUNTED = Kind(
    "the counted operations of a training step",
    lambda path: {"operations", "structures"} <= read_json(path).keys(),
)


class Counter(TorchDispatchMode):
    """Adds up the operations of what is computed within, derivatives included.

    With the formulas of `torch.utils.flop_counter`; not with its FlopCounterMode, which follows
    modules by hooks that a derivative inside of the forward pass does not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        return out


def of_step(
    model: Potential, structures: Structures, objective: Objective, batch_size: int
) -> float:
    """Operations (multiplications and additions) of one optimizer step of ``model`` on batches of
    ``batch_size`` of ``structures``: forward, derivatives, and backward.

    The same number each time: the batches are the first of seed 0.
    """
    size = min(batch_size, len(structures), MOST)
    model.extend(objective.needed(), objective.inputs, seed=0)
    used = model.parts(objective.needed())
    weights = [p for name, p in model.named_parameters() if name.split(".")[0] in used]
    generator = torch.Generator()
    counter = Counter()
    for step in range(BATCHES):
        rows = batch_indices(step, size, len(structures), 0)
        batch = objective.corrupt(structures.batch(rows), draw(generator, "operations", step))
        with counter:
            terms = objective.terms(model(batch, objective.needed()), batch)
            loss, _ = total(terms)
            torch.autograd.grad(loss, weights, allow_unused=True)
    scale = min(batch_size, len(structures)) / size
    return counter.operations / BATCHES * scale


def of_pretraining(experiment: Experiment, arm: str) -> float:
    """Operations of the whole pretraining that ``arm`` starts from, those it goes on from
    included.
    """
    arm = experiment.arms[arm].pretrained_as
    steps = experiment.pretrain_config.total_steps(trained_on(experiment))
    operations = steps * of_pretraining_step(experiment, arm)
    earlier = experiment.arms[arm].after
    return operations + (of_pretraining(experiment, earlier) if earlier else 0.0)


def of_pretraining_step(experiment: Experiment, arm: str) -> float:
    """Operations of one step of the pretraining of ``arm`` itself."""
    size = experiment.pretrain_config.batch_size
    return _stored(experiment, arm, experiment.objectives[arm], experiment.pretrain_on, size)


def trained_on(experiment: Experiment) -> int:
    """How many structures a pretraining trains on: the others validate, see `loop.pretrain`."""
    n, share = len(experiment.pretrain_on), experiment.pretrain_config.valid_fraction
    return n if n < 20 or not share else round(n * (1 - share))


def of_finetuning_step(experiment: Experiment, labels: int) -> float:
    """Operations of one step of fine-tuning at a label budget."""
    train, _ = experiment.labelled(labels, experiment.seeds[0])
    # counted on the pool, not on the drawn structures: one number for all seeds and draws
    size = min(experiment.finetune_config.batch_size, len(train))
    return _stored(experiment, None, experiment.supervised, experiment.train, size)


def _stored(
    experiment: Experiment,
    arm: str | None,
    objective: Objective,
    structures: Structures,
    batch_size: int,
) -> float:
    """`of_step`, counted once and kept in the run store."""
    what: dict[str, Any] = {
        "model": experiment.model,
        "vector": experiment.vectors.get(arm) if arm else None,
        "objective": objective.to_dict(),
        "data": structures.fingerprint(),
        "batch_size": batch_size,
    }
    path = Path(experiment.store) / f"operations-{identity_hash(what)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            try:
                return float(json.loads(path.read_text())["operations"])
            except (ValueError, KeyError):
                raise ConfigError(f"{path}: not readable; delete it to count anew") from None
        count = of_step(experiment.build(0, arm), structures, objective, batch_size)
        with replacing(path, COUNTED) as temporary:
            size = min(batch_size, len(structures))
            temporary.write_text(
                json.dumps({"operations": count, "structures": size} | what, indent=1)
            )
    return count


def longer_steps(experiment: Experiment, labels: int, scratch_steps: int) -> int:
    """Steps of scratch-longer that cost as many operations as the dearest pretraining and
    ``scratch_steps`` of fine-tuning together.
    """
    dearest = max(of_pretraining(experiment, arm) for arm in experiment.objectives)
    return scratch_steps + int(np.ceil(dearest / of_finetuning_step(experiment, labels)))
