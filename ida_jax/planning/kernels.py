"""The kernels of a program that XLA compiled for a GPU, and the time that they take at best.

A GPU runs kernels one after the other, and each waits for arithmetic or for memory: a step takes at
least the sum over its kernels of the larger of the two. A kernel also takes the host's time for its
launch, and a collective its latency. What stays in the L2 cache between two kernels is not
modelled: of kernels that move less than its size, traffic may be overestimated.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ida_jax.planning.hlo import Computation, Instruction, Module, executed, shape_of
from ida_jax.planning.topology import Gpu
from ida_jax.planning.traffic import FREE, Collective, collectives_of, moved_bytes

LAUNCH_SECONDS = 2e-6
COLLECTIVE_SECONDS = 10e-6

# One operation an element, where the result is a floating-point number.
_ELEMENTWISE = {
    "abs", "add", "clamp", "cosine", "divide", "erf", "exponential", "exponential-minus-one",
    "floor", "log", "log-plus-one", "logistic", "maximum", "minimum", "multiply", "negate", "power",
    "rsqrt", "select", "sign", "sine", "sqrt", "subtract", "tanh",
}  # fmt: skip


class Kernel(NamedTuple):
    """One kernel.

    Attributes:
      kind: convolution, product, fusion, copy or other.
      count: how often a step runs it.
      bytes: that one run moves.
      flops: of one run, by the type that its units compute in: bfloat16, tf32, float32 (products
        and convolutions) and elementwise (in float32).
    """

    name: str
    kind: str
    count: int
    bytes: float
    flops: dict[str, float]


class OfKind(NamedTuple):
    """All kernels of one kind: how many run, the bytes that they move, their seconds at best."""

    count: int
    bytes: float
    seconds: float


class Kernels(NamedTuple):
    """A step's kernels.

    Attributes:
      count: how many run.
      flops: by type, as in `Kernel`.
      by_kind: by kind of kernel.
      seconds: arithmetic, of the kernels that wait for it; traffic, of those that wait for memory;
        launches, of those that are shorter than their launch; collectives, where no kernel runs
        beside them. Their sum bounds a step's time from below.
    """

    count: int
    flops: dict[str, float]
    by_kind: dict[str, OfKind]
    seconds: dict[str, float]


def gpu_kernels(module: Module, gpu: Gpu) -> Kernels:
    """The kernels of a module for a GPU, whose instructions are in the order of its schedule.

    A collective overlaps the kernels between its start and its end in the schedule.
    """
    flops, kinds = {}, {}
    seconds = dict.fromkeys(("arithmetic", "traffic", "launches", "collectives"), 0.0)
    clock = network = 0.0  # of the stream of kernels, and that of collectives
    ends = {}
    count = 0
    for instruction, computation, times in executed(module):
        sent = list(collectives_of(instruction, computation, module, times))
        if sent:
            network = max(clock, network) + sum(_collective_seconds(c, gpu) for c in sent)
            ends[instruction.name] = network
        if instruction.opcode.endswith("-done") or (sent and "-start" not in instruction.opcode):
            started = instruction.name if sent else instruction.operands[0]
            end = max(clock, ends.get(started, 0.0))
            seconds["collectives"] += end - clock
            clock = end
        kernel = None if sent else _kernel(instruction, computation, module, times)
        if kernel is None:
            continue
        waits = {
            "arithmetic": sum(n / gpu.rate(kind) for kind, n in kernel.flops.items()),
            "traffic": kernel.bytes / gpu.memory_bandwidth,
            "launches": LAUNCH_SECONDS,
        }
        longest = max(waits, key=waits.get)
        took = times * waits[longest]
        seconds[longest] += took
        clock += took
        count += times
        for kind, number in kernel.flops.items():
            flops[kind] = flops.get(kind, 0.0) + times * number
        before = kinds.get(kernel.kind, OfKind(0, 0.0, 0.0))
        kinds[kernel.kind] = OfKind(
            before.count + times, before.bytes + times * kernel.bytes, before.seconds + took
        )
    return Kernels(count, flops, kinds, seconds)


def kernels(module: Module) -> list[Kernel]:
    """Every kernel that the program runs, collectives left out."""
    found = (
        _kernel(instruction, computation, module, times)
        for instruction, computation, times in executed(module)
        if not list(collectives_of(instruction, computation, module, times))
    )
    return [kernel for kernel in found if kernel is not None]


def _collective_seconds(collective: Collective, gpu: Gpu) -> float:
    return collective.count * (
        COLLECTIVE_SECONDS + collective.bytes_sent / gpu.ring_bandwidth(collective.group)
    )


def _kernel(
    instruction: Instruction, computation: Computation, module: Module, times: int
) -> Kernel | None:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return None
    flops = {}
    for kind, number in _flops(instruction, computation, module):
        flops[kind] = flops.get(kind, 0.0) + number
    moved = moved_bytes(instruction, computation, module)
    return Kernel(instruction.name, _kind(instruction), times, moved, flops)


def _kind(instruction: Instruction) -> str:
    if instruction.opcode == "custom-call":
        target = _target(instruction)
        return "convolution" if "$conv" in target else "product" if "matmul" in target else "other"
    known = {"fusion": "fusion", "copy": "copy", "copy-start": "copy", "dot": "product"}
    return known.get(instruction.opcode, "other")


def _target(call: Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', call.attributes)[1]
    # cuBLAS has two names of a product.
    return "matmul" if target in ("__cublas$gemm", "__cublas$lt$matmul") else target


def _flops(
    instruction: Instruction, computation: Computation, module: Module
) -> Iterator[tuple[str, float]]:
    """(type, operations) of an instruction, or of what a fusion holds."""
    opcode = instruction.opcode
    if opcode == "fusion":
        body = module.computations[instruction.callees()[0]]
        for part in body.values():
            yield from _flops(part, body, module)
    elif opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        yield _product(instruction, computation, contracted.split(","))
    elif opcode == "custom-call" and _kind(instruction) == "product":
        config = json.loads(re.search(r"backend_config=(\{.*\})", instruction.attributes)[1])
        numbers = config["gemm_backend_config"]["dot_dimension_numbers"]
        yield _product(instruction, computation, numbers["lhs_contracting_dimensions"])
    elif opcode == "custom-call" and _kind(instruction) == "convolution":
        yield _convolution(instruction, computation)
    elif opcode == "reduce":
        dtype, shape = shape_of(computation[instruction.operands[0]].type)
        if _is_floating(dtype):
            yield "elementwise", math.prod(shape)
    elif opcode in _ELEMENTWISE:
        dtype, shape = shape_of(instruction.type)
        if _is_floating(dtype):
            yield "elementwise", math.prod(shape)


def _product(
    instruction: Instruction, computation: Computation, contracted: list[str]
) -> tuple[str, float]:
    dtype, left = shape_of(computation[instruction.operands[0]].type)
    _, result = shape_of(instruction.type)
    shared = math.prod(left[int(axis)] for axis in contracted if axis)
    return _units(dtype, instruction), 2.0 * math.prod(result) * shared


def _convolution(call: Instruction, computation: Computation) -> tuple[str, float]:
    """2 · the output's elements · those of the kernel of one output feature.

    A gradient is written with the convolution's own labels: by its input it computes the input of
    output and kernel, by its kernel the kernel of input and output.
    """
    result = shape_of(call.type)
    first, second = (shape_of(computation[name].type) for name in call.operands[:2])
    output, kernel = {
        "__cudnn$convBackwardInput": (first, second),
        "__cudnn$convBackwardFilter": (second, result),
    }.get(_target(call), (result, second))
    labels = re.search(r"dim_labels=\w+_(\w+)->", call.attributes)[1]
    number = 2.0 * math.prod(output[1]) * math.prod(kernel[1]) / kernel[1][labels.index("o")]
    return _units(first[0], call), number


def _units(dtype: str, instruction: Instruction) -> str:
    """The type that a product's units compute in: TF32 for float32, unless full precision is asked.

    Integers count as bfloat16.
    """
    if dtype not in ("f32", "f64"):
        return "bfloat16"
    attributes = instruction.attributes
    full = re.search(r"HIGHEST|operand_precision=\{highest|F32_F32_F32\"", attributes)
    # ALG_DOT_TF32_TF32_F32 does not match.
    return "float32" if dtype == "f64" or full else "tf32"


def _is_floating(dtype: str) -> bool:
    return dtype.startswith(("f", "bf"))
