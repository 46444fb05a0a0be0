"""The numbers in a figure's page are those of the figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from potkit.errors import DataError
from potkit.report import figures, pages


def summary(scale: float = 1.0) -> pd.DataFrame:
    rows = [
        {"labels": n, "arm": arm, "metric": "forces_mae", "mean": scale * v, "low": 0.9 * v}
        | {"high": 1.1 * v, "worse_than": "zero forces" if v > 0.5 else ""}
        for arm, v in (("scratch", 0.6), ("denoise", 0.3))
        for n in (10, 20)
    ]
    return pd.DataFrame(rows)


BASELINES = pd.DataFrame(
    [
        {"labels": n, "baseline": name, "metric": "forces_mae", "mean": v}
        for name, v in (("zero forces", 0.5), ("GFN2-xTB", 20.0))
        for n in (10, 20)
    ]
)


def test_points_come_back_from_the_page(tmp_path):
    chart = figures.learning_curves(summary(), "title")
    figures.save(chart, "curves", tmp_path, png=b"\x89PNG\r\n\x1a\n" + b"0" * 64)
    read = pages.points((tmp_path / "curves.html").read_text())
    again = pages.points_of(chart)
    assert read.keys() == again.keys() and all(np.allclose(read[k], again[k]) for k in read)
    assert read["scratch 1 y"] == pytest.approx([600, 600])
    assert read["denoise 1 above"] == pytest.approx([30, 30])
    other = pages.points_of(figures.learning_curves(summary(1.01), "title"))
    assert not np.allclose(read["scratch 1 y"], other["scratch 1 y"])


def test_words_are_no_numbers():
    chart = figures.figure("x", "y").add_bar(x=["a", "b"], y=[1.0, None], name="words")
    points = pages.points_of(chart)
    assert np.isnan(points["words 1 x"]).all() and points["words 1 y"][0] == 1.0


def test_a_page_without_a_figure_is_refused():
    with pytest.raises(DataError, match="draws nothing"):
        pages.points("<html></html>")


def test_baselines_stand_in_the_picture_and_mark_what_is_worse():
    chart = figures.learning_curves(summary(), None, BASELINES)
    lines = {trace.name: trace for trace in chart.data}
    assert list(lines["zero forces"].y) == [500, 500] and "GFN2-xTB" not in lines
    assert any("GFN2-xTB 20000" in a.text for a in chart.layout.annotations)
    assert list(lines["scratch"].marker.symbol) == ["circle-open"] * 2
    assert list(lines["denoise"].marker.symbol) == ["square"] * 2
    low, high = 10 ** np.array(chart.layout.yaxis.range)
    assert low < 500 < high < 20_000


def test_noise_explained_has_the_rigid_motion_beside_it():
    import potkit
    from potkit.analysis import noise_scale

    proposal = noise_scale.propose_sigma(potkit.load("ani-mini")[:800])
    sigmas = [0.05, 0.1, 0.2]
    chart = figures.noise_explained(proposal, sigmas, {"EGNN": ([0.1], [0.4])})
    known, reachable, network = chart.data
    assert list(known.y) == pytest.approx(proposal.explained(sigmas))
    assert list(reachable.y) == pytest.approx(
        (1 - proposal.rigid) * proposal.explained(np.array(sigmas))
    )
    assert network.name == "EGNN"
    assert any("(chosen)" in a.text for a in chart.layout.annotations)
