"""Convolutions whose derivatives, of any order, are convolutions of the same three kinds.

A convolution is linear in its map and in its kernel. Three functions, the convolution and its
transposes in either, are all that any derivative needs: each one's gradients are the other two.
JAX's own rules instead transpose what they transposed before, and a penalty on a gradient (R1,
path length) then has convolutions with windows as large as the image, dilated, which no library has
a kernel for.

B batch, H and W map size, C input channels, O output channels. Maps are [B, H, W, C], kernels
[h, w, C, O], in one type.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ida_jax.ops.resample import smooth, upsample


class _Rule(NamedTuple):
    """How a convolution is computed, (map, kernel) → result, and its transpose in the kernel.

    The latter is (shape of the kernel, map, result's gradient) → the kernel's.
    """

    forward: Callable[[jax.Array, jax.Array], jax.Array]
    by_kernel: Callable[[tuple[int, ...], jax.Array, jax.Array], jax.Array]


# Pixels from which on a map is large.
_LARGE = 400

# Of a CPU, and of everything else.
_Rules = tuple[_Rule, _Rule]


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, H, W, O], zeros outside, for kernels of odd size."""
    return _bilinear((_SAME_ON_A_CPU, _SAME), x, kernel)


def conv_by_map(shape: tuple[int, ...], y: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv`'s transpose in the map, of that shape, applied to y [B, H, W, O]."""
    return _by_map((_SAME_ON_A_CPU, _SAME), shape, y, kernel)


def conv_by_kernel(shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    """`conv`'s transpose in the kernel, of that shape, applied to y [B, H, W, O]."""
    return _by_kernel((_SAME_ON_A_CPU, _SAME), shape, x, y)


def conv_of_layer(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: object, **options: object
) -> jax.Array:
    """For `flax.linen.Conv`'s conv_general_dilated: `conv` where nothing but "SAME" is asked for.

    With padding as PyTorch has it: (size − 1) / 2 on every side, and the stride any.
    """
    if tuple(strides) == (1, 1):
        return conv(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def conv_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, 2H+1, 2W+1, C] → [B, H, W, O]: a 3×3 convolution of stride 2 without padding."""
    return _bilinear((_HALVED, _HALVED), x, kernel)


def conv_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, 2H, 2W, O]: zeros inserted, 3×3 convolution, and then StyleGAN2's filter.

    `upsample_conv_2d` of StyleGAN2's code: the transposed convolution gives [2H+1, 2W+1], which the
    filter sees with zeros outside. On a CPU, where XLA's transposed convolutions are slow, the
    filter comes first, on a map that reaches one pixel further out: the same function, with four
    times the products.
    """
    return _bilinear((_DOUBLED_ON_A_CPU, _DOUBLED), x, kernel)


def _convolution(x: jax.Array, kernel: jax.Array, padding: str, **options: object) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def _same(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolution(x, kernel, "SAME", window_strides=(1, 1))


def _halved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolution(x, kernel, "VALID", window_strides=(2, 2))


def _doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = lax.conv_general_dilated(
        x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return smooth(wide)


def _doubled_by_kernel(shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    """As the gradient of the convolution that the transposed one is the transpose of.

    XLA does not see that of itself, and would slide the whole map over the other.
    """
    batch, height, width, _ = x.shape
    wide = jax.ShapeDtypeStruct((batch, 2 * height + 1, 2 * width + 1, shape[3]), y.dtype)
    (wide,) = jax.linear_transpose(smooth, wide)(y)
    flipped = _transposed_in_kernel(_halved)((*shape[:2], shape[3], shape[2]), wide, x)
    return jnp.swapaxes(flipped[::-1, ::-1], 2, 3)


def _doubled_on_a_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = upsample(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))[:, 1:-1, 1:-1]
    return _convolution(wide, kernel, "VALID", window_strides=(1, 1))


def _same_by_kernel_on_a_cpu(shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    """Products of unfolded maps, image by image, where XLA's own takes two to four times as long.

    That is with few channels on large maps. Of a 3×3 kernel's nine taps three are unfolded in x, as
    columns, and three in y, as rows: one product [3C, H·W] · [H·W, 3O], of an image that stays in
    the processor's cache. Of a 1×1 kernel it is one product without unfolding.
    """
    size, (_, height, width, channels), outputs = shape[:2], x.shape, y.shape[3]
    if size == (1, 1):
        return lax.dot_general(x, y, (((0, 1, 2), (0, 1, 2)), ((), ())))[None, None]
    if size != (3, 3) or height * width < _LARGE or x.dtype != jnp.float32:
        return _transposed_in_kernel(_same)(shape, x, y)

    def add_image(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, y = image
        # The barrier keeps XLA from padding anew, element by element, in each of the copies.
        x, y = lax.optimization_barrier(
            (jnp.pad(x, ((0, 0), (1, 1), (0, 0))), jnp.pad(y, ((1, 1), (0, 0), (0, 0))))
        )
        columns = jnp.concatenate([x[:, j : j + width] for j in range(3)], axis=2)
        rows = jnp.concatenate([y[2 - i : 2 - i + height] for i in range(3)], axis=2)
        return total + lax.dot_general(columns, rows, (((0, 1), (0, 1)), ((), ()))), None

    zeros = jnp.zeros((3 * channels, 3 * outputs), x.dtype)
    total, _ = lax.scan(add_image, zeros, (x, y))
    return total.reshape(3, channels, 3, outputs).transpose(2, 0, 1, 3)


def _transposed_in_kernel(forward: Callable) -> Callable:
    def by_kernel(shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
        kernel = jax.ShapeDtypeStruct(shape, y.dtype)
        return jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(y)[0]

    return by_kernel


_SAME, _HALVED, _DOUBLED_ON_A_CPU = (
    _Rule(forward, _transposed_in_kernel(forward))
    for forward in (_same, _halved, _doubled_on_a_cpu)
)
_DOUBLED = _Rule(_doubled, _doubled_by_kernel)
_SAME_ON_A_CPU = _Rule(_same, _same_by_kernel_on_a_cpu)


def _run(functions: Sequence[Callable], of: Callable, *operands: jax.Array) -> jax.Array:
    """`of` the function for a CPU, or of the one for everything else, applied."""
    on_a_cpu, elsewhere = functions
    # One function is not written twice into a program that is exported for both.
    if on_a_cpu is elsewhere:
        return of(elsewhere)(*operands)
    return lax.platform_dependent(*operands, cpu=of(on_a_cpu), default=of(elsewhere))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bilinear(rules: _Rules, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _run([rule.forward for rule in rules], lambda forward: forward, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_map(rules: _Rules, shape: tuple[int, ...], y: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transpose in the map, of that shape, applied to y."""
    x = jax.ShapeDtypeStruct(shape, y.dtype)

    def of(forward: Callable) -> Callable:
        return lambda y, kernel: jax.linear_transpose(lambda x: forward(x, kernel), x)(y)[0]

    return _run([rule.forward for rule in rules], of, y, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_kernel(rules: _Rules, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    """The transpose in the kernel, of that shape, applied to y."""
    return _run([rule.by_kernel for rule in rules], lambda f: partial(f, shape), x, y)


_Pair = tuple[jax.Array, jax.Array]


def _bilinear_forward(rules: _Rules, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Pair]:
    return _bilinear(rules, x, kernel), (x, kernel)


def _bilinear_backward(rules: _Rules, kept: _Pair, y: jax.Array) -> _Pair:
    x, kernel = kept
    return _by_map(rules, x.shape, y, kernel), _by_kernel(rules, kernel.shape, x, y)


def _by_map_forward(
    rules: _Rules, shape: tuple[int, ...], y: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, _Pair]:
    return _by_map(rules, shape, y, kernel), (y, kernel)


def _by_map_backward(rules: _Rules, shape: tuple[int, ...], kept: _Pair, x: jax.Array) -> _Pair:
    y, kernel = kept
    return _bilinear(rules, x, kernel), _by_kernel(rules, kernel.shape, x, y)


def _by_kernel_forward(
    rules: _Rules, shape: tuple[int, ...], x: jax.Array, y: jax.Array
) -> tuple[jax.Array, _Pair]:
    return _by_kernel(rules, shape, x, y), (x, y)


def _by_kernel_backward(
    rules: _Rules, shape: tuple[int, ...], kept: _Pair, kernel: jax.Array
) -> _Pair:
    x, y = kept
    return _by_map(rules, x.shape, y, kernel), _bilinear(rules, x, kernel)


_bilinear.defvjp(_bilinear_forward, _bilinear_backward)
_by_map.defvjp(_by_map_forward, _by_map_backward)
_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)
