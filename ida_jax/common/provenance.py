"""What a result was made with: every recorded figure carries it."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ida_jax.common.processes import cores

_PACKAGES = ("ida_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scann")


def provenance() -> dict[str, object]:
    """The command, the commit, the hardware and the versions of this process."""
    import jax

    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": command_line(sys.orig_argv),
        "commit": _commit(),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "processor": f"{_processor()}, {cores()} cores",
        "versions": versions,
    }


def command_line(argv: Sequence[str]) -> str:
    """What was typed, of `sys.orig_argv`: python SCRIPT …, python -m MODULE …, or ida-jax ….

    Without the folders of the interpreter and of the console command.
    """
    _, *words = argv
    console = words and Path(words[0]).name.removesuffix(".exe") == "ida-jax"
    return shlex.join(["ida-jax", *words[1:]] if console else ["python", *words])


def _commit() -> str:
    """The checkout's commit, with a mark where files differ from it; "" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        # Records that were just written do not change what made them.
        paths = ["--", ":(top)", ":(top,exclude)experiments/results"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", *paths], capture_output=True, text=True
        )
    except OSError:
        return ""
    if commit.returncode:
        return ""
    return commit.stdout.strip()[:12] + ("+changes" if changed.stdout.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
