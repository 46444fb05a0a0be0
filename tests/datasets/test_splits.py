"""Splits, label budgets, index files, duplicates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from potkit.datasets import duplicates, published_splits, splits
from potkit.errors import ConfigError, DataError
from potkit.structures.store import Structures, concatenate


def make(counts=(50, 30, 20), atoms=4, seed=0) -> Structures:
    rng = np.random.default_rng(seed)
    n = sum(counts)
    z = rng.choice([1, 6, 8], (len(counts), atoms))
    system = np.repeat(np.arange(len(counts)), counts)
    return Structures(
        z[system].reshape(-1),
        rng.normal(size=(n * atoms, 3)) * 2,
        np.arange(n + 1) * atoms,
        energy=rng.normal(size=n),
        system=system,
        info={"name": "made", "systems": [f"m{i}" for i in range(len(counts))]},
    )


@pytest.mark.parametrize("by", splits.BY)
def test_parts_are_disjoint_rising_and_repeatable(by):
    s = make((50, 30, 20, 10, 5, 7, 8, 9, 10, 11))
    parts = splits.split(s, (0.8, 0.1, 0.1), seed=3, by=by)
    joined = np.concatenate(parts)
    assert len(joined) == len(s) and len(np.unique(joined)) == len(s)
    assert all((np.diff(p) > 0).all() for p in parts)
    again = splits.split(s, (0.8, 0.1, 0.1), seed=3, by=by)
    other = splits.split(s, (0.8, 0.1, 0.1), seed=4, by=by)
    assert all(map(np.array_equal, parts, again))
    assert not all(map(np.array_equal, parts, other))


@pytest.mark.parametrize("by", splits.BY)
def test_parts_of_nothing_are_empty(by):
    parts = splits.split(make()[[]], (0.8, 0.1, 0.1), by=by)
    assert [p.tolist() for p in parts] == [[], [], []]
    assert len(make()[parts[0]]) == 0


def test_by_system_keeps_systems_whole():
    s = make((50, 30, 20, 10, 5, 7, 8, 9, 10, 11))
    parts = splits.split(s, (0.8, 0.1, 0.1), seed=0, by="system")
    systems = [set(s.system[p]) for p in parts]
    assert [len(x) for x in systems] == [8, 1, 1]
    assert not (systems[0] & systems[1] | systems[0] & systems[2] | systems[1] & systems[2])


def test_within_system_keeps_shares_and_ignores_other_systems():
    s = make((50, 30, 20))
    parts = splits.split(s, (0.8, 0.1, 0.1), seed=0, by="structure-within-system")
    assert [np.bincount(s.system[p]).tolist() for p in parts] == [
        [40, 24, 16],
        [5, 3, 2],
        [5, 3, 2],
    ]
    fewer = splits.split(s[s.system < 2], (0.8, 0.1, 0.1), seed=0, by="structure-within-system")
    assert fewer[2].tolist() == [i for i in parts[2] if i < 80]


def test_small_systems_lose_no_part_systematically():
    s = make((5,) * 400, atoms=2)
    parts = splits.split(s, (0.8, 0.1, 0.1), seed=0, by="structure-within-system")
    assert len(parts[0]) == 1600 and 150 < len(parts[1]) < 250


def test_counts_and_rest():
    s = make()
    assert [len(p) for p in splits.split(s, (50, 10, None), seed=0)] == [50, 10, 40]
    assert [len(p) for p in s.split((0.5, 7), seed=0)] == [50, 7]
    with pytest.raises(DataError, match="asks for 101 of 100"):
        splits.split(s, (101, None))
    for wrong in [(0.8, 0.3), (-0.1, 0.5), (), (None, None), ("a",), (True,)]:
        with pytest.raises(ConfigError):
            splits.split(s, wrong)
    with pytest.raises(ConfigError, match="by must be one of"):
        splits.split(s, (0.5, 0.5), by="molecule")


def test_shares_rounded_down_are_the_denoise_papers_split():
    """Its code floors the validation and the test part of each molecule; training has the rest."""
    counts = (2, 5, 9, 10, 15, 19, 20, 29, 100)
    s = make(counts)
    train, valid, test = splits.split(
        s, (0.8, 0.1, 0.1), seed=1, by="structure-within-system", rounding="floor"
    )
    held = [int(np.floor(0.1 * n)) for n in counts]
    assert np.bincount(s.system[valid], minlength=9).tolist() == held
    assert np.bincount(s.system[test], minlength=9).tolist() == held
    assert len(np.unique(np.concatenate([train, valid, test]))) == len(s)
    rest, fifth = splits.split(s, (None, 0.2), by="structure-within-system", rounding="floor")
    assert np.bincount(s.system[fifth], minlength=9).tolist() == [int(0.2 * n) for n in counts]
    assert len(rest) + len(fifth) == len(s)
    blocks = splits.split(s, (0.5, 0.5), by="block", rounding="floor", block=1)
    assert len(blocks[0]) == sum(n - n // 2 for n in counts)
    with pytest.raises(ConfigError, match="rounding must be one of drawn, floor, got 'up'"):
        splits.split(s, (0.5, 0.5), rounding="up")


@pytest.mark.parametrize("by", ["structure", "structure-within-system"])
def test_label_budgets_are_nested(by):
    s = make((60, 30, 10))
    budgets = splits.label_budget(s, [0.05, 0.1, 20, 0.5, 1.0], seed=1, by=by)
    sets = [set(rows) for rows in budgets.values()]
    assert [len(x) for x in sets] == [5, 10, 20, 50, 100]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(sets))
    if by == "structure-within-system":
        assert np.bincount(s.system[budgets[0.5]]).tolist() == [30, 15, 5]
    for wrong in (0, 101, 1.5, 0.001):
        with pytest.raises(DataError, match="label budget"):
            splits.label_budget(s, [wrong])


def test_index_files(tmp_path):
    s, path = make(), tmp_path / "split.npz"
    train, test = splits.split(s, (0.9, 0.1))
    splits.save_indices(path, s, {"train": train, "test": test}, seed=0)
    again = splits.load_indices(path, s)
    assert again["train"].tolist() == train.tolist() and again["test"].tolist() == test.tolist()
    with pytest.raises(DataError, match=r"made for made .100 structures.* these are made .100,"):
        splits.load_indices(path, make(seed=1))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="truncated or damaged"):
        splits.load_indices(path, s)
    with pytest.raises(DataError, match="no such split file"):
        splits.load_indices(tmp_path / "none.npz", s)


def test_published_index_files(tmp_path):
    path = tmp_path / "train_ids.txt"
    path.write_text("3\n1\n10\n")
    assert splits.published(path, 10, base=1).tolist() == [2, 0, 9]
    path.write_text("0\n5.0\n4\n")
    assert splits.published(path, 10).tolist() == [0, 5, 4]
    for content, words in [
        ("1\n2\n11\n", "line 3: index 11 points outside the 10 structures"),
        ("0\n1\n", "line 1: index 0 points outside"),
        ("1\ntwo\n", "line 2: 'two'"),
        ("1\n2\n1\n", "line 3: index 1 comes twice"),
        ("1.5\n", "line 1: '1.5'"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=words):
            splits.published(path, 10, base=1)


def test_pretraining_rows_leave_out_what_is_tested_on():
    """But for the published fault, by which pretraining's own draw sees most test structures."""
    s = make((200, 120, 80))
    test = splits.split(s, (0.9, 0.1), seed=1, by="structure-within-system")[1]
    rows = published_splits.pretraining_rows(len(s), test)
    assert not np.isin(test, rows).any() and len(rows) + len(test) == len(s)
    assert (np.diff(rows) > 0).all()
    all_rows = published_splits.pretraining_rows(len(s), test, faults=("test-in-pretraining",))
    assert len(all_rows) == len(s)
    for given, share in ((rows, 0.0), (all_rows, 0.95)):
        pool = s[given]
        seen = given[splits.split(pool, (0.95, 0.05), seed=7, by="structure-within-system")[0]]
        assert np.isin(test, seen).mean() == pytest.approx(share, abs=0.1)
    with pytest.raises(DataError, match="row 400 is not one of the 400"):
        published_splits.pretraining_rows(len(s), [3, 400])
    with pytest.raises(ConfigError, match="test-in-pretraining"):
        published_splits.pretraining_rows(len(s), test, faults=("leak",))


