"""Figures: what they show, that they can be read, and that their export is complete and
repeatable.
"""

from __future__ import annotations

import io
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from potkit.errors import ConfigError, PotkitError
from potkit.report import figures, picture_export


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        (arm, n, 100.0 * k / n**0.5)
        for arm, k in (("scratch", 3), ("denoise", 2), ("mine", 2.5))
        for n in (50, 25, 100)
    ]
    table = pd.DataFrame(rows, columns=["arm", "labels", "mean"])
    return table.assign(low=table["mean"] * 0.9, high=table["mean"] * 1.2)


def test_template_is_readable():
    layout = figures.pio.templates["potkit"].layout
    assert layout.font.size >= 14
    assert layout.paper_bgcolor == layout.plot_bgcolor == "white"
    assert len(set(layout.colorway)) == 7


def test_arms_keep_their_looks_and_differ():
    some = figures.looks(["scratch", "denoise"])
    more = figures.looks(["mine", "denoise", "scratch", "other"])
    assert all(more[arm] == some[arm] for arm in some)
    assert len({colour for colour, _ in more.values()}) == 4
    assert len({symbol for _, symbol in more.values()}) == 4


def test_learning_curve_shows_points_and_intervals(table):
    chart = figures.learning_curve(table, "labels")
    assert [trace.name for trace in chart.data] == ["scratch", "denoise", "mine"]
    scratch = table[table.arm == "scratch"].sort_values("labels")
    np.testing.assert_allclose(chart.data[0].x, [25, 50, 100])
    np.testing.assert_allclose(chart.data[0].y, scratch["mean"])
    np.testing.assert_allclose(chart.data[0].y + chart.data[0].error_y.array, scratch["high"])
    np.testing.assert_allclose(chart.data[0].y - chart.data[0].error_y.arrayminus, scratch["low"])
    assert chart.layout.xaxis.type == chart.layout.yaxis.type == "log"
    assert list(chart.layout.xaxis.ticktext) == ["25", "50", "100"]
    assert "(meV/Å)" in chart.layout.yaxis.title.text


def test_learning_curves_of_a_grid(table):
    """A panel per network and metric; every arm's points stand at its budgets, moved sideways by
    a few per cent at most.
    """
    rows = pd.concat(
        [
            table.assign(network=n, metric=m)
            for n in ("egnn", "gns")
            for m in ("forces_mae", "energy_mae")
        ],
        ignore_index=True,
    )
    rows = rows[["network", "labels", "arm", "metric", "mean", "low", "high"]]
    # a wide interval: no place for its end on a logarithmic axis
    rows.loc[rows["network"] == "gns", "low"] = -1.0
    chart = figures.learning_curves(rows, "a grid")
    assert [t.name for t in chart.data] == ["scratch", "denoise", "mine"] * 4
    assert [bool(t.showlegend) for t in chart.data] == [True] * 3 + [False] * 9
    for trace in chart.data:
        np.testing.assert_allclose(trace.x, [25, 50, 100], rtol=0.05)
        means = 1000.0 * table[table["arm"] == trace.name].sort_values("labels")["mean"]
        np.testing.assert_allclose(trace.y, means)
        low = np.asarray(trace.y) - np.asarray(trace.error_y.arrayminus)
        below = np.log10(low) < chart.layout.yaxis.range[0]
        # a whisker that leaves the panel has no end in it
        assert below.all() if trace.xaxis in ("x2", "x4") else not below.any()
    assert len({tuple(t.x) for t in chart.data[:3]}) == 3
    titles = [chart.layout[a].title.text for a in ("yaxis", "yaxis3")]
    assert titles == ["force MAE (meV/Å)", "energy MAE (meV)"]
    assert {a.text for a in chart.layout.annotations} == {"egnn", "gns"}
    alone = figures.learning_curves(
        rows[(rows["network"] == "egnn") & (rows["metric"] == "forces_mae")].drop(columns="network")
    )
    assert len(alone.data) == 3 and not alone.layout.annotations


