"""Plain functions by name, so that faster versions can stand in for them unknown to the networks.

A network's file holds the plain function and marks it: ``@replaceable("egnn.messages")``. Whoever
has a faster version registers it under that name, with the condition under which it stands in:

    register("egnn.messages", condition, replacement)

Both get what the plain function gets. The first replacement whose condition is true is called; if
there is none, the plain function. torch.compile always traces the plain function, which it makes
fast itself; so does torch.jit.trace, whose graph must run without potkit, and whoever asks for it
(`plain_only`). The plain function stays within reach as ``function.plain``: it is what a
replacement is tested against, and what replacements fall back on for derivatives they do not have.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, TypeVar

import torch

# Where replacements are registered. The module belongs to a room above this one, so it is not
# imported here but named, and loaded when the first replaceable function is called.
PROVIDER = "potkit.kernels.replacements"

Function = TypeVar("Function", bound=Callable[..., Any])


class Replacement(NamedTuple):
    """``function`` stands in for the plain one where ``condition`` holds for its arguments."""

    condition: Callable[..., bool]
    function: Callable[..., Any]


_replacements: dict[str, list[Replacement]] = {}
# names of those that may be replaced; None: all
_replaceable = contextvars.ContextVar("replaceable", default=None)


@contextlib.contextmanager
def plain_only(but: Collection[str] = ()) -> Iterator[None]:
    """Within, nothing stands in for a plain function, except for those that ``but`` names."""
    token = _replaceable.set(frozenset(but))
    try:
        yield
    finally:
        _replaceable.reset(token)


def _left_alone(name: str) -> bool:
    """Whether the plain function is what is called, whatever is registered."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    replaceable = _replaceable.get()
    return replaceable is not None and name not in replaceable


def replaceable(name: str) -> Callable[[Function], Function]:
    """Mark a function, or a method, as one that replacements under ``name`` may stand in for.

    It is called with positional arguments.
    """

    def mark(plain: Function) -> Function:
        @functools.wraps(plain)
        def call(*args: Any) -> Any:
            if _left_alone(name):
                return plain(*args)
            for replacement in replacements(name):
                if replacement.condition(*args):
                    return replacement.function(*args)
            return plain(*args)

        call.plain = plain
        return call

    _replacements.setdefault(name, [])
    return mark


def register(name: str, condition: Callable[..., bool], function: Callable[..., Any]) -> None:
    """Have ``function`` stand in for the plain function ``name`` where ``condition`` is true.

    What was registered first is asked first. Raises KeyError if no plain function has that name.
    """
    if name not in _replacements:
        raise KeyError(
            f"no plain function is marked {name!r}; there are {', '.join(_replacements)}"
        )
    _replacements[name].append(Replacement(condition, function))


def names() -> list[str]:
    """The plain functions that have replacements."""
    _load_provider()
    return [name for name, registered in _replacements.items() if registered]


def replacements(name: str) -> list[Replacement]:
    """The replacements of a plain function, in the order in which they are asked."""
    _load_provider()
    return _replacements[name]


@functools.cache
def _load_provider() -> None:
    importlib.import_module(PROVIDER)
