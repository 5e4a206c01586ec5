import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ida_jax.ops.margin import (
    arcface_logits,
    cosface_logits,
    cross_entropy,
    l2_softmax_logits,
)

unit_interval = st.floats(-1.0, 1.0, width=32)
margins = st.floats(0.0, 1.5)


def oracle_arcface(c, margin):
    """cos(θ + m), or its continuation for θ + m > π, through the angle, in float64."""
    theta = np.arccos(np.float64(c))
    return np.where(
        theta + margin <= np.pi,
        np.cos(theta + margin),
        np.cos(theta) - margin * np.sin(np.pi - margin),
    )


def one_row(function, c, **kwargs):
    """The label's logit, with one more class beside it."""
    cosines = jnp.stack([jnp.asarray(0.25, jnp.float32), jnp.asarray(c, jnp.float32)])[None]
    return function(cosines, jnp.array([1]), **kwargs)[0, 1]


# Near the border −cos m, where the function has a step, float32 and float64 may differ.
@given(unit_interval, margins)
@settings(max_examples=300, deadline=None)
def test_arcface_is_the_cosine_of_the_angle_plus_the_margin(c, margin):
    assume(abs(c + math.cos(margin)) > 1e-5)
    logit = one_row(arcface_logits, c, scale=1.0, margin=margin)
    np.testing.assert_allclose(logit, oracle_arcface(c, margin), atol=1e-6)


@given(st.floats(-1 + 2**-10, 1 - 2**-10, width=32), margins)
@settings(max_examples=300, deadline=None)
def test_arcface_gradient_is_that_of_the_formula(c, margin):
    step = 1e-6
    assume(abs(c + math.cos(margin)) > 1e-4)
    gradient = jax.grad(lambda c: one_row(arcface_logits, c, scale=64.0, margin=margin))(c)
    difference = oracle_arcface(c + step, margin) - oracle_arcface(c - step, margin)
    np.testing.assert_allclose(gradient, 64.0 * difference / (2 * step), rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("c", "expected"),
    [
        (1.0, math.cos(0.5)),
        (np.nextafter(np.float32(1), np.float32(2)), math.cos(0.5)),
        (-1.0, 1.0),
        (np.nextafter(np.float32(-1), np.float32(-2)), 1.0),
        (np.nextafter(np.float32(-1), np.float32(0)), 1.0),
        (0.0, math.cos(0.5)),
    ],
)
def test_arcface_gradient_at_the_edges(c, expected):
    gradient = jax.grad(lambda c: one_row(arcface_logits, c, scale=1.0))(np.float32(c))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_arcface_gradient_just_below_one_is_still_exact():
    for c in np.float32(1) - np.float32(2) ** -np.arange(24.0, 2.0, -1, dtype=np.float32):
        gradient = jax.grad(lambda c: one_row(arcface_logits, c, scale=1.0))(c)
        exact = np.float64(c)
        expected = math.cos(0.5) + exact * math.sin(0.5) / math.sqrt((1 - exact) * (1 + exact))
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_arcface_at_the_branch_border():
    border = np.float32(-math.cos(0.5))
    below = np.nextafter(border, np.float32(-1))
    value_and_grad = jax.value_and_grad(lambda c: one_row(arcface_logits, c, scale=1.0))
    value, gradient = value_and_grad(border)
    np.testing.assert_allclose(value, -1.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    value, gradient = value_and_grad(below)
    np.testing.assert_allclose(value, -math.cos(0.5) - 0.5 * math.sin(0.5), atol=1e-6)
    assert gradient == 1.0


@given(st.lists(unit_interval, min_size=2, max_size=20), margins)
@settings(max_examples=100, deadline=None)
def test_arcface_falls_with_the_angle_and_never_exceeds_the_cosine(cosines, margin):
    c = np.sort(np.array(cosines, np.float32))
    labels = jnp.zeros(len(c), jnp.int32)
    logits = arcface_logits(jnp.asarray(c)[:, None], labels, scale=1.0, margin=margin)[:, 0]
    assert np.all(np.diff(logits) >= -1e-6)
    assert np.all(np.asarray(logits) <= c + 1e-6)


@pytest.mark.parametrize("batch", [1, 7, 8, 9])
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_only_the_labels_column_has_the_margin(batch, classes):
    rng = np.random.default_rng(batch)
    cosines = rng.uniform(-1, 1, (batch, classes)).astype(np.float32)
    labels = rng.integers(0, classes, batch).astype(np.int32)
    rows = np.arange(batch)
    expected = 64.0 * cosines.astype(np.float64)

    np.testing.assert_allclose(l2_softmax_logits(cosines, scale=64.0), expected, rtol=1e-6)
    expected[rows, labels] = 64.0 * oracle_arcface(cosines[rows, labels], 0.5)
    np.testing.assert_allclose(arcface_logits(cosines, labels), expected, atol=1e-4)
    expected[rows, labels] = 64.0 * (cosines[rows, labels].astype(np.float64) - 0.35)
    np.testing.assert_allclose(cosface_logits(cosines, labels), expected, atol=1e-4)


@pytest.mark.parametrize("function", [arcface_logits, cosface_logits])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_gives_no_margin_and_no_nan(function, label):
    cosines = jnp.array([[0.5, 1.0, -1.0]])
    labels = jnp.array([label])
    np.testing.assert_array_equal(function(cosines, labels, scale=2.0), 2.0 * cosines)
    value, gradient = jax.value_and_grad(
        lambda c: cross_entropy(function(c, labels, scale=2.0), labels)[0]
    )(cosines)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("function", [arcface_logits, cosface_logits])
def test_bfloat16_cosines_are_computed_in_float32(function):
    cosines = jnp.linspace(-1, 1, 30).reshape(5, 6).astype(jnp.bfloat16)
    labels = jnp.arange(5)
    logits = function(cosines, labels)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, function(cosines.astype(jnp.float32), labels))


