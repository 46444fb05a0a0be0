"""YAML as people write it: 1e-3 is a number, as in YAML 1.2; PyYAML wants a dot in it."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader that also takes exponents without a dot or a sign for numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+|\d+\.\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(text: str) -> Any:
    """What ``text`` says; raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # a SafeLoader
