"""The same run twice gives the same bits, with one thread and with two, also on forces."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from tiny import equal, molecules, weights

import potkit
from potkit.kernels import schnet_pairs
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


def test_two_trainings_of_schnet_in_threads_of_one_process_both_finish(tmp_path):
    structures = molecules(8)
    config = potkit.TrainConfig(steps=6, batch_size=4, progress=False, device="cpu")
    ended: dict[int, object] = {}

    def train(number: int) -> None:
        model = potkit.build("schnet", hidden=16, filters=16, layers=2, seed=number)
        out = tmp_path / str(number)
        try:
            ended[number] = potkit.pretrain(
                model, structures, potkit.Denoise(sigma=0.1), config, out
            )
        except Exception as error:
            ended[number] = error

    together = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert [ended[number].summary["steps"] for number in range(2)] == [6, 6]


def test_slopes_by_forward_differentiation_may_be_made_in_many_threads():
    slope = schnet_pairs.slope_of(schnet_pairs.slope_of(torch.sin))
    failed = []

    def work(number: int) -> None:
        d = torch.linspace(0.1, 3.0, 50, dtype=torch.float64) + number
        for _ in range(60):
            try:
                torch.testing.assert_close(slope(d), -torch.sin(d))
            except Exception as error:
                failed.append(error)

    together = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert not failed
