"""torch.compile takes the backbone of every network, and what it computes stays the same."""

from __future__ import annotations

import pytest
import torch
from tiny import molecules

from potkit import Denoise, models


@pytest.mark.parametrize("name", models.names())
def test_every_backbone_can_be_traced(name):
    """Dynamo traces it, with a number of atoms and edges that may change, and runs what it traced;
    code from that, which takes a minute, is made in training alone.
    """
    torch.compiler.reset()
    needed = Denoise(sigma=0.1).needed()
    model = models.build(name, layers=2, seed=0)
    model.extend(needed, (), seed=0)
    few, more = molecules(2).batch(), molecules(5, seed=1).batch()
    expected = [model(batch, needed) for batch in (few, more)]
    model.backbone.compile(backend="eager", dynamic=True)
    for batch, plain in zip((few, more), expected, strict=True):
        traced = model(batch, needed)
        for one, other in zip(traced, plain, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other)