def test_missing_column_is_named(table):
    with pytest.raises(ConfigError, match="no column 'budget'; it has arm, labels, mean"):
        figures.learning_curve(table, "budget")


def test_scan_draws_reference_and_marks(table):
    one = table[table.arm == "denoise"].rename(columns={"labels": "sigma"})
    chart = figures.scan(one, "sigma", reference=(30.0, 25.0, 35.0), marks={"paper": 50.0})
    shapes = {s.type: s for s in chart.layout.shapes}
    assert (shapes["rect"].y0, shapes["rect"].y1) == (25.0, 35.0)
    vertical = next(s for s in chart.layout.shapes if s.type == "line" and s.x0 == s.x1)
    assert vertical.x0 == 50.0  # plotly places a line by its value even on a logarithmic axis
    label = next(a for a in chart.layout.annotations if "paper" in a.text)
    assert label.x == pytest.approx(np.log10(50.0))  # but an annotation by its logarithm


def test_bars_have_a_group_per_arm(table):
    chart = figures.bars(table, "labels", x_title="label budget")
    assert [trace.type for trace in chart.data] == ["bar"] * 3
    assert list(chart.data[0].x) == ["50", "25", "100"]


def test_distribution_is_normalised_and_refuses_nonsense(rng):
    chart = figures.distribution(
        {"a": rng.normal(size=2000), "b": rng.uniform(size=500)}, "energy per atom (eV)", bins=40
    )
    for trace in chart.data:
        assert np.sum(np.asarray(trace.y)[:-1] * np.diff(trace.x)) == pytest.approx(1.0)
    cut = figures.distribution({"a": np.linspace(0, 10, 1001)}, "x (eV)", limits=(0, 5), bins=10)
    assert np.sum(np.asarray(cut.data[0].y)[:-1] * np.diff(cut.data[0].x)) == pytest.approx(
        0.5, abs=1e-3
    )
    with pytest.raises(ConfigError, match="bad is empty or not finite"):
        figures.distribution({"bad": [1.0, np.nan]}, "x (eV)")


def test_rdf_has_a_line_per_curve():
    chart = figures.rdf({"O–O": ([1.0, 2.0], [0.0, 1.0]), "O–H": ([1.0, 2.0], [0.5, 1.0])})
    assert [trace.name for trace in chart.data] == ["O–O", "O–H"]
    assert "(Å)" in chart.layout.xaxis.title.text


