import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_insightface
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ida_jax.ops import margin as ops

unit_interval = st.floats(-1.0, 1.0, width=32)
margins = st.floats(0.0, 1.5)

# Each kind of margin beside its oracle, both at scale 1.
KINDS = {
    "arcface": (
        lambda c, s: ops.arcface(c, scale=s, margin=0.5),
        lambda c: reference.arcface(c, 0.5),
    ),
    "cosface": (lambda c, s: ops.cosface(c, scale=s, margin=0.35), lambda c: np.float64(c) - 0.35),
    "l2_softmax": (lambda c, s: ops.l2_softmax(c, scale=s), np.float64),
    "adaface": (
        lambda c, s: ops.adaface(c, jnp.full(c.shape, -0.7), scale=s, margin=0.4),
        lambda c: reference.adaface(c, np.float32(-0.7), 0.4),
    ),
}
for m in (1, 2, 3, 4, 5):
    KINDS[f"sphereface {m}"] = (
        lambda c, s, m=m: ops.sphereface(c, scale=s, margin=m),
        lambda c, m=m: reference.sphereface(c, m),
    )
for triple in ((1.0, 0.3, 0.2), (0.9, 0.4, 0.15), (1.35, 0.0, 0.0), (2.0, 0.3, 0.1)):
    KINDS[f"combined {triple}"] = (
        lambda c, s, t=triple: ops.combined(c, scale=s, margins=t),
        lambda c, t=triple: reference.combined(c, t),
    )
# Where a kind has a step or a bend, in cosines.
BORDERS = {
    "arcface": [-math.cos(0.5)],
    "combined (1.0, 0.3, 0.2)": [-math.cos(0.3)],
    "adaface": [1 - 1e-3, -1 + 1e-3, math.cos(math.pi - 1e-3 - 0.28)],
}


def near_border(kind, c):
    return any(abs(c - border) < 1e-4 for border in BORDERS.get(kind, []))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7, 8, 9])
