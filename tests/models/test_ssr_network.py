import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ida_jax.models.ssr_network import SSRNetwork


@pytest.mark.parametrize("leading", [(), (1,), (7,), (3, 5)])
def test_one_number_an_embedding(leading):
    embeddings = jax.random.normal(jax.random.key(0), (*leading, 12))
    module = SSRNetwork(hidden=9)
    variables = module.init(jax.random.key(1), embeddings)
    result = module.apply(variables, embeddings)
    assert result.shape == leading

    params = jax.tree.map(np.float64, variables["params"])
    first, second = params["hidden_fc"], params["output_fc"]
    hidden = np.maximum(np.float64(embeddings) @ first["kernel"] + first["bias"], 0)
    expected = (hidden @ second["kernel"] + second["bias"])[..., 0]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_it_has_two_layers_with_biases():
    shapes = jax.eval_shape(SSRNetwork().init, jax.random.key(0), jnp.zeros((1, 256)))
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    assert sorted(sizes) == [1, 256, 256, 256 * 256]


def test_bfloat16_is_close_to_float32():
    embeddings = jax.random.normal(jax.random.key(0), (33, 16)) / 4.0
    variables = SSRNetwork().init(jax.random.key(1), embeddings)
    low = SSRNetwork(dtype=jnp.bfloat16).apply(variables, embeddings)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, SSRNetwork().apply(variables, embeddings), atol=0.02)
