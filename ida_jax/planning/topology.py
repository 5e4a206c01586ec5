"""The machines to plan for: what their chips can do, and their devices without having them.

Source of the TPUs' rates: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x
(Ironwood)" (docs.cloud.google.com/tpu/docs). Their interconnect figures count both directions; a
ring's bytes leave a chip in one, so half of them is taken (v5e: 1600 Gbit/s, v5p: 4800 Gbit/s in
earlier editions). The links of v4, v3 and v2 are those of Jouppi et al.: ISCA 2023, table 4 (v4:
six of 50 GB/s), and CACM 63(7), 2020, table 3 (four of 656 and of 496 Gbit/s). The time of a hop is
"about 1 µs" in "How to Scale Your Model" (jax-ml.github.io/scaling-book, chapter 3).

Source of the GPUs' rates: NVIDIA's data sheets; of the sizes that XLA's compiler asks for, XLA's
own target descriptions (xla/backends/gpu/target_config/specs).
"""

import math
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ida_jax.common.errors import UserError, require_module

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


class Gpu(NamedTuple):
    """One GPU, as its data sheet and XLA's GPU compiler describe it.

    Attributes:
      name: what jax's `device_kind` begins with.
      bfloat16, tf32, float32: dense operations a second, the last without tensor cores.
      memory: bytes of main memory (HBM).
      memory_bandwidth: bytes a second.
      nvlink: bytes a second that one sends to the others of its node.
      node: bytes a second that a node's network cards send for its eight GPUs (NVIDIA DGX).
      cores: streaming multiprocessors.
      lanes: of each, for float32.
      clock: GHz.
      l2: bytes of cache.
      shared, shared_optin: bytes of shared memory of a core, and those that a block may ask for.
      last_block_dim: threads of a block along its third axis.
      capability: the compute capability's major number, and the features that go with it.
    """

    name: str
    bfloat16: float
    tf32: float
    float32: float
    memory: int
    memory_bandwidth: float
    nvlink: float
    node: float
    cores: int
    lanes: int
    clock: float
    l2: int
    shared: int
    shared_optin: int
    last_block_dim: int
    capability: str

    def rate(self, kind: str) -> float:
        """Operations a second by the type that they compute in; elementwise ones in float32."""
        return getattr(self, "float32" if kind == "elementwise" else kind)

    def ring_bandwidth(self, devices: int) -> float:
        """Bytes a second that each of a ring of devices sends; beyond a node, over its network."""
        return self.nvlink if devices <= _NODE else min(self.nvlink, self.node)

    def target(self) -> str:
        """The target of XLA's compiler (GpuTargetConfigProto), as text."""
        return f"""gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
          shared_memory_per_block_optin: {self.shared_optin}
          core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
          thread_dim_limit_z: {self.last_block_dim}
          memory_bandwidth: {self.memory_bandwidth:.0f} l2_cache_size: {self.l2}
          device_memory_size: {self.memory}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          cuda_compute_capability {{ {self.capability} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{self.name}"
        """


