"""The loop: schedule, order of the data, what a run learns, keeps and writes down, and how it
stops.
"""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from tiny import egnn, equal, molecules, one_line, water, weights

import potkit
from potkit import TrainConfig
from potkit.datasets.references import ReferenceEnergies
from potkit.errors import ConfigError, DataError
from potkit.training import checkpoints, loop
from potkit.training import step as steps

QUIET = dict(progress=False, device="cpu")


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{**QUIET, "steps": 10, "batch_size": 4, "lr": 3e-3, **changes})


def denoise(out, model=None, structures=None, **changes):
    return loop.fit(
        model or egnn(),
        structures or molecules(9),
        potkit.Denoise(sigma=0.1),
        settings(**changes),
        out,
    )


# -- learning rate and order ---------------------------------------------------------------------
def test_learning_rate_of_the_papers_schedule():
    config = TrainConfig(lr=2e-4, min_lr=1e-7, warmup=0.1, flat=0.2)
    rates = [loop.learning_rate(s, 1000, config) for s in range(1000)]
    np.testing.assert_allclose(rates[:100], 2e-4 * np.arange(1, 101) / 100)
    np.testing.assert_allclose(rates[100:300], 2e-4)
    phase = np.arange(700) / 700
    np.testing.assert_allclose(
        rates[300:], 1e-7 + (2e-4 - 1e-7) * (1 + np.cos(np.pi * phase)) / 2, rtol=1e-12
    )
    assert rates[-1] == pytest.approx(1e-7, rel=0.05)
    flat = config.replace(schedule="constant")
    constant = [loop.learning_rate(s, 1000, flat) for s in range(1000)]
    assert constant[:300] == rates[:300] and set(constant[300:]) == {2e-4}


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.05, 0.25, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 10, 50, 77])
def test_learning_rate_rises_to_its_peak_and_never_above(steps, warmup):
    config = TrainConfig(lr=1e-3, warmup=warmup, flat=0.0)
    rates = np.array([loop.learning_rate(s, steps, config) for s in range(steps)])
    assert (rates > 0).all() and rates.max() == 1e-3
    top = int(rates.argmax())
    assert (np.diff(rates[: top + 1]) >= 0).all() and (np.diff(rates[top:]) <= 0).all()


