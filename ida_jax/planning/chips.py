"""What a TPU chip can do, for bounds on a step's time.

Source: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)"
(docs.cloud.google.com/tpu/docs). Their interconnect figures are of both directions; a ring's bytes
leave a chip in one, so that half is taken (v5e: 1600 Gbit/s, v5p: 4800 Gbit/s in earlier
editions). Of v4, v3 and v2 the links are those of Jouppi et al.: ISCA 2023, table 4 (v4: six of
50 GB/s), and CACM 63(7), 2020, table 3 (four of 656 and of 496 Gbit/s). The time a hop takes is
"about 1 µs" in "How to Scale Your Model" (jax-ml.github.io/scaling-book, chapter 3).
"""

from typing import NamedTuple

HOP_SECONDS = 1e-6


class Chip(NamedTuple):
    """One chip; a device may be half of one.

    Attributes:
      flops: bfloat16 operations a second.
      memory: bytes of main memory (HBM).
      memory_bandwidth: bytes a second.
      link_bandwidth: bytes a second that leave the chip over all its links.
      torus: dimensions of the interconnect.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    torus: int


_GIB = 2.0**30
# By the name that a topology begins with.
CHIPS = {
    "v2": Chip(46e12, 16 * _GIB, 700e9, 248e9, 2),
    "v3": Chip(123e12, 32 * _GIB, 900e9, 328e9, 2),
    "v4": Chip(275e12, 32 * _GIB, 1200e9, 300e9, 3),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, 2),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, 3),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 400e9, 2),
    "tpu7x": Chip(2307e12, 192 * _GIB, 7380e9, 600e9, 3),
}


def hops(group: int, chip: Chip) -> float:
    """The farthest way between two of a group's devices that fill a torus with equal sides."""
    return chip.torus * group ** (1 / chip.torus) / 2