def test_published_parts_are_found_again_only_in_the_set_as_it_was_read(tmp_path):
    s = splits.mark_parts(make(), {"train": 70, "test": 30})
    parts = splits.parts(s)
    assert parts["train"].tolist() == list(range(70))
    assert parts["test"].tolist() == list(range(70, 100))
    opened = Structures.open(s.save(tmp_path / "s"))
    assert splits.parts(opened)["test"].tolist() == list(range(70, 100))
    for other in (s[::-1], s[:99], s[[0, 1]]):
        with pytest.raises(DataError, match="made: cut or reordered since it was read"):
            splits.parts(other)
    with pytest.raises(DataError, match="made: no published parts are known"):
        splits.parts(make())


def moved(s: Structures, seed: int = 0) -> Structures:
    """Every structure turned, mirrored, shifted, its atoms shuffled, and shaken by 1e-5 Å."""
    rng = np.random.default_rng(seed)
    pos = s.pos.copy()
    z = s.z.copy()
    for i in range(len(s)):
        a, b = s.ptr[i], s.ptr[i + 1]
        order = rng.permutation(b - a)
        mirrored = s.pos[a:b] * [1, 1, -1 if i % 2 else 1]
        turned = Rotation.random(random_state=rng).apply(mirrored) + rng.normal(size=3) * 9
        pos[a:b] = turned[order] + rng.normal(size=(b - a, 3)) * 1e-5
        z[a:b] = s.z[a:b][order]
    return Structures(z, pos, s.ptr, system=s.system, info=s.info)


