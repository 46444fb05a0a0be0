"""Peers that have an environment of their own take part in no test but their own: what a user has
set up must not decide a test.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_environments(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    monkeypatch.setenv("POTKIT_PEERS", str(tmp_path_factory.getbasetemp() / "no-peers"))


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for environments, used instead of the user's."""
    monkeypatch.setenv("POTKIT_PEERS", str(tmp_path / "peers"))
    return tmp_path / "peers"
