"""The plan for GPUs: kernels of an HLO text by hand, the pool's memory, and XLA's own compiler.

The last needs pip install 'ida_jax[plan-gpu]', and is skipped without it.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.planning.costs import Costs, Memory, bound
from ida_jax.planning.hlo import parse
from ida_jax.planning.kernels import gpu_kernels, kernels
from ida_jax.planning.topology import GPUS, Topology, larger_pool, open_topology, pool_fraction

H200 = GPUS["h200"]
_MODULE = parse((Path(__file__).parent / "hlo" / "gpu.txt").read_text())
_X, _K, _Y = 2 * 12 * 12 * 4 * 2, 8 * 3 * 3 * 4 * 2, 2 * 6 * 6 * 8 * 2
_CONVOLUTION = 2 * (2 * 6 * 6 * 8) * (3 * 3 * 4)
_PRODUCT, _PRODUCT_BYTES = 2 * 64 * 16 * 32, 4 * (64 * 16 + 16 * 32 + 64 * 32)


def test_kernels_bytes_and_operations():
    assert [(k.name, k.kind, k.bytes, k.flops) for k in kernels(_MODULE)] == [
        ("conv", "convolution", _X + _K + _Y, {"bfloat16": _CONVOLUTION}),
        ("reduce_fusion", "fusion", _Y + 8 * 4, {"elementwise": 2 * 576}),
        ("by_kernel", "convolution", _X + _K + _Y, {"bfloat16": _CONVOLUTION}),
        ("by_input", "convolution", _X + _K + _Y, {"bfloat16": _CONVOLUTION}),
        ("product", "product", _PRODUCT_BYTES, {"float32": _PRODUCT}),
        ("fast", "product", _PRODUCT_BYTES, {"tf32": _PRODUCT}),
        # Half of y is read.
        ("slice_fusion", "fusion", _Y / 2 + 4 * 288, {}),
        ("again", "copy", 2 * 4 * 64 * 32, {}),
    ]


def test_a_step_is_the_sum_of_its_kernels_and_of_what_they_wait_for():
    slow = H200._replace(bfloat16=1e9, memory_bandwidth=1e8)
    found = gpu_kernels(_MODULE, slow)
    assert found.count == 8
    assert found.by_kind["convolution"].count == 3
    assert found.flops["bfloat16"] == 3 * _CONVOLUTION
    convolution = max(_CONVOLUTION / 1e9, (_X + _K + _Y) / 1e8)
    others = _Y + 32 + 2 * _PRODUCT_BYTES + _Y / 2 + 1152 + 2 * 8192
    np.testing.assert_allclose(found.seconds["traffic"] + found.seconds["arithmetic"],
                               3 * convolution + others / 1e8)  # fmt: skip
    # Two convolutions take longer than the exchange beside them.
    assert found.seconds["collectives"] == found.seconds["launches"] == 0
    # On the real one every kernel is shorter than its launch, and the exchange than neither.
    real = gpu_kernels(_MODULE, H200).seconds
    np.testing.assert_allclose(real["launches"], 8 * 2e-6)
    sent = 2 * 32 * 7 / 8 / H200.nvlink
    np.testing.assert_allclose(real["collectives"], 10e-6 + sent - 2 * 2e-6)


def test_a_gpus_bound_is_a_sum_and_its_rings_leave_a_node_by_the_network():
    found = gpu_kernels(_MODULE, H200)
    costs = Costs(Memory(*[0] * 6, None), 0, 0, None, 0, {}, None, found, 0)
    limits = bound(costs, Topology("h200:1", [], H200))
    assert limits.seconds == sum(found.seconds.values())
    assert limits.binds == "launches"
    assert H200.ring_bandwidth(8) > H200.ring_bandwidth(16) == H200.node
    assert H200.rate("elementwise") == H200.float32


def test_the_pools_share_of_the_memory(monkeypatch):
    variable = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.delenv(variable, raising=False)
    assert pool_fraction() == 0.75
    monkeypatch.setenv(variable, ".9")
    assert pool_fraction() == 0.9
    for wrong in ("", "90%", "0", "1.5", "nan"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(UserError, match=f"{variable} is '{wrong}': expected a share"):
            pool_fraction()
    assert larger_pool(0.795 * H200.memory, H200) == f"export {variable}=0.80"
    assert larger_pool(0.97 * H200.memory, H200) is None


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "jax_cuda12_plugin" else found(n)
    )
    with pytest.raises(UserError, match=r"jax_cuda12_plugin: pip install 'ida_jax\[plan-gpu\]'"):
        open_topology("h200:1")


_CONFIG = """
from ml_collections import ConfigDict
from ida_jax.runs.config import run_section