def test_leakage_finds_moved_copies_only():
    s = make((40, 40), atoms=7)
    other = moved(s[[3, 50, 7]]) + make((5,), atoms=7, seed=9)
    leaked = duplicates.leakage(s, other)
    assert sorted(leaked[["a", "b"]].values.tolist()) == [[3, 0], [7, 2], [50, 1]]
    assert "3 of 8 structures" in leaked.attrs["message"]
    far = s[[3]]
    far.pos[0] += 0.1
    assert len(duplicates.leakage(s, far)) == 0


def test_leakage_is_reported_for_every_set():
    s = make((40, 40), atoms=7)
    test = moved(s[[3, 50, 7]]) + make((5,), atoms=7, seed=9)
    report = splits.leakage_report(test, pretrain=s, train=s[[50, 51]], other=make((3,), atoms=5))
    assert report["in_test"].tolist() == [3, 1, 0]
    assert report["share"].tolist() == [0.375, 0.125, 0.0]
    assert report["message"][0].startswith("pretrain: 3 of 8 structures")


def test_keys_do_not_depend_on_the_chunks(monkeypatch):
    s = make((10, 7), atoms=5) + make((4,), atoms=3, seed=3)
    whole = duplicates._key(s)
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    assert np.array_equal(duplicates._key(s), whole) and len(set(whole.tolist())) >= 2


def test_pairs_agree_with_brute_force():
    rng = np.random.default_rng(0)
    base = make((20,), atoms=5)
    shaken = [moved(base, k) for k in range(2)]
    for k, t in enumerate(shaken):
        t.pos += rng.normal(size=t.pos.shape) * (1e-4 if k else 0.05)
    s = base + shaken[0] + shaken[1]
    assert {tuple(pair) for pair in duplicates.pairs(s)} == {(i, 40 + i) for i in range(20)}
    assert duplicates.distinct(s).tolist() == list(range(40))


def test_distance_tie_between_elements_is_told_apart():
    pos = np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    s = Structures(np.array([6, 8, 1, 8, 6, 1]), np.concatenate([pos, pos]), np.array([0, 3, 6]))
    assert len(duplicates.pairs(s)) == 0  # the same distances, C and O exchanged


def test_periodic_copies():
    rng = np.random.default_rng(0)
    z = rng.choice([1, 8], 30)
    pos = rng.uniform(0, 10, (30, 3))
    cell = np.diag([10.0, 10, 10])
    shifted = (pos + np.array([3.0, 4.0, 5.0])) % 10
    order = rng.permutation(30)
    changed = pos.copy()
    changed[4] += 0.3
    s = Structures(
        np.concatenate([z, z[order], z]),
        np.concatenate([pos, shifted[order], changed]),
        np.arange(4) * 30,
        cell=np.stack([cell] * 3),
        pbc=np.ones((3, 3), bool),
    )
    assert duplicates.pairs(s).tolist() == [[0, 1]]


def test_real_leakage(reference_data):
    from potkit.datasets import read

    # the mixed-temperature file of 3BPA repeats frames of the 300 K file
    found = duplicates.leakage(
        read(reference_data / "3bpa/train_300K.xyz"), read(reference_data / "3bpa/train_mixedT.xyz")
    )
    assert len(found) == 31


