import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ida_jax.common.errors import UserError
from ida_jax.models.margin_head import MARGIN_LOSSES, MarginHead, default_margin

BATCH, CLASSES, DIM = 7, 5, 6


@pytest.fixture(scope="module")
def batch():
    embeddings = 3.0 * jax.random.normal(jax.random.key(0), (BATCH, DIM))
    labels = jnp.arange(BATCH, dtype=jnp.int32) % CLASSES
    return embeddings, labels


@partial(jax.jit, static_argnums=0)
def initial(head, embeddings, labels):
    return head.init(jax.random.key(1), embeddings, labels)


@partial(jax.jit, static_argnums=0)
def applied(head, variables, embeddings, labels, mask=None):
    """The logits, and the updated statistics."""
    return head.apply(variables, embeddings, labels, mask=mask, mutable=["batch_stats"])


def oracle(embeddings, weight, labels, kind, scale, margin):
    """Logits in float64; weight is [C, S, D]."""
    norms = np.linalg.norm(np.float64(embeddings), axis=1)
    unit = np.float64(embeddings) / norms[:, None]
    weight = np.float64(weight) / np.linalg.norm(np.float64(weight), axis=-1, keepdims=True)
    logits = np.array([[max(w @ e for w in centres) for centres in weight] for e in unit])
    qualities, _, _ = reference.adaface_quality(norms, 20.0, 100.0)
    for row, label in enumerate(labels):
        c = logits[row, label]
        logits[row, label] = {
            "arcface": lambda c=c: reference.arcface(c, margin),
            "cosface": lambda c=c: c - margin,
            "l2_softmax": lambda c=c: c,
            "sphereface": lambda c=c: reference.sphereface(c, margin),
            "combined": lambda c=c: reference.combined(c, margin),
            "adaface": lambda c=c, q=qualities[row]: reference.adaface(c, q, margin),
        }[kind]()
    return scale * logits


@pytest.mark.parametrize(
    ("kind", "scale", "margin", "sub_centres"),
    [
        ("arcface", 64.0, 0.5, 1),
        ("arcface", 16.0, 0.1, 3),
        ("cosface", 64.0, 0.35, 1),
        ("l2_softmax", 20.0, 0, 2),
        ("sphereface", 30.0, 3, 1),
        ("combined", 64.0, (1.2, 0.3, 0.1), 1),
        ("adaface", 64.0, 0.4, 1),
        ("adaface", 64.0, 0.4, 3),
    ],
)
def test_logits(batch, kind, scale, margin, sub_centres):
    head = MarginHead(CLASSES, kind, scale=scale, margin=margin, sub_centres=sub_centres)
    variables = initial(head, *batch)
    weight = variables["params"]["weight"]
    assert weight.shape == ((CLASSES, DIM) if sub_centres == 1 else (CLASSES, sub_centres, DIM))
    logits, _ = applied(head, variables, *batch)
    weight = np.reshape(weight, (CLASSES, sub_centres, DIM))
    expected = oracle(batch[0], weight, batch[1], kind, scale, margin)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "margin"),
    [
        ("arcface", 0.5),
        ("cosface", 0.35),
        ("l2_softmax", None),
        ("sphereface", 4),
        ("combined", (1.0, 0.3, 0.2)),
        ("adaface", 0.4),
    ],
)
def test_the_margin_defaults_to_the_kinds_own(kind, margin):
    assert default_margin(kind) == margin
    assert kind in MARGIN_LOSSES
    c, quality = jnp.linspace(-1, 1, 9), jnp.linspace(-1, 1, 9)
    if kind != "adaface":
        quality = None
    default, explicit = MarginHead(CLASSES, kind), MarginHead(CLASSES, kind, margin=margin)
    np.testing.assert_array_equal(
        default.label_logits(c, quality), explicit.label_logits(c, quality)
    )