@pytest.mark.parametrize("n, size", [(10, 4), (7, 7), (5, 3), (3, 8), (1, 1), (64, 32)])
def test_every_structure_comes_once_per_epoch(n, size):
    steps = 4 * n
    walk = np.concatenate([loop.batch_indices(s, size, n, 3) for s in range(steps)])
    epochs = walk[: len(walk) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    if n >= 7:
        assert not (epochs[0] == epochs[1]).all()  # and each time in another order
    again = np.concatenate([loop.batch_indices(s, size, n, 3) for s in range(steps)])
    assert (walk == again).all()
    if n >= 7:
        other = np.concatenate([loop.batch_indices(s, size, n, 4) for s in range(steps)])
        assert not (walk == other).all()


def test_the_order_of_an_epoch_is_drawn_once():
    """A permutation of millions takes seconds: not in every step, also where a batch holds the end
    of one epoch and the beginning of the next.
    """
    steps._order.cache_clear()
    walk = np.concatenate([loop.batch_indices(s, 4, 10, 3) for s in range(5)])
    assert steps._order.cache_info().misses == 2
    orders = [np.random.default_rng((3, epoch)).permutation(10) for epoch in (0, 1)]
    assert np.array_equal(walk, np.concatenate(orders)) and walk.dtype == np.int64
    assert walk.flags.writeable


def test_a_mapped_set_is_not_copied(tmp_path, monkeypatch):
    """As docs/scale.md says: all processes of a node share the pages of one store."""
    path = molecules(30).save(tmp_path / "store")
    mapped = potkit.Structures.open(path)

    def copied(*_):
        raise AssertionError("copied")

    for name in ("__getitem__", "to"):
        monkeypatch.setattr(potkit.Structures, name, copied)
    config = TrainConfig(steps=2, valid_fraction=0, resident=False, progress=False)
    potkit.pretrain(egnn(), mapped, potkit.Denoise(sigma=0.1), config, tmp_path / "run")
    assert mapped.lies_in(path)


# -- learning ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "objective, structures, drop",
    [
        (potkit.Denoise(sigma=0.1), molecules(40), 0.93),
        (potkit.Masked(ratio=0.5), water(8), 0.75),
        (potkit.Masked(ratio=0.4, by="atom"), molecules(40), 0.7),
        (potkit.MaskedDenoise(ratio=0.5, sigma=0.05), water(8), 0.9),
        (potkit.Supervised(), molecules(40), 0.7),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_training_learns(tmp_path, objective, structures, drop):
    """The validation loss, measured with the same corruption each time, falls below ``drop`` of
    its first value.
    """
    config = settings(steps=120, batch_size=8, lr=1e-2, validate_every=20, warmup=0.0)
    start = egnn(hidden=12)
    before = loop.validate(
        loop.make_fabric(config), start, structures, objective, config, torch.float32
    )
    run = loop.fit(start, structures, objective, config, tmp_path, valid=structures)
    assert run.summary["best"] < drop * before["loss"]
    assert run.metrics["valid_loss"].min() == run.summary["best"]


def test_a_run_depends_on_its_seed_alone(tmp_path):
    first, again = denoise(tmp_path / "a"), denoise(tmp_path / "b")
    torch.manual_seed(999)
    np.random.seed(999)
    elsewhere = denoise(tmp_path / "c", resident=False, log_every=1, checkpoint_every=1)
    other = denoise(tmp_path / "d", seed=1)
    assert equal(weights(first.model), weights(again.model))
    assert equal(weights(first.model), weights(elsewhere.model))
    assert not equal(weights(first.model), weights(other.model))


def test_a_run_leaves_its_structures_alone(tmp_path):
    structures = molecules(9)
    before = {k: v.copy() for k, v in structures.arrays().items()}
    denoise(tmp_path, structures=structures)
    assert all((v == structures.arrays()[k]).all() for k, v in before.items())


def test_only_what_takes_part_is_trained(tmp_path):
    start = weights(egnn())
    end = weights(denoise(tmp_path, weight_decay=0.1).model)
    moved = {k.split(".")[0] for k in start if not torch.equal(start[k], end[k])}
    # denoising by coordinates uses no energy head; decay must not touch it
    assert moved == {"backbone"}
    run = loop.fit(egnn(), molecules(9), potkit.Supervised(), settings(), tmp_path / "s")
    end = weights(run.model)
    moved = {k.split(".")[0] for k in start if not torch.equal(start[k], end[k])}
    assert moved == {"backbone", "energy_head"}


def test_moving_average_of_the_weights(tmp_path):
    """Against the weights of runs that stop after 0, 1, … 5 steps (constant rate: each is the
    beginning of the next).
    """
    same_rate = dict(schedule="constant", warmup=0.0, flat=0.0)
    runs = [denoise(tmp_path / str(n), steps=n, **same_rate) for n in range(1, 6)]
    path = [weights(egnn()), *(weights(run.model) for run in runs)]
    average = {k: v.double() for k, v in path[0].items()}
    for one in path[1:]:
        average = {k: 0.7 * v + 0.3 * one[k].double() for k, v in average.items()}
    run = denoise(tmp_path / "ema", steps=5, ema=0.7, **same_rate)
    for k, v in weights(run.model).items():
        torch.testing.assert_close(v.double(), average[k], atol=1e-6, rtol=1e-5)
    tensors, header = checkpoints.read(run.path / "last.safetensors")
    # the file to resume from holds the live weights as such
    assert equal(checkpoints.weights(tensors), path[-1])
    assert header["state"]["step"] == 5


def test_clipping_bounds_the_gradient(tmp_path):
    """Adam's step does not depend on the gradient's size until that comes near its ε of 1e-8."""
    loose = denoise(tmp_path / "a", clip=None, log_every=1)
    tight = denoise(tmp_path / "b", clip=1e-13, log_every=1)
    start = {k: v for k, v in weights(egnn()).items() if v.dtype.is_floating_point}

    def moved(run) -> float:
        end = weights(run.model)
        return max(float((end[k] - v).abs().max()) for k, v in start.items())

    assert moved(loose) > 1e-3 and moved(tight) < 1e-5
    # reported before clipping
    assert loose.metrics["gradient_norm"][0] == tight.metrics["gradient_norm"][0] > 1e-4


# -- what is kept --------------------------------------------------------------------------------
def test_validation_picks_the_best_state(tmp_path, monkeypatch):
    structures = molecules(12)
    config = settings(steps=40, validate_every=2)
    # ruins what was learnt by then
    monkeypatch.setattr(steps, "learning_rate", lambda step, *_: 3e-3 if step < 21 else 1.0)
    run = loop.fit(
        egnn(), structures[:8], potkit.Supervised(), config, tmp_path, valid=structures[8:]
    )
    table = run.metrics
    best = table.loc[table["valid_loss"].idxmin()]
    assert not run.model.training
    assert 4 < best["step"] < 24  # else the test shows nothing
    assert run.summary["best"] == best["valid_loss"]
    assert checkpoints.read(run.checkpoint)[1]["step"] == best["step"]
    scores = loop.validate(
        loop.make_fabric(config),
        run.model,
        structures[8:],
        potkit.Supervised(),
        config,
        torch.float32,
    )
    assert scores["loss"] == best["valid_loss"]
    assert scores["energy_mae"] == best["valid_energy_mae"]


def test_validation_is_exact_over_batches(tmp_path):
    """Seven structures in batches of 2 or all at once; energies and forces against NumPy."""
    model, structures = egnn().double(), molecules(7)
    predicted = potkit.predict(model, structures)
    de = predicted["energy"] - structures.energy
    df = predicted["forces"] - structures.forces
    for size in (2, 7, 100):
        config = settings(eval_batch_size=size, precision="64-true")
        scores = loop.validate(
            loop.make_fabric(config), model, structures, potkit.Supervised(), config, torch.float64
        )
        assert scores["energy_mae"] == pytest.approx(abs(de).mean(), rel=1e-10)
        assert scores["forces_rmse"] == pytest.approx(np.sqrt((df**2).mean()), rel=1e-10)
        assert scores["loss"] == pytest.approx(abs(de).mean() + 10 * abs(df).mean(), rel=1e-10)


def test_metrics_are_a_table_of_exact_means(tmp_path):
    structures = molecules(8)

    def metrics(out, **changes):
        run = loop.fit(egnn(), structures, potkit.Supervised(), settings(**changes), out)
        return run.metrics

    fine = metrics(tmp_path / "a", log_every=1)
    coarse = metrics(tmp_path / "b", log_every=5, validate_every=10)
    assert fine["step"].tolist() == list(range(1, 11)) and coarse["step"].tolist() == [5, 10]
    for name in ("loss", "energy_loss", "energy_mae", "forces_mae"):
        energy = name.startswith("energy")
        blocks = fine[name].to_numpy().reshape(2, 5)
        expected = blocks.mean(1)
        if energy or name == "loss":
            np.testing.assert_allclose(coarse[name], expected, rtol=1e-6)
    squares = (fine["energy_rmse"].to_numpy() ** 2).reshape(2, 5).mean(1)
    # a root of a mean, not a mean
    np.testing.assert_allclose(coarse["energy_rmse"], np.sqrt(squares), rtol=1e-6)
    assert (fine["energy_rmse"] >= fine["energy_mae"] * (1 - 1e-6)).all()
    config = settings()
    np.testing.assert_allclose(
        fine["lr"], [loop.learning_rate(s, 10, config) for s in range(10)], rtol=1e-6
    )
    assert (fine["seconds"].diff().dropna() > 0).all()


def test_the_folder_tells_what_was_run(tmp_path):
    run = denoise(tmp_path / "r")
    assert sorted(p.name for p in run.path.iterdir()) == [
        "best.safetensors",
        "config.yaml",
        "last.safetensors",
        "metrics.jsonl",
        "run.json",
        "summary.json",
    ]
    assert TrainConfig.from_yaml(run.path / "config.yaml") == settings()
    about = json.loads((run.path / "run.json").read_text())
    assert about["versions"]["torch"] == torch.__version__
    assert about["identity"]["objective"] == {**potkit.Denoise(sigma=0.1).to_dict()}
    assert about["identity"]["data"] == molecules(9).fingerprint()
    header = checkpoints.read(run.checkpoint)[1]
    assert header["units"] == {"length": "Å", "energy": "eV", "forces": "eV/Å"}
    assert header["data"] == "tiny molecules"
    assert "10 steps" in repr(run)


def test_a_finished_run_is_loaded_not_run_again(tmp_path, monkeypatch):
    first = denoise(tmp_path / "r")
    monkeypatch.setattr(loop, "take_step", None)
    # what does not change the result does not matter
    again = denoise(tmp_path / "r", log_every=3, checkpoint_every=2)
    assert equal(weights(first.model), weights(again.model)) and again.summary == first.summary


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(steps=11), "config"),
        (dict(seed=1), "config"),
        (dict(model=egnn(seed=1)), "weights"),
        (dict(model=egnn(hidden=9)), "model"),
        (dict(structures=molecules(9, seed=1)), "data"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, change, word):
    denoise(tmp_path / "r")
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    with pytest.raises(ConfigError) as caught:
        denoise(tmp_path / "r", **change)
    assert word in one_line(caught.value) and str(tmp_path / "r") in str(caught.value)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}


