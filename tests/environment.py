"""The environment of the commands that tests start."""

import os


def with_devices(count: int = 1) -> dict[str, str]:
    """This process's environment, but for the number of CPU devices."""
    devices = f"--xla_force_host_platform_device_count={count}"  # of two, the last one holds
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
