"""Templates dealt from labelled images, and their fusion by variance."""

import numpy as np
import pytest
import reference

from ida_jax.common.errors import UserError
from ida_jax.metrics import templates as module
from ida_jax.metrics.templates import dealt_templates, fuse


def _gaussians(n, width, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((n, width))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means.astype(np.float32), rng.normal(-7, 2, (n, width)).astype(np.float32)


@pytest.mark.parametrize("slab", [1, 3, 8192])
def test_fusion_is_the_reference_template_by_template(monkeypatch, slab):
    monkeypatch.setattr(module, "_SLAB", slab)
    means, log_variances = _gaussians(17, 5)
    templates = np.random.default_rng(1).permutation([0, 1, 1, 2, 2, 2, *[3] * 11])
    fused = fuse(means, log_variances, templates)
    for template in range(4):
        own = templates == template
        mean, log_variance = reference.fused_gaussian(means[own], log_variances[own])
        np.testing.assert_allclose(fused.means[template], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(fused.log_variances[template], log_variance)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fusion_of_any_order_and_scale(n):
    means, log_variances = reference.gaussians((n, 16), 0, clusters=1)
    one = np.zeros(n, int)
    mean, log_variance = (fused[0] for fused in fuse(means, log_variances, one))
    expected, least = reference.fused_gaussian(means, log_variances)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_array_equal(log_variance, least.astype(np.float32))
    if n == 1:
        np.testing.assert_allclose(mean, means[0], atol=1e-6)
    order = np.random.default_rng(0).permutation(n)
    permuted = fuse(means[order], log_variances[order], one)
    np.testing.assert_allclose(permuted.means[0], mean, atol=1e-6)
    np.testing.assert_array_equal(permuted.log_variances[0], log_variance)
    # σ² of any size: the weights depend on ratios alone.
    np.testing.assert_allclose(fuse(means, log_variances - 200, one).means[0], mean, atol=1e-5)


def test_rows_of_any_norm_in_any_order():
    means, log_variances = _gaussians(6, 4)
    rows, templates = np.array([5, 0, 3]), [1, 0, 1]
    found = fuse(3 * means, log_variances, templates, rows=rows)
    expected = fuse(means[rows], log_variances[rows], templates)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.log_variances, expected.log_variances)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_rows_are_named(value):
    for bad in range(2):
        arrays = list(_gaussians(4, 3))
        arrays[bad][2, 1] = value
        with pytest.raises(UserError, match="embedding 2 is zero, NaN or infinite"):
            fuse(*arrays, [0, 0, 1, 1])


def test_equal_variances_fuse_to_the_mean_and_a_sure_image_wins():
    means, _ = _gaussians(3, 7)
    alike = fuse(means, np.full_like(means, -3), [0, 0, 0]).means[0]
    np.testing.assert_allclose(alike, means.sum(0) / np.linalg.norm(means.sum(0)), rtol=1e-5)
    sure = np.array([0, 0, -80], np.float32)[:, None] + np.zeros_like(means)
    np.testing.assert_allclose(fuse(means, sure, [0, 0, 0]).means[0], means[2], rtol=1e-5)


def test_a_slab_of_extreme_variances_neither_over_nor_underflows():
    means, _ = _gaussians(2, 4)
    for level in (-700.0, 700.0):
        fused = fuse(means, np.full((2, 4), level, np.float32), [0, 0])
        assert np.isfinite(fused.means).all()


@pytest.mark.parametrize(
    ("labels", "size", "sizes"),
    [
        ([7], 5, [1]),
        ([7, 7], 5, [1, 1]),
        ([7] * 5, 5, [3, 2]),
        ([7] * 11, 5, [4, 4, 3]),
        ([7, 7, 7], 1, [1, 1, 1]),
    ],
)
def test_a_persons_images_are_dealt_evenly(labels, size, sizes):
    dealt = dealt_templates(labels, size=size)
    assert np.bincount(dealt.templates).tolist() == sizes
    assert dealt.labels.tolist() == [7] * len(sizes)


def test_no_template_has_two_people():
    labels = np.random.default_rng(2).integers(0, 9, 61)
    dealt = dealt_templates(labels, size=4)
    assert dealt.templates.max() + 1 == dealt.labels.size
    np.testing.assert_array_equal(dealt.labels[dealt.templates], labels)
    assert np.bincount(dealt.templates).max() <= 4


def test_mistakes_are_told():
    means, log_variances = _gaussians(3, 2)
    with pytest.raises(UserError, match="size"):
        dealt_templates([1, 2], size=0)
    with pytest.raises(UserError, match="template 1 has no image"):
        fuse(means, log_variances, [0, 2, 2])
    with pytest.raises(UserError, match=r"expected \[N, D\]"):
        fuse(means, log_variances[:2], [0, 0, 0])