# -- trajectories --------------------------------------------------------------------------------
def walk(frames: int, step: float, seed: int = 0, system: int = 0, atoms: int = 4) -> Structures:
    """A molecule whose atoms walk at random by ``step`` Å a frame and axis: neighbours in time
    are alike, others are not.
    """
    rng = np.random.default_rng(seed)
    start = 2.0 * rng.normal(size=(atoms, 3))
    pos = start + np.cumsum(step * rng.normal(size=(frames, atoms, 3)), axis=0)
    ptr = np.arange(frames + 1) * atoms
    return Structures(
        np.tile([6, 1, 1, 8][:atoms], frames),
        pos.reshape(-1, 3),
        ptr,
        system=np.full(frames, system),
    )


def test_blocks_keep_neighbours_in_time_together():
    both = concatenate([walk(230, 0.02), walk(100, 0.02, seed=1)])
    both.system[230:] = 1
    parts = splits.split(both, (0.6, 0.2, 0.2), seed=3, by="block", block=20)
    rows = np.concatenate(parts)
    assert len(rows) == len(set(rows.tolist())) == len(both) and all(len(p) for p in parts)
    of = np.empty(len(both), int)
    for number, part in enumerate(parts):
        of[part] = number
    edges = np.flatnonzero(np.diff(of)) + 1
    assert len(edges) and all(edge % 20 == 0 for edge in edges if edge < 230)
    assert all((edge - 230) % 20 == 0 for edge in edges if edge >= 230)
    again = splits.split(both, (0.6, 0.2, 0.2), seed=3, by="block", block=20)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_gap_between_blocks_of_different_parts():
    walked = walk(200, 0.02)
    train, test = splits.split(walked, (0.5, 0.5), seed=1, by="block", block=20, gap=3)
    closest = np.abs(train[:, None] - test).min()
    assert closest > 3 * 2 and len(train) + len(test) < 200
    plain = splits.split(walked, (0.5, 0.5), seed=1, by="block", block=20)
    assert set(train) < set(plain[0]) and set(test) < set(plain[1])


@pytest.mark.parametrize(
    "settings, error, word",
    [
        ({"block": 0}, ConfigError, "block"),
        ({"block": 5, "gap": 5}, ConfigError, "gap"),
        ({"block": 90}, DataError, "too few"),
    ],
)
def test_blocks_that_do_not_fit(settings, error, word):
    with pytest.raises(error, match=word):
        splits.split(walk(100, 0.02), (0.5, 0.3, 0.2), by="block", **settings)


def test_leakage_by_distance_sees_what_an_exact_search_cannot():
    """Frames of one trajectory drawn at random lie as near to training as to their neighbours in
    time; blocks lie apart.
    """
    whole = walk(600, 0.03)
    medians = {}
    for by in ("structure", "block"):
        train, test = whole.split((0.8, 0.2), by=by, block=60)
        assert not len(splits.leakage(train, test)), "no structure is there twice"
        table = splits.leakage_by_distance(train, test, trajectory=whole).set_index("set")["50 %"]
        medians[by] = table["test to nearest training"] / table["neighbours in time"]
    assert medians["structure"] < 1.3 < 2 < medians["block"]


