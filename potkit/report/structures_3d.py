"""Structures in three dimensions: atoms, bonds and the periodic box as a plotly figure that can be
turned and zoomed.

Nothing but plotly is needed, which draws in JupyterLab without a network and gives a picture where
JavaScript does not run.

Elements have Jmol's colours (the common ones follow Corey, Pauling and Koltun); because red, blue
and grey are not apart for everybody, small structures carry the element's symbol on every atom, and
the legend can switch elements on and off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from ase.data import covalent_radii
from ase.data.colors import jmol_colors

from ..errors import DataError
from ..structures.elements import SYMBOLS
from ..structures.geometry import bonds, minimum_image
from ..structures.store import Structures

SIZE = (700, 520)  # pixels
LABELLED = 80  # atoms up to which each carries its symbol
STRETCH = 1.2  # a drawn bond is shorter than this times the sum of two covalent radii
BALL = 0.5  # radius of a drawn atom in covalent radii
ZOOM = {"molecule": 2.3, "box": 1.5}  # plotly's unit cube fills no more than half of the screen
PIXELS = 250.0  # that unit on the screen
GLYPH = 3.1  # pixels of the drawn disc per unit of plotly's three-dimensional marker size


def structure3d(
    structures: Structures,
    title: str | None = None,
    labels: bool | None = None,
    height: int = SIZE[1],
) -> go.Figure:
    """One structure as an interactive figure; several structures of the same atoms get a slider to
    step through them.

    ``structures``: ``s[i]`` or frames of one molecule, ``s[rows]``. ``labels`` writes element
    symbols on the atoms (default: where there are at most `LABELLED`). Molecules of a periodic
    structure are drawn whole, at the side of the box where their first atom is. Raises DataError
    for an empty set or frames of different atoms.
    """
    if not len(structures) or not structures.n_atoms.all():
        raise DataError("structure3d: there is no structure, or one without atoms")
    frames = [_whole(structures, i) for i in range(len(structures))]
    z = frames[0][0]
    for i, (other, _) in enumerate(frames):
        if not np.array_equal(other, z):
            raise DataError(
                f"structure3d: structure {i} has other atoms than structure 0; "
                "show one, or frames of the same atoms"
            )
    labels = len(z) <= LABELLED if labels is None else labels
    cell = structures.cell[0] if structures.pbc[0].any() else None
    corners = [] if cell is None else [_corners(cell)]
    everything = np.concatenate([*(pos for _, pos in frames), *corners])
    low, high = everything.min(0) - 0.8, everything.max(0) + 0.8
    zoom = ZOOM["molecule" if cell is None else "box"]
    scale = PIXELS * zoom * height / SIZE[1] / float((high - low).max())  # pixels per Å
    traces = _traces(z, frames[0][1], scale, labels)
    if cell is not None:
        traces.append(_lines(*_edges(cell), name="box", colour="#777777", width=2, legend=True))
    name = structures.system_names()[structures.system[0]]
    chart = go.Figure(
        data=traces,
        layout=_layout(title or name, low, high, zoom, _eye(frames[0][1], cell), height),
    )
    if len(frames) > 1:
        _slider(chart, structures, [(z, pos) for _, pos in frames], scale, labels)
    return chart


# --- geometry -----------------------------------------------------------------------------------


def _whole(structures: Structures, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and positions of structure ``i``; where it has several molecules, none is
    cut by the faces of the cell.
    """
    rows = slice(structures.ptr[i], structures.ptr[i + 1])
    z, molecule = structures.z[rows], structures.molecule[rows]
    pos = np.asarray(structures.pos[rows], float)
    if structures.cell is None or not structures.pbc[i].any() or (molecule == molecule[0]).all():
        return z, pos
    _, first, owner = np.unique(molecule, return_index=True, return_inverse=True)
    anchor = pos[first][owner]
    return z, anchor + minimum_image(pos - anchor, structures.cell[i], structures.pbc[i])


def _corners(cell: np.ndarray) -> np.ndarray:
    return np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float) @ cell