def oracle_cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    largest = logits.max(1)
    log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
    return log_sum - logits[np.arange(len(labels)), labels]


@pytest.mark.parametrize("batch", [1, 7, 8, 9])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 64.0, 1e4])
def test_cross_entropy(batch, scale):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(batch, 11))).astype(np.float32)
    labels = rng.integers(0, 11, batch).astype(np.int32)
    expected = oracle_cross_entropy(logits, labels)
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5, atol=1e-6)

    gradient = jax.grad(lambda z: cross_entropy(z, labels).sum())(jnp.asarray(logits))
    softmax = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    softmax[np.arange(batch), labels] -= 1
    np.testing.assert_allclose(gradient, softmax, atol=1e-6)


def test_cross_entropy_keeps_small_losses():
    # Subtracting two numbers near 64 would leave a multiple of 7.6e-6.
    loss = cross_entropy(jnp.array([[64.0, 50.0]]), jnp.array([0]))
    np.testing.assert_allclose(loss, math.log1p(math.exp(-14.0)), rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cross_entropy_in_half_precision_is_float32(dtype):
    logits = jnp.array([[60.0, -60.0, 3.0]], dtype)
    loss = cross_entropy(logits, jnp.array([1]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 120.0, rtol=1e-5)


def test_classes_sharded_over_devices_give_the_same_without_gathering_logits():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-1, 1, (6, 48)).astype(np.float32)
    labels = np.array([0, 5, 6, 47, -1, 48], np.int32)
    mesh = jax.make_mesh((8,), ("classes",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "classes"))

    def loss(cosines):
        losses = cross_entropy(arcface_logits(cosines, labels), labels)
        return jnp.sum(jnp.where((labels >= 0) & (labels < 48), losses, 0.0))

    compiled = (
        jax.jit(jax.value_and_grad(loss), out_shardings=(None, sharding))
        .lower(jax.ShapeDtypeStruct(cosines.shape, cosines.dtype, sharding=sharding))
        .compile()
    )
    value, gradient = compiled(jax.device_put(cosines, sharding))
    expected_value, expected_gradient = jax.value_and_grad(loss)(jnp.asarray(cosines))
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
