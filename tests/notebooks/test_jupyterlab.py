"""A notebook in a real browser: opened in JupyterLab, run by its own command, its figures alive,
and nothing asked of the network.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import browser
import nbformat
import numpy as np
import pytest
from PIL import Image

from potkit.notebooks import runner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.chromium() is None, reason="needs Chromium (or Chrome)"),
    pytest.mark.skipif(
        importlib.util.find_spec("jupyterlab") is None,
        reason="needs JupyterLab (extra `notebooks`)",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("websocket") is None,
        reason="needs websocket-client, which jupyter_server brings",
    ),
]


def picture(page: browser.Page, path: Path) -> np.ndarray:
    page.screenshot(path)
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), int)


def test_first_notebook_runs_in_the_browser(tmp_path, repository):
    """Screenshots go to runs/browser: figure.png, viewer.png, and viewer-turned.png after a drag
    with the mouse.
    """
    notebook = runner.read(repository / "notebooks" / "01_explore_datasets.ipynb")
    given = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    given.source += '\nsets = ["ani-mini"]'
    stop = next(i for i, c in enumerate(notebook.cells) if "structure3d" in c.source)
    # the viewer is what the browser has to prove; the rest is drawn by the same code
    notebook.cells = notebook.cells[: stop + 1]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    (tmp_path / "lab").mkdir()
    nbformat.write(notebook, tmp_path / "lab" / "01.ipynb")
    out = repository / "runs" / "browser"
    surroundings = dict(
        POTKIT_PROFILE="smoke", POTKIT_FIGURES=str(tmp_path / "figures"), PYTHONPATH=str(repository)
    )
    with (
        browser.jupyterlab(tmp_path / "lab", tmp_path, **surroundings) as address,
        browser.browser(tmp_path) as page,
    ):
        seen = browser.run_all(page, address.format(name="01.ipynb"))
        assert seen["errors"] == [] and seen["prompts"][-1].strip("[]:").isdigit()
        assert seen["figures"] == 2
        browser.show(page, 0)
        picture(page, out / "figure.png")
        # drawn here, not a picture
        assert (
            page.js("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length") >= 3
        )
        box = browser.show(page, 1)
        x, y, w, h = (int(box[k]) for k in ("x", "y", "width", "height"))
        before = picture(page, out / "viewer.png")[y : y + h, x : x + w]
        assert (
            page.js("document.querySelectorAll('.js-plotly-plot .gl-container canvas').length") > 0
        )
        # atoms, bonds and text, not an empty canvas
        assert len(np.unique(before.reshape(-1, 3), axis=0)) > 50
        browser.drag(page, box)
        after = picture(page, out / "viewer-turned.png")[y : y + h, x : x + w]
        assert (np.abs(after - before).sum(2) > 60).mean() > 0.01  # the molecule has turned
        assert page.failed == []  # no address outside this machine was asked for
