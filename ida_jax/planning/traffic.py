"""What a compiled program moves: its collectives, and the bytes of each device's main memory.

XLA's own cost analysis counts a loop's body once, and on-chip memory like main memory. Here bytes
are counted on the compiled HLO, where a body counts as often as it runs.

n devices of a group, I bytes of an instruction's operands on one device.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ida_jax.planning.hlo import (
    Computation,
    Instruction,
    Module,
    array_bytes,
    arrays,
    executed,
)

# The bytes that each device of a group sends in a ring.
_SENT = {
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all-gather": lambda size, n: size * (n - 1),
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
}
KINDS = tuple(_SENT)


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of KINDS.
      count: how often a step runs it.
      group: n.
      bytes_sent: by each device in one run, in a ring: 2 I (n−1)/n for all-reduce, I (n−1) for
        all-gather, I (n−1)/n for reduce-scatter and all-to-all, I for collective-permute.
    """

    kind: str
    count: int
    group: int
    bytes_sent: float


def collectives(module: Module) -> list[Collective]:
    """Every collective that the program runs among two devices or more."""
    return [
        collective
        for instruction, computation, times in executed(module)
        for collective in collectives_of(instruction, computation, module, times)
    ]


def collectives_of(
    instruction: Instruction, computation: Computation, module: Module, times: int
) -> Iterator[Collective]:
    """The collectives that an instruction of a computation starts, each as often as it runs."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in _SENT:
        # A TPU overlaps a collective with computation by repeating it in each fusion of a chain;
        # only the first of them starts it.
        continues = re.search(
            r'async_collective_fusion_config":\{"flag_start":"\d', instruction.attributes
        )
        group = _group_size(instruction)
        if not continues and group > 1:
            size = sum(array_bytes(computation[name].type) for name in instruction.operands)
            yield Collective(kind, times, group, _SENT[kind](size, group))
    elif instruction.opcode in ("fusion", "async-start"):
        for callee in instruction.callees():
            inner = module.computations[callee]
            for part in inner.values():
                for collective in collectives_of(part, inner, module, times):
                    if callee.startswith("all-reduce-scatter"):
                        # How a TPU writes reduce-scatter: an all-reduce fused with its slice.
                        half = collective.bytes_sent / 2
                        collective = collective._replace(kind="reduce-scatter", bytes_sent=half)
                    yield collective


def _group_size(collective: Instruction) -> int:
    attributes = collective.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}(?:,|$)", attributes):
        return 2 if pairs[1] else 1
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"unknown groups of {collective.opcode}: {attributes[:200]}")


# They move nothing.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "async-update",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def memory_bytes(module: Module) -> float:
    """Bytes that one run moves to and from each device's main memory.

    The operands and results of everything that runs; on-chip buffers count nothing, and of an array
    that is only sliced, or updated in place, the slice alone counts.
    """
    return sum(
        times * moved_bytes(instruction, computation, module)
        for instruction, computation, times in executed(module)
    )


def moved_bytes(instruction: Instruction, computation: Computation, module: Module) -> float:
    """`memory_bytes` of one run of one instruction of a computation."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0.0
    if opcode in ("copy-start", "slice-start"):
        # The result's tuple also holds the operand: second for a copy, first for a slice.
        result = arrays(instruction.type)[0 if opcode == "copy-start" else 1]
        source = computation[instruction.operands[0]].type
        is_read = array_bytes(source, main_memory=True) > 0
        return array_bytes(result, main_memory=True) + is_read * array_bytes(result)
    if opcode == "fusion":
        body = module.computations[instruction.callees()[0]]
        numbered = {int(i.inside): i.name for i in body.values() if i.opcode == "parameter"}
        inputs = [(name, numbered[k]) for k, name in enumerate(instruction.operands)]
    else:
        body = {instruction.name: instruction}
        inputs = [(name, name) for name in dict.fromkeys(instruction.operands)]
    read = 0.0
    for operand, parameter in inputs:
        size = array_bytes(computation[operand].type, main_memory=True)
        read += min(size, _read(parameter, size, body, module)) if size else 0.0
    written = array_bytes(_results(instruction), main_memory=True)
    return read + (max(0.0, written - _kept(body, module)) if written else 0.0)


def _results(instruction: Instruction) -> str:
    """The types that an instruction writes: a library's workspace, bytes, is not one."""
    written = arrays(instruction.type)
    if instruction.opcode == "custom-call" and len(written) > 1:
        written = [array for array in written if not array.startswith(("s8[", "u8["))]
    return " ".join(written)


def _read(parameter: str, size: float, body: Computation, module: Module) -> float:
    """The bytes that a body reads of a parameter of `size` bytes."""
    total = 0.0
    if parameter in body and body[parameter].is_root:
        return size
    for user in body.values():
        if parameter not in user.operands:
            continue
        first = user.operands[0] == parameter
        if user.opcode in _SLICES and first:
            total += array_bytes(user.type)
        elif user.opcode in ("bitcast", "convert"):
            # What is read of the result, in the parameter's type.
            result = array_bytes(user.type)
            total += _read(user.name, result, body, module) * size / max(result, 1.0)
        elif user.opcode == "fusion":
            inner = module.computations[user.callees()[0]]
            for k, operand in enumerate(user.operands):
                if operand == parameter:
                    name = next(
                        i.name for i in inner.values()
                        if i.opcode == "parameter" and i.inside == str(k)
                    )  # fmt: skip
                    total += _read(name, size, inner, module)
        elif not (user.opcode == "dynamic-update-slice" and first):
            return size
    return total


def _kept(body: Computation, module: Module) -> float:
    """The bytes of the results that in-place updates leave unchanged."""
    total = 0.0
    for part in body.values():
        if part.opcode == "dynamic-update-slice":
            update = body.get(part.operands[1])
            total += array_bytes(part.type) - (array_bytes(update.type) if update else 0.0)
        elif part.opcode == "fusion":
            total += _kept(module.computations[part.callees()[0]], module)
    return total