def _edges(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the twelve edges, [12,3] each."""
    corners = _corners(cell)
    pairs = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
    return corners[[i for i, _ in pairs]], corners[[j for _, j in pairs]]


def _eye(pos: np.ndarray, cell: np.ndarray | None) -> dict[str, Any]:
    """The camera: a box from its front above the corner; a molecule from where it is broadest."""
    if cell is not None or len(pos) < 3:
        return dict(eye=dict(x=0.7, y=-1.9, z=0.75), up=dict(x=0, y=0, z=1))
    _, _, axes = np.linalg.svd(pos - pos.mean(0), full_matrices=False)
    # the sign of an axis is free: fix it
    axes *= np.where(axes[np.arange(3), np.abs(axes).argmax(1)] < 0, -1.0, 1.0)[:, None]
    # from a little aside, or atoms behind one another could not be told
    eye = 2.0 * axes[2] + 0.5 * axes[1] + 0.35 * axes[0]
    return dict(eye=_xyz(eye), up=_xyz(axes[1]))


def _xyz(vector: np.ndarray, digits: int = 4) -> dict[str, float]:
    """A vector as plotly takes it."""
    return dict(zip("xyz", vector.round(digits), strict=True))


# --- drawing ------------------------------------------------------------------------------------


def _radius(number: int | np.ndarray) -> Any:
    """Radius of a drawn atom in Å; hydrogens a little larger than to scale, so that their symbol
    fits.
    """
    return BALL * np.maximum(covalent_radii[number], 0.45)


def _colour(number: int) -> str:
    r, g, b = (round(255 * c) for c in jmol_colors[number].tolist())
    return f"rgb({r},{g},{b})"


def _traces(z: np.ndarray, pos: np.ndarray, scale: float, labels: bool) -> list[go.Scatter3d]:
    """A trace with the bonds, then one per element, heavy ones first."""
    pairs = bonds(z, pos, STRETCH)
    width = float(np.clip(0.15 * scale, 1.5, 8))
    start, end = pos[pairs[:, 0]], pos[pairs[:, 1]]
    along = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
    # from surface to surface, or they would cross the symbols
    start = start + _radius(z[pairs[:, :1]]) * along
    end = end - _radius(z[pairs[:, 1:]]) * along
    traces = [_lines(start, end, name="bonds", colour="#A0A0A0", width=width)]
    for number in sorted(set(z.tolist()), reverse=True):
        rows = np.flatnonzero(z == number)
        bright = float(np.dot(jmol_colors[number], (0.299, 0.587, 0.114))) > 0.5
        points = pos[rows].round(4)
        where = "(%{x:.3f}, %{y:.3f}, %{z:.3f}) Å"
        traces.append(
            go.Scatter3d(
                x=points[:, 0],
                y=points[:, 1],
                z=points[:, 2],
                name=SYMBOLS[number],
                customdata=rows,
                mode="markers+text" if labels else "markers",
                text=[SYMBOLS[number]] * len(rows) if labels else None,
                textfont=dict(size=13, color="black" if bright else "white"),
                textposition="middle center",
                marker=dict(
                    size=float(np.clip(2 * _radius(number) * scale / GLYPH, 1.5, 18)),
                    color=_colour(number),
                    opacity=1.0,
                    line=dict(color="#333333", width=1),
                ),
                hovertemplate=f"{SYMBOLS[number]}, atom %{{customdata}}<br>{where}<extra></extra>",
            )
        )
    return traces


def _lines(
    start: np.ndarray, end: np.ndarray, name: str, colour: str, width: float, legend: bool = False
) -> go.Scatter3d:
    """Separate lines from start [L,3] to end [L,3] as one trace: NaN lifts the pen."""
    points = np.stack([start, end, np.full_like(start, np.nan)], 1).reshape(-1, 3).round(4)
    line = dict(color=colour, width=width)
    return go.Scatter3d(
        x=points[:, 0],
        y=points[:, 1],
        z=points[:, 2],
        mode="lines",
        line=line,
        name=name,
        hoverinfo="skip",
        showlegend=legend,
    )


def _layout(
    title: str, low: np.ndarray, high: np.ndarray, zoom: float, camera: dict[str, Any], height: int
) -> dict[str, Any]:
    sides = high - low
    axes = {
        f"{a}axis": dict(visible=False, range=[float(low[k]), float(high[k])])
        for k, a in enumerate("xyz")
    }
    return dict(
        template="potkit",
        title=title,
        width=SIZE[0],
        height=height,
        margin=dict(l=10, r=10, t=55, b=10),
        legend=dict(itemsizing="constant"),
        scene=dict(
            **axes,
            aspectmode="manual",
            aspectratio=_xyz(zoom * sides / sides.max(), digits=6),
            camera=camera | dict(projection=dict(type="orthographic")),
        ),
    )


def _slider(
    chart: go.Figure,
    structures: Structures,
    frames: list[tuple[np.ndarray, np.ndarray]],
    scale: float,
    labels: bool,
) -> None:
    """A slider that steps through ``frames``, z and pos of each, under the first one's looks."""
    energy = structures.energy
    steps, drawn = [], []
    for i, (z, pos) in enumerate(frames):
        traces = _traces(z, pos, scale, labels)
        # what changes from frame to frame; looks stay
        places = [go.Scatter3d(x=t.x, y=t.y, z=t.z) for t in traces]
        drawn.append(go.Frame(name=str(i), data=places, traces=list(range(len(traces)))))
        label = str(i) if energy is None else f"{i}: {energy[i] - energy.min():.3f} eV"
        at_once = dict(
            mode="immediate",
            frame=dict(duration=0, redraw=True),
            transition=dict(duration=0),
        )
        steps.append(dict(label=label, method="animate", args=[[str(i)], at_once]))
    slider = dict(
        steps=steps,
        active=0,
        currentvalue=dict(prefix="structure "),
        pad=dict(t=5, b=10),
        len=0.9,
        x=0.05,
    )
    chart.frames = drawn
    chart.update_layout(sliders=[slider])
