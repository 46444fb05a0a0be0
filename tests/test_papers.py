"""The published numbers: some by hand from the papers, and the papers' relative changes against their own tables."""

from __future__ import annotations

import numpy as np
import pytest

from potkit import papers
from potkit.errors import ConfigError


@pytest.mark.parametrize(
    "where, value, std",
    [
        (dict(table="Table 2", data="ANI-1", model="SchNet", arm="scratch", metric="RMSE"), 2.03, None),
        (dict(table="Table 2", data="ANI-1x", model="SE(3)-Transformer", arm="denoise", metric="MAE"), 9.50, None),
        (dict(data="ANI-1x", model="EGNN", arm="denoise", labels="5 %"), 10.04, None),
        (dict(table="Table 1", data="RPBE", model="GNS", arm="masked", quantity="energy", metric="RMSE"), 2216.4, 76.9),
        (dict(table="Table 1", data="TIP3P", model="EGNN", arm="scratch", quantity="forces", metric="RMSE"), 61.5, 4.0),
        (dict(data="rMD17 aspirin", arm="masked", quantity="forces", metric="MAE"), 29.5, None),
        (dict(data="TIP3P", arm="denoise", metric="RMSE"), 2442.75, None),
        (dict(table="Table 1", data="SPICE", quantity="conformations"), 1132808, None),
    ],
)
def test_known_values(where, value, std):
    found, spread = papers.value(**where)
    assert found == value
    assert np.isnan(spread) if std is None else spread == std


def test_units_and_arms():
    table = papers.table()
    assert set(table.arm) == {"scratch", "denoise", "masked", ""}
    errors = table[table.metric.isin(["RMSE", "MAE"])]
    units = errors.groupby(["paper", "quantity"]).unit.unique().map(list).to_dict()
    assert units == {("denoise", "energy"): ["kcal/mol"], ("masked", "energy"): ["meV"], ("masked", "forces"): ["meV/Å"]}
    assert not table.duplicated(papers.KEYS).any()


def test_changes_agree_with_what_is_printed():
    """To the last printed digit, except for two averages, which the printed values do not give."""
    changes = papers.changes()
    printed = changes[changes.printed.notna()]
    assert len(printed) == 32  # 8 in the masked paper's table 1, 16 in its table 2, and 8 averages
    off = printed[(printed.computed - printed.printed).abs() > 0.051]
    found = {(row.paper, row.data, row.metric): (round(row.computed, 2), row.printed) for row in off.itertuples()}
    assert found == {("denoise", "ANI-1x", "MAE"): (-30.76, -30.9), ("masked", "rMD17", "MAE"): (-30.75, -30.58)}


def test_wrong_questions_are_answered_in_one_line():
    with pytest.raises(ConfigError, match="no column 'dataset'; it has paper, table"):
        papers.table(dataset="ANI-1")
    with pytest.raises(ConfigError, match="no paper prints model='MACE'; known: EGNN"):
        papers.table(model="MACE")
    with pytest.raises(ConfigError, match="singles out 2 printed numbers"):
        papers.value(table="Table 2", data="ANI-1", model="SchNet", metric="RMSE")
