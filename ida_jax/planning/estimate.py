"""A compiled training step's costs and the step time that they allow at best."""

from typing import Any, NamedTuple

from ida_jax.planning.chips import HOP_SECONDS, hops
from ida_jax.planning.collectives import KINDS, Collective, collectives
from ida_jax.planning.flops import Flops
from ida_jax.planning.hlo import parse, unknown_loops
from ida_jax.planning.memory import memory_bytes
from ida_jax.planning.topology import Topology


class Sent(NamedTuple):
    """A step's collectives of one kind: how many, and the bytes that each device sends."""

    count: int
    bytes: float


class Memory(NamedTuple):
    """Bytes of each device's main memory.

    Attributes:
      arguments: the state and the batch.
      outputs: the new state; `aliased` of them take the place of the old one.
      aliased: see outputs.
      temporaries: what a step needs beside them.
      code: the program itself.
      total: arguments + outputs − aliased + temporaries + code.
      limit: what a device has; None if not known.
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
      memory: see `Memory`.
      flops: of matrix products and convolutions.
      passes: flops with float32 products counted as the TPU runs them (`flops.Flops`).
      xla_flops: XLA's count, elementwise operations included and loop bodies once.
      memory_bytes: read from and written to main memory.
      sent: by kind of collective.
      latency: seconds that the collectives' ways through the torus take, one after the other.
      unknown_loops: loops whose rounds XLA does not tell, counted once.
    """

    memory: Memory
    flops: float
    passes: float
    xla_flops: float
    memory_bytes: float
    sent: dict[str, Sent]
    latency: float | None
    unknown_loops: int


def measure(compiled: Any, flops: Flops, topology: Topology) -> Costs:
    """Reads a compiled step (`jax.stages.Compiled`) and the flops of all devices together."""
    module = parse(compiled.as_text())
    found, chip, count = collectives(module), topology.chip, len(topology.devices)
    stats, limit = compiled.memory_analysis(), None
    if chip is not None:
        limit = chip.memory / topology.devices_per_chip
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
        {kind: _sent(kind, found) for kind in KINDS},
        None if chip is None else sum(c.count * hops(c.group, chip) for c in found) * HOP_SECONDS,
        unknown_loops(module),
    )


def _sent(kind: str, found: list[Collective]) -> Sent:
    of_kind = [c for c in found if c.kind == kind]
    return Sent(sum(c.count for c in of_kind), sum(c.count * c.bytes_sent for c in of_kind))


def bounds(costs: Costs, topology: Topology) -> dict[str, float]:
    """Seconds that a step takes at least, by what it would wait for.

    compute = passes / peak, memory = bytes / bandwidth, network = bytes sent / the bandwidth of all
    the chip's links, latency as in `Costs`. The step takes the largest at least: what overlaps
    best still takes that long. Empty where the chip's rates are not known.
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
