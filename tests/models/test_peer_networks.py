"""mbf, ViT and IR-SE in training: padding, statistics, remat, and what the key decides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_variables

from ida_jax.artefacts.face_model import build_network
from ida_jax.common.errors import UserError

NETWORKS = {
    "mbf": ({"blocks": (1, 2, 1, 1), "scale": 1}, 16),
    "vit_t": ({"depth": 2, "width": 16, "heads": 2, "drop_path_rate": 0.5, "mask_ratio": 0.3}, 27),
    "ir_se50": ({"stage_sizes": (1, 1), "widths": (16, 16), "dropout_rate": 0.0}, 16),
}


def _network(name, **more):
    options, size = NETWORKS[name]
    return build_network(name, {"embedding_dim": 6, **options, **more}), size


@partial(jax.jit, static_argnums=0)
def _trained(module, variables, images, mask, key):
    """Embeddings, updated statistics, and the gradients of a sum of squares of the first rows."""

    def loss(params):
        out, new = module.apply(
            {**variables, "params": params}, images, train=True, mask=mask,
            rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.sum(jnp.where(mask[:, None], out, 0) ** 2), (out, new["batch_stats"])

    return jax.grad(loss, has_aux=True)(variables["params"])


# Two programs of one network: what optimisation leaves out rounds otherwise.
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", NETWORKS)
def test_training(name):
    module, size = _network(name)
    variables = drawn_variables(module, (1, size, size, 3))
    images = np.random.default_rng(0).normal(size=(5, size, size, 3)).astype(np.float32)
    mask, key = np.array([1, 1, 1, 1, 0], bool), jax.random.key(3)
    gradients, (out, stats) = _trained(module, variables, images, mask, key)
    assert (out.shape, out.dtype) == ((5, 6), np.float32)
    # Every weight learns something, but behind a gate's ReLU that gives 0 for these images.
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0) or "gate" in jax.tree_util.keystr(path), path
    assert any(
        np.any(np.abs(a - b) > 1e-3)
        for a, b in zip(*map(jax.tree.leaves, (stats, variables["batch_stats"])), strict=True)
    )

    # A padding row changes nothing for the others.
    other = images.copy()
    other[4] = 9
    again = _trained(module, variables, other, mask, key)
    np.testing.assert_allclose(again[1][0][:4], out[:4], rtol=1e-5, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), again[1][1], stats)

    # remat computes the same.
    remat, _ = _network(name, remat=True)
    kept = _trained(remat, variables, images, mask, key)
    np.testing.assert_allclose(kept[1][0], out, rtol=1e-4, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), kept[0], gradients)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_gradients_in_halves_are_float32s_to_rounding(name, dtype, rounding):
    """Under strict promotion, and as a whole: single entries may be all rounding."""
    found = {}
    for type_ in ("float32", dtype):
        module, size = _network(name, dtype=type_)
        variables = drawn_variables(module, (1, size, size, 3))
        images = np.random.default_rng(0).normal(size=(6, size, size, 3)).astype(np.float32)
        gradients, (out, _) = _trained(
            module, variables, images, np.ones(6, bool), jax.random.key(3)
        )
        assert out.dtype == np.float32
        found[type_] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)])
    difference = np.linalg.norm(found[dtype] - found["float32"])
    # A few dozen roundings one after the other.
    assert difference < 30 * rounding * np.linalg.norm(found["float32"])


def test_what_a_vit_leaves_out_follows_from_the_key():
    module, size = _network("vit_t")
    variables = drawn_variables(module, (1, size, size, 3))
    images = np.random.default_rng(0).normal(size=(5, size, size, 3)).astype(np.float32)
    mask = np.ones(5, bool)
    first, same, other = (
        np.asarray(_trained(module, variables, images, mask, jax.random.key(seed))[1][0])
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, same)
    assert np.max(np.abs(first - other)) > 1e-2


def test_unknown_options_are_named_with_the_known_ones():
    with pytest.raises(UserError, match="of mbf: unknown option 'dropout_rate': it has blocks"):
        build_network("mbf", {"embedding_dim": 6, "dropout_rate": 0.4})
