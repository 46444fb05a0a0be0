"""Batches in parts: the gradient of the whole, whatever the objective; and what happens when
memory runs out.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest
import torch
from tiny import egnn, equal, generator, molecules, one_line, unlisted, water, weights

import potkit
from potkit import TrainConfig
from potkit.errors import DataError, TrainingError
from potkit.models import Potential
from potkit.structures import arrays
from potkit.structures.batch import cut, keep_atoms
from potkit.training import loop
from potkit.training import memory as microbatch
from potkit.training import step as steps


def settings(**changes) -> TrainConfig:
    usual = dict(steps=6, batch_size=6, lr=3e-3, progress=False, device="cpu", log_every=1)
    return TrainConfig(**{**usual, **changes})


OBJECTIVES = [
    (potkit.Denoise(sigma=0.1), molecules(7)),
    # structures lose different numbers of atoms, so parts weigh differently
    (potkit.Masked(ratio=0.4, by="atom"), molecules(7)),
    (potkit.Masked(ratio=0.5), water(5)),
    (potkit.MaskedDenoise(ratio=0.5, sigma=0.05), water(5)),
    (potkit.Supervised(), molecules(7)),
    (potkit.Supervised(loss_function="mse", per_atom=True), molecules(7)),
    (potkit.AnisotropicDenoise(sigma=0.1), molecules(7)),
    (potkit.NoisyNodes(sigma=0.1), molecules(7)),
    (potkit.ForceConditionedDenoise(sigma=0.1), molecules(7)),
]
OBJECTIVES += [(other, molecules(7)) for other in unlisted(*(o for o, _ in OBJECTIVES))]


def test_a_set_too_large_for_the_device_is_one_line(tmp_path, monkeypatch):
    def full(structures, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.")

    monkeypatch.setattr(potkit.Structures, "to", full)
    with pytest.raises(TrainingError, match="9 training structures do not fit") as caught:
        loop.fit(egnn(), molecules(9), potkit.Denoise(sigma=0.1), settings(), tmp_path / "run")
    assert "set resident: false" in one_line(caught.value)
    # and that is what helps
    apart = settings(resident=False)
    loop.fit(egnn(), molecules(9), potkit.Denoise(sigma=0.1), apart, tmp_path / "run")


@pytest.mark.parametrize(
    "objective, structures", OBJECTIVES, ids=lambda x: getattr(x, "name", None)
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_add_up_to_the_gradient_of_the_batch(objective, structures, size):
    fabric = loop.make_fabric(settings())
    outcome = []
    for limit in (None, size):
        model = egnn().double()
        model.extend(objective.needed(), objective.inputs)
        trained = model.parts(objective.needed())
        state = steps.State(fabric, model, trained, settings(micro_batch=limit))
        batch = objective.corrupt(structures.batch(dtype=torch.float64), generator(3))
        loss, terms = steps.gradient(fabric, state, batch, objective)
        gradients = {n: p.grad for n, p in state.trained.items() if p.grad is not None}
        outcome.append((loss, terms, gradients))
    (loss, terms, whole), (again, others, parts) = outcome
    assert whole.keys() == parts.keys() and max(float(g.abs().max()) for g in whole.values()) > 1e-6
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again.double(), loss.double())
    for one, other in zip(terms, others, strict=True):
        assert one.name == other.name and float(one.count) == float(other.count)
        torch.testing.assert_close(other.total, one.total)


def test_parts_hold_what_the_batch_holds():
    batch = water(5).batch()
    parts = list(cut(batch, 2))
    assert [p.num_graphs for p in parts] == [2, 2, 1]
    assert [p.num_nodes for p in parts] == [len(p.z) for p in parts]
    for key in ("z", "pos", "cell", "pbc", "molecule", "system"):
        assert torch.equal(torch.cat([p[key] for p in parts]), batch[key]), key
    assert all(
        int(p.ptr[0]) == 0 and int(p.ptr[-1]) == len(p.z) and int(p.batch.max()) + 1 == p.num_graphs
        for p in parts
    )
    assert [list(p.indices) for p in parts] == [[0, 1], [2, 3], [4]]


def test_a_batch_that_cannot_be_cut_is_refused():
    batch = molecules(4).batch()
    batch.target = torch.zeros(7, 3)
    with pytest.raises(DataError, match="target of the batch has 7 rows"):
        list(cut(batch, 2))


def test_an_array_that_nobody_declared_is_refused_and_one_that_was_is_cut(monkeypatch):
    monkeypatch.setattr(arrays, "_rows", dict(arrays._rows))
    batch = molecules(4).batch()
    batch.odd = torch.arange(len(batch.z))
    everything = torch.ones(len(batch.z), dtype=torch.bool)
    for work in (lambda: list(cut(batch, 2)), lambda: keep_atoms(batch, everything)):
        with pytest.raises(DataError, match="odd of the batch is not declared"):
            work()
    arrays.declare("odd", per="atom")
    assert torch.equal(torch.cat([part.odd for part in cut(batch, 2)]), batch.odd)
    keep = batch.odd % 2 == 0
    assert torch.equal(keep_atoms(batch, keep)[0].odd, batch.odd[keep])
    with pytest.raises(DataError, match="odd has a row per atom already"):
        arrays.declare("odd", per="structure")


class Short:
    """A device on which more than ``room`` structures at once do not fit; ``late``: the network
    passes, the derivative does not.
    """

    def __init__(self, monkeypatch, room: int, late: bool = False) -> None:
        self.sizes: list[int] = []
        original, backward = Potential.forward, torch.Tensor.backward

        def forward(model, batch, outputs=None):
            self.sizes.append(batch.num_graphs)
            if batch.num_graphs > room and not late:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines"
                )
            return original(model, batch, outputs)

        def refused(tensor, *args, **kwargs):
            if self.sizes[-1] > room:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines"
                )
            return backward(tensor, *args, **kwargs)

        monkeypatch.setattr(Potential, "forward", forward)
        if late:
            monkeypatch.setattr(torch.Tensor, "backward", refused)


@pytest.mark.parametrize("late", [False, True])
def test_out_of_memory_halves_the_batch_says_so_and_learns_the_same(tmp_path, monkeypatch, late):
    structures = molecules(12)
    whole = loop.fit(egnn(), structures, potkit.Denoise(sigma=0.1), settings(), tmp_path / "whole")
    short = Short(monkeypatch, room=2, late=late)
    with pytest.warns(
        UserWarning, match="out of memory with 6 structures at once, going on with 3"
    ) as said:
        run = loop.fit(
            egnn(), structures, potkit.Denoise(sigma=0.1), settings(), tmp_path / "short"
        )
    texts = [str(w.message) for w in said if "out of memory" in str(w.message)]
    # 6 → 3 → 2, once for the whole run
    assert len(texts) == 2 and all("\n" not in t for t in texts), texts
    assert short.sizes[:2] == [6, 3] and set(short.sizes[2:]) <= {1, 2}
    for name, value in weights(run.model).items():
        torch.testing.assert_close(value, weights(whole.model)[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(run.metrics["loss"]), torch.tensor(whole.metrics["loss"]), rtol=1e-4, atol=0
    )
    assert json.loads((run.path / "summary.json").read_text())["micro_batch"] == 2


def test_validation_in_parts_gives_the_same_numbers(tmp_path, monkeypatch):
    structures = molecules(12)
    config = settings(eval_batch_size=12)
    fabric = loop.make_fabric(config)
    for objective in (potkit.Denoise(sigma=0.1), potkit.Supervised()):
        whole = loop.validate(fabric, egnn(), structures, objective, config, torch.float32)
        with (
            monkeypatch.context() as patch,
            pytest.warns(UserWarning, match="validation: out of memory with 12"),
        ):
            Short(patch, room=5)
            again = loop.validate(fabric, egnn(), structures, objective, config, torch.float32)
        assert again == pytest.approx(whole, rel=1e-5)


def test_a_resumed_run_remembers_what_did_not_fit(tmp_path, monkeypatch):
    original = loop.take_step

    def dying(training, state):
        if state.step == 3:
            raise KeyboardInterrupt
        return original(training, state)

    short = Short(monkeypatch, room=3)
    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning),
        pytest.raises(KeyboardInterrupt),
    ):
        patch.setattr(loop, "take_step", dying)
        loop.fit(
            egnn(), molecules(12), potkit.Denoise(sigma=0.1), settings(checkpoint_every=1), tmp_path
        )
    short.sizes.clear()
    loop.fit(
        egnn(), molecules(12), potkit.Denoise(sigma=0.1), settings(checkpoint_every=1), tmp_path
    )
    assert set(short.sizes) == {3}


def test_a_single_structure_that_does_not_fit_is_one_line(tmp_path, monkeypatch):
    Short(monkeypatch, room=0)
    with (
        pytest.warns(UserWarning),
        pytest.raises(TrainingError, match="a single structure does not fit") as caught,
    ):
        loop.fit(egnn(), molecules(12), potkit.Denoise(sigma=0.1), settings(), tmp_path)
    one_line(caught.value)


def test_other_errors_are_not_mistaken_for_memory():
    limit = microbatch.Limit()
    with pytest.raises(RuntimeError, match="shapes"):
        limit.attempt(4, lambda size: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    assert limit.size is None


def test_parts_asked_for_do_not_change_what_a_run_is(tmp_path):
    assert settings(micro_batch=2).identity() == settings().identity()
    run = loop.fit(egnn(), molecules(8), potkit.Supervised(), settings(micro_batch=4), tmp_path)
    again = loop.fit(egnn(), molecules(8), potkit.Supervised(), settings(), tmp_path)
    assert equal(weights(run.model), weights(again.model))


# -- memory of freed arrays ----------------------------------------------------------------------
KEPT = """
import ctypes
import torch
from potkit.training.memory import keep_freed_memory