def get_config():
    c = run_section("small")
    c.model.network, c.model.image_size = "iresnet_nano", 16
    c.model.options = ConfigDict({"embedding_dim": 32, "dtype": "bfloat16"})
    return c
"""


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="XLA's GPU compiler is not installed: pip install 'ida_jax[plan-gpu]'",
)


@needs_compiler
@pytest.mark.parametrize("fraction", ["0.75", "0.0001"])
def test_a_small_network_compiled_for_a_gpu(tmp_path, monkeypatch, fraction):
    """In a process of its own: the plugin is not for this one."""
    (tmp_path / "config.py").write_text(_CONFIG)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", fraction)
    command = [
        sys.executable, "-m", "ida_jax.plan", f"--config={tmp_path / 'config.py'}",
        "--topology=h200:1", "--program=embed", "--batch_size=8",
        f"--json={tmp_path / 'plan.json'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    fits = fraction == "0.75"
    assert done.returncode == (0 if fits else 1), done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    costs = plan["parts"]["embed"]["costs"]
    assert plan["fits"] == fits
    assert costs["memory"]["limit"] == float(fraction) * H200.memory
    # What the kernels do, and what the jaxpr says: XLA leaves out a kernel's rows that see nothing
    # but padding.
    by_kernels = sum(n for kind, n in costs["kernels"]["flops"].items() if kind != "elementwise")
    assert 0.85 * costs["flops"] < by_kernels <= costs["flops"]
    assert costs["kernels"]["by_kind"]["convolution"]["count"] == 13
    if fits:
        assert plan["bound"]["step_seconds"] > 1.99e-6 * costs["kernels"]["count"]
    else:
        assert (
            "it would with a larger pool: export XLA_PYTHON_CLIENT_MEM_FRACTION=0.01" in done.stdout
        )


@needs_compiler
def test_the_recorded_figures_hold():
    """The headline's, compiled again: another XLA may move them, and the record then with it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "experiments" / "bench_compiled.py")]
    done = subprocess.run(
        [*command, "--topologies=h200:1", "--programs=train,search"],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recorded = json.loads((root / "experiments" / "results" / "bench_compiled.json").read_text())
    for program, plan in json.loads(done.stdout)["topologies"]["h200:1"].items():
        was = recorded["topologies"]["h200:1"][program]
        assert plan["bound"]["step_seconds"] == pytest.approx(
            was["bound"]["step_seconds"], rel=0.03
        )
        for name, part in plan["parts"].items():
            costs, before = part["costs"], was["parts"][name]["costs"]
            assert costs["memory"]["temporaries"] == pytest.approx(
                before["memory"]["temporaries"], rel=0.03
            )
            for kind, of in before["kernels"]["by_kind"].items():
                assert costs["kernels"]["by_kind"][kind] == pytest.approx(of, rel=0.03)


_GAN = """
import json
import re
from ida_jax.planning.topology import open_topology
from ida_jax.planning.costs import measure
from ida_jax.planning.flops import Flops
from ida_jax.runs.config import run_section
from ida_jax.runs.programs import Sizes, device_program

config = run_section("small")
config.gan.update(resolution=8, channel_max=8, latent_dim=8, style_dim=8, batch_size=16)
topology = open_topology("h200:8")
r1, windows = [], {}
for count in (1, 8):
    here = topology._replace(devices=topology.devices[:count])
    for part in device_program("gan", config, here.devices, Sizes(None, 1, 1)).parts:
        if count == 8 and part.name != "r1":
            continue
        lowered = part.function.trace(*part.arguments).lower()
        compiled = lowered.compile(compiler_options=dict(topology.options))
        calls = [line for line in compiled.as_text().splitlines() if '"__cudnn$conv' in line]
        sizes = [n for line in calls for n in re.findall(r"window={size=([0-9]+)x", line)]
        windows[part.name] = max(map(int, sizes))
        if part.name == "r1":
            r1.append(measure(compiled, Flops(0, 0), here).kernels.flops["bfloat16"])
print(json.dumps([r1, windows]))
"""


@needs_compiler
def test_gan_on_gpus():
    """Eight share the images behind the augmentation; no window is larger than a kernel.

    XLA does neither of itself.
    """
    done = subprocess.run([sys.executable, "-c", _GAN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (one, eight), windows = json.loads(done.stdout)
    np.testing.assert_allclose(one / eight, 8, rtol=0.01)
    assert windows == {"generator": 3, "discriminator": 3, "r1": 3, "path_length": 3}
