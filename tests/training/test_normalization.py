"""References, unit and mean of labels: what each setting makes of energies and forces, and that it
travels with the weights.
"""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from tiny import egnn, equal, molecules, one_line, weights

import potkit
from potkit import TrainConfig
from potkit.datasets.references import LEVELS, ReferenceEnergies
from potkit.errors import CheckpointError, ConfigError, DataError, Interrupted
from potkit.training import checkpoints, loop
from potkit.training.normalization import normalization
from potkit.training.step import State

ATOMS = {"H": -13.6, "C": -1029.0, "O": -2042.0}
KINDS = ("forces", "mean-std", "per-atom-mean-std", "none")


def config(**changes) -> TrainConfig:
    quiet = dict(progress=False, device="cpu", precision="64-true", steps=2, batch_size=4)
    return TrainConfig(**quiet | changes)


def labelled(n: int = 12, seed: int = 0) -> potkit.Structures:
    """Molecules whose energies are those of isolated atoms and a bit more."""
    s = molecules(n, seed=seed)
    energy = s.energy + ReferenceEnergies.isolated(s, ATOMS).energy(s) + 3.5
    info = {"name": "labelled", "atomic_energies": ATOMS}
    return potkit.Structures(s.z, s.pos, s.ptr, energy, s.forces, system=s.system, info=info)


def head_sum(model: potkit.Potential, s: potkit.Structures) -> tuple[np.ndarray, np.ndarray]:
    """What the network itself says, [S] without a unit, and minus its derivative, [A, 3] 1/Å."""
    bare = checkpoints.build_again({"recipe": model.recipe}, "here")
    own = {k: v for k, v in model.state_dict().items() if k != "shift"}
    bare.load_state_dict(own)
    predicted = potkit.predict(bare.double().set_references({}), s)
    return predicted["energy"], predicted["forces"]


# -- the numbers ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("references", ["least-squares", "isolated", "none"])
def test_energies_are_denormalised_exactly_and_forces_scale(references, kind):
    s = labelled()
    table = ReferenceEnergies.choose(s, references).energy(s)
    left = s.energy - table
    n = s.n_atoms
    rms = np.sqrt(np.mean(s.forces.astype(np.float64) ** 2))
    scale, mean = {
        "forces": (rms, 0.0),
        "mean-std": (left.std(ddof=1), left.mean()),
        "per-atom-mean-std": ((left / n).std(ddof=1), (left / n).mean() * n),
        "none": (1.0, 0.0),
    }[kind]
    model = egnn().double()
    normalization(s, config(references=references, normalization=kind)).put_into(model)
    own, slope = head_sum(model, s)
    predicted = potkit.predict(model, s)
    np.testing.assert_allclose(predicted["energy"], scale * own + table + mean, atol=1e-9, rtol=0)
    np.testing.assert_allclose(predicted["forces"], scale * slope, rtol=1e-9, atol=1e-12)
    # the label that the network is to say, normalised as the papers' codes do, and back
    np.testing.assert_allclose((s.energy - table - mean) / scale * scale + mean + table, s.energy)


@pytest.mark.parametrize("kind", KINDS)
def test_forces_are_minus_the_derivative_of_the_energy(kind):
    s = labelled()
    model = egnn(radial=4).double()
    normalization(s, config(references="isolated", normalization=kind)).put_into(model)
    batch = s[:1].batch(dtype=torch.float64)
    _, forces = model.energy_and_forces(batch)
    step = 1e-4
    moved = []
    for sign in (1, -1):
        other = s[:1].batch(dtype=torch.float64)
        other.pos[0, 0] += sign * step
        moved.append(float(model.energy_and_forces(other)[0][0].detach()))
    # energies of 10³ eV are good to 1e-13 of that
    slope = (moved[1] - moved[0]) / (2 * step)
    assert float(forces[0, 0].detach()) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_denoise_papers_two_steps_on_ani_mini():
    """Isolated atoms, then mean and standard deviation: the network learns a spread of 19.4 eV;
    after least squares it is 1.1 eV, another task.
    """
    s = potkit.load("ani-mini")
    papers = normalization(s, TrainConfig(references="isolated", normalization="mean-std"))
    fitted = normalization(s, TrainConfig(normalization="mean-std"))
    assert papers.scale == pytest.approx(19.4, abs=0.05)
    assert fitted.scale == pytest.approx(1.1, abs=0.05)
    assert papers.references == pytest.approx(LEVELS["GFN2-xTB"])
    assert abs(fitted.shift) < 1 < abs(papers.shift)


