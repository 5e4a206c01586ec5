"""The environment of the tests, and of the commands that they start."""

import os

# Tests compile much and compute little: without optimisation XLA's CPU programs compile in a sixth
# of the time, and a step of training takes three times as long.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int = 1) -> dict[str, str]:
    """This process's environment, but for the number of CPU devices."""
    devices = f"--xla_force_host_platform_device_count={count}"  # of two, the last one holds
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