def test_values_are_the_oracles(kind, rows):
    function, oracle = KINDS[kind]
    c = np.random.default_rng(rows).uniform(-1, 1, (50, rows)).astype(np.float32)
    c[0], c[1], c[2] = 1.0, -1.0, 0.0
    for row in c:
        actual = function(jnp.asarray(row), 64.0)
        assert actual.shape == (rows,)
        expected = [64.0 * oracle(x) for x in row]
        near = [near_border(kind, x) for x in row]
        np.testing.assert_allclose(
            np.where(near, 0, actual), np.where(near, 0, expected), rtol=1e-5, atol=2e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences_of_the_oracles(kind):
    function, oracle = KINDS[kind]
    c = np.random.default_rng(0).uniform(-1 + 1e-3, 1 - 1e-3, 401).astype(np.float32)
    c = c[[not near_border(kind, x) for x in c]]
    gradient = jax.grad(lambda c: jnp.sum(function(c, 64.0)))(jnp.asarray(c))
    step = 1e-6
    difference = [(oracle(x + step) - oracle(x - step)) / (2 * step) for x in np.float64(c)]
    np.testing.assert_allclose(gradient, 64.0 * np.array(difference), rtol=3e-4, atol=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_at_and_around_the_ends(kind):
    one = np.float32(1)
    ends = [f(e) for e in (one, -one) for f in (lambda e: e, lambda e: np.nextafter(e, 0 * e))]
    ends += [np.nextafter(one, np.float32(2)), np.nextafter(-one, np.float32(-2))]
    c = jnp.array(ends)
    value, gradient = jax.value_and_grad(lambda c: jnp.sum(KINDS[kind][0](c, 64.0)))(c)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_fall_with_the_angle_and_never_exceed_the_cosine(kind):
    c = jnp.linspace(-1.0, 1.0, 4001, dtype=jnp.float32)
    logits = np.asarray(KINDS[kind][0](c, 1.0))
    assert np.all(np.diff(logits) >= -2e-6)
    # A factor m₁ < 1 alone would exceed it near θ = π: there the other two make up for it.
    assert np.all(logits <= np.asarray(c) + 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_cosines_are_computed_in_float32(kind):
    function, _ = KINDS[kind]
    cosines = jnp.linspace(-1, 1, 30).astype(jnp.bfloat16)
    logits = function(cosines, 64.0)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, function(cosines.astype(jnp.float32), 64.0))


def arcface_at(c, margin=0.5):
    return ops.arcface(jnp.asarray(c, jnp.float32)[None], scale=1.0, margin=margin)[0]


# Near the border −cos m, where the function has a step, float32 and float64 may differ.
@given(unit_interval, margins)
@settings(max_examples=200)
def test_arcface_at_any_margin(c, margin):
    assume(abs(c + math.cos(margin)) > 1e-5)
    np.testing.assert_allclose(arcface_at(c, margin), reference.arcface(c, margin), atol=1e-6)


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
    np.testing.assert_allclose(jax.grad(arcface_at)(np.float32(c)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "m1", "m2"),
    [
        (arcface_at, 1.0, 0.5),
        (lambda c: ops.combined(c[None], scale=1.0, margins=(1.5, 0.2, 0.0))[0], 1.5, 0.2),
    ],
)
def test_gradient_just_below_one_is_still_exact(function, m1, m2):
    for c in np.float32(1) - np.float32(2) ** -np.arange(24.0, 2.0, -1, dtype=np.float32):
        # θ and sin θ from 1 − c, which float64 holds exactly.
        theta = 2 * math.asin(math.sqrt((1 - float(c)) / 2))
        expected = m1 * math.sin(m1 * theta + m2) / math.sin(theta)
        np.testing.assert_allclose(jax.grad(function)(jnp.asarray(c)), expected, rtol=2e-6)


def test_arcface_at_the_branch_border():
    border = np.float32(-math.cos(0.5))
    below = np.nextafter(border, np.float32(-1))
    value, gradient = jax.value_and_grad(arcface_at)(border)
    np.testing.assert_allclose(value, -1.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    value, gradient = jax.value_and_grad(arcface_at)(below)
    np.testing.assert_allclose(value, -math.cos(0.5) - 0.5 * math.sin(0.5), atol=1e-6)
    assert gradient == 1.0


def test_straight_through_is_the_same_logit_with_the_gradient_s():
    c = jnp.linspace(-1, 1, 333)
    value, vjp = jax.vjp(lambda c: ops.arcface(c, scale=64.0, margin=0.5, straight_through=True), c)
    np.testing.assert_allclose(value, ops.arcface(c, scale=64.0, margin=0.5), atol=2e-5)
    np.testing.assert_array_equal(vjp(jnp.ones_like(c))[0], 64.0)


def test_sphereface_gradient_at_one_is_m_squared():
    for m in (1, 2, 3, 4, 5):
        gradient = jax.grad(lambda c, m=m: ops.sphereface(c[None], scale=2.0, margin=m)[0])
        np.testing.assert_allclose(gradient(jnp.float32(1)), 2.0 * m * m, rtol=1e-6)


def test_combined_holds_arcface_and_cosface():
    c = jnp.linspace(-1, 1, 33)
    arcface = ops.combined(c, scale=64.0, margins=(1.0, 0.5, 0.0))
    np.testing.assert_array_equal(arcface, ops.arcface(c, scale=64.0, margin=0.5))
    cosface = ops.combined(c, scale=64.0, margins=(1.0, 0.0, 0.35))
    np.testing.assert_allclose(cosface, ops.cosface(c, scale=64.0, margin=0.35), atol=2e-5)


@pytest.mark.parametrize(
    ("margins", "ours"),
    [
        ((1.0, 0.5, 0.0), lambda c: ops.arcface(c, scale=64.0, margin=0.5, straight_through=True)),
        ((1.0, 0.5, 0.0),
         lambda c: ops.combined(c, scale=64.0, margins=(1.0, 0.5, 0.0), straight_through=True)),
        ((1.0, 0.0, 0.4), lambda c: ops.cosface(c, scale=64.0, margin=0.4)),
        ((1.0, 0.3, 0.2), lambda c: ops.cosface(c, scale=64.0, margin=0.2)),
    ],
)  # fmt: skip
def test_what_insightfaces_margin_list_is_here(margins, ours):
    c = np.linspace(-math.cos(0.51), 1, 101, dtype=np.float32)  # where θ + m ≤ π
    value, vjp = jax.vjp(ours, jnp.asarray(c))
    (gradient,) = vjp(jnp.ones_like(value))
    expected = np.array([reference_insightface.margin_logit(x, margins) for x in c])
    np.testing.assert_allclose(value, 64 * expected[:, 0], atol=3e-5)
    np.testing.assert_allclose(gradient, 64 * expected[:, 1], rtol=1e-6)


def test_our_combined_margin_keeps_what_insightface_drops():
    c = np.float32([0.1, 0.5])
    ours = ops.combined(jnp.asarray(c), scale=1.0, margins=(1.0, 0.3, 0.2))
    theirs = [reference_insightface.margin_logit(x, (1.0, 0.3, 0.2))[0] for x in c]
    assert np.all(np.asarray(ours) < np.array(theirs) - 0.1)


def test_adaface_is_arcface_or_cosface_by_quality():
    c = jnp.linspace(-0.8, 0.99, 31)
    poor, middling = (
        ops.adaface(c, jnp.full_like(c, q), scale=64.0, margin=0.4) for q in (-1.0, 0.0)
    )
    np.testing.assert_allclose(poor, ops.arcface(c, scale=64.0, margin=0.4), atol=1e-4)
    np.testing.assert_allclose(middling, ops.cosface(c, scale=64.0, margin=0.4), atol=1e-4)


@given(unit_interval, st.floats(-1, 1, width=32), st.floats(0, 1.5))
@settings(max_examples=200)
def test_adaface_at_any_quality(c, quality, margin):
    actual = ops.adaface(jnp.array([c]), jnp.array([quality]), scale=1.0, margin=margin)[0]
    # Where an angle leaves its range by rounding alone, cosines near ±1 hardly differ.
    np.testing.assert_allclose(actual, reference.adaface(c, quality, margin), atol=2e-6)


def statistics_of(quality):
    return [float(x) for x in quality.statistics]


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
def test_quality_and_its_statistics_over_three_batches(rows):
    rng = np.random.default_rng(rows)
    statistics, mean, std = ops.initial_norm_statistics(), 20.0, 100.0
    assert statistics_of(ops.Quality(None, statistics)) == [mean, std]
    for scale in (1.0, 30.0, 300.0):
        norms = scale * rng.uniform(0, 1, rows).astype(np.float32)
        found = ops.adaface_quality(norms=jnp.asarray(norms), statistics=statistics)
        expected, mean, std = reference.adaface_quality(norms, mean, std)
        np.testing.assert_allclose(found.quality, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(statistics_of(found), [mean, std], rtol=1e-5)
        statistics = found.statistics


def test_quality_reaches_both_ends_and_has_no_gradient():
    narrow = ops.NormStatistics(jnp.float32(20.0), jnp.float32(1.0))
    norms = jnp.array([1.0, 20.0, 90.0])
    quality = ops.adaface_quality(norms, narrow).quality
    assert quality[0] == -1.0
    assert quality[2] == 1.0
    gradient = jax.grad(lambda n: jnp.sum(ops.adaface_quality(n, narrow).quality))(norms)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("real", [0, 1, 2, 8])
def test_padding_moves_no_statistic(real):
    norms = jnp.asarray(np.random.default_rng(0).uniform(5, 40, 9), jnp.float32)
    mask = jnp.arange(9) < real
    start = ops.NormStatistics(jnp.float32(11.0), jnp.float32(3.0))
    padded = ops.adaface_quality(jnp.where(mask, norms, jnp.inf), start, mask=mask)
    bare, mean, std = reference.adaface_quality(norms[:real], 11.0, 3.0)
    np.testing.assert_allclose(statistics_of(padded), [mean, std], rtol=1e-5)
    np.testing.assert_allclose(padded.quality[:real], np.array(bare), rtol=1e-4, atol=1e-6)
    assert np.all(np.isfinite(padded.quality))


@pytest.mark.parametrize("batch", [1, 7, 8, 9])
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_the_labels_column_is_read_and_replaced(batch, classes):
    rng = np.random.default_rng(batch)
    values = rng.uniform(-1, 1, (batch, classes)).astype(np.float32)
    labels = rng.integers(-1, classes + 1, batch).astype(np.int32)
    new = rng.normal(size=batch).astype(np.float32)
    read = np.zeros(batch, np.float32)
    replaced = values.copy()
    for row, label in enumerate(labels):
        if 0 <= label < classes:
            read[row] = values[row, label]
            replaced[row, label] = new[row]
    np.testing.assert_array_equal(ops.at_label(values, labels), read)
    np.testing.assert_array_equal(ops.replace_at_label(values, labels, new), replaced)


def arcface_loss(cosines, labels):
    of_label = ops.arcface(ops.at_label(cosines, labels), scale=64.0, margin=0.5)
    return ops.cross_entropy(ops.replace_at_label(64.0 * cosines, labels, of_label), labels)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_gives_no_nan(label):
    cosines = jnp.array([[0.5, 1.0, -1.0]])
    value, gradient = jax.value_and_grad(lambda c: arcface_loss(c, jnp.array([label]))[0])(cosines)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


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
    np.testing.assert_allclose(ops.cross_entropy(logits, labels), expected, rtol=1e-5, atol=1e-6)

    gradient = jax.grad(lambda z: ops.cross_entropy(z, labels).sum())(jnp.asarray(logits))
    softmax = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    softmax[np.arange(batch), labels] -= 1
    np.testing.assert_allclose(gradient, softmax, atol=1e-6)


def test_cross_entropy_keeps_small_losses():
    # Subtracting two numbers near 64 would leave a multiple of 7.6e-6.
    loss = ops.cross_entropy(jnp.array([[64.0, 50.0]]), jnp.array([0]))
    np.testing.assert_allclose(loss, math.log1p(math.exp(-14.0)), rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cross_entropy_in_half_precision_is_float32(dtype):
    logits = jnp.array([[60.0, -60.0, 3.0]], dtype)
    loss = ops.cross_entropy(logits, jnp.array([1]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 120.0, rtol=1e-5)


def test_classes_sharded_over_devices_give_the_same_without_gathering_logits():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-1, 1, (6, 48)).astype(np.float32)
    labels = np.array([0, 5, 6, 47, -1, 48], np.int32)
    mesh = jax.make_mesh((8,), ("classes",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "classes"))

    def loss(cosines):
        losses = arcface_loss(cosines, labels)
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