def test_straight_through_changes_the_gradient_alone():
    c = jnp.linspace(-1, 1, 9)
    exact, straight = MarginHead(3), MarginHead(3, straight_through=True)
    np.testing.assert_allclose(straight.label_logits(c), exact.label_logits(c), atol=2e-5)
    gradients = [jax.grad(lambda c, h=h: jnp.sum(h.label_logits(c)))(c) for h in (exact, straight)]
    np.testing.assert_array_equal(gradients[1], 64.0)
    assert np.max(np.abs(gradients[0] - 64.0)) > 5.0


def test_class_weights_start_from_a_normal_of_deviation_001():
    head = MarginHead(2000)
    params = initial(head, np.ones((1, 64), np.float32), np.zeros(1, np.int32))
    np.testing.assert_allclose(np.std(params["params"]["weight"]), 0.01, rtol=0.02)


@pytest.mark.parametrize("kind", sorted(set(MARGIN_LOSSES) - {"adaface"}))
def test_the_embeddings_norm_does_not_matter(batch, kind):
    embeddings, labels = batch
    head = MarginHead(CLASSES, kind, scale=1.0)
    variables = initial(head, embeddings, labels)
    logits, _ = applied(head, variables, embeddings, labels)
    np.testing.assert_allclose(
        applied(head, variables, 1e3 * embeddings, labels)[0], logits, atol=2e-6
    )


