"""The cost of networks, and its join with the errors of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny

from potkit import models
from potkit.bench import networks
from potkit.errors import ConfigError
from potkit.experiments.experiment import Experiment


def summary(names):
    rows = [
        (name, labels, 3, metric, k / labels, 0.9 * k / labels, 1.1 * k / labels)
        for k, name in enumerate(names, 1)
        for labels in (500, 2000)
        for metric in ("energy_mae", "forces_mae")
    ]
    return pd.DataFrame(
        rows, columns=["network", "labels", "seeds", "metric", "mean", "low", "high"]
    )


def test_costs_and_errors_in_one_table():
    costs = networks.run(repeats=2, networks=["gns", "schnet"], batch=2)
    assert list(costs["parameters"]) == [
        models.build(n, "small").n_parameters() for n in ("gns", "schnet")
    ]
    assert (costs[["supervised_ms", "denoise_ms"]] > 0).all(axis=None)
    assert set(costs["structures"]) == {2}
    table = networks.study(costs, summary(["schnet", "gns"]))
    assert table["network"].tolist() == ["schnet", "gns"] * 2
    assert table["labels"].tolist() == [500, 500, 2000, 2000]
    assert table["forces_mae"].tolist() == [1 / 500, 2 / 500, 1 / 2000, 2 / 2000]
    assert table["forces_mae_high"][1] == 2.2 / 500
    assert set(table.loc[table["network"] == "gns", "parameters"]) == {
        models.build("gns", "small").n_parameters()
    }


def test_no_network_is_the_row_to_beat():
    structures = tiny.molecules(40)
    experiment = Experiment(
        model={"name": "schnet"},
        train=structures[:30],
        test=structures[30:],
        labels=[20],
        seeds=[0],
    )
    errors = networks.nothing(experiment, 20)
    assert errors["forces_mae"] == pytest.approx(np.abs(structures[30:].forces).mean())
    assert 0 < errors["energy_mae"] <= errors["energy_rmse"] < structures[30:].energy.std()
    costs = pd.DataFrame(
        {"network": ["gns"], "parameters": [1], "supervised_ms": [1.0], "denoise_ms": [1.0]}
    )
    table = networks.study(costs, summary(["gns"]), {500: errors})
    assert table["network"].tolist().count("none") == 1


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="unknown network 'schent'; there are schnet, egnn"):
        networks.run(networks=["schent"])
    costs = pd.DataFrame(
        {"network": ["gns"], "parameters": [1], "supervised_ms": [1.0], "denoise_ms": [1.0]}
    )
    with pytest.raises(ConfigError, match="no cost was measured for 'schnet'"):
        networks.study(costs, summary(["schnet", "gns"]))
    with pytest.raises(ConfigError, match="no column network"):
        networks.study(costs, summary(["gns"]).drop(columns="network"))
