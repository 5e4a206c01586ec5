"""A compiled program's costs on each device, and the time that they allow at best."""

from typing import Any, NamedTuple

from ida_jax.planning.flops import Flops
from ida_jax.planning.hlo import parse, unknown_loops
from ida_jax.planning.kernels import Kernels, gpu_kernels
from ida_jax.planning.topology import HOP_SECONDS, Chip, Topology, hops
from ida_jax.planning.traffic import KINDS, Collective, collectives, memory_bytes


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
      limit: what jax can take of a device's memory (`Topology.memory`); None if unknown.
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
      xla_flops: XLA's count, elementwise operations included and loop bodies once; None for a GPU.
      memory_bytes: read from and written to main memory.
      sent: by kind of collective.
      latency: seconds of the collectives' paths through the torus, one after the other; None where
        there is no torus.
      kernels: a GPU's; None elsewhere.
      unknown_loops: loops whose trip count XLA does not give, counted once.
    """

    memory: Memory
    flops: float
    passes: float
    xla_flops: float | None
    memory_bytes: float
    sent: dict[str, Sent]
    latency: float | None
    kernels: Kernels | None
    unknown_loops: int


class Bound(NamedTuple):
    """The least seconds of a step.

    Attributes:
      seconds: of a step.
      parts: by what it waits for: on a TPU all at once, on a GPU one after the other.
      binds: the largest part.
    """

    seconds: float
    parts: dict[str, float]
    binds: str


def measure(compiled: Any, flops: Flops, topology: Topology) -> Costs:
    """Reads a compiled step (`jax.stages.Compiled`) and the flops of all devices together."""
    module = parse(compiled.as_text())
    chip, count, stats = topology.chip, len(topology.devices), compiled.memory_analysis()
    latency = kernels = None
    sent = collectives(module)
    if isinstance(chip, Chip):
        latency = sum(c.count * hops(c.group, chip) for c in sent) * HOP_SECONDS
    elif chip is not None:
        kernels = gpu_kernels(module, chip)
    sizes = (
        stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.alias_size_in_bytes,
        stats.temp_size_in_bytes, stats.generated_code_size_in_bytes,
    )  # fmt: skip
    return Costs(
        Memory(*sizes, sum(sizes) - 2 * stats.alias_size_in_bytes, topology.memory),
        flops.flops / count,
        flops.passes / count,
        (compiled.cost_analysis() or {}).get("flops"),
        memory_bytes(module),
        {kind: _sent(kind, sent) for kind in KINDS},
        latency,
        kernels,
        unknown_loops(module),
    )


def _sent(kind: str, every: list[Collective]) -> Sent:
    of_kind = [c for c in every if c.kind == kind]
    return Sent(sum(c.count for c in of_kind), sum(c.count * c.bytes_sent for c in of_kind))


def bound(costs: Costs, topology: Topology) -> Bound | None:
    """The least time of a step; None where the chip's rates are unknown.

    On a TPU arithmetic, memory and network may overlap perfectly: a step takes at least the largest
    of compute = passes / peak, memory = bytes / bandwidth, network = bytes sent / the bandwidth of
    all the chip's links, and latency as in `Costs`. A GPU runs its kernels one after the other: a
    step takes their sum (`kernels.Kernels.seconds`).
    """
    chip, share = topology.chip, topology.devices_per_chip
    if chip is None:
        return None
    if costs.kernels is not None:
        parts = costs.kernels.seconds
        seconds = sum(parts.values())
    else:
        parts = {
            "compute": costs.passes / (chip.flops / share),
            "memory": costs.memory_bytes / (chip.memory_bandwidth / share),
            "network": sum(s.bytes for s in costs.sent.values()) / (chip.link_bandwidth / share),
            "latency": costs.latency,
        }
        seconds = max(parts.values())
    return Bound(seconds, parts, max(parts, key=parts.get))
