"""The environment of the commands that tests start."""

import os
from pathlib import Path

# tensorboardX imports torch where it finds it, for two seconds, and does without it otherwise.
_WITHOUT_TORCH = Path(__file__).with_name("without_torch")


def with_devices(count: int = 1) -> dict[str, str]:
    """This process's environment, but for the number of CPU devices, and without PyTorch."""
    devices = f"--xla_force_host_platform_device_count={count}"  # of two, the last one holds
    path = os.pathsep.join([str(_WITHOUT_TORCH), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
        "PYTHONPATH": path.rstrip(os.pathsep),
    }
