"""The published numbers: some by hand from the papers, and the papers' relative changes against
their own tables.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from potkit import units
from potkit.errors import ConfigError
from potkit.report import published_numbers


@pytest.mark.parametrize(
    "where, value, std",
    [
        (
            dict(table="Table 2", data="ANI-1", model="SchNet", arm="scratch", metric="RMSE"),
            2.03,
            None,
        ),
        (
            dict(
                table="Table 2",
                data="ANI-1x",
                model="SE(3)-Transformer",
                arm="denoise",
                metric="MAE",
            ),
            9.50,
            None,
        ),
        (dict(data="ANI-1x", model="EGNN", arm="denoise", labels="5 %"), 10.04, None),
        (
            dict(
                table="Table 1",
                data="RPBE",
                model="GNS",
                arm="masked",
                quantity="energy",
                metric="RMSE",
            ),
            2216.4,
            76.9,
        ),
        (
            dict(
                table="Table 1",
                data="TIP3P",
                model="EGNN",
                arm="scratch",
                quantity="forces",
                metric="RMSE",
            ),
            61.5,
            4.0,
        ),
        (dict(data="rMD17 aspirin", arm="masked", quantity="forces", metric="MAE"), 29.5, None),
        (dict(data="TIP3P", arm="denoise", metric="RMSE"), 2442.75, None),
        (dict(table="Table 1", data="SPICE", quantity="conformations"), 1132808, None),
    ],
)
def test_known_values(where, value, std):
    printed, spread = published_numbers.value(**where)
    assert printed == value
    assert np.isnan(spread) if std is None else spread == std


def test_units_and_arms():
    table = published_numbers.table()
    assert set(table.arm) == {"scratch", "denoise", "masked", ""}
    errors = table[table.metric.isin(["RMSE", "MAE"])]
    units = errors.groupby(["paper", "quantity"]).unit.unique().map(list).to_dict()
    assert units == {
        ("denoise", "energy"): ["kcal/mol"],
        ("masked", "energy"): ["meV"],
        ("masked", "forces"): ["meV/Å"],
    }
    assert not table.duplicated(published_numbers.KEYS).any()


def test_changes_agree_with_what_is_printed():
    """To the last printed digit, except for two averages, which the printed values do not give."""
    changes = published_numbers.changes()
    printed = changes[changes.printed.notna()]
    assert len(printed) == 32  # 8 in the masked paper's table 1, 16 in its table 2, and 8 averages
    off = printed[(printed.computed - printed.printed).abs() > 0.051]
    differences = {
        (row.paper, row.data, row.metric): (round(row.computed, 2), row.printed)
        for row in off.itertuples()
    }
    assert differences == {
        ("denoise", "ANI-1x", "MAE"): (-30.76, -30.9),
        ("masked", "rMD17", "MAE"): (-30.75, -30.58),
    }


def test_wrong_questions_are_answered_in_one_line():
    with pytest.raises(ConfigError, match="no column 'dataset'; it has paper, table"):
        published_numbers.table(dataset="ANI-1")
    with pytest.raises(ConfigError, match="no paper prints model='MACE'; known: EGNN"):
        published_numbers.table(model="MACE")
    with pytest.raises(ConfigError, match="singles out 2 printed numbers"):
        published_numbers.value(table="Table 2", data="ANI-1", model="SchNet", metric="RMSE")


def summary() -> pd.DataFrame:
    """Ours: energies in eV and forces in eV/Å, as `statistics.summarise` gives them."""
    rows = [
        dict(arm="scratch", metric="forces_rmse", mean=0.050, low=0.04, high=0.06),
        dict(arm="scratch", metric="forces_mae", mean=0.03, low=0, high=1),
        dict(
            arm="masked 0.9",
            metric="forces_rmse",
            mean=0.040,
            low=0.03,
            high=0.05,
            **{"change_%": -20.0},
        ),
        dict(
            arm="masked 0.9",
            metric="energy_rmse",
            mean=0.3,
            low=0.2,
            high=0.4,
            **{"change_%": -10.0},
        ),
        dict(
            arm="scratch-longer",
            metric="forces_rmse",
            mean=0.045,
            low=0.04,
            high=0.05,
            **{"change_%": -10.0},
        ),
    ]
    return pd.DataFrame(rows).assign(model="egnn", labels=100)


def test_ours_beside_theirs_in_their_units():
    table = published_numbers.beside(summary(), "masked", "TIP3P")
    assert table[["arm", "quantity", "unit"]].values.tolist() == [
        ["scratch", "forces RMSE", "meV/Å"],
        ["masked 0.9", "forces RMSE", "meV/Å"],
        ["masked 0.9", "energy RMSE", "meV"],
        ["masked 0.9", "energy RMSE", "meV"],
    ]
    assert table["ours"].tolist() == pytest.approx([50.0, 40.0, 300.0, 300.0])
    assert table["low"][0] == pytest.approx(40.0)
    # the last from the text, not the table
    assert table["printed"].tolist() == [61.5, 39.3, 241.9, 241.85]
    assert table["printed_std"][0] == 4.0
    assert table["printed_change_%"][1] == pytest.approx(100 * (39.3 / 61.5 - 1))
    assert table["change_%"][1] == -20.0
    assert np.isnan(table["printed_change_%"][0]) and "Table 1" in table["source"][0]


def test_kilocalories_and_named_arms():
    errors = dict(metric="energy_mae", mean=units.KCAL_MOL, low=0.0, high=1.0)
    ours = pd.DataFrame([dict(arm="x", data="small", network="q", **errors)])
    table = published_numbers.beside(
        ours, "denoise", {"small": "ANI-1x"}, "EGNN", {"x": "denoise"}, labels="5 %"
    )
    assert table["ours"][0] == pytest.approx(1.0)
    assert table["printed"][0] == 10.04
    assert table["unit"][0] == "kcal/mol"
    for wrong in (
        dict(data="ANI-2x"),
        dict(data={"large": "ANI-1x"}),
        dict(data="ANI-1x", arms={"y": "denoise"}),
        dict(data="ANI-1x", labels="7 %"),
    ):
        with pytest.raises(ConfigError, match="prints nothing for these rows"):
            published_numbers.beside(
                ours, "denoise", model="EGNN", **{"arms": {"x": "denoise"}, **wrong}
            )