_NODE = 8
_HOPPER = "major: 9 feature_extension: ACCELERATED_FEATURES"
GPUS = {
    "h200": Gpu(
        "NVIDIA H200", 989e12, 494e12, 67e12, 151397597184, 4.8e12, 450e9, 400e9,
        132, 128, 1.98, 52428800, 233472, 232448, 64, _HOPPER,
    ),
    "h100": Gpu(
        "NVIDIA H100", 989e12, 494e12, 67e12, 84942979072, 3.35232e12, 450e9, 400e9,
        132, 128, 1.98, 52428800, 233472, 232448, 64, _HOPPER,
    ),
    "a100": Gpu(
        "NVIDIA A100", 312e12, 156e12, 19.5e12, 85100068864, 2.03904e12, 300e9, 200e9,
        108, 64, 1.41, 41943040, 167936, 166912, 64, "major: 8",
    ),
}  # fmt: skip
# The dense peaks of those and of others, by what jax's `device_kind` begins with: bfloat16, and
# float32 as XLA runs it by default, TF32 where there is one. Source: NVIDIA's data sheets.
_PEAKS = {
    "NVIDIA A10": (125e12, 62.5e12),
    "NVIDIA L4": (121e12, 60e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H100 NVL": (835e12, 417.5e12),
    "NVIDIA B200": (2250e12, 1125e12),
} | {gpu.name: (gpu.bfloat16, gpu.tf32) for gpu in GPUS.values()}
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
      dtype: "bfloat16", "float16" (as fast) or "float32".
      device_kind: jax's name of the device; None is this run's first device.
    """
    if device_kind is None:
        import jax

        device_kind = jax.devices()[0].device_kind
    # Whole words: an L40 is not an L4.
    matching = [
        name for name in (*_PEAKS, *_TPUS) if re.match(re.escape(name) + r"\b", device_kind)
    ]
    if not matching:
        return None
    name = max(matching, key=len)
    if name in _TPUS:
        chip, devices = _TPUS[name]
        return CHIPS[chip].flops / devices
    return _PEAKS[name][dtype == "float32"]


EXAMPLES = "h200:8, v5e:16x16, v5p:4x4x8, cpu:8"


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: as given, such as v5e:16x16.
      devices: the devices, none of which need be present.
      chip: their kind; None for fake CPU devices, whose rates are unknown.
      devices_per_chip: 2 where a chip appears as two devices (v2, v3, TPU7x), else 1.
      memory: the bytes of a device that jax can take; None if unknown.
      options: the compiler's.
    """

    name: str
    devices: list[Any]
    chip: Chip | Gpu | None = None
    devices_per_chip: int = 1
    memory: float | None = None
    options: Mapping[str, Any] = MappingProxyType({})


def open_topology(name: str) -> Topology:
    """The devices of KIND:SHAPE, without touching any accelerator.

    Call it before jax is used for anything: the process then computes on the CPU.
    """
    parts = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    kind = parts[1] if parts else name
    if parts is None or kind not in (*GPUS, *CHIPS, "cpu"):
        raise UserError(
            f"topology '{name}' is unknown: expected KIND:SHAPE with KIND one of "
            f"{', '.join(GPUS)}, {', '.join(CHIPS)}, cpu, such as {EXAMPLES}"
        )
    if kind in CHIPS:
        return _tpus(name, kind, parts[2])
    if not parts[2].isdecimal() or int(parts[2]) < 1:
        raise UserError(f"topology '{name}': expected a number of devices, such as {kind}:8")
    opened = _fake_cpus if kind == "cpu" else _gpus
    return opened(name, kind, int(parts[2]))


def _fake_cpus(name: str, kind: str, count: int) -> Topology:
    flag = "xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={count}"
    devices = _jax_on_the_cpu().devices()
    if len(devices) < count:
        raise UserError(
            f"topology '{name}': XLA_FLAGS already asks for {len(devices)} CPU devices; unset it"
        )
    return Topology(name, devices[:count])


_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def pool_fraction() -> float:
    """The share of a GPU's memory that jax takes for its pool: 0.75 unless the environment says."""
    given = os.environ.get(_FRACTION, "0.75")
    try:
        fraction = float(given)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"{_FRACTION} is '{given}': expected a share of the memory, such as 0.9")
    return fraction


def larger_pool(total: float, gpu: Gpu) -> str | None:
    """What to set so that the pool holds that many bytes; None where no pool can."""
    # CUDA, its libraries and their workspaces need the rest.
    needed = math.ceil(100 * total / gpu.memory) / 100
    return f"export {_FRACTION}={needed:.2f}" if needed <= _LARGEST_POOL else None


_LARGEST_POOL = 0.95


def _gpus(name: str, kind: str, count: int) -> Topology:
    if count > _NODE and count % _NODE:
        raise UserError(f"topology '{name}': beyond a node of {_NODE}, expected a multiple of it")
    gpu, fraction = GPUS[kind], pool_fraction()
    require_module("jax_cuda12_plugin")
    # A GPU that is there is left alone.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    _jax_on_the_cpu()
    from jax.experimental import topologies

    nodes = -(-count // _NODE)
    described = topologies.get_topology_desc(
        platform="cuda", topology_name=kind, target_config=gpu.target(),
        topology=f"1x{nodes}x{count // nodes}",
    )  # fmt: skip
    # Kernels of Triton are chosen by trying them, which needs the device.
    options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
    return Topology(name, list(described.devices), gpu, 1, fraction * gpu.memory, options)


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
    per_chip = len(devices) // len(chips)
    return Topology(name, devices, CHIPS[kind], per_chip, CHIPS[kind].memory / per_chip)


def _jax_on_the_cpu() -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    return jax
