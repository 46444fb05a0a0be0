"""potkit bench at toy size: outputs agree with the peers', tables have their columns, memory and
roofline are what they claim.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import one_line

from potkit import models
from potkit.bench import common, infer, neighbors, peers, scaling, step
from potkit.cli import main as cli
from potkit.errors import ConfigError, DataError
from potkit.objectives import Denoise
from potkit.report import blocks, gallery


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_alkanes_or_what_stands_in_for_them(monkeypatch, tmp_path):
    real, source = common.alkanes(7)
    assert len(real) == 7 and set(real.elements) <= {1, 6, 7, 8}
    monkeypatch.setenv("POTKIT_REFERENCE_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    frames, source = common.alkanes(7)
    assert len(frames) == 7
    assert source == "alkanes C4–C7" or source.startswith("frames of ani-mini instead of alkanes (")


def test_box_has_density_and_no_overlaps():
    for n in (10, 100, 700):
        box = common.water_like(n)
        assert len(box.z) == n and n / np.linalg.det(box.cell[0]) == pytest.approx(0.1)
        batch = box.batch()
        edges = neighbors.neighbors.attach(batch, 0.89)
        assert edges.edge_index.shape[1] == 0


def test_in_turn_takes_turns():
    seen = []
    seconds = common.in_turn([lambda: seen.append("a"), lambda: seen.append("b")], 2)
    assert seen == ["a", "b", "a", "b", "b", "a"]  # a warm-up, a round, a round backwards
    assert seconds.shape == (2, 2) and (seconds > 0).all()


def test_peak_memory_counts_what_is_alive_at_once():
    def work():
        a = torch.ones(2**20)  # 4 MB
        b = a + 1  # 8 MB
        del a
        c = b + 1  # still 8 MB
        return c

    def kept():
        return [torch.ones(2**18) for _ in range(8)]  # 1 MB each

    def dropped():
        return [torch.ones(2**18).sum() for _ in range(8)]

    assert common.peak_memory(work) == pytest.approx(8, abs=0.1)
    assert common.peak_memory(kept) == pytest.approx(8, abs=0.1)
    assert common.peak_memory(dropped) == pytest.approx(1, abs=0.1)


def test_disagreement_stops_the_benchmark():
    a, b = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    rivals = [
        common.Rival("right", lambda: None, lambda: a),
        common.Rival("wrong", lambda: None, lambda: b),
    ]
    with pytest.raises(DataError) as error:
        common.compare("toy", rivals, 1, "cpu", 1)
    assert one_line(error.value) == "toy: wrong differs from right by 1.0e-01, more than 1e-05"
    rivals[1].precision = "bfloat16"  # reported, not judged
    rows = common.compare("toy", rivals, 1, "cpu", 1, memory=False)
    assert rows[1]["agreement"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.peers
@pytest.mark.parametrize("case", ["egnn", "torchmd_et", "schnet"])  # nequip: test_bench_nequip.py
def test_peers_say_the_same_with_the_same_weights(case):
    """The vector read-out on corrupted structures: plain EGNN, torchmd-net's ET, PyG's SchNet."""
    if case == "torchmd_et":
        pytest.importorskip("torchmdnet", reason="the torchmd-net package is not installed")
    torch.manual_seed(0)
    model = peers.reference(case, 32)
    peers.wake(model)
    structures, _ = common.alkanes(4)
    batch = Denoise().corrupt(structures.batch(), torch.Generator().manual_seed(0))
    ours = step.potkit_vector(model, batch, None, "cpu")
    same = [peer for peer in peers.of(case, model, structures, "cpu") if peer.same]
    assert same
    for peer in same:
        assert common.agreement(peer.predict(peer.module, batch), ours) < 1e-5


@pytest.mark.parametrize("case", ["egnn", "schnet"])
def test_step_trains_and_fills_the_table(case):
    table = step.run(threads=1, repeats=2, cases=(case,), batch=3, hidden=16)
    assert list(table.columns) == common.COLUMNS
    assert table["implementation"].iloc[0] == {"egnn": "plain EGNN", "schnet": "PyG SchNet"}[case]
    ours = table[(table["implementation"] == "potkit") & (table["precision"] == "float32")].iloc[0]
    assert ours["agreement"] < 1e-5 and ours["over_roofline"] > 0 and ours["peak_mb"] > 0
    assert table["ratio"].iloc[0] == 1
    assert (table[["median_s", "ratio_low", "ratio_high"]] > 0).all(axis=None)
    assert (table["atoms"] > 3 * 4).all() and (table["edges"] > table["atoms"]).all()


def test_trainer_changes_the_weights():
    torch.manual_seed(0)
    model = models.build("schnet", "small", hidden=8, filters=8, layers=1)
    structures, _ = common.alkanes(2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def predict(module, batch):
        return step.potkit_vector(module, batch, None, "cpu")

    train_once = step.trainer(model, structures, "cpu", predict, fused=True)
    train_once()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"backbone.layers.0.filter_out.weight", "energy_head.mlp.0.weight"} <= changed


def test_infer_compares_forces():
    table = infer.run(
        threads=1, repeats=1, cases=("egnn", "schnet"), batch=2, hidden=16, memory=False
    )
    ours = table[(table["implementation"] == "potkit") & (table["precision"] == "float32")]
    assert len(ours) == 2 and (ours["agreement"] < 1e-4).all() and (ours["per_second"] > 0).all()


def test_infer_with_kernels(compiled_kernels):
    table = infer.run(
        threads=1, repeats=1, cases=("torchmd_et",), batch=2, hidden=16, compile=True, memory=False
    )
    compiled = table["implementation"] == "potkit, compiled"
    rows = table[compiled & (table["precision"] == "float32")]
    assert len(rows) == 1
    assert (rows["agreement"] < 1e-4).all()


@pytest.mark.parametrize("n", [300])
def test_neighbors_finds_what_the_others_find(n):
    table = neighbors.run(threads=1, repeats=1, sizes=(n,))
    assert {"vesin", "potkit"} <= set(table["implementation"])
    assert table.groupby("case")["edges"].nunique().eq(1).all() and (table["per_atom_us"] > 0).all()


def test_scaling_table_and_figure():
    table = scaling.run(
        threads=1, repeats=1, atoms=(10, 40), batches=(1, 2), widths=(8, 16), total=80
    )
    assert list(table.columns) == scaling.COLUMNS
    assert list(table["sweep"]) == ["atoms"] * 2 + ["batch"] * 2 + ["width"] * 2
    assert (table[["median_s", "us_per_atom", "kb_per_atom"]] > 0).all(axis=None)
    assert list(table["time_exponent"].notna()) == [False, True] * 3
    figure = scaling.figure(table)
    assert len(figure.data) == 6
    assert list(figure.data[0].x) == [10, 40]
    assert len(figure.layout.annotations) == 6
    with pytest.raises(ConfigError, match="no sweep 'colour'"):
        scaling.run(sweeps=("colour",))
    with pytest.raises(ConfigError, match="unknown model 'schent'"):
        scaling.run(model="schent")


def test_exponents_are_those_of_the_whole():
    """Per atom n^0.2 is n^1.2 for a structure; a step at width w costs w^1.5; a sweep of one
    size has no exponent.
    """
    import pandas as pd

    rows = [
        {"sweep": "atoms", "value": n, "us_per_atom": 3 * n**0.2, "kb_per_atom": 5.0}
        for n in (10, 100, 1000)
    ]
    rows += [
        {"sweep": "width", "value": w, "us_per_atom": 7 * w**1.5, "kb_per_atom": 2 / w}
        for w in (16, 64)
    ]
    rows += [{"sweep": "batch", "value": 4, "us_per_atom": 1.0, "kb_per_atom": 1.0}]
    table = scaling.exponents(pd.DataFrame(rows))
    assert table["time_exponent"].dropna().tolist() == pytest.approx([1.2, 1.5])
    assert table["memory_exponent"].dropna().tolist() == pytest.approx([1.0, -1.0])
    assert table.index[table["time_exponent"].notna()].tolist() == [2, 4]


def test_scaling_command_and_its_block(tmp_path, capsys, monkeypatch):
    """The table as JSON, the figure as a picture and as a page in a gallery, and the block of
    the README.
    """
    original = scaling.run
    monkeypatch.setattr(
        scaling, "run", lambda **options: original(**options, atoms=(10, 40), total=40)
    )
    gallery.write(tmp_path)
    command = "bench scaling --threads 1 --repeats 1 --sweep atoms --json".split()
    command.append(str(tmp_path / "bench-scaling.json"))
    for name in ("cost.png", "cost.html"):
        with pytest.raises(SystemExit) as done:
            cli.main([*command, "--figure", str(tmp_path / name)])
        assert not done.value.code
        assert f"written: {tmp_path / name}" in capsys.readouterr().out
        assert (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"
        (tmp_path / "cost.png").unlink()
    assert "Cost of a pretraining step: egnn, 1 CPU thread" in (tmp_path / "README.md").read_text()
    block = blocks.fill("<!-- bench: scaling -->\n<!-- end -->", tmp_path)
    assert "| sweep | size | atoms in the batch |" in block
    assert "| atoms | 40 | 40 |" in block
    assert "\nMade by `potkit " in block


def test_command_writes_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(neighbors, "run", lambda **options: _few(options))
    cli.main_arguments = None
    command = "bench neighbors --threads 1 --repeats 1 --json".split()
    with pytest.raises(SystemExit) as done:
        cli.main([*command, str(tmp_path / "n.json")])
    assert not done.value.code
    content = json.loads((tmp_path / "n.json").read_text())
    assert content["commit"]
    assert content["hardware"]
    assert content["rows"][0]["case"] == "toy"
    assert content["rows"][0]["ratio"] is None
    assert "toy" in capsys.readouterr().out


def _few(options):
    import pandas as pd

    assert options["threads"] == 1 and options["repeats"] == 1
    row = dict.fromkeys(common.COLUMNS, 1.0) | {"case": "toy", "note": "", "ratio": np.nan}
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["bench", "step", "--case", "mace"],
            "error: --case 'mace' is not one of egnn, torchmd_et, schnet, nequip",
        ),
        (["bench", "step", "--device", "tpu"], "error: --device must be cpu or cuda, got 'tpu'"),
        (["bench", "neighbors", "--threads", "0"], "error: --threads must be at least 1, got 0"),
        (["bench", "neighbors", "--repeats", "0"], "error: --repeats must be at least 1, got 0"),
        (
            ["bench", "scaling", "--figure", "a.pdf"],
            "error: --figure a.pdf: expected a name that ends in .png, .svg or .html",
        ),
        (
            ["bench", "scaling", "--figure", "no/such/folder/x.png"],
            "error: --figure no/such/folder/x.png: there is no folder",
        ),
        (
            ["bench", "infer", "--json", "no/such/folder/x.json"],
            "error: --json no/such/folder/x.json: there is no folder",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert done.value.code == 1 and error.startswith(message) and error.count("\n") == 1


# -- the options of training that the benchmarks are about ---------------------------------------
def test_compile_is_refused_where_it_cannot_work(tmp_path):
    from tiny import molecules

    from potkit import TrainConfig
    from potkit.training import loop

    model = models.build("painn", "small", hidden=8, layers=1, vector="gradient")
    config = TrainConfig(
        steps=1, compile=True, precision="bf16-mixed", device="cpu", progress=False
    )
    with pytest.raises(ConfigError) as error:
        loop.pretrain(model, molecules(4), Denoise(), config, tmp_path)
    assert one_line(error.value).startswith(
        "config: compile of targets that are −∂E/∂x is not for precision bf16-mixed"
    )


def test_compiled_for_the_run_only(monkeypatch):
    from potkit.kernels.compiling import compiled

    model = models.build("painn", "small", hidden=8, layers=1)
    names = list(model.state_dict())
    seen = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: seen.append(options) or call)
    with compiled(model, ("vector",), True):
        assert model.backbone._compiled_call_impl is not None and seen == [{"dynamic": True}]
        assert list(model.state_dict()) == names
    assert model.backbone._compiled_call_impl is None
    with compiled(model, ("vector",), False):
        assert model.backbone._compiled_call_impl is None


def test_defaults_leave_the_identity_of_earlier_runs():
    from potkit import TrainConfig

    assert "compile" not in TrainConfig().identity()
    assert TrainConfig(compile=True).identity()["compile"]
