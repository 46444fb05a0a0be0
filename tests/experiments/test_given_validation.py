"""Validation structures that are given: label budgets draw them from there and nowhere else."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from grids import DATA, grid, numbers

from potkit.errors import ConfigError
from potkit.experiments import experiment, tasks
from potkit.experiments.given_validation import GivenValidation

ROWS = np.array([3, 7, 11, 15, 19, 23])


def given(store="unused", rows=ROWS, **changes) -> GivenValidation:
    plain = grid(store, **changes)
    values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    return GivenValidation(**values, valid_rows=rows)


def energies(structures) -> set[float]:
    return set(structures.energy.tolist())


def test_a_budget_of_all_structures_is_the_split_as_given():
    train, valid = given().labelled(24, seed=5)
    assert energies(valid) == energies(DATA[ROWS])
    assert energies(train) == energies(DATA[:24]) - energies(DATA[ROWS])
    assert given().valid_fraction == 0.25


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12, 20, 23])
def test_smaller_budgets_draw_from_both_parts_and_are_nested(count):
    e = given()
    train, valid = e.labelled(count, seed=2)
    assert len(train) + len(valid) == count and len(train) and len(valid)
    assert energies(valid) <= energies(DATA[ROWS])
    assert not energies(train) & energies(DATA[ROWS])
    more_train, more_valid = e.labelled(count + 1, seed=2)
    assert energies(train) <= energies(more_train) and energies(valid) <= energies(more_valid)
    other, _ = e.labelled(count, seed=3)
    assert count > 20 or energies(train) != energies(other)


def test_it_is_another_run_than_one_that_draws_them():
    task = tasks.Task("finetune", "scratch", 0, 10)
    assert tasks.finetune_folder(given(), task) != tasks.finetune_folder(grid("unused"), task)


def test_it_runs_like_any_other_and_travels_to_workers(tmp_path):
    one = given(tmp_path / "a", seeds=[0], objectives={}, variants={}, longer=None)
    again = pickle.loads(pickle.dumps(dataclasses.replace(one, store=tmp_path / "b")))
    first, second = experiment.run(one, progress=False), experiment.run(again, progress=False)
    assert first.status.tolist() == ["ok"]
    assert numbers(first).equals(numbers(second))


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "some must be left"),
        (range(24), "some must be left"),
        ([1, 1], "none may come twice"),
        ([1, 24], "row 24"),
        ([-1, 2], "row -1"),
    ],
)
def test_rows_that_cannot_validate_are_refused(rows, words):
    with pytest.raises(ConfigError, match=words):
        given(rows=rows)
