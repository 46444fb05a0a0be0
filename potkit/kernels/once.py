"""What replacements work out about the edges of a step, once for all layers."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

Key, Value = TypeVar("Key"), TypeVar("Value")


def once(function: Callable[[Key], Value]) -> Callable[[Key], Value]:
    """``function``, which remembers its answer about an object for as long as that object lives.

    The answer must not hold on to the object, or neither would ever be let go.
    """
    known: weakref.WeakKeyDictionary[Key, Value] = weakref.WeakKeyDictionary()

    @functools.wraps(function)
    def remembered(key: Key) -> Value:
        if key not in known:
            known[key] = function(key)
        return known[key]

    return remembered
