"""Where a fine-tuning starts: heads that are carried over mean the same eV as before, and reference
energies of another level of theory are named.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from tiny import egnn, equal, molecules, weights

import potkit
from potkit import TrainConfig
from potkit.datasets.references import ReferenceEnergies
from potkit.errors import ConfigError
from potkit.training import evaluation, loop, start
from potkit.training.normalization import normalization

SETTINGS = TrainConfig(steps=6, batch_size=4, lr=3e-3, progress=False, device="cpu")
# so small a rate that the first step moves nothing that can be seen
STANDSTILL = SETTINGS.replace(steps=1, lr=1e-12, min_lr=0.0)
ALL = ("backbone", "energy_head", "vector_readout")
DATA = molecules(40)


def other_level(structures: potkit.Structures, factor: float = 1.3) -> potkit.Structures:
    """The same structures with labels of another level of theory: stronger bonds, other atoms."""
    rows = np.arange(len(structures))
    other = structures[rows]
    atoms = ReferenceEnergies({1: -13.6, 6: -1029.0, 7: -1484.0, 8: -2041.0}).energy(other)
    other.energy = factor * structures.energy + atoms
    other.forces = (factor * structures.forces).astype(structures.forces.dtype)
    return other


@pytest.fixture(scope="module")
def cheap(tmp_path_factory) -> loop.Run:
    """A network pretrained on cheap labels."""
    out = tmp_path_factory.mktemp("cheap") / "run"
    return loop.pretrain(egnn(), DATA[:24], potkit.Supervised(), SETTINGS, out)


def test_a_fine_tuning_of_all_parts_begins_where_the_pretrained_network_is(cheap, tmp_path):
    train = other_level(DATA[:24])
    begun = loop.finetune(
        egnn(1), train, None, STANDSTILL, cheap, tmp_path / "run", parts=ALL
    ).model
    before, after = (evaluation.predict(m, DATA[24:]) for m in (cheap.model, begun))
    assert np.abs(before["forces"]).max() > 1e-3
    np.testing.assert_allclose(after["forces"], before["forces"], atol=2e-6)
    interaction = [
        p["energy"] - _references(m).energy(DATA[24:])
        for p, m in ((before, cheap.model), (after, begun))
    ]
    np.testing.assert_allclose(interaction[1], interaction[0], atol=2e-5)


def _references(model: potkit.Potential) -> ReferenceEnergies:
    known = torch.nonzero(model.known).flatten().tolist()
    return ReferenceEnergies({z: float(model.references[z]) for z in known})


def test_with_all_parts_the_first_energies_fit_better_than_references_alone(cheap, tmp_path):
    """The references are fitted to what the network leaves of the labels."""
    train = other_level(DATA[:24])
    begun = loop.finetune(
        egnn(1), train, None, STANDSTILL, cheap, tmp_path / "run", parts=ALL
    ).model
    off = evaluation.predict(begun, train)["energy"] - train.energy
    assert abs(off.mean()) < 1e-4


def test_heads_of_a_denoiser_take_the_unit_of_the_labels(tmp_path):
    """They were trained in Å, which says nothing of eV: as it always was."""
    denoised = loop.pretrain(
        egnn(vector="gradient"), DATA[:24], potkit.Denoise(sigma=0.1), SETTINGS, tmp_path / "noise"
    )
    tuned = loop.finetune(
        egnn(1, vector="gradient"),
        DATA[:24],
        None,
        STANDSTILL,
        denoised,
        tmp_path / "tuned",
        parts=("backbone", "energy_head"),
    )
    root_mean_square = float(np.sqrt(np.mean(np.square(DATA[:24].forces))))
    assert float(tuned.model.scale) == pytest.approx(root_mean_square, rel=1e-5)


def test_a_backbone_alone_takes_the_unit_of_the_new_labels(cheap, tmp_path):
    train = other_level(DATA[:24], factor=3.0)
    tuned = loop.finetune(egnn(1), train, None, STANDSTILL, cheap, tmp_path / "run")
    root_mean_square = float(np.sqrt(np.mean(np.square(train.forces))))
    assert float(tuned.model.scale) == pytest.approx(root_mean_square, rel=1e-5)


def test_references_of_another_level_of_theory_are_named(tmp_path):
    with pytest.warns(UserWarning, match=r"eV per atom.*another level of theory") as caught:
        loop.finetune(egnn(), DATA[:24], other_level(DATA[24:]), STANDSTILL, out=tmp_path / "run")
    assert all("\n" not in str(w.message) for w in caught)


def test_isolated_atoms_of_another_level_are_named_and_binding_energy_is_not(tmp_path):
    atoms = {1: -13.6, 6: -1029.0, 7: -1484.0, 8: -2041.0}
    given = ReferenceEnergies(atoms, "isolated atoms")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loop.finetune(
            egnn(), other_level(DATA), None, STANDSTILL, out=tmp_path / "a", references=given
        )
    with pytest.warns(UserWarning, match=r"isolated atoms\) are of another level of theory"):
        loop.finetune(egnn(), DATA, None, STANDSTILL, out=tmp_path / "b", references=given)


def test_heads_carry_their_unit_also_where_only_forces_are_learned(tmp_path):
    """The run begins at the forces of the pretrained network, whatever the new forces' size."""
    structures = potkit.load("ani-mini")[:40]
    model = potkit.build("egnn", preset="small", hidden=8, layers=1, vector="gradient", seed=0)
    config = potkit.TrainConfig(steps=3, batch_size=4, device="cpu", progress=False)
    labels = potkit.Supervised(energy=1, forces=10)
    source = potkit.pretrain(model, structures, labels, config, out=tmp_path / "source")
    forces_alone = structures[:20]
    forces_alone.energy = None
    forces_alone.forces = 0.1 * np.asarray(forces_alone.forces)
    new = potkit.build("egnn", preset="small", hidden=8, layers=1, vector="gradient", seed=0)
    potkit.finetune(
        new,
        forces_alone[:10],
        forces_alone[10:],
        config,
        objective=potkit.Supervised(energy=0, forces=10),
        init=source,
        parts=("backbone", "energy_head"),
        out=tmp_path / "new",
    )
    assert float(new.scale) == float(model.scale) != 1.0


