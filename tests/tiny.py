"""Small structures, labels and networks that several test modules share."""

from __future__ import annotations

import numpy as np
import torch

import potkit
from potkit.objectives import OBJECTIVES, Objective

# TIP3P water, Å and degrees (Jorgensen et al. 1983)
BOND = 0.9572
ANGLE = 104.52
HH = 2 * BOND * np.sin(np.radians(ANGLE / 2))  # Å between the two hydrogens


def egnn(seed: int = 0, **options) -> potkit.Potential:
    """A network of a few hundred weights; the same for the same seed."""
    torch.manual_seed(seed)
    return potkit.build("egnn", **{"hidden": 8, "layers": 2, "cutoff": 4.0, **options})


def rotations(n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly distributed rotation matrices, [n,3,3]."""
    q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    return q * np.sign(np.linalg.det(q))[:, None, None]


def water(
    n_structures: int, per_side: int = 2, seed: int = 0, spacing: float = 3.1
) -> potkit.Structures:
    """Boxes of per_side³ rigid waters (O H H each) in ideal geometry, turned at random, every atom
    wrapped into the box.
    """
    rng = np.random.default_rng(seed)
    half = np.radians(ANGLE / 2)
    shape = BOND * np.array(
        [[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]]
    )
    per = per_side**3  # waters in a box
    side = per_side * spacing
    corners = np.meshgrid(*[np.arange(per_side) * spacing] * 3, indexing="ij")
    grid = np.stack(corners, -1).reshape(-1, 3)
    oxygen = grid + rng.uniform(-0.3, 0.3, (n_structures, per, 3))
    turns = rotations(n_structures * per, rng).reshape(n_structures, per, 3, 3)
    pos = oxygen[:, :, None] + shape @ turns.swapaxes(-1, -2)
    return potkit.Structures(
        z=np.tile([8, 1, 1], n_structures * per),
        pos=np.mod(pos.reshape(-1, 3), side),
        ptr=np.arange(n_structures + 1) * 3 * per,
        cell=np.tile(side * np.eye(3), (n_structures, 1, 1)),
        pbc=np.ones((n_structures, 3), bool),
        molecule=np.tile(np.repeat(np.arange(per), 3), n_structures),
        info={"name": "ideal water"},
    )


def molecules(n: int, seed: int = 0, offset: float = 0.0, dtype=np.float64) -> potkit.Structures:
    """Distorted formaldehyde and ethylene-like frames, labelled by Morse bonds between all pairs;
    ``offset`` eV per carbon.
    """
    rng = np.random.default_rng(seed)
    frames = {
        (6, 8, 1, 1): [[0, 0, 0], [1.21, 0, 0], [-0.59, 0.94, 0], [-0.59, -0.94, 0]],
        (6, 6, 1, 1, 1, 1): [
            [0, 0, 0],
            [1.34, 0, 0],
            [-0.57, 0.93, 0],
            [-0.57, -0.93, 0],
            [1.91, 0.93, 0],
            [1.91, -0.93, 0],
        ],
    }
    kinds = list(frames.items())
    z, pos, energy, forces, sizes = [], [], [], [], []
    for i in range(n):
        elements, shape = kinds[i % 2]
        x = np.array(shape) @ rotations(1, rng)[0].T + rng.normal(scale=0.06, size=(len(shape), 3))
        e, f = morse(x)
        z += elements
        pos.append(x)
        energy.append(e + offset * elements.count(6))
        forces.append(f)
        sizes.append(len(x))
    return potkit.Structures(
        np.array(z),
        np.concatenate(pos).astype(dtype),
        np.cumsum([0, *sizes]),
        np.array(energy),
        np.concatenate(forces).astype(dtype),
        system=np.arange(n) % 2,
        info={"name": "tiny molecules", "systems": ["CH2O", "C2H4"]},
    )


def morse(
    x: np.ndarray, depth: float = 1.0, stiff: float = 1.5, length: float = 1.3
) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of Morse bonds between all pairs."""
    d = x[:, None] - x[None]
    r = np.linalg.norm(d, axis=-1) + np.eye(len(x))
    w = np.exp(-stiff * (r - length)) * (1 - np.eye(len(x)))
    slope = 2 * depth * stiff * (1 - w) * w  # dE/dr per pair
    energy = 0.5 * depth * float(((1 - w) ** 2 * (1 - np.eye(len(x)))).sum())
    return energy, -((slope / r)[..., None] * d).sum(1)


def unlisted(*listed: Objective) -> list[Objective]:
    """Registered objectives of which ``listed`` has no example, with their default settings."""
    kinds = {type(objective) for objective in listed}
    return [kind() for kind in OBJECTIVES.values() if kind not in kinds]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_line(error: BaseException) -> str:
    """The message of ``error``, which must be a single line."""
    text = str(error)
    assert text and "\n" not in text, text
    return text


def weights(model) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
