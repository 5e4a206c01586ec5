"""Moments of embeddings, and one set brought to another's."""

import numpy as np
import pytest
import scipy.linalg

from ida_jax.anchors.moments import Moments, matched, moments
from ida_jax.common.errors import UserError


def drawn(n, width, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    # Far from singular, so that no variance is floored.
    mixed = rng.standard_normal((n, width)) @ (np.eye(width) + rng.uniform(size=(width, width)) / 5)
    faces = mixed + shift * rng.standard_normal(width)
    return (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)


def test_moments_are_those_of_float64():
    faces = drawn(41, 5, 0)
    found = moments(faces)
    exact = faces.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    centred = exact - exact.mean(axis=0)
    np.testing.assert_allclose(found.covariance, centred.T @ centred / 40, rtol=1e-10, atol=1e-15)


def test_matching_is_whitening_then_colouring():
    own, target = drawn(300, 6, 0, shift=3.0), drawn(400, 6, 1)
    of, to = moments(own), moments(target)
    whiten = np.linalg.inv(scipy.linalg.sqrtm(of.covariance).real)
    colour = scipy.linalg.sqrtm(to.covariance).real
    expected = (own.astype(np.float64) - of.mean) @ whiten @ colour + to.mean
    found = matched(own, own=of, target=to)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )
    # Before they are normalised the moments are the target's.
    np.testing.assert_allclose(np.cov(expected.T), to.covariance, atol=1e-10)


def test_a_set_matched_to_itself_stays():
    faces = drawn(200, 7, 2)
    own = moments(faces)
    np.testing.assert_allclose(matched(faces, own=own, target=own), faces, atol=1e-5)


def test_a_direction_without_variance_is_not_blown_up():
    faces = drawn(200, 4, 3)
    own = moments(faces)
    flat = Moments(own.mean, np.diag([1.0, 1.0, 1.0, 0.0]))
    moved = matched(faces, own=flat, target=Moments(own.mean, np.eye(4)))
    assert np.isfinite(moved).all()
    # The floor is a hundredth of the mean variance, 0.75: a factor of 1/√0.0075 = 11.5 at most.
    raw = (faces.astype(np.float64) - own.mean) * [1, 1, 1, 1 / np.sqrt(0.0075)] + own.mean
    np.testing.assert_allclose(moved, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)


def test_a_row_without_an_embedding_stays_one():
    faces = drawn(20, 3, 4)
    own = moments(faces)
    faces[2] = np.nan
    found = matched(faces, own=own, target=own)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), np.arange(20) == 2)


def test_too_few_faces_tell_no_covariance():
    assert moments(drawn(10, 5, 0)).mean.shape == (5,)
    with pytest.raises(UserError, match="cannot be estimated from 9 faces: expected at least 10"):
        moments(drawn(9, 5, 0))
