import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.metrics.kfold import kfold_accuracy


def oracle(scores, same, fold_of_pair):
    """Every candidate threshold of every fold, tried on each pair in plain Python."""
    accuracies, thresholds = [], []
    pairs = list(zip(scores, same, fold_of_pair, strict=True))
    for fold in sorted(set(fold_of_pair)):
        training = [(score, label) for score, label, other in pairs if other != fold]
        held_out = [(score, label) for score, label, other in pairs if other == fold]
        distinct = sorted({score for score, _ in training if score > -math.inf})
        # (accurate, inside, width of the gap, lower is better) decides, in this order.
        candidates = [((-math.inf), -1, 0.0), (math.inf, -2, 0.0)]
        candidates += [
            ((low + high) / 2, 0, high - low) for low, high in itertools.pairwise(distinct)
        ]
        best = max(
            candidates,
            key=lambda c: (
                sum((score > c[0]) == label for score, label in training),
                c[1],
                c[2],
                -c[0],
            ),
        )[0]
        accuracies.append(sum((s > best) == label for s, label in held_out) / len(held_out))
        thresholds.append(best)
    return accuracies, thresholds


# Multiples of 1/8: midpoints and widths are exact, and equal scores and widths are common.
scored_pairs = st.lists(
    st.tuples(
        st.integers(-8, 8).map(lambda x: x / 8) | st.sampled_from([math.nan, -math.inf]),
        st.booleans(),
    ),
    min_size=2,
    max_size=40,
)


@given(scored_pairs, st.integers(2, 10))
def test_matches_the_oracle(pairs, folds):
    folds = min(folds, len(pairs))
    scores, same = zip(*pairs, strict=True)
    fold_of_pair = [fold for fold, b in enumerate(np.array_split(same, folds)) for _ in b]
    accuracies, thresholds = oracle(scores, same, fold_of_pair)
    result = kfold_accuracy(scores, same, folds=folds)
    np.testing.assert_allclose(result.folds, accuracies)
    np.testing.assert_array_equal(result.thresholds, thresholds)
    decided = [
        (score > thresholds[fold]) == label
        for score, label, fold in zip(scores, same, fold_of_pair, strict=True)
    ]
    assert result.correct.tolist() == decided
    assert result.mean == pytest.approx(np.mean(accuracies))
    assert result.deviation == pytest.approx(
        math.sqrt(sum((a - np.mean(accuracies)) ** 2 for a in accuracies) / folds)
    )


@given(scored_pairs, st.integers(0, 2**32 - 1))
def test_matches_the_oracle_with_given_folds(pairs, seed):
    scores, same = zip(*pairs, strict=True)
    fold_of_pair = np.random.default_rng(seed).integers(3, 6, len(pairs))
    fold_of_pair[:2] = 1, 4
    accuracies, thresholds = oracle(scores, same, fold_of_pair.tolist())
    result = kfold_accuracy(scores, same, folds=fold_of_pair)
    np.testing.assert_allclose(result.folds, accuracies)
    np.testing.assert_array_equal(result.thresholds, thresholds)


def test_real_valued_scores_match_the_oracle():
    rng = np.random.default_rng(0)
    same = rng.random(61) < 0.5
    scores = (rng.normal(size=61) + 2 * same).astype(np.float32)
    fold_of_pair = np.repeat(np.arange(10), [7, 6, 6, 6, 6, 6, 6, 6, 6, 6])
    accuracies, thresholds = oracle(scores.tolist(), same, fold_of_pair.tolist())
    result = kfold_accuracy(scores, same)
    np.testing.assert_allclose(result.folds, accuracies)
    np.testing.assert_allclose(result.thresholds, thresholds)


def test_any_scale_gives_the_same_accuracy():
    rng = np.random.default_rng(1)
    same = np.tile([True, False], 300)
    scores = rng.normal(size=600) + 1.5 * same
    expected = kfold_accuracy(scores, same).folds
    # log-DAO of 10 anchors lies around −2, DAO itself around 0.1: an affine map changes nothing.
    np.testing.assert_array_equal(kfold_accuracy(scores / 16 - 2, same).folds, expected)


def test_separable_scores_are_split_in_the_middle_of_the_gap():
    result = kfold_accuracy([0.0, 4.0, 1.0, 5.0, 0.5, 4.5], [0, 1] * 3, folds=3)
    assert result.mean == 1
    assert result.deviation == 0
    np.testing.assert_array_equal(result.thresholds, [2.75, 2.25, 2.5])


def test_nan_is_never_a_match():
    scores = [np.nan, 0.0, 1.0, np.nan, 1.0, 0.0, np.nan]
    result = kfold_accuracy(scores, [1, 0, 1, 0, 1, 0, 1], folds=2)
    np.testing.assert_allclose(result.folds, [3 / 4, 2 / 3])
    np.testing.assert_array_equal(result.thresholds, 0.5)


def test_neighbouring_floats_are_told_apart():
    low = 1.0
    for _ in range(2):  # of two neighbours in a row, one midpoint rounds up
        high = np.nextafter(low, 2)
        assert kfold_accuracy([low, high] * 2, [0, 1] * 2, folds=2).mean == 1
        low = high


def test_infinite_scores_do_no_harm():
    scores = [-np.inf, 0.0, np.inf, np.inf] * 2
    assert kfold_accuracy(scores, [0, 0, 1, 1] * 2, folds=2).mean == 1


@pytest.mark.parametrize(
    ("scores", "same", "folds", "message"),
    [
        ([1.0, 2.0], [1], 2, "one score and one label"),
        ([[1.0, 2.0]], [[1, 0]], 2, "one score and one label"),
        ([1.0, 2.0], [1, -1], 2, "0 and 1"),
        ([1.0, 2.0], [1, 0], 1, "1 folds of 2 pairs"),
        ([1.0, 2.0], [1, 0], 3, "3 folds of 2 pairs"),
        ([1.0, 2.0], [1, 0], [0, 1, 1], "fold numbers of shape"),
        ([1.0, 2.0], [1, 0], [4, 4], "in one fold"),
    ],
)
def test_wrong_input_is_the_users_mistake(scores, same, folds, message):
    with pytest.raises(UserError, match=message):
        kfold_accuracy(scores, same, folds=folds)
