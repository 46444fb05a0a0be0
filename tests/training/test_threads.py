"""The same run twice gives the same bits, with one thread and with two, also on forces."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import equal, molecules, weights

import potkit
from potkit.training import loop


@pytest.mark.parametrize("network", ["egnn", "torchmd_et", "painn"])
def test_fine_tuning_repeats_bit_by_bit(tmp_path, threads, network):
    config = potkit.TrainConfig(
        steps=12, batch_size=32, lr=1e-2, progress=False, device="cpu", validate_every=12
    )
    structures = potkit.load("ani-mini")[:64]
    ends = []
    for name in ("first", "second", "third"):
        model = potkit.build(network, seed=0)
        ends.append(loop.fit(model, structures, potkit.Supervised(), config, tmp_path / name))
    assert all(equal(weights(ends[0].model), weights(end.model)) for end in ends[1:])
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert record["machine"]["threads"] == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_are_no_part_of_a_run_s_identity(tmp_path):
    config = potkit.TrainConfig(steps=2, batch_size=4, progress=False, device="cpu")
    before = torch.get_num_threads()
    hashes = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            model = potkit.build("egnn", hidden=8, layers=2, seed=0)
            out = tmp_path / str(count)
            run = loop.fit(model, molecules(8), potkit.Denoise(sigma=0.1), config, out)
            hashes.append(run.summary["hash"])
    finally:
        torch.set_num_threads(before)
    assert hashes[0] == hashes[1]
