"""ida-jax COMMAND [flags]

commands:
{commands}

`ida-jax COMMAND --help` says more, `ida-jax --version` which version this is.

examples:
  ida-jax trial --demo --output=demo
  ida-jax train --config=quickstart --workdir=runs/quickstart
  ida-jax anchors build --embeddings=anchors.npy --output=anchors.safetensors
  ida-jax rescore --embeddings=faces.npy --pairs=pairs.csv --anchors=anchors.safetensors \\
      --output=scores.npy
"""

import sys
from importlib import import_module

from ida_jax.common.command_line import did_you_mean
from ida_jax.common.errors import UserError, exit_code

# The module of each, and what it does; the modules are imported when they are called.
COMMANDS = {
    "trial": ("trial", "does IDA help on your data? every method, a verdict, a threshold"),
    "rescore": ("rescore", "scores a list of pairs by IDA or another method"),
    "enrol": ("enrol", "faces into a gallery for 1:N, and out of it"),
    "identify": ("identify", "1:N: each probe's best faces of a gallery"),
    "anchors": ("anchors.__main__", "builds, describes and checks anchor sets"),
    "evaluate": ("evaluate", "TAR@FAR, thresholds, calibration, protocols, reports"),
    "check_labels": ("check_labels", "one person under two names: candidates, to judge by eye"),
    "fit": ("fit", "fits what some methods need"),
    "embed": ("embed", "embeddings of images by a model"),
    "prepare": ("prepare", "data sets from foreign formats"),
    "train": ("main", "runs a config: training, anchors, modules, evaluation"),
    "plan": ("plan", "what a program costs on GPUs or a TPU slice, without them"),
    "export": ("export", "models of other formats in, ONNX and StableHLO out"),
}


def main(argv: list[str]) -> bool | None:
    """Runs the command that the first word names; True where a check found something."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"ida-jax {_version()}")
    elif name not in COMMANDS:
        raise UserError(f"unknown command '{name}': {did_you_mean(name, COMMANDS)}; see --help")
    else:
        return import_module(f"ida_jax.{COMMANDS[name][0]}").main(rest)
    return None


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return __doc__.format(commands="\n".join(lines)).rstrip()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ida_jax")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


def console() -> int:
    """The console command: its exit code, 1 where a check found something."""
    found = []
    code = exit_code(lambda: found.append(main(sys.argv[1:])))
    return code or int(found == [True])


if __name__ == "__main__":
    sys.exit(console())
