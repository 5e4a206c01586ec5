"""What is left out of all pairs, against lists with every pair written out."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.metrics.ignored import (
    between,
    ignored_positions,
    labels_as_units,
    total_without,
    whole_positions,
)
from ida_jax.metrics.resampling import all_pairs_total, impostor_rows, pair_list_total


@st.composite
def labelled(draw):
    """Labels from 0 without gaps, and distinct pairs of two of them."""
    labels = draw(st.lists(st.integers(0, 5), min_size=2, max_size=25))
    labels = np.unique(labels, return_inverse=True)[1]
    pairs = list(itertools.combinations(range(labels.max() + 1), 2))
    ignored = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return labels, np.array(ignored, np.int64).reshape(-1, 2)


def _impostors(labels):
    pairs = itertools.combinations(range(len(labels)), 2)
    return [(i, j) for i, j in pairs if labels[i] != labels[j]]


@given(labelled())
def test_positions_are_those_of_the_written_list(given_):
    labels, ignored = given_
    listed = _impostors(labels)
    apart = {frozenset(pair) for pair in ignored.tolist()}
    expected = [p for p, pair in enumerate(listed) if frozenset(labels[list(pair)]) in apart]
    removed = ignored_positions(labels, ignored[:, ::-1])
    assert removed.tolist() == expected
    kept = [pair for p, pair in enumerate(listed) if p not in set(expected)]
    whole = whole_positions(np.arange(len(kept)), removed)
    assert list(map(tuple, np.stack(impostor_rows(labels, whole), axis=1).tolist())) == kept
    codes = labels[np.array(listed, int).reshape(-1, 2)]
    assert np.flatnonzero(between(codes - 3, ignored - 3)).tolist() == expected


@given(labelled(), st.integers(0, 99))
def test_total_is_that_of_the_pairs_left(given_, seed):
    labels, ignored = given_
    codes = labels[np.array(_impostors(labels), int).reshape(-1, 2)]
    kept = codes[~between(codes, ignored)]
    units = labels.max() + 1
    weights = np.random.default_rng(seed).integers(4, size=(units, 3)).astype(np.float64)
    total = total_without(all_pairs_total(labels), labels, ignored)
    expected = pair_list_total(kept, count=units)(weights) if len(kept) else np.zeros(3)
    assert total(weights).tolist() == expected.tolist()


def test_no_pairs_leave_nothing_out():
    assert between(np.empty((0, 2), int), [[0, 1]]).tolist() == []
    assert between([[0, 1]], []).tolist() == [False]
    assert labels_as_units(None, np.arange(3)).shape == (0, 2)


def test_units_are_each_once_and_ordered():
    found = labels_as_units([[9, 4], [4, 9], [7, 9]], np.array([4, 7, 9]))
    assert found.tolist() == [[0, 2], [1, 2]]
    with pytest.raises(UserError, match="5 and 9"):
        labels_as_units([[5, 9]], np.array([4, 7, 9]))