def test_distances_between_structures():
    one = walk(3, 0.1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    moved = Structures(one.z, one.pos @ turn + 5.0, one.ptr, system=one.system)
    assert splits.leakage_by_distance(one, moved).attrs["distances"] == pytest.approx(0.0, abs=1e-5)
    longer = Structures([1, 1], [[0, 0, 0], [0, 0, 1.0]], [0, 2])
    other = Structures([1, 1], [[0, 0, 0], [0, 0, 1.25]], [0, 2])
    found = splits.leakage_by_distance(longer, other)
    assert found.attrs["distances"].tolist() == pytest.approx([0.25], abs=1e-6)
    strange = splits.leakage_by_distance(walk(20, 0.1), other)
    assert strange["beyond"][0] == 1 and "none of 1 test structures" in strange.attrs["message"]
    cell = np.eye(3)[None] * 4.0
    box, across = (
        Structures([1, 8], [[0, 0, 0], [x, 0, 0]], [0, 2], cell=cell, pbc=[[True] * 3])
        for x in (0.5, -0.7)
    )
    wrapped = Structures([1, 8], [[0, 0, 0], [3.5, 0, 0]], [0, 2], cell=cell, pbc=[[True] * 3])
    assert splits.leakage_by_distance(box, across).attrs["distances"].tolist() == pytest.approx(
        [0.2], abs=1e-6
    )
    assert splits.leakage_by_distance(box, wrapped).attrs["distances"].tolist() == pytest.approx(
        [0.0], abs=1e-6
    )


@pytest.mark.parametrize("cell", [np.eye(3) * 14.0, [[14, 0, 0], [9, 13, 0], [-8, 5, 12]]])
def test_in_a_box_every_atom_must_be_where_the_other_has_one(cell):
    rng = np.random.default_rng(5)
    cell = np.array(cell, float)
    z = np.repeat([8, 1], [20, 44])
    pos = rng.random((64, 3)) @ cell
    moved_one = pos.copy()
    moved_one[40, 1] += 0.03
    order = rng.permutation(64)
    shifted = (pos + [3.0, -20.0, 1.5] + rng.integers(-2, 3, (64, 3)) @ cell)[order]
    swapped = z.copy()
    swapped[[3, 50]] = swapped[[50, 3]]  # an oxygen and a hydrogen change places

    def box(pos, z=z):
        return Structures(z, pos, [0, 64], cell=cell[None], pbc=np.ones((1, 3), bool))

    first = box(pos)
    found = [
        len(duplicates.pairs(first, box(p, of)))
        for p, of in (
            (pos, z),
            (shifted, z[order]),
            (moved_one, z),
            (pos, swapped),
            (pos + 2e-4, z),
        )
    ]
    assert found == [1, 1, 0, 0, 1]
    assert len(duplicates.leakage(first, box(moved_one))) == 0
    frozen = box(pos)
    frozen.pbc[0, 2] = False
    assert len(duplicates.pairs(first, frozen)) == 0  # a slab is no box


def in_cell(z, pos, cell, pbc) -> Structures:
    return Structures(
        z, pos, [0, len(z)], cell=np.array(cell, float)[None], pbc=np.array(pbc, bool)[None]
    )


@pytest.mark.parametrize(
    ("pbc", "cell", "other"),
    [
        ("110", np.diag([8.0, 9, 20]), np.diag([8.0, 9, 35])),
        ("110", np.diag([8.0, 9, 20]), [[8, 0, 0], [0, 9, 0], [1, 4, 35]]),
        ("101", [[8, 0, 0], [0, 20, 0], [3, 0, 9]], [[8, 0, 0], [0, 31, 0], [3, 0, 9]]),
        ("001", np.diag([20.0, 30, 9]), np.diag([25.0, 22, 9])),
        ("001", [[20, 0, 0], [0, 20, 0], [1e-9, -1e-9, 9]], np.diag([25.0, 22, 9])),
    ],
)
def test_the_vacuum_beside_a_slab_or_wire_is_no_difference(pbc, cell, other):
    rng = np.random.default_rng(8)
    pbc = [flag == "1" for flag in pbc]
    z = rng.choice([1, 6, 8], 30)
    pos = rng.random((30, 3)) * [8, 9, 9]
    first = in_cell(z, pos, cell, pbc)
    shifted = pos + np.array([1.5, -2.0, 4.0])
    changed = pos.copy()
    changed[4] += 0.1
    found = [len(duplicates.pairs(first, in_cell(z, p, other, pbc))) for p in (shifted, changed)]
    assert found == [1, 0]


def test_rounded_copies_are_found_in_elongated_boxes():
    """Thirty boxes, 4 x 4 x 40 Å: an atom's step is a large part of the short edges."""
    cell = np.diag([4.0, 4, 40])
    for seed in range(30):
        rng = np.random.default_rng(seed)
        z = rng.choice([1, 6, 8, 17], 60)
        pos = rng.random((60, 3)) @ cell
        first = in_cell(z, pos, cell, [True] * 3)
        rounded = in_cell(z, np.round(pos, 3), cell, [True] * 3)
        assert len(duplicates.pairs(first, rounded, tol=1e-3)) == 1, seed


def test_of_256_atoms_in_a_box_one_moved_by_three_hundredths_is_told():
    rng = np.random.default_rng(6)
    pos = rng.random((256, 3)) * 15.0
    pair = np.stack([pos, pos])
    pair[1, 77, 0] += 0.03
    s = Structures(
        np.full(512, 18),
        pair.reshape(-1, 3),
        [0, 256, 512],
        cell=np.stack([np.eye(3) * 15.0] * 2),
        pbc=np.ones((2, 3), bool),
    )
    assert len(duplicates.pairs(s)) == 0
    assert len(duplicates.pairs(s[[0, 0]])) == 1