# -- pretrain and finetune -----------------------------------------------------------------------
def test_pretrain_sets_a_part_aside_and_needs_no_labels(tmp_path):
    s = molecules(40)
    bare = potkit.Structures(s.z, s.pos, s.ptr, system=s.system)
    run = potkit.pretrain(egnn(), bare, potkit.Denoise(sigma=0.1), settings(), out=tmp_path / "a")
    assert "valid_loss" in run.metrics and run.summary["best"] > 0
    few = potkit.pretrain(
        egnn(), bare[:6], potkit.Denoise(sigma=0.1), settings(), out=tmp_path / "b"
    )
    assert "valid_loss" not in few.metrics and few.summary["best"] is None
    assert "10 steps" in repr(few)


def test_an_empty_validation_part_counts_as_none(tmp_path):
    structures, objective = molecules(5), potkit.Denoise(sigma=0.1)
    run = loop.fit(egnn(), structures, objective, settings(), tmp_path, valid=structures[:0])
    assert "valid_loss" not in run.metrics and run.summary["best"] is None


def test_finetune_from_a_pretrained_run_copies_the_backbone_and_keeps_the_head_new(tmp_path):
    pretrained = denoise(tmp_path / "p", steps=5)
    model = egnn(seed=7)
    fresh = weights(model)
    original, seen = loop.fit, []

    def fit(model, *args):
        seen.append(weights(model))
        return original(model, *args)

    try:
        loop.fit = fit
        for init in (pretrained, pretrained.path, pretrained.checkpoint):
            config = settings(steps=1)
            loop.finetune(
                egnn(seed=7), molecules(8), config=config, init=init, out=tmp_path / f"f{len(seen)}"
            )
        loop.finetune(
            egnn(seed=7), molecules(8), config=settings(steps=1), out=tmp_path / "scratch"
        )
    finally:
        loop.fit = original
    copied = weights(pretrained.model)
    units = ("references", "known", "scale")  # follow from the labels
    learnt = [key for key in fresh if key not in units]
    for start in seen[:3]:
        for key in learnt:
            source = copied if key.startswith("backbone") else fresh
            assert torch.equal(start[key], source[key]), key
    scratch = seen[3]
    assert all(torch.equal(scratch[key], fresh[key]) for key in learnt)
    assert all(torch.equal(scratch[key], seen[0][key]) for key in units)
    assert any(not torch.equal(copied[k], fresh[k]) for k in learnt if k.startswith("backbone"))


