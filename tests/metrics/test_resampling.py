import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.metrics import resampling
from ida_jax.metrics.resampling import (
    all_pairs_total,
    genuine_rows,
    impostor_rows,
    pair_list_total,
    tail,
    tail_depth,
)


def weight(w, pair):
    """The weight of one pair, by the rule's own words."""
    if len(pair) == 1 or pair[0] == pair[1]:
        return w[pair[0]]
    return w[pair[0]] * w[pair[1]]


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("depth", [1, 6, 7, 8, 40])
def test_tail_holds_the_highest_impostors(sides, depth, monkeypatch):
    monkeypatch.setattr(resampling, "_WHOLE", 0)
    monkeypatch.setattr(resampling, "_SPARE", depth)
    rng = np.random.default_rng(depth)
    # Few distinct scores: the depth cuts through a run of ties.
    scores = rng.integers(4, size=40).astype(np.float32)
    scores[rng.random(40) < 0.2] = np.nan
    same = rng.random(40) < 0.3
    units = rng.integers(9, size=(40, sides))
    found = tail(scores, same, units, highest_far=1e-9)
    filled = np.where(np.isnan(scores), -np.inf, scores)
    others = sorted(filled[~same], reverse=True)
    assert found.impostors == len(others)
    assert found.impostor.tolist() == others[:depth]
    assert found.genuine.dtype == found.impostor.dtype == np.float32
    # Each score came with its own pair's units, none twice.
    listed = sorted(zip(filled[~same], map(tuple, units[~same].tolist()), strict=True))
    for entry in zip(found.impostor, map(tuple, found.impostor_units.tolist()), strict=True):
        listed.remove(entry)
    own = zip(found.genuine, map(tuple, found.genuine_units.tolist()), strict=True)
    assert sorted(own) == sorted(zip(filled[same], map(tuple, units[same].tolist()), strict=True))


def test_depth_grows_with_the_rank_and_never_passes_the_list():
    assert tail_depth(1e-9, 1 << 20) == 1 << 20
    assert tail_depth(1e-3, 10_000_000) == 2 * 10_000 + (1 << 17)
    assert tail_depth(1.0, 10_000_000) == 10_000_000


def test_whole_numbers_are_scores_too():
    found = tail([3, 1, 2], [True, False, False], [[0, 0], [0, 1], [1, 2]], highest_far=0.5)
    assert found.impostor.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("units", "pairs"), [(1, 3), (2, 1), (7, 60)])
def test_pair_list_total_adds_up_the_weights(sides, units, pairs):
    rng = np.random.default_rng(units)
    listed = rng.integers(units, size=(pairs, sides))
    weights = rng.integers(5, size=(units, 3)).astype(np.float64)
    found = pair_list_total(listed, count=units)(weights)
    for column, total in zip(weights.T, found, strict=True):
        assert total == sum(weight(column, pair) for pair in listed)


def test_total_is_exact_beyond_float32():
    # 2²⁴ + 1 is the first whole number that float32 lacks.
    listed = np.array([[0, 1], [0, 2]])
    weights = np.array([[1.0], [2.0**24], [1.0]])
    assert pair_list_total(listed, count=3)(weights) == 2**24 + 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 99))
def test_all_pairs_agree_with_the_list_written_out(labels, seed):
    labels = np.array(labels)
    pairs = [(i, j) for i in range(labels.size) for j in range(i + 1, labels.size)]
    genuine = [(i, j) for i, j in pairs if labels[i] == labels[j]]
    impostor = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    for rows, expected in ((genuine_rows, genuine), (impostor_rows, impostor)):
        found = rows(labels, np.arange(len(expected)))
        assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
        some = np.arange(len(expected))[::-2]
        np.testing.assert_array_equal(rows(labels, some).second, found.second[::-2])
    weights = np.random.default_rng(seed).integers(4, size=(labels.max() + 1, 2)).astype(float)
    total = all_pairs_total(labels)(weights)
    for column, of in zip(weights.T, total, strict=True):
        assert of == sum(column[labels[i]] * column[labels[j]] for i, j in impostor)


def test_rows_take_any_labels():
    labels = np.array([40, -3, 40, -3])
    assert np.stack(genuine_rows(labels, [0, 1])).T.tolist() == [[0, 2], [1, 3]]
    assert np.stack(impostor_rows(labels, [3, 0])).T.tolist() == [[2, 3], [0, 1]]


@pytest.mark.parametrize(
    ("scores", "same", "units", "message"),
    [
        ([1.0, 2.0], [True], [[0, 0]], "one score and one label"),
        ([1.0, 2.0], [True, False], [[0, 0]], r"expected integers \[2, 1\]"),
        ([1.0, 2.0], [True, False], [[0, 0, 0]] * 2, r"int64 \[2, 3\]"),
        ([1.0, 2.0], [True, False], [[0.0], [1.0]], "float64"),
        ([1.0, 2.0], [True, False], [[0, 0], [-1, 0]], "between -1 and 0"),
        ([1.0, 2.0], [True, True], [[0, 0], [0, 0]], "0 impostor pairs"),
        ([1.0, 2.0], [False, False], [[0, 1], [0, 1]], "0 genuine pairs"),
    ],
)
def test_mistakes(scores, same, units, message):
    with pytest.raises(UserError, match=message):
        tail(scores, same, units, highest_far=0.5)


def test_total_refuses_units_beyond_the_count():
    with pytest.raises(UserError, match="from 0 to 1"):
        pair_list_total(np.array([[0, 2]]), count=2)
