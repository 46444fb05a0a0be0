"""docs/architecture.md says what is there: the rooms, and the files that one denoising step runs
through.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tiny import molecules

import potkit
from potkit.training import loop

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "potkit"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def section(title: str) -> str:
    """What stands under a heading of the page."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]


def test_every_room_is_on_the_page():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    named = re.findall(r"^\| `(\w+)/` \|", section("Rooms"), re.M)
    assert sorted(named) == sorted(rooms)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> set[str]:
    """The files of the package whose code one denoising step of EGNN calls, `fit` included."""
    files: set[str] = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name not in ("<module>", "<lambda>"):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                files.add(path.relative_to(PACKAGE).as_posix())

    take_step = loop.take_step

    def traced(training, state):
        if state.step == 0:  # the first step imports what it needs
            return take_step(training, state)
        sys.setprofile(note)
        try:
            return take_step(training, state)
        finally:
            sys.setprofile(None)

    model = potkit.build("egnn", hidden=8, layers=1, radial=4, cutoff=4.0, seed=0)
    config = potkit.TrainConfig(steps=2, batch_size=2, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", traced)
        out = tmp_path_factory.mktemp("journey") / "run"
        loop.fit(model, molecules(4), potkit.Denoise(sigma=0.1), config, out)
    # the package's own file finds modules for whoever imports one
    return files - {"__init__.py"} | {"training/loop.py"}


def test_the_journey_of_a_step_is_the_one_that_runs(opened):
    journey = section("One denoising step")
    to_open = re.findall(r"^\d+\. `potkit/([\w/]+\.py)`", journey, re.M)
    called = re.findall(r"^- `potkit/([\w/]+\.py)`", journey, re.M)
    listed = {*to_open, *called}
    assert not opened - listed, f"a step also runs through {sorted(opened - listed)}"
    assert not listed - opened, f"a step does not run through {sorted(listed - opened)}"
    assert len(to_open) <= 7 and len(listed) == len(to_open) + len(called)


def test_every_file_the_page_names_exists():
    named = set(re.findall(r"`((?:potkit|tests|notebooks|data|docs)/[\w/.-]+)`", PAGE))
    assert named and not [name for name in named if not (ROOT / name).exists()]
