"""Arms: what each starts from and how it is fine-tuned; freezing and layer-wise rates in the
loop; grids of several networks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grids import TINY, grid
from tiny import egnn, equal, molecules, one_line, weights

import potkit
from potkit import TrainConfig, models
from potkit.cli import main as cli
from potkit.errors import ConfigError
from potkit.experiments import experiment, yaml_form
from potkit.report import gallery
from potkit.report import tables as report
from potkit.training import checkpoints, loop
from potkit.training import step as steps


def settings(**changes) -> TrainConfig:
    return TrainConfig(
        **{
            **dict(
                steps=8,
                batch_size=4,
                lr=3e-3,
                progress=False,
                device="cpu",
                log_every=1,
                validate_every=2,
            ),
            **changes,
        }
    )


# -- freezing ------------------------------------------------------------------------------------
def moved(model, start) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, value in weights(model).items():
        if value.dtype.is_floating_point:
            part = name.split(".")[0]
            out[part] = max(
                out.get(part, 0.0), float((value.double() - start[name].double()).abs().max())
            )
    return out


def test_a_frozen_backbone_stays_and_is_then_let_go(tmp_path):
    structures = molecules(12)
    start = weights(egnn())
    all_along = loop.fit(
        egnn(),
        structures,
        potkit.Supervised(),
        settings(freeze=1.0, weight_decay=0.1, ema=0.5),
        tmp_path / "all",
    )
    assert (
        moved(all_along.model, start)["backbone"]
        == 0.0
        < moved(all_along.model, start)["energy_head"]
    )
    at_first = loop.fit(
        egnn(),
        structures,
        potkit.Supervised(),
        settings(freeze=0.5, schedule="constant"),
        tmp_path / "half",
    )
    half = loop.fit(
        egnn(),
        structures,
        potkit.Supervised(),
        settings(freeze=1.0, steps=4, schedule="constant", warmup=0.1),
        tmp_path / "4",
    )
    assert moved(at_first.model, start)["backbone"] > 1e-4
    assert moved(half.model, start)["backbone"] == 0.0
    assert all(p.requires_grad for p in all_along.model.parameters())


@pytest.mark.parametrize("stop", [2, 5])
def test_freezing_survives_a_stop(tmp_path, stop):
    """Stopped while the backbone is held, and after it was let go."""
    config = settings(freeze=0.5, checkpoint_every=1)
    whole = loop.fit(egnn(), molecules(12), potkit.Supervised(), config, tmp_path / "whole")
    original = loop.take_step

    def dying(training, state):
        if state.step == stop:
            raise KeyboardInterrupt
        return original(training, state)

    loop.take_step = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.fit(egnn(), molecules(12), potkit.Supervised(), config, tmp_path / "cut")
    finally:
        loop.take_step = original
    again = loop.fit(egnn(), molecules(12), potkit.Supervised(), config, tmp_path / "cut")
    assert equal(weights(again.model), weights(whole.model))


def test_freezing_all_there_is_to_train_is_refused(tmp_path):
    # EGNN's noise is its coordinate update: backbone only
    with pytest.raises(ConfigError, match="nothing to train") as caught:
        loop.fit(egnn(), molecules(6), potkit.Denoise(sigma=0.1), settings(freeze=0.5), tmp_path)
    one_line(caught.value)


# -- layer-wise rates ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", models.names())
def test_every_network_knows_its_layers(name):
    model = potkit.build(name)
    depths = model.depths()
    assert depths.keys() == {n for n, _ in model.named_parameters()}
    count = model.recipe["options"].get("layers", max(depths.values()) - 1)
    assert set(depths.values()) == set(range(count + 2))
    assert all(depths[n] == 0 for n in depths if n.startswith("backbone.embedding."))
    assert {depths[n] for n in depths if not n.startswith("backbone.")} == {count + 1}


def test_a_network_that_does_not_tell_its_layers_is_named(tmp_path):
    model = egnn()
    model.backbone.stacks = ("blocks",)
    with pytest.raises(ConfigError, match="EGNN does not tell where its layers are") as caught:
        loop.fit(model, molecules(6), potkit.Supervised(), settings(layer_decay=0.5), tmp_path)
    one_line(caught.value)


def test_adams_first_step_shows_the_rate_of_each_layer(tmp_path):
    """At the first step AdamW moves every weight by the rate times the sign of its gradient
    (where that is far above 1e-8).
    """
    model = potkit.build("egnn", hidden=8, layers=3, radial=4, cutoff=3.0, seed=0)
    start = weights(model)
    depths = model.depths()
    config = settings(steps=1, layer_decay=0.5, warmup=0.0, schedule="constant", clip=None)
    run = loop.fit(model, molecules(12), potkit.Supervised(forces=1000.0), config, tmp_path)
    moves: dict[int, float] = {}
    for name, depth in depths.items():
        move = float((weights(run.model)[name] - start[name]).abs().max())
        moves[depth] = max(moves.get(depth, 0.0), move)
    assert [moves[d] for d in range(5)] == pytest.approx(
        [3e-3 * 0.5 ** (4 - d) for d in range(5)], rel=1e-2
    )
    assert run.metrics["lr"].tolist() == [3e-3]  # the read-outs', which is the config's


def test_rates_of_one_change_nothing(tmp_path):
    model = egnn()
    [group] = steps.rate_groups(model, dict(model.named_parameters()), 1.0)
    assert group["factor"] == 1.0 and len(group["params"]) == len(list(model.parameters()))


# -- arms of an experiment -----------------------------------------------------------------------
def test_variants_share_the_pretraining_and_differ_in_fine_tuning(tmp_path):
    variants = {
        "frozen": {"like": "denoise", "freeze": 1.0},
        "layer-wise": {"like": "denoise", "layer_decay": 0.5},
        "both": {"like": "frozen", "freeze": 0.5, "layer_decay": 0.5},
        "scratch layer-wise": {"like": "scratch", "layer_decay": 0.5},
    }
    table = experiment.run(grid(tmp_path, variants=variants, seeds=[0]), progress=False)
    assert (
        list(table["arm"].cat.categories) == ["scratch", "scratch-longer", "denoise", *variants]
        and (table["status"] == "ok").all()
    )
    rows = table.set_index("arm")
    assert rows["run"].nunique() == 7 and (rows.drop("scratch-longer")["steps"] == 4).all()
    assert rows["forces_mae"].nunique() == 7
    assert len(list(tmp_path.glob("pretrain-*"))) == 1
    paid = rows["pretrain_seconds"] > 0
    assert set(paid[paid].index) == {"denoise", "frozen", "layer-wise", "both"}
    assert rows.loc["frozen", "pretrain_loss"] == rows.loc["denoise", "pretrain_loss"]
    source = checkpoints.load(next(tmp_path.glob("pretrain-*"))).state_dict()
    frozen = checkpoints.load(tmp_path / rows.loc["frozen", "run"]).state_dict()
    assert all(torch.equal(v, source[k]) for k, v in frozen.items() if k.startswith("backbone."))


@pytest.mark.parametrize(
    "variants, words",
    [
        ({"x": {"freeze": 0.3}}, "'x' needs 'like'"),
        ({"x": {"like": "denoize"}}, "'denoize', which is none of scratch, denoise"),
        ({"x": {"like": "denoise", "steps": 100}}, "'x' cannot change 'steps'"),
        ({"x": {"like": "denoise", "freeze": 1.5}}, "'x': .*freeze"),
        ({"denoise": {"like": "scratch"}}, "two arms are named 'denoise'"),
        ({"scratch-longer": {"like": "scratch"}}, "two arms are named 'scratch-longer'"),
        ({"x": {"like": "scratch", "parts": ["backbone"]}}, "'x' starts from scratch"),
        ({"x": {"like": "denoise", "parts": ["head"]}}, "'x' takes over 'head'"),
    ],
)
def test_impossible_arms_are_refused_in_one_line(tmp_path, variants, words):
    with pytest.raises(ConfigError, match=words) as caught:
        grid(tmp_path, variants=variants)
    one_line(caught.value)


def test_longer_training_counts_epochs_too(tmp_path):
    """With epochs the steps follow from the label budget: 2 epochs of 9 structures in batches of
    4 are 4 steps (and 4 of pretraining).
    """
    config = potkit.TrainConfig(epochs=2.0, batch_size=4, progress=False, device="cpu")
    table = experiment.run(
        grid(tmp_path, variants={}, seeds=[0], finetune_config=config), progress=False
    ).set_index("arm")
    steps = int(table.loc["scratch", "steps"])
    assert steps == config.total_steps(9) and table.loc["scratch-longer", "steps"] == steps + 4


# -- several experiments as one grid -------------------------------------------------------------
def test_networks_side_by_side(tmp_path):
    other = {**TINY, "name": "painn"}
    several = [
        grid(tmp_path, columns={"network": n}, model=m, seeds=[0], variants={})
        for n, m in (("egnn", TINY), ("painn", other))
    ]
    table = experiment.run(several, progress=False)
    assert (
        table.groupby("network", sort=False)["arm"].apply(list).tolist()
        == [["scratch", "scratch-longer", "denoise"]] * 2
    )
    summary = potkit.compare(table, ["forces_mae"])
    assert list(summary.columns[:3]) == ["network", "labels", "arm"] and len(summary) == 6
    alone = experiment.run(grid(tmp_path, model=other, seeds=[0], variants={}), progress=False)
    np.testing.assert_array_equal(
        alone["forces_mae"], table[table["network"] == "painn"]["forces_mae"]
    )
    with pytest.raises(ConfigError, match="columns"):
        experiment.run([several[0], several[0]], progress=False)


GRID = """
name: two networks
pretrain_on: {data: ani-mini, limit: 40}
train: {data: ani-mini, limit: 40}
test: {data: ani-mini, limit: 20}
labels: [20]
seeds: [0]
arms:
  denoise: {objective: denoise, sigma: 0.1}
  frozen: {like: denoise, freeze: 0.5}
