"""The calibration of log F on held-out people, beside a plain float64 transcription."""

import numpy as np
import pytest

from ida_jax.metrics.density_calibration import (
    calibrate_density,
    explained,
    fitted_line,
    person_weights,
)


def _faces(seed, *, people=200, slope=0.8, bias=0.5, noise=0.5, crowd=1.0):
    """(x, y, z, people, folds): y is what x foretells, with a slope, a bias and noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 6, people)
    x = rng.normal(size=people) + bias
    person = np.repeat(np.arange(people), images)
    x = x[person] + 0.3 * rng.normal(size=len(person))
    y = slope * (x - bias) + noise * rng.normal(size=people)[person]
    z = crowd * y + rng.normal(size=people)[person]
    return x, y, z, person, person % 4 + 1


def _weighted_line(x, y, person):
    """Least squares by the normal equations, a row at a time."""
    sums = np.zeros((2, 2))
    right = np.zeros(2)
    for a, b, who in zip(x, y, person, strict=True):
        weight = 1 / np.count_nonzero(person == who)
        row = np.array([a, 1.0])
        sums += weight * np.outer(row, row)
        right += weight * row * b
    return np.linalg.solve(sums, right)


def _reference_r2(x, y, person, folds):
    """R² with each fold's line from the other folds."""
    weight = np.array([1 / np.count_nonzero(person == who) for who in person])
    errors = np.empty(len(y))
    for i in range(len(y)):
        others = folds != folds[i]
        slope, offset = _weighted_line(x[others], y[others], person[others])
        errors[i] = slope * x[i] + offset - y[i]
    mean = np.sum(weight * y) / np.sum(weight)
    return (
        1 - np.sum(weight * errors**2) / np.sum(weight * (y - mean) ** 2),
        np.sum(weight * errors) / np.sum(weight) / np.sqrt(
            np.sum(weight * (y - mean) ** 2) / np.sum(weight)
        ),
    )  # fmt: skip


@pytest.mark.parametrize("people", [59, 60, 61])
def test_the_line_and_r2_row_by_row(people):
    x, y, z, person, folds = _faces(people, people=people)
    got = calibrate_density(x, y, z, person, folds)
    slope, offset = _weighted_line(x, y, person)
    assert got.raw_slope.value == pytest.approx(slope, rel=1e-9)
    assert fitted_line(x, y, person_weights(person)) == pytest.approx((slope, offset))
    r2, bias = _reference_r2(x, y, person, folds)
    assert got.r2.value == pytest.approx(r2, rel=1e-9)
    assert got.bias == pytest.approx(bias, abs=1e-9)
    weight = person_weights(person)
    mean = np.average(y, weights=weight)
    spread = np.average((y - mean) ** 2, weights=weight)
    assert got.raw_r2 == pytest.approx(1 - np.average((x - y) ** 2, weights=weight) / spread)
    # The line goes through the means, whatever the slope is shrunk to.
    assert 0 < got.slope < slope
    calibrated = got.offset + got.slope * np.average(x, weights=weight)
    assert calibrated == pytest.approx(mean)


def test_the_calibration_removes_bias_and_lifts_r2():
    x, y, z, person, folds = _faces(0, people=400, bias=1.0)
    got = calibrate_density(x, y, z, person, folds)
    assert got.doubt == ""
    assert got.raw_bias > 0.7
    assert got.raw_r2 < 0 < 0.4 < got.r2.low < got.r2.value < got.r2.high
    assert abs(got.bias) < 0.01
    # On people who were not there.
    x, y, *_, person, _ = _faces(1, people=400, bias=1.0)
    error = got.offset + got.slope * x - y
    assert abs(np.average(error, weights=person_weights(person))) < 0.15 * y.std()


@pytest.mark.parametrize(
    ("case", "doubt"),
    [
        ({"slope": 0.0}, "R² on held-out people"),
        ({"slope": -0.8}, "R² on held-out people"),
        ({"crowd": 0.0}, "held-out people do not crowd"),
        ({"crowd": -1.0}, "held-out people do not crowd"),
        ({}, ""),
    ],
)
def test_what_is_left_out(case, doubt):
    x, y, z, person, folds = _faces(3, **case)
    got = calibrate_density(x, y, z, person, folds)
    assert doubt in got.doubt
    assert (got.slope == 0) == bool(doubt)
    if doubt:
        assert got.offset == pytest.approx(np.average(y, weights=person_weights(person)))
    else:
        assert got.doubt == ""


def test_a_level_that_differs_by_fold_is_no_crowding():
    x, y, z, person, folds = _faces(5, crowd=0.0)
    got = calibrate_density(x + 3 * folds, y + 3 * folds, z + 3 * folds, person, folds)
    assert got.r2.value > 0.5
    assert "do not crowd" in got.doubt


def test_constants_say_nothing_and_raise_nothing():
    _, y, z, person, folds = _faces(2)
    constant = np.full(len(y), 0.25)
    got = calibrate_density(constant, y, z, person, folds)
    assert (got.slope, got.crowding.value) == (0, 0)
    assert got.doubt
    assert calibrate_density(y, constant, z, person, folds).doubt
    assert explained(constant, y, person_weights(person)) == 0
    assert explained(y, constant, person_weights(person)) == 0


def test_the_same_seed_gives_the_same_interval():
    faces = _faces(4)
    assert calibrate_density(*faces, seed=1) == calibrate_density(*faces, seed=1)
    assert calibrate_density(*faces, seed=1).r2 != calibrate_density(*faces, seed=2).r2
