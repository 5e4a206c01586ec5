"""The collectives of a compiled program: how many, among how many devices, and what they send.

n devices of a group, I bytes of an instruction's operands on one device.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ida_jax.planning.hlo import Computation, Instruction, Module, array_bytes, executed

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
    """Every collective that the program runs; those within one device are none."""
    return [
        found
        for instruction, computation, times in executed(module)
        for found in _within(instruction, computation, module, times)
    ]


def _within(
    instruction: Instruction, computation: Computation, module: Module, times: int
) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind in _SENT:
        # A TPU overlaps a collective with computation by writing it once more in each fusion of a
        # chain; only the first of them begins it.
        goes_on = re.search(
            r'async_collective_fusion_config":\{"flag_start":"\d', instruction.attributes
        )
        group = _group_size(instruction)
        if not goes_on and group > 1:
            size = sum(array_bytes(computation[name].type) for name in instruction.operands)
            yield Collective(kind, times, group, _SENT[kind](size, group))
    elif instruction.opcode in ("fusion", "async-start"):
        for callee in instruction.callees():
            inner = module.computations[callee]
            for part in inner.values():
                for found in _within(part, inner, module, times):
                    if callee.startswith("all-reduce-scatter"):
                        # How a TPU writes reduce-scatter: an all-reduce fused with its slice.
                        found = found._replace(
                            kind="reduce-scatter", bytes_sent=found.bytes_sent / 2
                        )
                    yield found


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
    raise ValueError(f"a {collective.opcode} without its groups: {attributes[:200]}")
