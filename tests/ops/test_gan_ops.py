"""FIR filters and GAN losses against float64 transcriptions and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import fir_filtered

from ida_jax.ops import gan_losses, resample
from ida_jax.ops.gan_losses import mixed_styles, path_lengths, r1_penalty

blur, downsample, upsample = map(jax.jit, (resample.blur, resample.downsample, resample.upsample))
to_crops = jax.jit(resample.to_crops, static_argnums=1)
to_resolution = jax.jit(resample.to_resolution, static_argnums=1)
generator_loss, discriminator_loss = map(
    jax.jit, (gan_losses.generator_loss, gan_losses.discriminator_loss)
)

# Float32 keeps seven digits, and a sum of a few terms six.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slowly(images, **options):
    return np.array([fir_filtered(image, **options) for image in images])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 6), (7, 2)])
def test_upsampling_inserts_zeros_and_filters(height, width):
    x = noise(3, height, width, 2)
    expected = slowly(x, up=2, before=2, after=1)
    assert expected.shape == (3, 2 * height, 2 * width, 2)
    np.testing.assert_allclose(upsample(jnp.asarray(x)), expected, **CLOSE)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (4, 14)])
def test_downsampling_filters_and_takes_every_second_pixel(height, width):
    x = noise(3, height, width, 2)
    expected = slowly(x, down=2, before=1, after=1)
    assert expected.shape == (3, height // 2, width // 2, 2)
    np.testing.assert_allclose(downsample(jnp.asarray(x)), expected, **CLOSE)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 6)])
def test_the_blur_before_a_strided_convolution_has_a_row_more(height, width):
    x = noise(2, height, width, 3)
    expected = slowly(x, before=2, after=2)
    assert expected.shape == (2, height + 1, width + 1, 3)
    np.testing.assert_allclose(blur(jnp.asarray(x)), expected, **CLOSE)


def test_constants_stay_in_the_interior_and_darken_at_borders():
    x = jnp.full((1, 5, 7, 1), 0.7, jnp.float32)
    up = upsample(x)
    np.testing.assert_allclose(up[:, 1:-1, 1:-1], 0.7, rtol=1e-6)
    # Zeros lie outside: a quarter of a border pixel's weight does.
    np.testing.assert_allclose(up[0, 0, 0, 0], 0.7 * 0.75**2, rtol=1e-6)
    np.testing.assert_allclose(downsample(up)[:, 1:-1, 1:-1], 0.7, rtol=1e-6)


def test_down_is_the_transpose_of_up():
    x, y = noise(2, 3, 5, 2), noise(2, 6, 10, 2, seed=1)
    up, down = np.asarray(upsample(jnp.asarray(x))), np.asarray(downsample(jnp.asarray(y)))
    np.testing.assert_allclose(np.sum(up * y), 4 * np.sum(x * down), rtol=1e-5)


@pytest.mark.parametrize("function", [upsample, downsample, blur])
def test_filters_keep_the_type(function):
    x = noise(1, 4, 6, 2)
    y = function(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), function(jnp.asarray(x)), atol=0.05)


def test_crops_at_a_higher_resolution_are_reflected_and_come_back_whole():
    crops = jnp.asarray(noise(2, 14, 14, 3))
    wide = np.asarray(to_resolution(crops, 20))
    assert wide.shape == (2, 20, 20, 3)
    np.testing.assert_array_equal(wide[:, 2], wide[:, 4])
    np.testing.assert_array_equal(wide[:, :, -1], wide[:, :, -7])
    np.testing.assert_array_equal(to_crops(jnp.asarray(wide), 14), crops)
    np.testing.assert_array_equal(to_resolution(crops, 14), crops)
    np.testing.assert_array_equal(to_crops(crops, 14), crops)


def test_shrunk_crops_are_antialiased():
    crops = jnp.asarray(noise(2, 16, 16, 3))
    # The triangle of twice the pixel's width is [1, 3, 3, 1] / 8.
    small, filtered = to_resolution(crops, 8), downsample(crops)
    np.testing.assert_allclose(small[:, 1:-1, 1:-1], filtered[:, 1:-1, 1:-1], **CLOSE)


def test_small_images_become_crops_of_the_size_asked_for():
    ramp = jnp.broadcast_to(jnp.arange(8, dtype=jnp.float32)[None, :, None, None], (1, 8, 8, 3))
    large = np.asarray(to_crops(ramp, 14))
    assert large.shape == (1, 14, 14, 3)
    # Pixel centres: y = (x + 1/2) · 8/14 − 1/2; a ramp is kept by a cubic away from borders.
    places = (np.arange(14) + 0.5) * 8 / 14 - 0.5
    np.testing.assert_allclose(large[0, 4:-4, 5, 1], places[4:-4], rtol=1e-5)


def test_losses_equal_their_definition():
    real, fake = noise(7), noise(7, seed=1) * 3

    def sigmoid(x):
        return 1 / (1 + np.exp(-np.float64(x)))

    np.testing.assert_allclose(
        generator_loss(jnp.asarray(fake)), np.mean(-np.log(sigmoid(fake))), rtol=1e-6
    )
    expected = np.mean(-np.log(sigmoid(real))) + np.mean(-np.log(1 - sigmoid(fake)))
    found = discriminator_loss(jnp.asarray(real), jnp.asarray(fake))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_losses_do_not_saturate():
    # Where σ is 0 or 1 in float32 already, the loss is the logit and its gradient whole.
    certain = jnp.asarray([-200.0, 200.0], jnp.float32)
    np.testing.assert_allclose(generator_loss(certain), 100.0)
    np.testing.assert_allclose(jax.grad(generator_loss)(certain), [-0.5, 0.0])
    np.testing.assert_allclose(discriminator_loss(certain, certain), 200.0)


# A smooth discriminator and generator, written for both: JAX's in float32, NumPy's in float64.


def judge(xp, weights, images):
    """Logits [B] of images [B, H, V, 3], with a part that depends on the other images."""
    hidden = xp.tanh(images.reshape(len(images), -1) @ weights)
    return xp.sum(hidden, axis=1) + xp.sum(hidden, axis=1) * xp.mean(hidden)


def synthesise(xp, weights, styles):
    """Images [B, 1, 2, 3] from styles [B, 3, 4], each layer entering in its own way."""
    layers = xp.asarray([1.0, 0.5, 2.0], dtype=weights.dtype)
    hidden = xp.tanh(xp.sum(styles * layers[None, :, None], axis=1) @ weights)
    return (hidden * hidden + hidden).reshape(-1, 1, 2, 3)


def differences(function, x, h=1e-4):
    """Central differences of a float64 scalar function: an error of h² = 1e-8, and of 1e-16 / h."""
    x = np.array(x, np.float64)
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += h
        moved[1][place] -= h
        gradient[place] = (function(moved[0]) - function(moved[1])) / (2 * h)
    return gradient


def test_r1_and_its_gradient_equal_finite_differences():
    images, weights = noise(3, 2, 3, 3), noise(18, 2, seed=1) / 3

    def slow(weights):
        gradient = differences(lambda x: np.sum(judge(np, weights, x)), images)
        return 10.0 / 2 * np.mean(np.sum(gradient**2, axis=(1, 2, 3)))

    def fast(weights):
        return r1_penalty(lambda x: judge(jnp, weights, x), jnp.asarray(images), weight=10.0)

    penalty, gradient = jax.jit(jax.value_and_grad(fast))(jnp.asarray(weights))
    np.testing.assert_allclose(penalty, slow(np.float64(weights)), rtol=1e-5)
    # Differences of differences: 1e-16 / h² = 1e-8 of numbers up to 10.
    expected = differences(slow, weights)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_path_lengths_and_their_gradient_equal_finite_differences():
    styles, weights, key = noise(3, 3, 4), noise(4, 6, seed=1) / 2, jax.random.key(2)
    direction = np.float64(jax.random.normal(key, (3, 1, 2, 3))) / np.sqrt(1 * 2)

    def slow(weights):
        gradient = differences(
            lambda w: np.sum(synthesise(np, weights, w) * direction), np.float64(styles)
        )
        return np.sqrt(np.mean(np.sum(gradient**2, axis=2), axis=1))

    def fast(weights):
        return path_lengths(lambda w: synthesise(jnp, weights, w), jnp.asarray(styles), key)

    expected = slow(np.float64(weights))
    assert len(set(expected)) == 3
    np.testing.assert_allclose(jax.jit(fast)(jnp.asarray(weights)), expected, rtol=1e-5)

    gradient = jax.jit(jax.grad(lambda w: jnp.mean((fast(w) - 0.3) ** 2)))(jnp.asarray(weights))
    expected = differences(lambda w: np.mean((slow(w) - 0.3) ** 2), weights)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_generator_that_does_not_move_has_a_path_length_with_a_gradient():
    styles = jnp.zeros((2, 3, 4), jnp.float32)

    def penalty(scale):
        lengths = path_lengths(
            lambda w: jnp.zeros((2, 2, 2, 3), jnp.float32) + scale * jnp.sum(w),
            styles, jax.random.key(0),
        )  # fmt: skip
        return jnp.mean((lengths - 1) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(penalty))(jnp.float32(0))
    np.testing.assert_allclose(value, 1.0, rtol=1e-5)
    assert np.isfinite(gradient)


def test_mixing_takes_the_second_style_from_the_crossover_on():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 4, 3)).astype(np.float32)
    crossover = np.array([1, 3, 5, 9], np.int32)  # the last two never, of five layers
    found = np.asarray(mixed_styles(first, second, crossover, layers=5))
    for face, start in enumerate(crossover):
        for layer in range(5):
            expected = (first if layer < start else second)[face]
            np.testing.assert_array_equal(found[face, layer], expected)
