import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.metrics.bootstrap import BootstrapPoint
from ida_jax.metrics.roc import Interval, SplitScores, tar_at_far
from ida_jax.metrics.threshold_curve import threshold_curve, with_groups

RNG = np.random.default_rng(0)


def scores(genuine, impostor, decimals=9):
    """Scores, tied where they have few decimals."""
    return SplitScores(
        RNG.normal(1.5, 1, genuine).round(decimals).astype(np.float32),
        RNG.normal(0, 1, impostor).round(decimals).astype(np.float32),
    )


@pytest.mark.parametrize("impostor", [1, 2, 9, 1000, 40_001])
@pytest.mark.parametrize("decimals", [1, 9])
def test_counts_are_those_above_the_thresholds(impostor, decimals):
    split = scores(301, impostor, decimals)
    curve = threshold_curve(split)
    assert (curve.genuine, curve.impostor) == (301, impostor)
    assert curve.threshold[0] == split.impostor.max()
    assert (np.diff(curve.threshold) < 0).all()
    assert len(curve.threshold) <= 400
    for at, threshold in enumerate(curve.threshold):
        assert curve.false_accepts[at] == np.count_nonzero(split.impostor > threshold)
        assert curve.true_accepts[at] == np.count_nonzero(split.genuine > threshold)
    assert np.isnan(curve.tar_interval).all()


@pytest.mark.parametrize("decimals", [1, 9])
def test_a_far_asked_for_has_the_threshold_of_tar_at_far(decimals):
    split = scores(301, 40_001, decimals)
    fars = (0.29, 0.01, 0.00123, 1e-4, 1e-9)
    curve = threshold_curve(split, fars=fars)
    far = curve.false_accepts / curve.impostor
    for point in tar_at_far(*split, fars):
        at = np.flatnonzero(far <= point.far)[-1]  # as picker.js takes it
        assert curve.threshold[at] == point.threshold
        assert curve.false_accepts[at] == point.false_accepts
        assert curve.true_accepts[at] / 301 == pytest.approx(point.tar)


def test_intervals_are_the_bootstraps_and_linear_in_log_far_between():
    points = [
        BootstrapPoint(0.1, Interval(0.8, 1.0), Interval(1.2, 1.3), 9.0),
        BootstrapPoint(0.001, Interval(0.4, 0.6), Interval(2.2, -np.inf), 9.0),
    ]
    split = scores(50, 1000)
    curve = threshold_curve(split, fars=[0.1, 0.001], intervals=points)
    place = {count: i for i, count in enumerate(curve.false_accepts.tolist())}
    np.testing.assert_allclose(curve.tar_interval[place[100]], [0.8, 1.0])
    np.testing.assert_allclose(curve.tar_interval[place[1]], [0.4, 0.6])
    np.testing.assert_allclose(curve.tar_interval[place[10]], [0.6, 0.8])
    np.testing.assert_allclose(curve.threshold_interval[place[100]], [1.2, 1.3])
    assert np.isnan(curve.tar_interval[[0, -1]]).all()


def test_missing_scores_are_never_a_match():
    split = SplitScores(np.array([1, np.nan, 3.0]), np.array([np.nan, 2, 0, np.nan]))
    curve = threshold_curve(split)
    assert curve.threshold.tolist() == [2, 0]
    assert curve.false_accepts.tolist() == [0, 1]
    assert curve.true_accepts.tolist() == [1, 2]
    none = threshold_curve(SplitScores(np.ones(3), np.full(3, np.nan)))
    assert none.threshold.size == 0
    with pytest.raises(UserError, match="expected one above 0"):
        threshold_curve(split, fars=[0.0])


@pytest.mark.parametrize("decimals", [1, 9])
def test_a_groups_false_accepts_are_those_above_the_thresholds(decimals):
    split = scores(30, 2001, decimals)
    split.impostor[:5] = np.nan
    codes = RNG.integers(-1, 3, 2001).astype(np.int16)
    curve = with_groups(threshold_curve(split), split.impostor, codes, ("a", "b", "c", "nobody"))
    assert list(curve.groups) == ["a", "b", "c"]
    for code, of in enumerate(curve.groups.values()):
        mine = split.impostor[codes == code]
        assert of.impostor == mine.size
        expected = [np.count_nonzero(mine > threshold) for threshold in curve.threshold]
        np.testing.assert_array_equal(of.false_accepts, expected)