def test_defaults_are_what_they_were():
    s = labelled()
    got = normalization(s, TrainConfig())
    assert got.references == ReferenceEnergies.fit(s).table
    assert got.shift == 0.0
    assert got.scale == float(np.sqrt(np.mean(np.square(s.forces, dtype=np.float64))))
    assert not any(k == "shift" for k in egnn().state_dict())


# -- where it comes from -------------------------------------------------------------------------
def test_given_energies_go_before_those_of_the_data():
    s = labelled()
    given = {"H": -1.0, "C": -2.0, "O": -3.0}
    chosen = normalization(s, config(references="isolated", isolated_energies=given))
    assert chosen.references == {1: -1.0, 6: -2.0, 8: -3.0}
    own = normalization(s, config(references="isolated"))
    assert own.references == {1: -13.6, 6: -1029.0, 8: -2042.0}


def test_only_the_training_part_is_looked_at(tmp_path):
    train, valid = labelled(), labelled(6, seed=1)
    settings = config(references="none", normalization="mean-std")
    runs = []
    for k in range(2):
        valid.energy[:] += 100.0 * k
        run = potkit.finetune(egnn(), train, valid, settings, out=tmp_path / f"run{k}")
        runs.append((float(run.model.shift), float(run.model.scale)))
    assert runs[0] == runs[1] == (train.energy.mean(), train.energy.std(ddof=1))