class Info(ctypes.Structure):  # of mallinfo2
    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info

def free_after_a_large_array():
    torch.ones(10_000_000)  # 40 MB
    return mallinfo2().fordblks

before = free_after_a_large_array()
could = keep_freed_memory()
print(int(could), before, *[free_after_a_large_array() for _ in range(20)])
"""


def test_freed_memory_is_kept():
    """The memory of a large array stays with the process when it is freed; ordinarily, it goes back
    to the system, and all its pages would be fetched anew.

    Asked of the C library: how many pages the system fetches, it decides itself.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the C library does not say what it keeps")
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    could, before, *after = map(int, done.stdout.split())
    if not could:
        pytest.skip("the C library does not take it")
    size = 4 * 10_000_000  # bytes
    assert before < size
    assert min(after) > size
    # a small array that came to lie in it moves the next large one elsewhere; they do not pile up
    assert max(after) < len(after) / 2 * size


def test_a_c_library_that_keeps_no_memory_is_left_as_it_is(monkeypatch):
    asked = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda what, size: asked.append(what) or 0

    monkeypatch.setattr(microbatch.ctypes, "CDLL", Library)
    assert not microbatch.keep_freed_memory()
    assert asked == [microbatch.MMAP_THRESHOLD]  # the other one alone would make things worse
    monkeypatch.setattr(microbatch.ctypes, "CDLL", lambda name: object())
    assert not microbatch.keep_freed_memory()
