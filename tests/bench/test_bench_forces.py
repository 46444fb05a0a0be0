"""potkit bench finetune, md, evaluate and start at toy size: rivals agree, tables are whole, and
who is fastest is said with potkit's losses.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import one_line

from potkit.bench import common, evaluate, finetune, md, peers, start
from potkit.cli import main as cli
from potkit.errors import ConfigError, DataError
from potkit.report import tables


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_molecules_and_boxes():
    assert set(common.molecules(5).n_atoms) == {26}
    boxes = common.water_boxes(2)
    assert list(boxes.n_atoms) == [192, 192] and boxes.pbc.all() and len(boxes.forces) == 384
    with pytest.raises(DataError, match=r"water-mini has .* boxes of 64 waters, not 5000"):
        common.water_boxes(5000)


@pytest.mark.parametrize("system, batch", [("molecules", 2), ("boxes", 1)])
def test_finetune_compares_forces(system, batch):
    table = finetune.run(
        repeats=1, cases=("egnn", "schnet"), systems=(system,), batch=batch, hidden=8
    )
    assert list(table.columns) == common.COLUMNS
    assert set(table["case"]) == {
        f"{name} finetune, {batch} {system}" for name in ("egnn", "schnet")
    }
    ours = table[table["implementation"] == "potkit"]
    assert len(ours) == 2 and (ours["agreement"] < 1e-4).all() and (ours["peak_mb"] > 0).all()
    assert {"plain EGNN", "PyG SchNet"} <= set(table["implementation"])


@pytest.mark.parametrize("case", ["egnn", "schnet"])
def test_a_peer_is_trained_as_potkit_is(case):
    """The same loss has the same derivative by the embedding of elements, which goes through
    energies, forces and the derivatives of both.
    """
    torch.manual_seed(0)
    model = peers.reference(case, 8)
    structures = common.molecules(2)
    peer = peers.of(case, model, structures, "cpu")[0]
    module = peers.PeerPotential(case, model, peer)
    step = finetune.trainer(module, module, structures, "cpu")
    step()
    twin = peers.copy_of(model)
    finetune.trainer(twin, lambda batch: twin(batch, finetune.OUTPUTS), structures, "cpu")()
    theirs = peer.module.embedding.weight.grad
    ours = twin.backbone.embedding.element.weight.grad[: len(theirs)]
    assert ours.abs().max() > 0
    assert common.agreement(ours, theirs[: len(ours)]) < 1e-4


@pytest.mark.peers
@pytest.mark.parametrize("system", ["molecules", "boxes"])
def test_torchmd_net_says_the_same(system):
    pytest.importorskip("torchmdnet", reason="the torchmd-net package is not installed")
    table = finetune.run(
        repeats=1, cases=("torchmd_et",), systems=(system,), batch=1, hidden=16, memory=False
    )
    assert list(table["implementation"]) == ["torchmd-net ET", "potkit"]
    assert table["agreement"].max() < 1e-4


def test_nobody_is_given_images_it_does_not_take():
    model = peers.reference("egnn", 8)
    with_images = peers.of("egnn", model, common.water_boxes(1), "cpu")
    assert [peer.name for peer in with_images] == ["plain EGNN"]


def test_dynamics_end_at_the_same_forces():
    table = md.run(repeats=1, cases=("schnet",), steps=3, hidden=8)
    assert list(table.columns) == [*common.COLUMNS, "ms_per_step"]
    assert list(table["atoms"]) == [26, 26, 192, 192]
    assert (table["agreement"] < 1e-4).all()
    assert np.allclose(table["ms_per_step"] * 3, table["median_s"] * 1e3)


def test_dynamics_of_a_preset_stand_alone():
    table = md.run(repeats=1, cases=("schnet",), systems=("molecules",), steps=2, preset="small")
    assert list(table["case"]) == ["schnet small md, one of molecules"]
    assert list(table["implementation"]) == ["potkit"]
    assert (table["over_roofline"] > 1).all()  # no quicker than its products
    with pytest.raises(ConfigError, match="tiny"):
        md.run(repeats=1, cases=("schnet",), systems=("molecules",), steps=2, preset="tiny")


def test_dynamics_move_the_atoms():
    structures = common.molecules(1)
    model = peers.reference("schnet", 8)
    module = peers.PeerPotential("schnet", model, peers.of("schnet", model, structures, "cpu")[0])
    calculator = md.peer_calculator(module.eval(), structures.batch())
    before = md.dynamics(structures, calculator, 0)
    after = md.dynamics(structures, calculator, 4)
    again = md.dynamics(structures, calculator, 4)
    assert not torch.allclose(before, after) and torch.equal(after, again)


def test_evaluate_predicts_the_same_forces():
    table = evaluate.run(repeats=1, cases=("egnn", "painn"), structures=3, batch=2, hidden=8)
    assert list(table["implementation"]) == ["plain EGNN", "potkit", "potkit"]
    assert (table["agreement"] < 1e-4).all() and (table["per_second"] > 0).all()
    assert list(table["case"].unique()) == [
        "egnn evaluate, 3 molecules",
        "painn evaluate, 3 molecules",
    ]


def test_start_is_measured_in_fresh_processes(monkeypatch):
    monkeypatch.setattr(start, "IMPORTS", {"potkit": start.IMPORTS["potkit"], "no": ("nobody", "")})
    monkeypatch.setattr(start, "ERRORS", {"potkit pretrain": start.ERRORS["potkit pretrain"]})
    table = start.run(repeats=1, parts=("import", "first error"))
    assert list(table["case"]) == ["start: import", "start: first error"]
    assert list(table["implementation"]) == ["potkit", "potkit pretrain"]
    assert (table["median_s"] > 0.01).all()
    with pytest.raises(ConfigError, match="no part 'end'; there are import, first error"):
        start.run(parts=("end",))


@pytest.mark.parametrize("name", ["potkit SchNet", "PyG SchNet"])
def test_first_steps_run(name):
    start.process(start.steps(structures=2)[name][1], threads=1)()


def test_a_process_that_ends_otherwise_is_an_error():
    with pytest.raises(ConfigError) as error:
        start.process("raise ValueError('no')", threads=1)()
    assert one_line(error.value) == "bench start: a process ended with 1: ValueError: no"
    with pytest.raises(ConfigError, match="ended with 0: no message"):
        start.process("", threads=1, error="missing")()
    with pytest.raises(ConfigError, match="ended with 1: other"):
        start.process("raise SystemExit('other')", threads=1, error="missing")()


def test_standings_tell_losses():
    rows = [
        ("a", "peer", "float32", 2.0),
        ("a", "other", "float32", 4.0),
        ("a", "potkit", "float32", 5.0),
        ("a", "potkit, compiled", "float32", 1.0),
        ("b", "peer", "float32", 2.0),
        ("b", "potkit", "float32", 4.0),
        ("b", "potkit", "bfloat16", 1.0),
        ("c", "potkit", "float32", 4.0),
    ]
    table = tables.standings(
        pd.DataFrame(rows, columns=["case", "implementation", "precision", "median_s"])
    )
    assert list(table["fastest"]) == ["potkit, compiled", "peer", "potkit"]
    assert list(table["fastest_other"]) == ["peer", "peer", ""]
    assert table["speedup"].tolist()[:2] == [2.0, 0.5] and np.isnan(table["speedup"].iloc[2])


def test_the_command_says_who_is_fastest(capsys):
    command = "bench evaluate --threads 1 --repeats 1 --case schnet --structures 2 --hidden 8"
    with pytest.raises(SystemExit) as done:
        cli.main(command.split())
    assert not done.value.code
    out = capsys.readouterr().out
    assert "potkit bench evaluate: cpu, 1 thread, 1 rounds" in out
    assert "fastest in float32" in out and "PyG SchNet" in out.split("fastest in float32")[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            "finetune --case mace",
            "--case 'mace' is not one of egnn, torchmd_et, schnet, painn, nequip",
        ),
        ("finetune --system gas", "--system 'gas' is not one of molecules, boxes"),
        ("finetune --batch 0", "--batch must be at least 1, got 0"),
        ("md --steps 0", "--steps must be at least 1, got 0"),
        ("evaluate --structures 0", "--structures must be at least 1, got 0"),
        ("start --threads 0", "--threads must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", *arguments.split()])
    assert done.value.code == 1
    assert capsys.readouterr().err == f"error: {message}\n"
