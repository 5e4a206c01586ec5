"""StyleGAN2's networks against float64 transcriptions, one image at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from reference import (
    group_deviations,
    stylegan_discriminator,
    stylegan_mapping,
    stylegan_synthesis,
)

from ida_jax.common.devices import put_batch, replicated, training_mesh
from ida_jax.models.stylegan import (
    DiscriminatorNetwork,
    GeneratorNetwork,
    demodulation,
    draw_noise,
    group_deviation,
    num_styles,
)

# 7 channels at 4 and 8 px, 6 at 16 px.
SMALL = {"channel_base": 96, "channel_max": 7}
generator = GeneratorNetwork(16, latent_dim=5, style_dim=6, mapping_layers=3, **SMALL)
discriminator = DiscriminatorNetwork(16, **SMALL)
# Every kind of layer, and half of them to compile.
generator_8, discriminator_8 = generator.clone(resolution=8), discriminator.clone(resolution=8)


@partial(jax.jit, static_argnums=(0, 3))
def applied(network, params, inputs, method=None):
    return network.apply({"params": params}, *inputs, method=method)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes_of(network, inputs):
    """The shapes of a network's parameters; inputs: () → what it is called with."""
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs()))["params"]


def drawn(shapes, seed=0):
    """Parameters of about their size in training, none with its initial 0 or 1."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        x = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1] in ("kernel", "constant"):
            return x * 100 if "mapping" in path else x
        return x / 2 + (1 if path[-2] == "style" else 0)

    flat = flatten_dict(shapes)
    return unflatten_dict({path: value(path, leaf) for path, leaf in flat.items()})


def noise_of(batch, resolution, seed=0):
    sides = [4] + [r for r in (8, 16) if r <= resolution for _ in range(2)]
    return [normal(batch, r, r, 1, seed=seed + n) for n, r in enumerate(sides)]


def generator_inputs(resolution, batch=8):
    return normal(batch, 5), noise_of(batch, resolution)


@pytest.fixture(scope="module")
def generator_params():
    return drawn(shapes_of(generator, lambda: generator_inputs(16)))


@pytest.fixture(scope="module")
def params_8():
    """The generator's and the discriminator's, of 8 px."""
    return [
        drawn(shapes_of(generator_8, lambda: generator_inputs(8))),
        drawn(shapes_of(discriminator_8, lambda: (normal(8, 8, 8, 3),))),
    ]


@pytest.fixture(scope="module")
def discriminator_params():
    return drawn(shapes_of(discriminator, lambda: (normal(8, 16, 16, 3),)))


def test_noise_is_standard_and_of_each_layers_size():
    noise = jax.jit(draw_noise, static_argnums=(1, 2))(jax.random.key(0), 64, 8)
    assert [n.shape for n in noise] == [n.shape for n in noise_of(64, 8)]
    for layer in noise:
        np.testing.assert_allclose(np.std(layer), 1, rtol=5 / np.sqrt(2 * layer.size))
    assert not np.array_equal(noise[1], noise[2])


def test_mapping_is_the_transcription_whatever_the_latents_length(generator_params):
    latents = normal(4, 5) * np.float32([[1e-3], [1.0], [10.0], [1e4]])
    styles = applied(generator, generator_params, (latents,), "map")
    expected = [stylegan_mapping(generator_params["mapping"], z) for z in latents]
    assert styles.shape == (4, 6)
    np.testing.assert_allclose(styles, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("filter_first", [False, True])
def test_synthesis_is_the_transcription(generator_params, filter_first):
    styles = normal(2, num_styles(16), 6)
    noise = noise_of(2, 16)
    network = generator.clone(filter_first=filter_first)
    images = applied(network, generator_params, (styles, noise), "synthesise")
    assert images.dtype == jnp.float32
    for b in range(2):
        own_noise = [n[b] for n in noise]
        expected = stylegan_synthesis(
            generator_params["synthesis"], styles[b], own_noise, filter_first=filter_first
        )
        assert np.ptp(expected) > 1
        np.testing.assert_allclose(images[b], expected, rtol=1e-3, atol=1e-4)


def test_a_call_gives_each_layer_the_same_style(params_8):
    latents, noise = generator_inputs(8)
    styles = applied(generator_8, params_8[0], (latents,), "map")
    styles = np.repeat(styles[:, None, :], num_styles(8), axis=1)
    expected = applied(generator_8, params_8[0], (styles, noise), "synthesise")
    images = applied(generator_8, params_8[0], (latents, noise))
    assert images.shape == (8, 8, 8, 3)
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "group"), [(8, 4), (6, 2), (3, 1)])
def test_discriminator_is_the_transcription(discriminator_params, batch, group):
    images = normal(batch, 16, 16, 3)
    logits = applied(discriminator, discriminator_params, (images,))
    expected = stylegan_discriminator(discriminator_params, images, group)
    assert logits.dtype == jnp.float32
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_deviation_is_of_the_neighbours_alone():
    features = normal(8, 3, 5, 2) * np.repeat([1, 5], 4).astype(np.float32)[:, None, None, None]
    deviation = np.asarray(jax.jit(group_deviation)(features))
    expected = group_deviations(features, 4)
    assert expected[4] > 3 * expected[0]
    expected = np.broadcast_to(expected[:, None, None, None], (8, 3, 5, 1))
    np.testing.assert_allclose(deviation, expected, rtol=1e-5)
    features[4:] = 0
    assert np.array_equal(np.asarray(jax.jit(group_deviation)(features))[:4], deviation[:4])


def test_equal_images_have_no_deviation_but_a_finite_gradient():
    features = np.repeat(normal(1, 3, 3, 2), 4, axis=0)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(group_deviation(x))))(features)
    np.testing.assert_allclose(value, 4 * 9 * 1e-4, rtol=1e-4)
    assert np.all(np.isfinite(gradient))


def test_demodulated_weights_have_unit_norm_whatever_the_style():
    kernel = normal(3, 3, 4, 5)
    scale = normal(6, 4, seed=1) * np.float32([[1e-2], [0.1], [1], [1], [10], [1e3]])
    factors = np.asarray(jax.jit(demodulation)(kernel, scale))
    for b in range(6):
        weights = np.float64(kernel) * np.float64(scale[b])[:, None]
        expected = 1 / np.sqrt(np.sum(weights**2, axis=(0, 1, 2)) + 1e-8)
        np.testing.assert_allclose(factors[b], expected, rtol=1e-5)
        norms = np.linalg.norm((weights * factors[b]).reshape(-1, 5), axis=0)
        np.testing.assert_allclose(norms, 1, rtol=1e-4)
    # So that maps of unit variance keep it.
    maps = normal(40_000, 36, seed=2) @ (weights * factors[b]).reshape(36, 5)
    np.testing.assert_allclose(np.var(maps, axis=0), 1, rtol=0.05)


WIDE = {"channel_base": 512, "channel_max": 64}


@pytest.fixture(scope="module")
def at_first():
    """Wider networks with their initial parameters and what they are called with."""
    g = GeneratorNetwork(8, latent_dim=64, style_dim=64, mapping_layers=2, **WIDE)
    d = DiscriminatorNetwork(8, **WIDE)
    inputs = {
        g: (normal(16, 64), noise_of(16, 8)),
        d: (normal(16, 8, 8, 3),),
    }
    # The default generator takes several times as long to compile.
    key = jax.random.key(0, impl="rbg")
    return [
        (network, jax.jit(network.init)(key, *given), given) for network, given in inputs.items()
    ]


def test_weights_begin_with_unit_variance(at_first):
    for _, variables, _ in at_first:
        for path, leaf in flatten_dict(variables["params"]).items():
            if path[-1] not in ("kernel", "constant"):
                expected = 1 if path[-2:] == ("style", "bias") else 0
                np.testing.assert_array_equal(leaf, expected, err_msg=str(path))
                continue
            # The mapping network learns at a hundredth of the rate, from weights as much larger.
            expected, error = 100 if "mapping" in path else 1, 5 / np.sqrt(2 * leaf.size)
            np.testing.assert_allclose(np.std(leaf), expected, rtol=error, err_msg=str(path))


def test_what_passes_through_keeps_its_size_at_first(at_first):
    (g, g_variables, g_inputs), (d, d_variables, d_inputs) = at_first
    styles = applied(g, g_variables["params"], g_inputs[:1], "map")
    images = applied(g, g_variables["params"], g_inputs)
    logits = applied(d, d_variables["params"], d_inputs)
    for what in (styles, images, logits):
        assert 0.3 < np.sqrt(np.mean(np.square(what))) < 3


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
def test_shapes_and_types(resolution):
    def shapes(dtype):
        g = GeneratorNetwork(resolution, dtype=dtype)
        d = DiscriminatorNetwork(resolution, dtype=dtype)
        key = jax.random.key(0)
        noise = draw_noise(key, 4, resolution)
        images, g_variables = g.init_with_output(key, jnp.zeros((4, 512), jnp.float32), noise)
        logits, d_variables = d.init_with_output(key, images)
        return images, logits, g_variables, d_variables

    images, logits, *variables = jax.eval_shape(partial(shapes, jnp.bfloat16))
    assert images.shape == (4, resolution, resolution, 3)
    assert logits.shape == (4,)
    leaves = jax.tree.leaves((images, logits, variables))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


def test_published_parameter_counts():
    # As StyleGAN2-ADA prints them for 1024 px with its automatic settings.
    def count(network, inputs):
        return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(network, inputs)))

    latents, images = jnp.zeros((1, 512), jnp.float32), jnp.zeros((1, 1024, 1024, 3), jnp.float32)
    g = GeneratorNetwork(1024, mapping_layers=2, channel_base=32_768)
    d = DiscriminatorNetwork(1024, channel_base=32_768)
    assert count(g, lambda: (latents, draw_noise(jax.random.key(0), 1, 1024))) == 28_794_124
    assert count(d, lambda: (images,)) == 29_012_513


def test_bfloat16_is_close_to_float32(params_8):
    def error(network, params, inputs):
        exact = np.asarray(applied(network, params, inputs))
        rough = applied(network.clone(dtype=jnp.bfloat16), params, inputs)
        assert rough.dtype == jnp.float32
        return np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))

    # Eight bits of mantissa, rounded in every layer.
    assert 1e-4 < error(generator_8, params_8[0], generator_inputs(8)) < 0.02
    assert 1e-4 < error(discriminator_8, params_8[1], (normal(8, 8, 8, 3),)) < 0.02


def test_every_parameter_gets_a_gradient(params_8):
    latents, noise = generator_inputs(8)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(g, d):
        images = generator_8.apply({"params": g}, latents, noise)
        return jnp.sum(discriminator_8.apply({"params": d}, images) ** 2)

    for part in gradients(*params_8):
        for path, leaf in flatten_dict(part).items():
            assert np.all(np.isfinite(leaf)), path
            assert np.count_nonzero(leaf) > 0.9 * leaf.size, path


def test_a_batch_over_eight_devices_is_that_of_one(params_8):
    @jax.jit
    def judged(g, d, latents, noise):
        images = generator_8.apply({"params": g}, latents, noise)
        return images, discriminator_8.apply({"params": d}, images)

    inputs = generator_inputs(8, batch=32)
    expected = judged(*params_8, *inputs)
    mesh = training_mesh(1)
    assert mesh.size == 8
    found = judged(*jax.device_put(params_8, replicated(mesh)), *put_batch(inputs, mesh))
    assert len(found[0].sharding.device_set) == 8
    for one, eight in zip(expected, found, strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-4)