def test_adafaces_statistics_move_where_they_may_and_skip_padding(batch):
    embeddings, labels = batch
    head = MarginHead(CLASSES, "adaface")
    variables = initial(head, embeddings, labels)
    assert variables["batch_stats"] == {"norm_mean": 20.0, "norm_std": 100.0}

    mask = jnp.arange(BATCH) < 4
    padded = jnp.where(mask[:, None], embeddings, 1e3)
    _, updates = applied(head, variables, padded, labels, mask=mask)
    norms = np.linalg.norm(np.float64(embeddings[:4]), axis=1)
    _, mean, std = reference.adaface_quality(norms, 20.0, 100.0)
    np.testing.assert_allclose(updates["batch_stats"]["norm_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["norm_std"], std, rtol=1e-6)


def test_adaface_lets_no_gradient_through_the_norm(batch):
    """The logits' gradient by an embedding has no part along it: its length changes nothing."""
    embeddings, labels = batch
    head = MarginHead(CLASSES, "adaface")
    variables = initial(head, embeddings, labels)
    probe = jax.random.normal(jax.random.key(2), (BATCH, CLASSES))
    gradient = jax.jit(jax.grad(lambda e: jnp.sum(head.apply(variables, e, labels) * probe)))(
        embeddings
    )
    assert np.max(np.abs(gradient)) > 1.0
    np.testing.assert_allclose(np.sum(gradient * embeddings, axis=1), 0.0, atol=1e-3)


def test_a_gradient_reaches_the_nearest_sub_centre_alone():
    weight = jnp.eye(6).reshape(2, 3, 6)
    embeddings = jnp.array([[0.1, 0.9, 0.2, 0.0, 0.1, 0.7]])
    gradient = jax.grad(
        lambda w: jnp.sum(
            MarginHead(2, sub_centres=3).apply(
                {"params": {"weight": w}}, embeddings, jnp.zeros(1, jnp.int32)
            )
        )
    )(weight)
    moved = np.any(np.asarray(gradient) != 0, axis=-1)
    np.testing.assert_array_equal(moved, [[False, True, False], [False, False, True]])


def test_gradient_by_the_embeddings_is_that_of_the_formula(batch):
    embeddings, labels = batch
    head = MarginHead(CLASSES, scale=8.0, margin=0.5)
    variables = initial(head, embeddings, labels)
    probe = np.random.default_rng(0).normal(size=(BATCH, CLASSES))
    gradient = jax.jit(
        jax.grad(lambda e: jnp.sum(head.apply(variables, e, labels) * np.float32(probe)))
    )(embeddings)

    weight, step = variables["params"]["weight"][:, None], 1e-6
    embeddings = np.float64(embeddings)
    expected = np.zeros(embeddings.shape)
    for index in np.ndindex(*embeddings.shape):
        shift = np.zeros(embeddings.shape)
        shift[index] = step
        up, down = (
            np.sum(probe * oracle(embeddings + s, weight, labels, "arcface", 8.0, 0.5))
            for s in (shift, -shift)
        )
        expected[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_stay_small_where_an_embedding_meets_its_class_weight(sign):
    head = MarginHead(40, scale=1.0)
    weight = jax.random.normal(jax.random.key(0), (40, DIM))
    labels = jnp.arange(40, dtype=jnp.int32)

    def target_sum(weight, embeddings):
        logits = head.apply({"params": {"weight": weight}}, embeddings, labels)
        return jnp.sum(logits[labels, labels])

    # In exact arithmetic |∂ cos(θ+m)/∂e| = sin(θ+m) / |e|.
    bound = 2.0 / np.min(np.linalg.norm(weight, axis=1))
    for gradient in jax.jit(jax.grad(target_sum, argnums=(0, 1)))(weight, sign * weight):
        assert np.max(np.abs(gradient)) < bound


@pytest.mark.parametrize("kind", MARGIN_LOSSES)
def test_gradients_are_finite_at_a_zero_embedding(batch, kind):
    head = MarginHead(CLASSES, kind)
    variables = initial(head, *batch)
    gradient = jax.jit(jax.grad(lambda e: jnp.sum(head.apply(variables, e, batch[1]))))(
        np.zeros((BATCH, DIM), np.float32)
    )
    assert np.all(np.isfinite(gradient))


def test_bfloat16_embeddings_are_multiplied_in_float32(batch):
    embeddings, labels = batch[0].astype(jnp.bfloat16), batch[1]
    head = MarginHead(CLASSES)
    variables = initial(head, embeddings, labels)
    logits, _ = applied(head, variables, embeddings, labels)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(
        logits, applied(head, variables, embeddings.astype(jnp.float32), labels)[0]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "arc"}, r"'arc'.*arcface.*cosface.*l2_softmax.*sphereface.*combined.*adaface"),
        ({"margin": 1.6}, r"'arcface' is 1.6: expected 0 ≤ m < π/2"),
        ({"margin": (1.0, 0.5, 0.0)}, "expected a number"),
        ({"kind": "cosface", "margin": -0.1}, "expected 0 ≤ m < 2"),
        ({"kind": "sphereface", "margin": 1.5}, "a whole number ≥ 1"),
        ({"kind": "combined", "margin": 0.5}, r"three numbers \(m₁ > 0"),
        ({"kind": "combined", "margin": (1.0, 0.5)}, "three numbers"),
        ({"kind": "combined", "margin": (0.0, 0.5, 0.0)}, "three numbers"),
        ({"kind": "adaface", "margin": math.nan}, "expected 0 ≤ m < π/2"),
        ({"sub_centres": 0}, "sub_centres is 0: expected 1 or more"),
        ({"kind": "combined", "straight_through": True}, r"the margin \(1.0, 0.3, 0.2\)"),
        (
            {"kind": "cosface", "straight_through": True},
            r"for arcface, and for combined with \(1, m, 0\)",
        ),
    ],
)
def test_mistakes_are_named_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        MarginHead(CLASSES, **options)


@pytest.mark.parametrize("kind", ["arcface", "sphereface", "combined", "adaface"])
def test_training_by_the_head_alone_separates_the_classes(batch, kind):
    """The gradient has the right sign for the weights: a few steps put every label first."""
    embeddings, labels = batch
    embeddings = embeddings.at[CLASSES:].set(embeddings[: BATCH - CLASSES] + 0.1)
    head = MarginHead(CLASSES, kind, scale=16.0, margin={"sphereface": 2}.get(kind))
    variables = initial(head, embeddings, labels)

    def loss(params):
        logits = head.apply({**variables, "params": params}, embeddings, labels)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels])

    step = jax.jit(jax.value_and_grad(loss))
    params = variables["params"]
    first, _ = step(params)
    for _ in range(100):
        _, gradient = step(params)
        # Weights of length 0.02 turn by ∂/∂w ~ 1/|w|.
        params = jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient)
    last, _ = step(params)
    assert last < 0.1 * first
    assert math.isfinite(last)
