"""Products of bfloat16 parts against float64, and what each platform is given."""

import jax
import numpy as np
import pytest
import reference

from ida_jax.ops.products import row_products, split_products

# What the products left out may add up to, of unit rows.
LEFT_OUT = {"bfloat16_x6": 2.0**-23 + 2.0**-32, "bfloat16_x3": 3 * 2.0**-16 + 2.0**-32}


def _parts(x, count):
    """The parts of float32 numbers by rounding in float64, half to even."""
    parts, rest = [], x.astype(np.float64)
    for _ in range(count):
        _, exponent = np.frexp(rest)
        step = np.ldexp(1.0, exponent - 8)
        parts.append(np.round(rest / step) * step)
        rest = rest - parts[-1]
    return parts, rest


def _kept(rows, columns, precision):
    (x1, x2, x3), _ = _parts(rows, 3)
    (y1, y2, y3), _ = _parts(columns, 3)
    kept = x1 @ y1.T + x1 @ y2.T + x2 @ y1.T
    return kept if precision.endswith("3") else kept + x2 @ y2.T + x1 @ y3.T + x3 @ y1.T


def _rows(kind, count, width, seed):
    """Unit rows; "alike" ones are all near one direction, "worst" ones lose most in each part."""
    if kind == "worst":
        # Just below half a step of bfloat16, every entry, in all three parts.
        one = np.float32(1 + 2.0**-8 - 2.0**-17 + 2.0**-20)
        x = np.tile(one, (count, width)) * np.random.default_rng(seed).choice([-1, 1], (count, 1))
        return (x / np.float32(np.sqrt(width))).astype(np.float32)
    return reference.unit((count, width), seed, clusters=1 if kind == "alike" else 0)


@pytest.mark.parametrize("precision", LEFT_OUT)
@pytest.mark.parametrize("kind", ["any", "alike", "worst"])
@pytest.mark.parametrize("width", [1, 64, 513])
def test_split_products_leave_out_what_they_say(precision, kind, width):
    rows, columns = _rows(kind, 7, width, 0), _rows(kind, 33, width, 1)
    exact = rows.astype(np.float64) @ columns.astype(np.float64).T
    kept = _kept(rows, columns, precision)
    assert np.max(np.abs(kept - exact)) <= LEFT_OUT[precision]
    got = split_products(rows, columns, precision=precision)
    assert got.dtype == np.float32
    # The rest is float32's own rounding.
    np.testing.assert_allclose(got, kept, atol=1e-6, rtol=0)


def test_three_parts_are_the_number():
    x = reference.unit((50, 40), 3)
    parts, rest = _parts(x, 3)
    assert not rest.any()
    assert np.all(np.abs(parts[1]) <= 2.0**-8 * np.abs(x))
    assert np.all(np.abs(parts[2]) <= 2.0**-16 * np.abs(x))


@pytest.mark.parametrize("precision", ["float32", *LEFT_OUT])
def test_the_platform_that_is_compiled_for_decides(precision):
    rows, columns = reference.unit((5, 16), 0), reference.unit((9, 16), 1)
    product = jax.jit(lambda x, y: row_products(x, y, precision=precision))
    # Here float32 to the last bit, and elsewhere its parts.
    np.testing.assert_array_equal(product(rows, columns), jax.jit(row_products)(rows, columns))
    texts = {
        platform: product.trace(rows, columns).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    dots = {
        name: [line for line in text.splitlines() if "dot_general" in line]
        for name, text in texts.items()
    }
    assert {name: len(found) for name, found in dots.items()} == dict.fromkeys(texts, 1)
    assert "bf16" not in texts["cpu"]
    assert ("bf16" in dots["cuda"][0]) == (precision != "float32")
    assert ("HIGHEST" in dots["tpu"][0]) == (precision != "bfloat16_x3")