def test_save_writes_page_and_picture_twice_the_same(table, tmp_path):
    chart = figures.learning_curve(table, "labels", title="a < b")
    first, second = tmp_path / "one", tmp_path / "two"
    path = figures.save(chart, "curve", first)
    figures.save(chart, "curve", second)
    assert path == first / "curve.png"
    assert sorted(p.name for p in first.iterdir()) == ["curve.html", "curve.png", "plotly.min.js"]
    for name in ("curve.html", "curve.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    page = (first / "curve.html").read_text()
    assert '<script src="plotly.min.js"></script>' in page and "a &lt; b" in page
    assert len(page) < 20_000  # the library stands beside the page, not in it
    picture = Image.open(path)
    assert picture.size == (2 * figures.SIZE[0], 2 * figures.SIZE[1])
    pixels = np.asarray(picture.convert("RGB"), int)
    blue = np.array([int(figures.OKABE_ITO["blue"][i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.abs(pixels - blue).sum(-1) < 12).sum() > 500  # the curve is there, in its colour


def test_folder_can_be_redirected(table, tmp_path, monkeypatch):
    assert figures.folder().name == "figures"
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "elsewhere"))
    assert figures.folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize("name", ["", "a/b", "../up", "with space", ".hidden"])
def test_figure_names_are_plain(table, name, tmp_path):
    with pytest.raises(ConfigError, match="not a plain file name"):
        figures.save(figures.learning_curve(table, "labels"), name, tmp_path)


def test_show_stores_interactive_and_static_form(table, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path))
    figures.show(figures.learning_curve(table, "labels"), "curve")
    assert set(shown[0]) == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    assert shown[0]["application/vnd.plotly.v1+json"]["data"][0]["name"] == "scratch"
    import base64

    shown_picture = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    saved_picture = Image.open(tmp_path / "curve.png")
    assert shown_picture.format == saved_picture.format == "PNG"
    assert shown_picture.size == figures.SIZE
    assert saved_picture.size == (
        2 * figures.SIZE[0],
        2 * figures.SIZE[1],
    )


def test_missing_exporter_is_one_line(table, monkeypatch):
    def broken(*_, **__):
        raise ValueError("\nImage export needs kaleido\nand much more text")

    chart = figures.learning_curve(table, "labels")
    monkeypatch.setattr(type(chart), "to_image", broken)
    with pytest.raises(
        PotkitError, match=r"^no png of the figure: Image export needs kaleido \(pip install"
    ) as caught:
        figures.image(chart)
    assert "\n" not in str(caught.value)


def test_exporter_that_hangs_is_killed_and_started_anew(table, monkeypatch):
    """kaleido's browser can hang at its start; here the first one is stopped in its tracks, as a
    hanging one is.
    """
    chart = figures.learning_curve(table, "labels")
    expected = picture_export.image(chart)
    hung = picture_export._scope()._proc
    for process in [psutil.Process(hung.pid), *psutil.Process(hung.pid).children(recursive=True)]:
        process.suspend()
    monkeypatch.setattr(picture_export, "PATIENCE", 12.0)
    assert picture_export.image(chart) == expected
    assert picture_export._scope()._proc.pid != hung.pid


def test_exporter_that_always_hangs_is_one_line(table, monkeypatch):
    monkeypatch.setattr(picture_export, "PATIENCE", 0.1)
    monkeypatch.setattr(picture_export, "_export", lambda *_: time.sleep(1))
    with pytest.raises(PotkitError, match=r"^no png of the figure: kaleido gave no answer"):
        picture_export.image(figures.learning_curve(table, "labels"))


def test_pictures_can_be_switched_off(table, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path))
    monkeypatch.setenv("POTKIT_PICTURES", "0")
    figures.show(figures.learning_curve(table, "labels"), "curve")
    assert set(shown[0]) == {"application/vnd.plotly.v1+json", "text/plain"}
    assert (tmp_path / "curve.html").is_file() and not (tmp_path / "curve.png").exists()


def test_open_bounds_of_labels_saved_are_drawn_open():
    from potkit.experiments import statistics

    rng = np.random.default_rng(0)
    arms = (("scratch", 1.0), ("denoise", 0.75))
    runs = pd.DataFrame(
        [
            {
                "arm": arm,
                "seed": seed,
                "labels": n,
                "forces_mae": a * n**-0.4 * np.exp(0.03 * rng.normal()),
            }
            for arm, a in arms
            for seed in range(5)
            for n in (25, 50, 100, 200)
        ]
    )
    saved = statistics.labels_saved(runs)
    assert {"=", ">"} <= set(saved["high_relation"])
    chart = figures.labels_saved(saved)
    caps = next(t for t in chart.data if t.name == "denoise, high")
    assert list(caps.marker.symbol) == [
        "line-ew" if r == "=" else "arrow-up" for r in saved["high_relation"]
    ]
    np.testing.assert_allclose(caps.y, saved["high"])
    flat = figures.labels_saved(
        statistics.labels_saved(runs.assign(forces_mae=np.exp(0.03 * rng.normal(size=len(runs)))))
    )
    assert "not told for 4 of 4" in flat.layout.title.text and not [
        t for t in flat.data if t.name == "denoise"
    ]
