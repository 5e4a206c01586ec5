import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import equal_error_rate, roc_curve, tar_at_far

# Few distinct values, so that ties are common, and the odd NaN.
score_lists = st.lists(
    st.sampled_from([-1.5, -0.25, 0.0, 0.1, 0.25, 1.0, 3.0, math.nan]), min_size=1, max_size=30
)


def oracle(genuine, impostor, far):
    """(TAR, false accepts) by sorting Python floats; far is a Fraction."""
    genuine, impostor = (
        [-math.inf if math.isnan(s) else s for s in x] for x in (genuine, impostor)
    )
    rank = math.floor(far * len(impostor))
    highest_first = [*sorted(impostor, reverse=True), -math.inf]
    threshold = highest_first[rank]
    tar = sum(s > threshold for s in genuine) / len(genuine)
    return tar, threshold, sum(s > threshold for s in impostor)


@given(score_lists, score_lists, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_operating_points_match_the_oracle(genuine, impostor, ranks):
    fars = [Fraction(rank, 30) for rank in ranks]
    points = tar_at_far(genuine, impostor, [float(far) for far in fars])
    for far, point in zip(fars, points, strict=True):
        tar, threshold, false_accepts = oracle(genuine, impostor, far)
        assert point == (float(far), tar, threshold, false_accepts, false_accepts / len(impostor))
        assert point.realised_far <= point.far


@pytest.mark.parametrize(
    ("far", "n", "rank"),
    [
        *[(0.29, 100, 29), (0.57, 100, 57), (0.1, 10, 1), (1 / 49, 49, 1), (1.0, 7, 7)],
        *[(np.nextafter(0.29, 0), 100, 28), (np.nextafter(0.5, 0), 10, 4), (0.55, 10, 5)],
        *[(1e-3, 999, 0), (1e-3, 1000, 1), (1e-3, 1001, 1), (1e-5, 13_484_345, 134)],
    ],
)
def test_rank_does_not_suffer_from_rounding(far, n, rank):
    impostor = np.arange(n, dtype=np.float32)
    (point,) = tar_at_far([2.0 * n], impostor, [far])
    assert point.false_accepts == rank
    assert point.threshold == (n - 1 - rank if rank < n else -np.inf)


def test_ties_with_the_threshold_are_rejected():
    impostor = [1.0, 2.0, 2.0, 2.0, 3.0]
    (point,) = tar_at_far([2.0, 2.0, 2.5, 4.0], impostor, [0.4])
    assert point == (0.4, 0.5, 2.0, 1, 0.2)


def test_too_few_impostors_for_the_far_accept_none_of_them():
    (point,) = tar_at_far([0.5, 0.95], [0.1, 0.9], [1e-6])
    assert point == (1e-6, 0.5, 0.9, 0, 0.0)


def test_nan_is_never_a_match_and_counts():
    (half, all_) = tar_at_far([np.nan, 1.0], [np.nan, 0.0, np.nan, 0.5], [0.25, 1.0])
    # One of four impostors may pass; were the NaNs left out of n, none could.
    assert half == (0.25, 0.5, 0.0, 1, 0.25)
    assert all_ == (1.0, 0.5, -np.inf, 2, 0.5)


def test_mixed_precision_compares_exactly():
    threshold = np.float64(0.1) + 1e-12
    genuine = np.array([0.1], np.float32)  # 0.100000001490116, above the threshold
    (point,) = tar_at_far(genuine, np.array([threshold]), [0.5])
    assert point.tar == 1.0
    impostor = np.array([0.1], np.float32)
    genuine = np.add(impostor, [-1e-12, 0, 1e-12], dtype=np.float64)
    (point,) = tar_at_far(genuine, impostor, [0.5])
    assert point.tar == 1 / 3


def test_inputs_are_left_alone():
    genuine, impostor = np.array([3.0, np.nan, 1.0]), np.array([2.0, np.nan, 0.0, 1.0])
    before = genuine.copy(), impostor.copy()
    tar_at_far(genuine, impostor, [0.5])
    roc_curve(genuine, impostor)
    equal_error_rate(genuine, impostor)
    np.testing.assert_array_equal(genuine, before[0])
    np.testing.assert_array_equal(impostor, before[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_curve_agrees_with_the_operating_points(dtype):
    rng = np.random.default_rng(0)
    genuine = rng.normal(2, 1, 333).astype(dtype)
    impostor = rng.normal(0, 1, 1001).astype(dtype)
    genuine[5], impostor[7:9] = np.nan, np.nan
    curve = roc_curve(genuine, impostor, points=50)
    assert curve.far[0] == 1 / 1001
    assert curve.far[-1] == 1
    assert len(curve.far) <= 50
    assert (np.diff(curve.far) > 0).all()
    points = tar_at_far(genuine, impostor, curve.far)
    np.testing.assert_allclose(curve.tar, [point.tar for point in points], rtol=1e-12)
    np.testing.assert_array_equal(curve.threshold, [point.threshold for point in points])


def test_curve_of_sorted_scores_is_the_same():
    rng = np.random.default_rng(1)
    genuine, impostor = rng.normal(1, 1, 50), rng.normal(0, 1, 70)
    curve = roc_curve(genuine, impostor)
    for one, other in zip(curve, roc_curve(np.sort(genuine), np.sort(impostor)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_curve_of_few_impostors(n):
    curve = roc_curve([5.0, np.nan], np.arange(n))
    np.testing.assert_allclose(curve.far, np.arange(1, n + 1) / n)
    np.testing.assert_array_equal(curve.tar, 0.5)


def eer_oracle(genuine, impostor):
    """Crossing of the ROC polyline with TAR = 1 − FAR, walking every threshold."""
    genuine, impostor = (
        [-math.inf if math.isnan(s) else s for s in x] for x in (genuine, impostor)
    )
    corners = [(Fraction(1), Fraction(0))]
    for threshold in sorted({*genuine, *impostor}):
        corners.append(
            (
                Fraction(sum(s > threshold for s in impostor), len(impostor)),
                Fraction(sum(s <= threshold for s in genuine), len(genuine)),
            )
        )
    for (far_0, frr_0), (far_1, frr_1) in itertools.pairwise(corners):
        if far_1 < frr_1:
            weight = (far_0 - frr_0) / ((far_0 - frr_0) + (frr_1 - far_1))
            return float(far_0 + weight * (far_1 - far_0))
    raise AssertionError


@given(score_lists, score_lists)
@settings(max_examples=300)
def test_equal_error_rate_matches_the_oracle(genuine, impostor):
    expected = eer_oracle(genuine, impostor)
    assert equal_error_rate(genuine, impostor) == pytest.approx(expected, abs=1e-12)


def test_equal_error_rate_of_known_cases():
    assert equal_error_rate([2.0, 3.0], [0.0, 1.0]) == 0
    assert equal_error_rate([0.0, 1.0], [2.0, 3.0]) == 1
    assert equal_error_rate([1.0, 1.0], [1.0, 1.0]) == 0.5
    assert equal_error_rate([np.nan], [np.nan]) == 0.5
    assert equal_error_rate([0.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, 1.0]) == 0.25


@given(score_lists, score_lists)
def test_an_increasing_map_changes_no_rate(genuine, impostor):
    mapped = np.exp(np.float64(genuine)), np.exp(np.float64(impostor))
    for point, image in zip(
        tar_at_far(genuine, impostor, [0.1, 0.5]), tar_at_far(*mapped, [0.1, 0.5]), strict=True
    ):
        assert (point.tar, point.false_accepts) == (image.tar, image.false_accepts)
    assert equal_error_rate(*mapped) == equal_error_rate(genuine, impostor)


@pytest.mark.parametrize(
    "metric", [roc_curve, equal_error_rate, lambda g, i: tar_at_far(g, i, [1])]
)
@pytest.mark.parametrize(
    ("genuine", "impostor", "message"),
    [
        ([], [1.0], "0 genuine scores"),
        ([1.0], [], "0 impostor scores"),
        ([1.0], [True, False], r"scores\[~same\]"),
    ],
)
def test_missing_scores_are_the_users_mistake(metric, genuine, impostor, message):
    with pytest.raises(UserError, match=message):
        metric(genuine, impostor)


@pytest.mark.parametrize("far", [0.0, -0.1, 1.5, math.nan])
def test_far_outside_its_range_is_the_users_mistake(far):
    with pytest.raises(UserError, match="FAR"):
        tar_at_far([1.0], [0.0], [far])


def test_lfw_all_pairs(shared_data):
    folder = shared_data / "lfw"
    expected = json.loads((folder / "expected.json").read_text())
    names = (folder / "names.txt").read_text().split()
    split = (line.split(",") for line in (folder / "split.csv").read_text().splitlines()[1:])
    role = {identity: role for identity, role, _ in split}
    people = np.array([name.split("/")[0] for name in names])
    kept = [role[name.split("/")[0]] == "eval" and int(name[-4:]) <= 10 for name in names]
    faces = np.load(folder / "mobilefacenet_embeddings.npy")[kept]
    assert len(faces) == expected["images"]
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    people = people[kept]

    scores = faces @ faces.T
    same = people[:, None] == people
    each_pair_once = np.triu(np.ones_like(same), 1)
    genuine, impostor = scores[same & each_pair_once], scores[~same & each_pair_once]
    assert (genuine.size, impostor.size) == (expected["genuine"], expected["impostor"])
    for far, point in zip(
        expected["tar@far"]["cosine"],
        tar_at_far(genuine, impostor, [float(far) for far in expected["tar@far"]["cosine"]]),
        strict=True,
    ):
        # Five decimals are given; one genuine pair in 7,070 may change sides in float32.
        assert point.tar == pytest.approx(expected["tar@far"]["cosine"][far], abs=1.5e-4)
        assert point.false_accepts == int(float(far) * impostor.size)