def test_finetune_normalises_with_the_training_part_only(tmp_path):
    train, valid = molecules(8, offset=-1000.0), molecules(8, seed=1, offset=-3000.0)
    run = potkit.finetune(egnn(), train, valid, settings(steps=1), out=tmp_path)
    expected = ReferenceEnergies.fit(train)
    model = run.model
    assert model.references.dtype == torch.float64
    for z, energy in expected.table.items():
        assert float(model.references[z]) == energy and bool(model.known[z])
    assert int(model.known.sum()) == len(expected.table)
    assert float(model.scale) == float(np.sqrt(np.mean(train.forces**2)))


def test_finetune_on_energies_alone(tmp_path):
    s = molecules(8)
    bare = potkit.Structures(s.z, s.pos, s.ptr, s.energy, system=s.system)
    run = potkit.finetune(egnn(), bare, bare, settings(), out=tmp_path)
    residual = (s.energy - ReferenceEnergies.fit(bare).energy(bare)) / s.n_atoms
    assert float(run.model.scale) == pytest.approx(np.std(residual))
    assert "valid_energy_mae" in run.metrics
    with pytest.raises(DataError, match="no forces"):
        potkit.finetune(egnn(), s, bare, settings(), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("what", ["energy", "train", "element"])
def test_finetune_says_what_is_missing(tmp_path, what):
    s = molecules(8)
    train = {"energy": potkit.Structures(s.z, s.pos, s.ptr), "train": s[:0], "element": s}[what]
    valid = None
    if what == "element":
        valid = potkit.Structures([7, 1], np.eye(2, 3), [0, 2], [0.0], np.zeros((2, 3)))
    with pytest.raises(DataError) as caught:
        potkit.finetune(egnn(), train, valid, settings(), out=tmp_path / "r")
    assert {"energy": "no energy", "train": "label", "element": "N"}[what] in one_line(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_run_validates_after_each_epoch(tmp_path):
    s = molecules(8)
    run = potkit.finetune(
        egnn(), s, s, settings(epochs=3, batch_size=4, validate_epochs=1), out=tmp_path
    )
    validated = run.metrics["valid_loss"].notna()
    assert run.metrics["step"][validated].tolist() == [2, 4, 6]


# -- precision -----------------------------------------------------------------------------------
def test_references_stay_exact_in_a_float32_run(tmp_path):
    """−10⁵ eV of reference energies, of which 1e-6 eV matter; float32 would round them by 4e-3
    eV.
    """
    table = ReferenceEnergies(
        {1: -13.587222780835477, 6: -100029.4889999855063, 8: -2041.9816003861047}
    )
    s = molecules(6)
    train = potkit.Structures(
        s.z, s.pos, s.ptr, s.energy + table.energy(s), s.forces, system=s.system
    )
    run = potkit.finetune(egnn(), train, train, settings(steps=2), out=tmp_path, references=table)
    for model in (
        run.model,
        checkpoints.load(run.checkpoint),
        checkpoints.load(run.checkpoint).double().float(),
    ):
        assert {z: float(model.references[z]) for z in table.table} == table.table
        bare = potkit.predict(model, s, outputs=("energy",))["energy"] - table.energy(s)
        assert abs(bare).max() < 100
        model.references.zero_()
        np.testing.assert_allclose(
            potkit.predict(model, s, outputs=("energy",))["energy"], bare, atol=1e-6, rtol=0
        )


def test_float64_means_float64_everywhere(tmp_path):
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(potkit.Supervised):
        def terms(self, prediction, batch):
            inputs = (prediction.energy, prediction.forces, batch.pos, batch.forces)
            seen.extend(tensor.dtype for tensor in inputs)
            terms = super().terms(prediction, batch)
            seen.extend(t.total.dtype for t in terms)
            return terms

    config = settings(steps=2, precision="64-true", ema=0.5)
    run = loop.fit(egnn(), molecules(6), Spy(), config, tmp_path, valid=molecules(6))
    assert set(seen) == {torch.float64}
    assert {p.dtype for p in run.model.parameters()} == {torch.float64}
    tensors, _ = checkpoints.read(tmp_path / "last.safetensors")
    moments = [t.dtype for k, t in tensors.items() if not k.endswith("/step") and "known" not in k]
    assert set(moments) == {torch.float64}
    assert {p.dtype for p in checkpoints.load(run.checkpoint).parameters()} == {torch.float64}
    single = loop.fit(egnn(), molecules(6), potkit.Supervised(), settings(steps=2), tmp_path / "s")
    assert {p.dtype for p in single.model.parameters()} == {torch.float32}
    assert single.model.references.dtype == torch.float64


def test_mixed_precision_learns_and_keeps_float32_weights(tmp_path, caplog):
    config = settings(steps=60, batch_size=8, lr=1e-2, precision="bf16-mixed", validate_every=10)
    run = loop.fit(
        egnn(), molecules(20), potkit.Supervised(), config, tmp_path, valid=molecules(20)
    )
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert run.metrics["valid_loss"].min() < 0.8 * run.metrics["valid_loss"].iloc[0]
    assert "Mixed Precision" not in caplog.text, "a grid would say it once per run"


# -- GPU -----------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "objective", [potkit.Supervised(), potkit.Supervised(loss_function="mse", forces=0.0)], ids=repr
)
def test_a_gpu_trains_as_the_cpu_does(tmp_path, objective, resident):
    ends = []
    for device in ("cpu", "cuda"):
        config = settings(steps=5, device=device, precision="64-true", ema=0.9, resident=resident)
        run = loop.fit(
            egnn(), molecules(12), objective, config, tmp_path / device, valid=molecules(4, seed=1)
        )
        ends.append({k: v.cpu() for k, v in weights(run.model).items()})
        assert next(run.model.parameters()).device.type == device
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, atol=1e-9, rtol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "objective",
    [potkit.Denoise(sigma=0.1), potkit.Masked(ratio=0.5), potkit.MaskedDenoise(ratio=0.5)],
    ids=repr,
)
def test_corruption_and_resume_on_a_gpu(tmp_path, objective, monkeypatch):
    structures = water(6, per_side=3)
    config = settings(steps=6, device="cuda", checkpoint_every=1, ema=0.9)
    ordinary = loop.take_step
    whole = loop.fit(egnn(), structures, objective, config, tmp_path / "a")

    def dying(training, state):
        if state.step == 3:
            raise KeyboardInterrupt
        return ordinary(training, state)

    monkeypatch.setattr(loop, "take_step", dying)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(egnn(), structures, objective, config, tmp_path / "b")
    monkeypatch.undo()
    again = loop.fit(egnn(), structures, objective, config, tmp_path / "b")
    assert again.metrics["step"].tolist() == whole.metrics["step"].tolist()
    for key, value in weights(whole.model).items():  # sums on a GPU have no fixed order
        torch.testing.assert_close(weights(again.model)[key], value, atol=1e-4, rtol=1e-3)
    batch = structures.batch(device="cuda", dtype=torch.float64)
    new = objective.corrupt(batch, torch.Generator("cuda").manual_seed(0))
    assert new.pos.is_cuda and new.target.is_cuda


def test_gpus_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="GPUs asked for"):
        denoise(tmp_path / "r", device="cuda", devices=torch.cuda.device_count() + 1)
    assert os.environ.get("WORLD_SIZE") is None
