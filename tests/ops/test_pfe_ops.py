from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from drawn import drawn_variables
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.models.mobilefacenet import MobileFaceNet
from ida_jax.models.resnet import iresnet_nano
from ida_jax.models.uncertainty_network import UncertaintyNetwork
from ida_jax.ops import mutual_likelihood as likelihood

# One compilation a shape, not one for each operation.
mls_matrix = jax.jit(likelihood.mls_matrix)
mutual_likelihood = jax.jit(likelihood.mutual_likelihood)
positive_pairs_loss = jax.jit(likelihood.positive_pairs_loss, static_argnames="run")
summed_mls = jax.jit(likelihood.summed_mls, static_argnames="dimensions")


def _matrix(means_1, log_variances_1, means_2, log_variances_2):
    return np.array(
        [
            [reference.mutual_likelihood(m1, m2, v1, v2)
             for m2, v2 in zip(means_2, log_variances_2, strict=True)]
            for m1, v1 in zip(means_1, log_variances_1, strict=True)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (7, 9, 5), (8, 1, 16), (3, 17, 31), (4, 5, 32), (5, 4, 65)]
)
def test_mutual_likelihood_and_matrix(n, m, d):
    first, second = reference.gaussians((n, d), 0), reference.gaussians((m, d), 1)
    expected = _matrix(*first, *second)
    matrix = mls_matrix(*first, *second)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-5)
    # As a GPU has them.
    by_16 = summed_mls(*first, *second, dimensions=16)
    np.testing.assert_allclose(by_16, matrix, rtol=1e-6, atol=1e-6)
    for i in range(n):
        got = mutual_likelihood(first[0][i : i + 1], second[0], first[1][i : i + 1], second[1])
        np.testing.assert_allclose(got, expected[i], rtol=1e-6, atol=1e-5)


@pytest.mark.bits
def test_symmetric_to_the_last_bit():
    (m1, v1), (m2, v2) = reference.gaussians((50, 32), 0), reference.gaussians((50, 32), 1)
    np.testing.assert_array_equal(
        mutual_likelihood(m1, m2, v1, v2), mutual_likelihood(m2, m1, v2, v1)
    )
    np.testing.assert_array_equal(mls_matrix(m1, v1, m2, v2), mls_matrix(m2, v2, m1, v1).T)


def test_very_small_and_very_large_variances():
    means = reference.unit((2, 4), 0)
    means[1] = means[0]
    # exp(300) is no float32.
    for v in (-80.0, 300.0):
        log_variances = np.full((2, 4), v, np.float32)
        got = mutual_likelihood(means[0], means[1], log_variances[0], log_variances[1])
        np.testing.assert_allclose(got, -4 * (v + np.log(2)), rtol=1e-6)
    spread = np.array([[-20, -20, -20, -20], [20, 20, 20, 20]], np.float32)
    got = mls_matrix(means, spread, means, spread)
    np.testing.assert_allclose(got, _matrix(means, spread, means, spread), rtol=1e-5)


def test_equal_variances_rank_as_the_cosine():
    first, second = reference.unit((20, 16), 0), reference.unit((30, 16), 1)
    v = np.float32(-6.5)
    got = mls_matrix(first, np.full((20, 16), v), second, np.full((30, 16), v))
    cosine = first.astype(np.float64) @ second.T.astype(np.float64)
    # cos / σ² − D log 2σ² − 1/σ², so that the slope in the cosine is 1/σ².
    expected = (cosine - 1) * np.exp(6.5) - 16 * (np.log(2) - 6.5)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(np.argsort(got, axis=None), np.argsort(cosine, axis=None))


def _batch(batch, d, seed, *, images=4):
    means, log_variances = reference.gaussians((batch, d), seed, clusters=3)
    labels = (np.arange(batch) // images).astype(np.int32)
    rows = np.arange(batch, dtype=np.int32)
    return means, log_variances, labels, rows


@settings(max_examples=20)
@given(
    batch=st.sampled_from([1, 2, 7, 32, 33, 40]),
    identities=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_loss_of_any_labels(batch, identities, seed):
    rng = np.random.default_rng(seed)
    means, log_variances, _, _ = _batch(batch, 8, seed)
    labels = rng.integers(identities, size=batch).astype(np.int32)
    # Some images are there twice, with their own identity.
    rows = (labels * 10 + rng.integers(4, size=batch)).astype(np.int32)
    got = positive_pairs_loss(means, log_variances, labels, rows)
    expected = reference.positive_pairs_loss(means, log_variances, labels, rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_loss_of_runs_is_that_of_all(images):
    means, log_variances, labels, rows = _batch(12, 8, 0, images=images)
    rows[1] = rows[0]
    expected = reference.positive_pairs_loss(means, log_variances, labels, rows)
    for run in (None, images):
        loss = jax.value_and_grad(partial(likelihood.positive_pairs_loss, run=run), argnums=1)
        got, gradient = jax.jit(loss)(means, log_variances, labels, rows)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        if images == 1:  # no pair: a loss of 0, and nothing to learn from
            assert got == 0
            assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("run", [None, 4])
def test_gradient_of_loss(run):
    means, log_variances, labels, rows = _batch(36, 3, 1)
    rows[5] = rows[4]
    gradient = jax.grad(partial(likelihood.positive_pairs_loss, run=run), argnums=(0, 1))
    got = jax.jit(gradient)(means, log_variances, labels, rows)
    arguments = [means.astype(np.float64), log_variances.astype(np.float64)]
    for which in (0, 1):
        expected = np.empty_like(arguments[which])
        for place in np.ndindex(expected.shape):
            values = []
            for step in (1e-4, -1e-4):
                moved = [x.copy() for x in arguments]
                moved[which][place] += step
                values.append(reference.positive_pairs_loss(*moved, labels, rows))
            expected[place] = (values[0] - values[1]) / 2e-4
        np.testing.assert_allclose(got[which], expected, rtol=1e-3, atol=1e-4)


def test_loss_under_jit_holds_no_array_of_all_pairs():
    means, log_variances, labels, rows = _batch(256, 512, 0)
    step = jax.jit(jax.grad(lambda v: positive_pairs_loss(means, v, labels, rows)))
    memory = step.lower(log_variances).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 256 * 256 * 512


def _module(features, *, embedding_dim=6, hidden=5):
    module = UncertaintyNetwork(embedding_dim, hidden=hidden)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), features)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: (
            np.asarray(x) * (1 + 0.2 * rng.uniform(size=x.shape)).astype(np.float32)
            + 0.1 * rng.uniform(size=x.shape).astype(np.float32)
        ),
        variables,
    )
    return module, variables, moved


