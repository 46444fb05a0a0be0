"""Networks of a user's own by import path, "package.module:name": how a checkpoint names one.

Nothing that a file names is imported unless the user has named its module before:

    potkit.models.allow("my_networks")              # or one maker of it: "my_networks:make"

From a shell: ``potkit --allow-module my_networks evaluate RUN …``. What is called is a class or
function that the module itself defines, with arguments that are JSON; nothing is unpickled.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..structures.settings import shown

_MODULE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_PATH = re.compile(rf"({_MODULE}):([A-Za-z_]\w*)", re.ASCII)
_ALLOWED = re.compile(rf"{_MODULE}(?::[A-Za-z_]\w*)?", re.ASCII)
_allowed: set[str] = set()


def allow(*names: str) -> None:
    """Let checkpoints name what ``names`` hold, in this process: modules ("my_networks"), or single
    classes and functions of them ("my_networks:make").

    A module's submodules are not meant with it. Allow what makes networks and does nothing else: a
    file decides with which arguments it is called. Raises ConfigError for anything but such names.
    """
    for name in names:
        if not (isinstance(name, str) and _ALLOWED.fullmatch(name)):
            raise ConfigError(
                f"{shown(name)} is not the name of a module, such as my_networks, or of a maker in "
                "one, such as my_networks:make"
            )
    _allowed.update(names)


def allowed() -> list[str]:
    """What `allow` was given so far."""
    return sorted(_allowed)


def check_allowed(path: str) -> None:
    """Raise ConfigError for an import path that `allow` was not given; nothing is imported."""
    module, name = _split(path)
    if not {module, f"{module}:{name}"} & _allowed:
        raise ConfigError(
            f"it names code of {module}, which was not allowed; if you trust it: "
            f"potkit.models.allow({module!r}), or potkit --allow-module {module} …"
        )


def construct(path: str, arguments: dict[str, Any]) -> nn.Module:
    """The torch module that the class or function at ``path`` makes of ``arguments``.

    Raises ConfigError where it cannot be imported, is defined elsewhere, fails, or makes something
    else.
    """
    module, name = _split(path)
    try:
        maker = getattr(importlib.import_module(module), name)
    except AttributeError:
        raise ConfigError(f"{module} has no {name}") from None
    except Exception as error:  # whatever a module does when it is imported
        raise ConfigError(f"{module} cannot be imported ({_line(error)})") from error
    if not (inspect.isclass(maker) or inspect.isfunction(maker)):
        raise ConfigError(f"{path} is neither a class nor a function")
    if maker.__module__ != module:
        raise ConfigError(
            f"{path} is defined in {maker.__module__}: name it where it is defined, "
            f"{maker.__module__}:{maker.__qualname__}"
        )
    if inspect.isclass(maker) and not issubclass(maker, nn.Module):
        raise ConfigError(f"{path} is a class, but not of torch modules")
    try:
        made = maker(**arguments)
    except Exception as error:  # a user's own code
        raise ConfigError(f"{path}: {_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{path} makes {type(made).__name__}, not a torch module")
    return made


def check_arguments(arguments: Any, path: str) -> dict[str, Any]:
    """``arguments``, if a checkpoint can hold them. Raises ConfigError for what is not JSON."""
    try:
        kept = json.loads(json.dumps(arguments)) == arguments
    except (TypeError, ValueError, RecursionError):
        kept = False
    if not (kept and isinstance(arguments, dict) and all(isinstance(k, str) for k in arguments)):
        raise ConfigError(
            f"the arguments of {path} must be a dict of numbers, texts, lists and dicts, "
            f"got {shown(arguments)}"
        )
    return arguments


def _split(path: Any) -> tuple[str, str]:
    match = _PATH.fullmatch(path) if isinstance(path, str) else None
    if match is None:
        raise ConfigError(f"{shown(path)} is not an import path, such as my_networks:make")
    return match[1], match[2]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
