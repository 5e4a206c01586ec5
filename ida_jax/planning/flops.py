"""Floating-point operations of a traced function: its matrix products and convolutions.

Counted on the jaxpr, where every scan's length is known; XLA's cost analysis counts a loop's body
once. Elementwise work is left out, since peak rates are stated for products.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


class Flops(NamedTuple):
    """Operations on all devices together, a multiplication and an addition counting as two.

    Attributes:
      flops: of the products as they are written.
      passes: with float32 products counted as a TPU's bfloat16 units run them: six times at the
        precision HIGHEST, three times at HIGH (jax.lax.Precision).
    """

    flops: float
    passes: float


_PASSES = {jax.lax.Precision.HIGHEST: 6, jax.lax.Precision.HIGH: 3}


def count_flops(jaxpr: ClosedJaxpr | Jaxpr) -> Flops:
    """Counts a jaxpr: a scan by its length, a `while` once, a conditional by its costliest branch.

    A `shard_map`'s body counts once for each of its devices; convolutions of strided gradients are
    counted without the zeros between their rows.
    """
    flops = passes = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        parameters, name = equation.params, equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            own = _dot(equation) if name == "dot_general" else _convolution(equation)
            flops, passes = flops + own, passes + own * _passes(equation)
            continue
        inner = [count_flops(body) for body in _bodies(parameters)]
        if name == "cond":
            inner = [max(inner, key=lambda branch: branch.passes)]
        times = parameters["length"] if name == "scan" else 1
        if name == "shard_map":
            # Its name has changed between jax's releases.
            axes = next(parameters[key] for key in parameters if key.endswith("manual_axes"))
            times = math.prod(parameters["mesh"].shape[axis] for axis in axes)
        flops += times * sum(body.flops for body in inner)
        passes += times * sum(body.passes for body in inner)
    return Flops(flops, passes)


def _bodies(parameters: dict[str, Any]) -> list[ClosedJaxpr | Jaxpr]:
    values = [
        part
        for value in parameters.values()
        for part in (value if isinstance(value, list | tuple) else [value])
    ]
    return [value for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]


def _passes(equation: Any) -> int:
    if all(variable.aval.dtype != "float32" for variable in equation.invars):
        return 1
    precision = equation.params["precision"]
    operands = precision if isinstance(precision, tuple) else (precision,)
    return max(_PASSES.get(operand, 1) for operand in operands)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval
    output_features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    # The kernel's input features are those of one group. A dilated input holds zeros, which are not
    # counted; a dilated kernel, which is a gradient (the filter's backward pass), adds no products.
    taken = kernel.size / output_features / math.prod(equation.params["lhs_dilation"])
    return 2.0 * equation.outvars[0].aval.size * taken / equation.params["batch_group_count"]