def _apply(module, variables, features, *, train):
    """The outputs, and the updated statistics."""
    apply = partial(module.apply, train=train, mutable=["batch_stats"])
    return jax.jit(apply)(variables, features)


def _features(batch=9):
    return np.random.default_rng(1).normal(size=(batch, 2, 3, 4)).astype(np.float32)


def test_module_begins_with_equal_variances():
    module, variables, _ = _module(_features())
    shapes = {
        "/".join(k): v.shape
        for k, v in flax.traverse_util.flatten_dict(variables["params"]).items()
    }
    assert shapes == {
        "hidden_fc/kernel": (24, 5), "hidden_bn/scale": (5,), "hidden_bn/bias": (5,),
        "output_fc/kernel": (5, 6), "scale": (), "shift": (),
    }  # fmt: skip
    got, _ = _apply(module, variables, _features(), train=True)
    assert got.dtype == jnp.float32
    assert got.shape == (9, 6)
    np.testing.assert_allclose(got, np.log(1e-6 + np.exp(-7.0)), atol=1e-3)
    assert np.std(np.asarray(got)) > 0


def _numpy_module(variables, features, *, train):
    """In float64, from the authors' description: the outputs, and each BatchNorm's statistics."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    params, stats, found = p["params"], p["batch_stats"], {}

    def norm(x, name):
        found[name] = (x.mean(axis=0), x.var(axis=0))
        mean, var = found[name] if train else (stats[name]["mean"], stats[name]["var"])
        return (x - mean) / np.sqrt(var + 1e-3)

    x = features.astype(np.float64).reshape(len(features), -1) @ params["hidden_fc"]["kernel"]
    x = norm(x, "hidden_bn") * params["hidden_bn"]["scale"] + params["hidden_bn"]["bias"]
    x = norm(np.maximum(x, 0) @ params["output_fc"]["kernel"], "output_bn")
    return np.log(1e-6 + np.exp(params["scale"] * x + params["shift"])), found


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch", [2, 9])
def test_module_is_the_authors(train, batch):
    features = _features(batch)
    module, _, variables = _module(features)
    got, updated = _apply(module, variables, features, train=train)
    expected, found = _numpy_module(variables, features, train=train)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for name, (mean, var) in found.items():
        before, after = variables["batch_stats"][name], updated["batch_stats"][name]
        share = 0.005 if train else 0.0
        for key, value in (("mean", mean), ("var", var)):
            moved = (1 - share) * np.asarray(before[key], np.float64) + share * value
            np.testing.assert_allclose(after[key], moved, rtol=1e-5, atol=1e-6)


def test_module_never_falls_below_the_least_variance():
    module, variables, _ = _module(_features())
    variables["params"]["shift"] = np.float32(-1000.0)
    got, _ = _apply(module, variables, _features(), train=False)
    np.testing.assert_allclose(got, np.log(1e-6), rtol=1e-6)


def test_bfloat16_maps_give_float32_variances():
    module, variables, _ = _module(_features())
    got, _ = _apply(module, variables, _features().astype(jnp.bfloat16), train=False)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("network", [iresnet_nano(embedding_dim=8), MobileFaceNet(embedding_dim=8)])
def test_networks_sow_their_last_map_where_asked(network):
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = drawn_variables(network, images.shape)
    assert set(variables) == {"params", "batch_stats"}
    apply = partial(network.apply, train=False)
    plain, (embeddings, sown) = jax.jit(
        lambda v: (apply(v, images), apply(v, images, mutable=["intermediates"]))
    )(variables)
    np.testing.assert_array_equal(embeddings, plain)
    assert set(sown["intermediates"]) == {"feature_map"}
    (feature_map,) = sown["intermediates"]["feature_map"]
    # The embedding is the rest of the network on this very map.
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x, name):
        x = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        return x * params[name].get("scale", 1.0) + params[name]["bias"]

    x = np.asarray(feature_map, np.float64)
    if isinstance(network, MobileFaceNet):
        fc, last = "conv3", "bn"
        x = np.einsum("bhwc,hwc->bc", x, params["gdconv_depthwise"]["kernel"][:, :, 0])
        x = norm(x, "gdconv_bn")
    else:
        fc, last = "fc", "embedding_bn"
    x = x.reshape(2, -1) @ params[fc]["kernel"] + params[fc].get("bias", 0.0)
    np.testing.assert_allclose(plain, norm(x, last), rtol=1e-4, atol=1e-5)