@pytest.fixture
def other_threads(monkeypatch):
    """Call it, and the network rounds as with another number of threads, of matrices that are large
    enough to be shared.
    """
    energies = start._energies
    return lambda: monkeypatch.setattr(
        start, "_energies", lambda *given: energies(*given) * (1 + 1e-7)
    )


def tune(source, out, config=SETTINGS, train=DATA[:24], **more):
    return loop.finetune(egnn(1), train, None, config, source, out, parts=ALL, **more)


def test_a_finished_run_with_carried_heads_is_found_with_other_threads(
    cheap, tmp_path, other_threads
):
    """Its references are fitted to what the network says, so the last digits of its first weights
    follow from how that was rounded.
    """
    first = tune(cheap, tmp_path / "run")
    other_threads()
    again = tune(cheap, tmp_path / "run")
    assert again.summary == first.summary
    assert equal(weights(again.model), weights(first.model))
    # and the two are not equal, or this would test nothing
    apart = tune(cheap, tmp_path / "apart")
    assert apart.summary["hash"] != first.summary["hash"]
    # further steps belong to the run as it was made
    more = tune(cheap, tmp_path / "run", extend=2)
    said = json.loads((more.path / "run.json").read_text())["identity"]["notes"]["extends"]
    assert said == {"hash": first.summary["hash"]}


def test_a_stopped_run_with_carried_heads_goes_on_with_other_threads(
    cheap, tmp_path, other_threads, monkeypatch
):
    config = SETTINGS.replace(checkpoint_every=1)
    whole = tune(cheap, tmp_path / "whole", config)
    take_step = loop.take_step

    def stopped(training, state):
        if state.step == 3:
            raise KeyboardInterrupt
        return take_step(training, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            tune(cheap, tmp_path / "cut", config)
    other_threads()
    cut = tune(cheap, tmp_path / "cut", config)
    assert equal(weights(cut.model), weights(whole.model))
    assert cut.summary["hash"] == whole.summary["hash"]


def test_another_start_is_another_run_whatever_is_rounded(cheap, tmp_path, other_threads):
    tune(cheap, tmp_path / "run")
    other_threads()
    longer = SETTINGS.replace(steps=7)
    other = loop.pretrain(egnn(), DATA[:24], potkit.Supervised(), longer, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"another run \(different weights\)"):
        tune(other, tmp_path / "run")
    with pytest.raises(ConfigError, match="another run"):
        tune(cheap, tmp_path / "run", train=DATA[:20])


def test_a_run_that_was_stored_before_is_found_by_its_whole_weights(cheap, tmp_path, other_threads):
    """Nothing but the identity is known of it."""
    first = tune(cheap, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    stored = json.loads(path.read_text())
    del stored["exact_weights"]
    path.write_text(json.dumps(stored))
    assert tune(cheap, tmp_path / "run").summary == first.summary
    other_threads()
    with pytest.raises(ConfigError, match=r"another run \(different weights\)"):
        tune(cheap, tmp_path / "run")


def test_references_that_are_given_are_part_of_a_run(cheap, tmp_path):
    """To the last digit: nothing was fitted."""
    atoms = {1: -13.6, 6: -1029.0, 7: -1484.0, 8: -2041.0}
    given = ReferenceEnergies(atoms, "isolated atoms")
    tune(cheap, tmp_path / "run", references=given)
    other = ReferenceEnergies(atoms | {1: -13.600000001}, "isolated atoms")
    with pytest.raises(ConfigError, match=r"another run \(different weights\)"):
        tune(cheap, tmp_path / "run", references=other)


def test_stress_alone_has_a_unit_of_one():
    box = potkit.load("tip3p-mini")[:4]
    box.energy = box.forces = None
    begin = normalization(box, potkit.TrainConfig(), None, ())
    assert begin.scale == 1.0