def test_what_cannot_be_normalised_is_one_line(tmp_path):
    s = labelled()
    for given, words in (
        ({"H": -1.0}, ["C, O", "isolated_energies", "labelled"]),
        (None, ["H, C, O", "level of theory is not known", "isolated_energies"]),
    ):
        s.info.pop("atomic_energies", None)
        with pytest.raises(DataError) as caught:
            normalization(s, config(references="isolated", isolated_energies=given))
        assert all(word in one_line(caught.value) for word in words), caught.value
    with pytest.raises(DataError, match="do not differ"):
        normalization(s[:1], config(references="none", normalization="mean-std"))
    with pytest.raises(ConfigError, match="needs energies"):
        normalization(s, config(normalization="mean-std"), labels=("forces",))
    with pytest.raises(ConfigError, match="given twice"):
        potkit.finetune(
            egnn(), s, None, config(references="none"), out=tmp_path / "a", references="fit"
        )
    with pytest.raises(ConfigError, match="references is for labels"):
        potkit.pretrain(egnn(), s, potkit.Denoise(), config(references="none"), out=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_references_beside_the_settings_are_written_into_them(tmp_path):
    s = labelled()
    run = potkit.finetune(egnn(), s, None, config(), out=tmp_path, references="isolated")
    header = checkpoints.read(run.checkpoint)[1]
    assert header["config"]["references"] == "isolated"
    assert float(run.model.references[8]) == ATOMS["O"]


# -- with the weights ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory) -> potkit.Run:
    return potkit.finetune(
        egnn(),
        labelled(),
        labelled(6, seed=1),
        config(references="isolated", normalization="mean-std"),
        out=tmp_path_factory.mktemp("run") / "tuned",
    )


def test_a_checkpoint_carries_it(run):
    s = labelled(5, seed=3)
    again = checkpoints.load(run.checkpoint)
    assert equal(weights(run.model), weights(again)) and "shift" in weights(again)
    assert float(again.shift) == pytest.approx(
        (labelled().energy - ReferenceEnergies.isolated(labelled()).energy(labelled())).mean()
    )
    for name, values in potkit.predict(run.model, s).items():
        np.testing.assert_array_equal(values, potkit.predict(again, s)[name])
    header = checkpoints.read(run.checkpoint)[1]
    assert header["config"]["normalization"] == "mean-std"
    found = potkit.evaluate(run.checkpoint, s).structures["predicted_energy"].to_numpy()
    np.testing.assert_array_equal(found, potkit.predict(run.model, s)["energy"])
    calculator = potkit.calculator(run.checkpoint)
    one = s[:1]
    atoms = ase.Atoms(one.z, one.pos, calculator=calculator)
    assert atoms.get_potential_energy() == pytest.approx(found[0], abs=1e-9)


def test_moving_and_casting_leave_the_shift_exact(run):
    model = checkpoints.load(run.checkpoint).float().double()
    assert model.shift.dtype == torch.float64 and float(model.shift) == float(run.model.shift)


def test_a_damaged_shift_is_refused(run, tmp_path):
    state = dict(run.model.state_dict())
    state["shift"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="shift has shape"):
        checkpoints.restore(egnn().double(), state, "there")


def test_a_fine_tuning_starts_from_its_own_normalisation(run, tmp_path):
    s = labelled(8, seed=5)
    other = potkit.finetune(egnn(), s, None, config(), init=run, out=tmp_path / "a")
    assert other.model.shift is None
    assert float(other.model.scale) == normalization(s, config()).scale
    settings = config(references="none", normalization="mean-std")
    third = potkit.finetune(other.model, s, None, settings, init=run, out=tmp_path / "b")
    assert float(third.model.shift) == s.energy.mean()
    # and one that had a mean loses it
    fourth = potkit.finetune(third.model, s, None, config(), init=run, out=tmp_path / "c")
    assert fourth.model.shift is None


def test_an_interrupted_run_goes_on_with_it(tmp_path, monkeypatch):
    settings = config(references="isolated", normalization="mean-std", steps=6, checkpoint_every=2)
    s = labelled()

    def tune(out):
        return potkit.finetune(egnn(), s, s[:4], settings, out=out)

    whole = tune(tmp_path / "whole")
    take = loop.take_step

    def stop(training, state):
        if state.step == 4:
            raise Interrupted("here")
        return take(training, state)

    monkeypatch.setattr(loop, "take_step", stop)
    with pytest.raises(Interrupted):
        tune(tmp_path / "broken")
    monkeypatch.undo()
    resumed = tune(tmp_path / "broken")
    assert equal(weights(whole.model), weights(resumed.model))
    assert float(resumed.model.shift) == float(whole.model.shift)


def test_a_normalised_network_learns(tmp_path):
    """On the scale it is given: the first loss is that of the mean, not of 10³ eV of atoms."""
    s = labelled(24)
    settings = config(references="isolated", normalization="mean-std", steps=40, lr=1e-2)
    objective = potkit.Supervised(energy=1, forces=0, loss_function="mse")
    run = potkit.finetune(egnn(), s, s, settings, out=tmp_path, objective=objective)
    spread = float(run.model.scale)
    assert run.metrics["valid_energy_rmse"].iloc[-1] < 0.9 * spread < 20


# -- optimizer -----------------------------------------------------------------------------------
def test_adam_takes_weight_decay_as_a_gradient(tmp_path):
    """A weight without a gradient of its own: AdamW shrinks it by rate · decay, Adam moves it by a
    whole rate.
    """
    fabric = loop.make_fabric(config())
    moved = {}
    for kind in ("adamw", "adam"):
        model = egnn().double()
        settings = config(optimizer=kind, weight_decay=0.1, lr=1e-3)
        state = State(fabric, model, {"backbone"}, settings)
        parameter = max(state.trained.values(), key=torch.numel)
        parameter.grad = torch.zeros_like(parameter)
        before = parameter.detach().clone()
        state.optimizer.step()
        moved[kind] = (before - parameter.detach(), before)
    step, before = moved["adamw"]
    torch.testing.assert_close(step, 1e-3 * 0.1 * before)
    step, before = moved["adam"]
    torch.testing.assert_close(step, 1e-3 * before.sign(), atol=1e-6, rtol=0)


def test_the_optimizer_decides_a_runs_numbers(tmp_path):
    s = labelled()
    ended = [
        weights(potkit.finetune(egnn(), s, None, settings, out=tmp_path / settings.optimizer).model)
        for settings in (config(optimizer=kind, weight_decay=0.1) for kind in ("adam", "adamw"))
    ]
    assert not equal(*ended)


# -- validation of a pretraining -----------------------------------------------------------------
@pytest.mark.parametrize("share, kept", [(0.05, 38), (0.1, 36), (0.0, 40)])
def test_the_share_that_a_pretraining_validates_on(tmp_path, share, kept, monkeypatch):
    s = labelled(40)
    seen = []
    monkeypatch.setattr(loop, "fit", lambda model, train, *rest: seen.append((len(train), rest[3])))
    potkit.pretrain(egnn(), s, potkit.Denoise(), config(valid_fraction=share), out=tmp_path)
    ((train, valid),) = seen
    assert train == kept and (valid is None if share == 0 else len(valid) == 40 - kept)
