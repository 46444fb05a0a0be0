"""Notebook 09's settings: what each profile trains and moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from potkit.errors import ConfigError, PotkitError
from potkit.notebooks import dynamics_profiles


def settings(profile: str, **changes) -> SimpleNamespace:
    return SimpleNamespace(profile=profile, **dynamics_profiles.DYNAMICS[profile] | changes)


@pytest.mark.parametrize("profile", ["smoke", "quick", "study"])
def test_what_is_moved_is_unseen(profile):
    """No frame that is compared with is one that a network learns from."""
    run = settings(profile)
    grid, cases = dynamics_profiles.cases(run)
    assert [e.columns["system"] for e in grid] == [*run.molecules, "water"]
    for experiment, case in zip(grid, cases, strict=True):
        learned = {p.tobytes() for p in (s.pos for s in experiment.train)}
        assert not learned & {p.tobytes() for p in (s.pos for s in case.reference)}
        assert experiment.labels == run.labels and experiment.longer is None
    water = cases[-1]
    assert water.plan.radial == ("O", "O") and water.starts.cell is not None


def test_what_cannot_be_stops_in_one_line():
    with pytest.raises(ConfigError, match="no box '9 waters'"):
        dynamics_profiles.cases(settings("smoke", box="9 waters"))
    with pytest.raises(PotkitError, match="no-such-molecule"):
        dynamics_profiles.cases(settings("smoke", molecules=["no-such-molecule"]))
