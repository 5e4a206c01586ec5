"""Convolutions against the transcriptions; their derivatives against JAX's own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import convolved, convolved_up

from ida_jax.ops import convolution
from ida_jax.ops.convolution import conv, conv_by_kernel, conv_down, conv_of_layer, conv_up


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same(image, kernel):
    return convolved(image, kernel, pad=1)


def halved(image, kernel):
    return convolved(image, kernel, stride=2)


@pytest.mark.parametrize(
    ("function", "reference", "shape"),
    [(conv, same, (2, 5, 4, 3)), (conv_down, halved, (2, 7, 5, 3)),
     (conv_up, convolved_up, (2, 4, 3, 3)), (conv_up, convolved_up, (1, 1, 1, 2))],
)  # fmt: skip
def test_forward(function, reference, shape):
    x, kernel = normal(*shape), normal(3, 3, shape[-1], 5, seed=1)
    expected = [reference(image, kernel) for image in x]
    np.testing.assert_allclose(jax.jit(function)(x, kernel), expected, rtol=1e-4, atol=1e-5)


PLAIN = {
    conv: convolution._same,
    conv_down: convolution._halved,
    conv_up: convolution._doubled,
}


def test_the_up_convolutions_kernel_gradient_off_a_cpu():
    x, y, kernel = normal(2, 3, 4, 2), normal(2, 6, 8, 5), normal(3, 3, 2, 5)
    rule = convolution._DOUBLED
    (expected,) = jax.vjp(lambda kernel: rule.forward(x, kernel), kernel)[1](y)
    actual = rule.by_kernel(kernel.shape, x, y)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", PLAIN)
def test_gradients_and_gradients_of_gradients(function):
    """Of a penalty on a gradient, as R1 and path length are; a CPU's rule beside the others'."""
    x, kernel = normal(2, 5, 5, 2), normal(3, 3, 2, 3, seed=1)

    def penalty(function):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel)))

        def squared(x, kernel):
            by_x, by_kernel = jax.grad(loss, argnums=(0, 1))(x, kernel)
            return jnp.sum(by_x**2) + jnp.sum(jnp.cos(by_kernel))

        return lambda x, k: (jax.grad(loss, (0, 1))(x, k), jax.grad(squared, (0, 1))(x, k))

    actual, expected = (jax.jit(penalty(f))(x, kernel) for f in (function, PLAIN[function]))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.ptp(e) > 0.1
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-3 * np.ptp(e))


@pytest.mark.parametrize(("size", "shape"), [(3, (3, 21, 22)), (1, (2, 5, 3))])
def test_the_kernels_gradient_on_large_maps_and_of_1x1(size, shape):
    """Whose rule on a CPU is its own; each tap's gradient is a sum over the pixels it sees."""
    x, y = normal(*shape, 3), normal(*shape, 5, seed=1)
    assert size == 1 or shape[1] * shape[2] >= convolution._LARGE
    pad, (_, height, width) = size // 2, shape
    wide = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = [
        [np.einsum("bhwc,bhwo->co", wide[:, i : i + height, j : j + width], y) for j in range(size)]
        for i in range(size)
    ]
    actual = jax.jit(lambda x, y: conv_by_kernel((size, size, 3, 5), x, y))(x, y)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_layers_convolution(stride):
    x, kernel = normal(2, 7, 6, 3), normal(3, 3, 3, 4, seed=1)
    layout = ("NHWC", "HWIO", "NHWC")
    actual, expected = (
        f(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout)
        for f in (conv_of_layer, jax.lax.conv_general_dilated)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
