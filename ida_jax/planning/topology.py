"""The devices of a machine that is not here, for compiling ahead of time."""

import os
import re
from typing import Any, NamedTuple

from ida_jax.common.errors import UserError
from ida_jax.planning.chips import CHIPS, Chip

EXAMPLES = "v5e:16x16, v5p:4x4x8, v6e:8x8, cpu:8"


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: as given, such as v5e:16x16.
      devices: the devices, none of which need be there.
      chip: what they are; None for fake CPU devices, of which no rate is known.
      devices_per_chip: 2 where a chip shows as two devices (v2, v3, v4 here, TPU7x), else 1.
    """

    name: str
    devices: list[Any]
    chip: Chip | None
    devices_per_chip: int


def open_topology(name: str) -> Topology:
    """The devices of KIND:SHAPE, without touching any accelerator.

    Call it before jax is used for anything: from then on this process computes on the CPU.

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
            f"compiling for {name} needs libtpu, and no TPU: pip install ida_jax[tpu]"
        ) from error
    # libtpu else asks a cloud machine's metadata server what this machine is, complains that it is
    # none, and lets only one process of a machine in.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    jax = _jax_on_the_cpu()
    from jax.experimental import topologies

    # Its hosts have four chips or more, unless told otherwise.
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
