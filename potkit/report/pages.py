"""The numbers in a figure's page: read back from the HTML that `figures.save` wrote, so that a
picture can be compared with the table it shows.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..errors import DataError

_CALL = re.compile(r"Plotly\.newPlot\(\s*\"[^\"]*\",\s*")


def points(page: str) -> dict[str, np.ndarray]:
    """The numbers of each line in a figure's page: "PLACE NAME COLUMN" (x, y, above, below) ->
    values, where PLACE counts lines of one name.

    Raises DataError for a page without a figure.
    """
    call = _CALL.search(page)
    if call is None:
        raise DataError("not the page of a figure: it draws nothing")
    traces, _ = json.JSONDecoder().raw_decode(page, call.end())
    return _points(traces)


def draws(page: str) -> bool:
    """Whether a page draws a figure."""
    return _CALL.search(page) is not None


def shows(page: str) -> dict[str, Any] | None:
    """What `stored_figures.draw` noted in a figure's page: kind, name and options; None where
    the figure was not drawn from stored tables alone.

    Raises DataError for a page without a figure.
    """
    call = _CALL.search(page)
    if call is None:
        raise DataError("not the page of a figure: it draws nothing")
    reader = json.JSONDecoder()
    _, end = reader.raw_decode(page, call.end())
    layout, _ = reader.raw_decode(page, page.index("{", end))
    return (layout.get("meta") or {}).get("potkit")


def points_of(chart: go.Figure) -> dict[str, np.ndarray]:
    """The same of a figure that is not written yet."""
    return _points(json.loads(chart.to_json())["data"])


def _points(traces: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    table: dict[str, np.ndarray] = {}
    seen: dict[str, int] = {}
    for trace in traces:
        name = trace.get("name") or "line"
        place = seen[name] = seen.get(name, 0) + 1
        bars = trace.get("error_y") or {}
        columns = {
            "x": trace.get("x"),
            "y": trace.get("y"),
            "above": bars.get("array"),
            "below": bars.get("arrayminus"),
        }
        for column, values in columns.items():
            if values is not None:
                table[f"{name} {place} {column}"] = _numbers(values)
    return table


def _numbers(values: Any) -> np.ndarray:
    """[n] float64 of a list, or of plotly's base64; words and gaps are NaN."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).astype(np.float64)
    return np.array([v if isinstance(v, (int, float)) else np.nan for v in values], np.float64)
