"""Names that come from files never become markup."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import potkit
from potkit.analysis.noise_scale import SigmaProposal
from potkit.errors import ConfigError
from potkit.notebooks import Settings
from potkit.report import figures, gallery

SCRIPT = '<script>alert("1")</script>'


def test_the_name_and_the_systems_of_a_set_are_text():
    one = potkit.Structures(
        [1, 1],
        np.array([[0.0, 0, 0], [0.74, 0, 0]]),
        [0, 2],
        info={"name": SCRIPT, "systems": [SCRIPT]},
    )
    assert "<script" not in one._repr_html_() and "&lt;script&gt;" in one._repr_html_()


def test_settings_of_a_notebook_are_text():
    shown = Settings(profile="quick", data=SCRIPT)._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown


def test_the_reason_of_a_proposal_is_text():
    table = pd.DataFrame({"all": [0.1]}, index=["thermal"])
    none = np.zeros(0)
    proposal = SigmaProposal(0.1, "thermal", {}, table, SCRIPT, none, none, 0.0)
    assert "<script" not in proposal._repr_html_()


@pytest.mark.parametrize(
    "name", ['x"onclick="alert(1)', "a b", "../up", ".hidden", "<b>", "", "a/b"]
)
def test_a_figure_s_name_is_plain(tmp_path, name):
    with pytest.raises(ConfigError, match="not a plain file name"):
        figures.save(go.Figure(), name, tmp_path, png=b"png")
    assert list(tmp_path.iterdir()) == []


def test_titles_on_pages_and_in_the_gallery_are_text(tmp_path):
    chart = go.Figure(layout={"title": {"text": SCRIPT + "[x](y)"}})
    figures.save(chart, "07_name", tmp_path, png=b"png")
    page = (tmp_path / "07_name.html").read_text()
    assert f"<title>{SCRIPT}" not in page and "<title>&lt;script&gt;" in page
    text = gallery.write(tmp_path).read_text()
    assert "<script" not in text and "[x](y)" not in text
