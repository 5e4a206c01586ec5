"""Products of unit rows, in the precision that is asked for.

A GPU's tensor cores multiply bfloat16 numbers exactly and add in float32, about fifteen times as
fast as its other units multiply float32. A float32 number is the sum of three bfloat16 ones,

    x = x₁ + x₂ + x₃,   |x₂| ≤ 2⁻⁸ |x|,   |x₃| ≤ 2⁻¹⁶ |x|,

so that a cosine is a sum of such products, of which the small ones are left out:

    name          products                                              left out, at most
    float32       in float32 units                                      nothing
    bfloat16_x6   x₁y₁ + x₁y₂ + x₂y₁ + x₂y₂ + x₁y₃ + x₃y₁               2⁻²³ + 2⁻³² = 1.2·10⁻⁷
    bfloat16_x3   x₁y₁ + x₁y₂ + x₂y₁                                    3·2⁻¹⁶ + 2⁻³² = 4.6·10⁻⁵

The last column is of unit rows, where Σ |x_d y_d| ≤ 1; where signs differ, much less is left out.
Of six, it is what two additions in float32 near 1 may lose; on a TPU, six is what float32 products
at full precision are. With an error of ε in the cosines the k largest move by ε at most, and
log F = −lse(τ s) by τ ε.

m rows, n columns, D embedding.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Each product's parts of either side, the small ones first, since float32 sums lose least so.
_PARTS = {
    "bfloat16_x6": ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)),
    "bfloat16_x3": ((1, 0), (0, 1), (0, 0)),
}
# As a TPU calls them.
_TPU = {"bfloat16_x6": lax.Precision.HIGHEST, "bfloat16_x3": lax.Precision.HIGH}
PRECISIONS = ("float32", *_PARTS)


def row_products(rows: jax.Array, columns: jax.Array, *, precision: str = "float32") -> jax.Array:
    """⟨x, y⟩ of rows [m, D] and [n, D], float32 [m, n].

    Args:
      rows: float32.
      columns: float32.
      precision: of PRECISIONS, on GPUs and TPUs; others compute in float32 whatever it says. The
        platform that is compiled for decides.
    """
    if precision == "float32":
        return _float32(rows, columns)
    on_gpu = partial(split_products, precision=precision)
    return lax.platform_dependent(
        rows,
        columns,
        cuda=on_gpu,
        rocm=on_gpu,
        tpu=partial(_float32, precision=_TPU[precision]),
        default=_float32,
    )


def split_products(rows: jax.Array, columns: jax.Array, *, precision: str) -> jax.Array:
    """`row_products` of bfloat16 parts, as one product whose rows are 3 or 6 times as long.

    One product, since each of several would write and read m·n numbers again.
    """
    parts = _PARTS[precision]
    count = 1 + max(part for pair in parts for part in pair)
    left, right = _split(rows, count), _split(columns, count)
    return lax.dot_general(
        jnp.concatenate([left[part] for part, _ in parts], axis=1),
        jnp.concatenate([right[part] for _, part in parts], axis=1),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _float32(
    rows: jax.Array, columns: jax.Array, *, precision: lax.Precision = lax.Precision.HIGHEST
) -> jax.Array:
    return jnp.matmul(rows, columns.T, precision=precision)


def _split(x: jax.Array, count: int) -> list[jax.Array]:
    """The first `count` bfloat16 parts of float32 numbers."""
    parts = []
    for _ in range(count):
        # Not a conversion there and back, which XLA may leave out.
        part = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts
