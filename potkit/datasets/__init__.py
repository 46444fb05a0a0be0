"""Data sets: what there is (`names`), getting one by name (`load`), reading any file (`read`)."""

from __future__ import annotations

from .reading import read
from .registry import load, names

__all__ = ["load", "names", "read"]
