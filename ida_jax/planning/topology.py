"""The machines to plan for: what their chips can do, and their devices without having them.

Source of the TPUs' rates: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x
(Ironwood)" (docs.cloud.google.com/tpu/docs). Their interconnect figures count both directions; a
ring's bytes leave a chip in one, so half of them is taken (v5e: 1600 Gbit/s, v5p: 4800 Gbit/s in
earlier editions). The links of v4, v3 and v2 are those of Jouppi et al.: ISCA 2023, table 4 (v4:
six of 50 GB/s), and CACM 63(7), 2020, table 3 (four of 656 and of 496 Gbit/s). The time of a hop is
"about 1 µs" in "How to Scale Your Model" (jax-ml.github.io/scaling-book, chapter 3).
"""

import os
import re
from typing import Any, NamedTuple

from ida_jax.common.errors import UserError

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
# By the KIND that a topology's name begins with.
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
    """The largest distance between two devices of a group that fills a torus of equal sides."""
    return chip.torus * group ** (1 / chip.torus) / 2


# NVIDIA's dense peaks in TFLOP/s, by what jax's `device_kind` begins with: bfloat16, and float32 as
# XLA runs it by default, TF32 where there is one. Source: NVIDIA's data sheets.
_GPUS = {
    "NVIDIA A100": (312.0, 156.0),
    "NVIDIA A10": (125.0, 62.5),
    "NVIDIA L4": (121.0, 60.0),
    "NVIDIA H100": (989.0, 494.0),
    "NVIDIA H100 PCIe": (756.0, 378.0),
    "NVIDIA H100 NVL": (835.0, 417.5),
    "NVIDIA H200": (989.0, 494.0),
    "NVIDIA B200": (2250.0, 1125.0),
}
# On TPUs float32 products run as bfloat16 ones by default.
_TPUS = {
    "TPU v4": ("v4", 1),
    "TPU v5 lite": ("v5e", 1),
    "TPU v5": ("v5p", 1),
    "TPU v6 lite": ("v6e", 1),
    "TPU7x": ("tpu7x", 2),  # a device is half a chip
}


def peak_flops(dtype: str, device_kind: str | None = None) -> float | None:
    """The peak FLOP/s of one device; None where the tables have no figure for it.

    Args:
      dtype: "bfloat16" or "float32".
      device_kind: jax's name of the device; None is this run's first device.
    """
    if device_kind is None:
        import jax

        device_kind = jax.devices()[0].device_kind
    # Whole words: an L40 is not an L4.
    matching = [name for name in (*_GPUS, *_TPUS) if re.match(re.escape(name) + r"\b", device_kind)]
    if not matching:
        return None
    name = max(matching, key=len)
    if name in _TPUS:
        chip, devices = _TPUS[name]
        return CHIPS[chip].flops / devices
    return _GPUS[name][dtype != "bfloat16"] * 1e12


EXAMPLES = "v5e:16x16, v5p:4x4x8, v6e:8x8, cpu:8"


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: as given, such as v5e:16x16.
      devices: the devices, none of which need be present.
      chip: their kind; None for fake CPU devices, whose rates are unknown.
      devices_per_chip: 2 where a chip appears as two devices (v2, v3, TPU7x), else 1.
    """

    name: str
    devices: list[Any]
    chip: Chip | None
    devices_per_chip: int


def open_topology(name: str) -> Topology:
    """The devices of KIND:SHAPE, without touching any accelerator.

    Call it before jax is used for anything: the process then computes on the CPU.

    Raises:
      UserError: an unknown kind or shape, or no libtpu.
    """
    parts = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    kind = parts[1] if parts else name
    if kind in ("gpu", "cuda", "rocm"):
        raise UserError(
            f"topology '{name}': XLA compiles for a GPU only where there is one; choose a TPU or "
            f"fake CPU devices, such as {EXAMPLES}"
        )
    if parts is None or kind not in (*CHIPS, "cpu"):
        raise UserError(
            f"topology '{name}' is unknown: expected KIND:SHAPE with KIND one of "
            f"{', '.join(CHIPS)}, cpu, such as {EXAMPLES}"
        )
    return _fake_cpus(name, parts[2]) if kind == "cpu" else _tpus(name, kind, parts[2])


def _fake_cpus(name: str, shape: str) -> Topology:
    if not shape.isdecimal() or int(shape) < 1:
        raise UserError(f"topology '{name}': expected a number of devices, such as cpu:8")
    flag = "xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={shape}"
    devices = _jax_on_the_cpu().devices()
    if len(devices) < int(shape):
        raise UserError(
            f"topology '{name}': XLA_FLAGS already asks for {len(devices)} CPU devices; unset it"
        )
    return Topology(name, devices[: int(shape)], None, 1)


def _tpus(name: str, kind: str, shape: str) -> Topology:
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"compiling for {name} needs libtpu, and no TPU: pip install 'ida_jax[tpu]'"
        ) from error
    # Otherwise libtpu queries a cloud machine's metadata server, complains where there is none, and
    # allows only one process a machine.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    jax = _jax_on_the_cpu()
    from jax.experimental import topologies

    # By default a host has four chips or more.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if set(shape.split("x")) == {"1"} else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **alone)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"topology '{name}': {reason}; take one such as {EXAMPLES}") from error
    devices = list(described.devices)
    chips = {tuple(device.coords) for device in devices}
    return Topology(name, devices, CHIPS[kind], len(devices) // len(chips))


def _jax_on_the_cpu() -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    return jax