pretrain: {steps: 2, batch_size: 8}
finetune: {steps: 2, batch_size: 8}
grid:
  network:
    egnn: {model: {name: egnn, preset: small, hidden: 8, layers: 1}}
    painn:
      model: {name: painn, preset: small, hidden: 8, layers: 1}
      finetune: {lr: 5.0e-4}
      arms: {layer-wise: {like: denoise, layer_decay: 0.5}}
  data:
    few: {}
    more: {labels: [30], test: {data: ani-mini, limit: 10}}
"""


def test_a_grid_in_yaml(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    built = yaml_form.read(path).experiments(store=tmp_path)
    assert [e.columns for e in built] == [
        {"network": n, "data": d} for n in ("egnn", "painn") for d in ("few", "more")
    ]
    assert [e.labels for e in built] == [[20], [30], [20], [30]] and [
        len(e.test) for e in built
    ] == [20, 10, 20, 10]
    assert [e.finetune_config.lr for e in built] == [1e-3, 1e-3, 5e-4, 5e-4] and all(
        e.finetune_config.steps == 2 for e in built
    )
    assert list(built[0].arms) == ["scratch", "denoise", "frozen"] and list(built[3].arms) == [
        "scratch",
        "denoise",
        "frozen",
        "layer-wise",
    ]
    assert built[0].train is built[3].train, "the data are loaded once"
    with pytest.raises(ConfigError, match="a grid of 4"):
        yaml_form.read(path).experiment(store=tmp_path)


def test_the_command_stores_tables_and_draws(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID[: GRID.index("  data:\n")].replace("two networks", "networks"))
    gallery.write(tmp_path)
    options = [
        "--store",
        str(tmp_path / "store"),
        "--out",
        str(tmp_path),
        "--figure",
        str(tmp_path / "curves.html"),
    ]
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", str(path), *options])
    assert not done.value.code
    said = capsys.readouterr().out
    assert "over all label budgets" in said and "energy MAE against scratch-longer" in said
    effects, how = report.stored("networks-effects", tmp_path)
    store = tmp_path / "store"
    assert how["command"] == f"potkit compare {path} --store {store} --out {tmp_path}"
    assert set(effects["network"]) == {"egnn", "painn"}
    of_painn = effects[(effects["network"] == "painn") & (effects["against"] == "scratch-longer")]
    assert (
        set(of_painn["arm"]) == {"denoise", "frozen", "layer-wise"}
        and (tmp_path / "networks-runs.csv").is_file()
    )
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG" and "(networks)" in (
        tmp_path / "README.md"
    ).read_text()
    with pytest.raises(SystemExit):
        cli.main(["compare", str(path), "--figure", "curves.pdf"])
    assert "error: --figure curves.pdf: expected a name that ends in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, word",
    [
        ("labels: [30]", "lables: [30]", "data more: lables"),
        ("  data:\n    few: {}", "  seed:\n    few: {}", "grid.seed"),
        ("like: denoise, freeze", "like: denoize, freeze", "denoize"),
        ("freeze: 0.5", "freez: 0.5", "freez"),
    ],
)
def test_mistakes_in_a_grid_are_one_line(tmp_path, old, new, word):
    assert old in GRID
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.replace(old, new))
    with pytest.raises(ConfigError, match=word) as caught:
        yaml_form.read(path).experiments(store=tmp_path)
    one_line(caught.value)
