"""Networks for other programs: `potkit.export` writes what an MD engine loads.

    potkit.export("runs/finetune", "water.pt")                          # metatomic: LAMMPS, ASE, …
    potkit.export("runs/finetune", "water.safetensors", "torch-sim")    # for `torch_sim_model`

Packages that a format needs are imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import ConfigError
from ..models import Potential, traced
from ..models.base import NO_STRESS
from ..structures.elements import SYMBOLS
from ..structures.outputs import Kind, check
from ..structures.settings import shown
from ..structures.storage import replacing
from ..testing.sample_structures import examples
from . import checkpoints
from .evaluation import checked_device, open_model
from .run_folder import Run

FORMATS = ("metatomic", "torch-sim")
DTYPES = (torch.float32, torch.float64)
# modules of each extra; those of metatomic are compiled by TorchScript as they are imported
NEEDED = {"metatomic": ("metatomic.torch", "metatomic_ase"), "torch-sim": ("torch_sim",)}


def _is_exported(path: Path) -> bool:
    """Whether ``path`` is a metatomic model: TorchScript with metatomic's own entries."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("extra/metatomic-version") for name in file.namelist())


METATOMIC = Kind("a metatomic model", _is_exported)


@contextlib.contextmanager
def _torchs_own_functions() -> Iterator[None]:
    """Within, torch.index_select and torch.select are torch's own.

    torch-geometric puts Python functions in their place, which take names of dimensions too and
    which TorchScript cannot compile: metatensor compiles what calls them when it is imported.
    """
    replaced = {name: getattr(torch, name) for name in ("index_select", "select")}
    for name in replaced:
        setattr(torch, name, getattr(torch._C._VariableFunctions, name))
    try:
        yield
    finally:
        for name, function in replaced.items():
            setattr(torch, name, function)


def require(extra: str) -> None:
    """Raise ConfigError, saying how to install it, where what ``extra`` brings cannot be
    imported.
    """
    try:
        with _torchs_own_functions():
            for name in NEEDED[extra]:
                importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{extra} cannot be imported ({error}): pip install 'potkit[{extra}]'"
        ) from None


def export(
    checkpoint: str | Path | Run | Potential,
    path: str | Path,
    format: str = "metatomic",
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> Path:
    """Write a trained network for another program; returns the file.

    ``format`` "metatomic": TorchScript with metatomic's interface, which LAMMPS, ASE and others
    load without potkit. Lengths in Å, energies in eV (also of atoms), forces and stress as the
    engine's derivatives; a network that reads its forces out has them as "non_conservative_force"
    (eV/Å). It runs in ``dtype``, float64 or float32, and on the kind of ``device``, "cpu" or
    "cuda", that it was recorded on. The file is held to the network on structures of several sizes,
    free and periodic, before it gets its name.

    "torch-sim": a checkpoint of the weights alone, as safetensors, for `torch_sim_model`.

    Raises ConfigError for an unknown format, a package that is missing (`potkit[metatomic]`), and a
    network that cannot be exported: one whose energy is no sum over atoms, that reads charges, or
    whose answer depends on more than the neighbour list; CheckpointError for a checkpoint that
    cannot be read or has no energies, DataError where ``path`` holds anything else than such a
    file.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {shown(format)}; there are {', '.join(FORMATS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be torch.float32 or torch.float64, got {shown(dtype)}")
    place = checked_device(device)
    if format == "torch-sim":
        model = open_model(checkpoint).to(dtype)
        traced.check_charges(model)
        check(path, checkpoints.CHECKPOINT)
        return checkpoints.save(path, model, {"exported": "torch-sim"})
    require("metatomic")
    check(path, METATOMIC)
    model = open_model(checkpoint).to(place, dtype)
    _write_metatomic(model, Path(path))
    return Path(path)


def elements_of(model: Potential) -> list[int]:
    """Atomic numbers a network has reference energies for; all it knows where none were set."""
    known = torch.nonzero(model.known).flatten().tolist()
    return known or list(range(1, model.backbone.max_element + 1))


def _write_metatomic(model: Potential, path: Path) -> None:
    from .export_metatomic import write

    elements = elements_of(model)
    tried = [z for z in (1, 6, 7, 8) if z in elements] or elements[:4]
    like = model.like()
    structures = [
        examples(model.cutoff, elements=tried),
        examples(model.cutoff, periodic=True, seed=1, elements=tried),
        examples(model.cutoff, seed=2, elements=tried)[:1],
    ]
    recorded = traced.trace(model, structures)
    name = type(model.backbone).__name__
    direct = model.forces_mode == "vector"
    reach = traced.reach(model, tried[0])
    description = (  # engines print it when they load the file
        f"{name} of potkit for {', '.join(SYMBOLS[z] for z in elements)}; "
        f"Å, eV; cutoff {model.cutoff:g} Å"
    )
    if direct:  # LAMMPS would take −∂E/∂x without a word
        description += "; its forces are non_conservative_force, not the derivative of its energy"
    with replacing(path, METATOMIC) as temporary, _torchs_own_functions():
        write(
            temporary,
            recorded,
            name=f"potkit {name}",
            cutoff=model.cutoff,
            interaction_range=reach,
            elements=elements,
            direct_forces=direct,
            shift=model.shift is not None,
            dtype=like.dtype,
            device=like.device.type,
            description=description,
        )


def torch_sim_model(
    checkpoint: str | Path | Run | Potential,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
    compile: bool = False,
    compute_forces: bool = True,
    compute_stress: bool | None = None,
):
    """A trained network as a `torch_sim.models.interface.ModelInterface`.

    Energies [S] in eV, forces [N, 3] in eV/Å, stress [S, 3, 3] in eV/Å³ (tension positive; NaN of
    systems that do not repeat), energies of atoms [N]; all systems of a state at once. A stress is
    computed by default where the network has one (see `Potential.has_stress`). ``compile`` is as in
    `potkit.calculator`.

    Raises ConfigError where torch-sim is missing (`potkit[torch-sim]`), and what `export` does.
    """
    require("torch-sim")
    from .torch_sim_model import PotkitModel

    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be torch.float32 or torch.float64, got {shown(dtype)}")
    place = checked_device(device)
    model = open_model(checkpoint).to(place, dtype)
    traced.check_charges(model)
    can = model.has_stress
    if compute_stress and not can:
        raise ConfigError(NO_STRESS)
    stress = can if compute_stress is None else compute_stress
    return PotkitModel(model, place, dtype, compile, compute_forces, stress)
