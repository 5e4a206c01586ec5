"""Every device program, compiled for GPUs without one: bytes, kernels, temporaries and the bound.

Command: python experiments/bench_compiled.py [--topologies=h200:1,h200:8] [--programs=train,…]
Prints one JSON. Needs pip install 'ida_jax[plan-gpu]', no GPU and no data; a program takes one core
for up to a minute or two.

Each case is what `ida-jax plan --program` plans: a config's program at the sizes below, for each
topology. Figures are the compiler's own, not measurements: cuDNN's algorithms and their workspaces
are chosen on the device, and Triton's kernels are off, since they are chosen by trying them.
"""

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ida_jax.plan import make_plan
from ida_jax.planning.topology import open_topology

_CONFIGS = Path(__file__).parents[1] / "configs"


class Case(NamedTuple):
    """A config's program."""

    program: str
    config: str
    overrides: tuple[str, ...] = ()


# The paper's main model; searches are of 512 dimensions, as InsightFace's models have.
_WIDE = ("--config.model.options.embedding_dim=512",)
CASES = {
    "train": Case("train", "ms1m_arcface"),
    "train_r100": Case("train", "ms1m_r100_arcface"),
    "embed": Case("embed", "ms1m_arcface"),
    "search": Case("search", "ms1m_arcface", _WIDE),
    "search_x6": Case("search", "ms1m_arcface", (*_WIDE, "--config.searcher=bfloat16_x6")),
    "pairs": Case("pairs", "ms1m_arcface", _WIDE),
    "identify": Case("identify", "ms1m_arcface", _WIDE),
    "identify_x6": Case("identify", "ms1m_arcface", (*_WIDE, "--config.searcher=bfloat16_x6")),
    "likelihood": Case("likelihood", "ms1m_arcface", _WIDE),
    "gan": Case("gan", "stylegan_ms1m"),
    "pfe": Case("pfe", "ms1m_arcface"),
    "ssr": Case("ssr", "ms1m_arcface"),
}


class _Sizes(NamedTuple):
    """`ida_jax.runs.programs.Sizes`, which needs more than this file's readers have."""

    classes: Callable[[], int]
    faces: int
    batch_size: int


_CLASSES, _FACES, _BATCH_SIZE = 85_742, 1_000_000, 128
SIZES = _Sizes(lambda: _CLASSES, _FACES, _BATCH_SIZE)


def planned(case: Case, topology: Any) -> dict[str, Any]:
    """A case's plan, without what a compile took."""
    from ida_jax.runs.config_flags import parse_config
    from ida_jax.runs.programs import device_program

    config, _ = parse_config([f"--config={_CONFIGS / case.config}.py", *case.overrides])
    plan = make_plan(device_program(case.program, config, topology.devices, SIZES), topology)
    return {"config": case.config, "overrides": case.overrides, **plan}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole record."""
    topologies = {}
    for name in options.topologies:
        topology = open_topology(name)
        topologies[name] = {}
        for program in options.programs:
            start = time.perf_counter()
            topologies[name][program] = planned(CASES[program], topology)
            print(f"{name} {program}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    from ida_jax.common.provenance import provenance

    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {
        "settings": {"classes": _CLASSES, "faces": _FACES, "embed_batch_size": _BATCH_SIZE},
        "topologies": topologies,
        "provenance": provenance() | {"command": command},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def words(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--topologies", type=words, default=["h200:1", "h200:8"])
    parser.add_argument("--programs", type=words, default=list(CASES), help=", ".join(CASES))
    options = parser.parse_args()
    if unknown := [name for name in options.programs if name not in CASES]:
        parser.error(f"--programs: no {', '.join(unknown)} among {', '.join(CASES)}")
    return options


if __name__ == "__main__":
    options = _options()
    with contextlib.redirect_stdout(sys.stderr):
        record = measure(options)
    print(json.dumps(record, indent=1))
