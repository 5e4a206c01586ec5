import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ida_jax.errors import UserError
from ida_jax.models.margin_head import MarginHead

BATCH, CLASSES, DIM = 7, 5, 6


@pytest.fixture(scope="module")
def batch():
    embeddings = 3.0 * jax.random.normal(jax.random.key(0), (BATCH, DIM))
    labels = jnp.arange(BATCH, dtype=jnp.int32) % CLASSES
    return embeddings, labels


def oracle(embeddings, weight, labels, kind, scale, margin):
    embeddings, weight = np.float64(embeddings), np.float64(weight)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    logits = embeddings @ weight.T
    rows = np.arange(len(labels))
    target = logits[rows, labels]
    if kind == "arcface":
        theta = np.arccos(target)
        assert np.all(theta + margin < np.pi)
        logits[rows, labels] = np.cos(theta + margin)
    elif kind == "cosface":
        logits[rows, labels] = target - margin
    return scale * logits


@pytest.mark.parametrize(
    ("kind", "scale", "margin"),
    [
        ("arcface", 64.0, 0.5),
        ("arcface", 16.0, 0.1),
        ("cosface", 64.0, 0.35),
        ("l2_softmax", 20.0, 0),
    ],
)
def test_logits(batch, kind, scale, margin):
    head = MarginHead(CLASSES, kind, scale=scale, margin=margin)
    variables = head.init(jax.random.key(1), *batch)
    weight = variables["params"]["weight"]
    assert weight.shape == (CLASSES, DIM)
    expected = oracle(batch[0], weight, batch[1], kind, scale, margin)
    np.testing.assert_allclose(head.apply(variables, *batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "margin"), [("arcface", 0.5), ("cosface", 0.35)])
def test_the_margin_defaults_to_the_kinds_own(batch, kind, margin):
    head = MarginHead(CLASSES, kind)
    variables = head.init(jax.random.key(1), *batch)
    explicit = MarginHead(CLASSES, kind, scale=64.0, margin=margin)
    np.testing.assert_array_equal(head.apply(variables, *batch), explicit.apply(variables, *batch))


def test_class_weights_start_from_a_normal_of_deviation_001():
    head = MarginHead(2000)
    params = head.init(jax.random.key(0), jnp.ones((1, 64)), jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(np.std(params["params"]["weight"]), 0.01, rtol=0.02)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "l2_softmax"])
def test_the_embeddings_norm_does_not_matter(batch, kind):
    embeddings, labels = batch
    head = MarginHead(CLASSES, kind, scale=1.0)
    variables = head.init(jax.random.key(1), embeddings, labels)
    logits = head.apply(variables, embeddings, labels)
    np.testing.assert_allclose(head.apply(variables, 1e3 * embeddings, labels), logits, atol=1e-6)


def test_gradient_by_the_embeddings_is_that_of_the_formula(batch):
    embeddings, labels = batch
    head = MarginHead(CLASSES, scale=8.0, margin=0.5)
    variables = head.init(jax.random.key(1), embeddings, labels)
    probe = np.random.default_rng(0).normal(size=(BATCH, CLASSES))
    gradient = jax.grad(lambda e: jnp.sum(head.apply(variables, e, labels) * jnp.float32(probe)))(
        embeddings
    )

    weight, step = variables["params"]["weight"], 1e-6
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
    for gradient in jax.grad(target_sum, argnums=(0, 1))(weight, sign * weight):
        assert np.max(np.abs(gradient)) < bound


def test_gradients_are_finite_at_a_zero_embedding():
    head = MarginHead(3)
    weight = jax.random.normal(jax.random.key(0), (3, DIM))
    labels = jnp.arange(3, dtype=jnp.int32)
    gradient = jax.grad(
        lambda e: jnp.sum(head.apply({"params": {"weight": weight}}, e, labels)),
    )(jnp.zeros((3, DIM)))
    assert np.all(np.isfinite(gradient))


def test_bfloat16_embeddings_are_multiplied_in_float32(batch):
    embeddings, labels = batch[0].astype(jnp.bfloat16), batch[1]
    head = MarginHead(CLASSES)
    variables = head.init(jax.random.key(1), embeddings, labels)
    logits = head.apply(variables, embeddings, labels)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(
        logits, head.apply(variables, embeddings.astype(jnp.float32), labels)
    )


def test_an_unknown_kind_names_the_three(batch):
    with pytest.raises(UserError, match=r"'arc'.*arcface.*cosface.*l2_softmax"):
        MarginHead(CLASSES, "arc").init(jax.random.key(0), *batch)


def test_training_by_the_head_alone_separates_the_classes(batch):
    """The gradient has the right sign for the weights: a few steps put every label first."""
    embeddings, labels = batch
    embeddings = embeddings.at[CLASSES:].set(embeddings[: BATCH - CLASSES] + 0.1)
    head = MarginHead(CLASSES, scale=16.0, margin=0.3)
    params = head.init(jax.random.key(1), embeddings, labels)["params"]

    def loss(params):
        logits = head.apply({"params": params}, embeddings, labels)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels])

    step = jax.jit(jax.value_and_grad(loss))
    first, _ = step(params)
    for _ in range(100):
        _, gradient = step(params)
        # Weights of length 0.02 turn by ∂/∂w ~ 1/|w|.
        params = jax.tree.map(lambda p, g: p - 1e-4 * g, params, gradient)
    last, _ = step(params)
    assert last < 0.1 * first
    assert math.isfinite(last)
