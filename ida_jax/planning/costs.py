"""A compiled training step's costs on each device, and the step time that they allow at best.

XLA's own cost analysis counts a loop's body once, and on-chip memory like main memory. Here bytes
are counted on the compiled HLO, where a body counts as often as it runs.

n devices of a group, I bytes of an instruction's operands on one device.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ida_jax.planning.flops import Flops
from ida_jax.planning.hlo import (
    Computation,
    Instruction,
    Module,
    array_bytes,
    arrays,
    executed,
    parse,
    unknown_loops,
)
from ida_jax.planning.topology import HOP_SECONDS, Topology, hops


class Sent(NamedTuple):
    """A step's collectives of one kind: how many, and the bytes that each device sends."""

    count: int
    bytes: float


class Memory(NamedTuple):
    """Bytes of each device's main memory.

    Attributes:
      arguments: the state and the batch.
      outputs: the new state; `aliased` of them take the place of the old one.
      temporaries: what a step needs besides them.
      total: arguments + outputs − aliased + temporaries + code.
      limit: the memory of a device; None if unknown.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    total: int
    limit: float | None


class Costs(NamedTuple):
    """One step, on each device.

    Attributes:
      flops: of matrix products and convolutions.
      passes: flops with float32 products counted as the TPU runs them (`flops.Flops`).
      xla_flops: XLA's count, elementwise operations included and loop bodies once.
      memory_bytes: read from and written to main memory.
      sent: by kind of collective.
      latency: seconds of the collectives' paths through the torus, one after the other.
      unknown_loops: loops whose trip count XLA does not give, counted once.
    """

    memory: Memory
    flops: float
    passes: float
    xla_flops: float
    memory_bytes: float
    sent: dict[str, Sent]
    latency: float | None
    unknown_loops: int


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
        for collective in _within(instruction, computation, module, times)
    ]


def _within(
    instruction: Instruction, computation: Computation, module: Module, times: int
) -> Iterator[Collective]:
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
                for collective in _within(part, inner, module, times):
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
_FREE = {
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
        times * _moved(instruction, computation, module)
        for instruction, computation, times in executed(module)
    )


def _moved(instruction: Instruction, computation: Computation, module: Module) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
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
    written = array_bytes(instruction.type, main_memory=True)
    return read + (max(0.0, written - _kept(body, module)) if written else 0.0)


def _read(parameter: str, size: float, body: Computation, module: Module) -> float:
    """The bytes that a body reads of a parameter of `size` bytes."""
    total = 0.0
    for user in body.values():
        if parameter not in user.operands:
            continue
        first = user.operands[0] == parameter
        if user.opcode in _SLICES and first:
            total += array_bytes(user.type)
        elif user.opcode == "bitcast":
            total += _read(user.name, size, body, module)
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


def measure(compiled: Any, flops: Flops, topology: Topology) -> Costs:
    """Reads a compiled step (`jax.stages.Compiled`) and the flops of all devices together."""
    module = parse(compiled.as_text())
    chip, count, stats = topology.chip, len(topology.devices), compiled.memory_analysis()
    limit = latency = None
    sent = collectives(module)
    if chip is not None:
        limit = chip.memory / topology.devices_per_chip
        latency = sum(c.count * hops(c.group, chip) for c in sent) * HOP_SECONDS
    sizes = (
        stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.alias_size_in_bytes,
        stats.temp_size_in_bytes, stats.generated_code_size_in_bytes,
    )  # fmt: skip
    return Costs(
        Memory(*sizes, sum(sizes) - 2 * stats.alias_size_in_bytes, limit),
        flops.flops / count,
        flops.passes / count,
        compiled.cost_analysis()["flops"],
        memory_bytes(module),
        {kind: _sent(kind, sent) for kind in KINDS},
        latency,
        unknown_loops(module),
    )


def _sent(kind: str, every: list[Collective]) -> Sent:
    of_kind = [c for c in every if c.kind == kind]
    return Sent(sum(c.count for c in of_kind), sum(c.count * c.bytes_sent for c in of_kind))


def bounds(costs: Costs, topology: Topology) -> dict[str, float]:
    """Lower bounds on the seconds of a step, by what it waits for.

    compute = passes / peak, memory = bytes / bandwidth, network = bytes sent / the bandwidth of all
    the chip's links, latency as in `Costs`. A step takes at least the largest of them, even if all
    of them overlap perfectly. Empty where the chip's rates are unknown.
    """
    chip, share = topology.chip, topology.devices_per_chip
    if chip is None:
        return {}
    return {
        "compute": costs.passes / (chip.flops / share),
        "memory": costs.memory_bytes / (chip.memory_bandwidth / share),
        "network": sum(s.bytes for s in costs.sent.values()) / (chip.link_bandwidth / share),
        "latency": costs.latency,
    }
