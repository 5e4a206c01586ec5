"""`rescore --engine=ray` on one host beside plain `rescore`: what Ray costs where it gains nothing.

Command: python experiments/bench_engines.py [--faces=23124] [--anchors=50000] [--pairs=15658489]
Prints JSON: seconds of both commands, by the wall and, on Linux, of all their processes on the
cores, folders of Parquet in and out, in turn and in one run; the ratio of the medians of
`--repeats` (the bar is 1.3), of the whole commands and less what Ray takes to start on a host,
which a cluster has behind it; whether the scores are the same bits.
Needs ida_jax[ray].
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ida_jax.common.provenance import provenance

_PARTS = 8
_START = "import ray; ray.init(log_to_driver=False, include_dashboard=False)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faces", type=int, default=23124)
    parser.add_argument("--anchors", type=int, default=50000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=15658489)
    parser.add_argument("--chunk", type=int, default=1 << 20, help="of both commands")
    parser.add_argument("--actors", type=int, help="Ray's, as the command chooses if not given")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _adopt_orphans()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(_measured(options, Path(name)), indent=2))


def _measured(options: argparse.Namespace, folder: Path) -> dict:
    rng = np.random.default_rng(0)
    for what, rows in (("faces", options.faces), ("anchors", options.anchors)):
        embeddings = rng.normal(size=(rows, options.width)).astype(np.float32)
        kind = pa.list_(pa.float32(), options.width)
        column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), type=kind)
        _write(folder / what, pa.table({"embedding": column}))
    pairs = rng.integers(options.faces, size=(options.pairs, 2), dtype=np.int32)
    _write(folder / "pairs", pa.table({"first": pairs[:, 0], "second": pairs[:, 1]}))
    os.sync()  # what is written back later would slow what is timed
    inputs = [f"--{w}={folder / f}" for w, f in
              (("embeddings", "faces"), ("pairs", "pairs"), ("anchors", "anchors"))]  # fmt: skip
    command = ["-m", "ida_jax", "rescore", *inputs, f"--chunk={options.chunk}"]
    ray = ["--engine=ray"]
    if options.actors is not None:
        ray.append(f"--actors={options.actors}")
    runs = {
        "plain": (*command, f"--output={folder / 'plain'}"),
        "ray": (*command, f"--output={folder / 'ray'}", *ray),
        "ray_start": ("-c", _START),
    }
    clocks = ("seconds", "cpu_seconds")
    spent = {clock: {name: [] for name in runs} for clock in clocks}
    for _ in range(options.repeats):
        for name, arguments in runs.items():
            for clock, value in zip(clocks, _seconds(*arguments), strict=True):
                spent[clock][name].append(value)
    scores = [parquet.read_table(folder / name)["score"].to_numpy() for name in ("plain", "ray")]
    return {
        "settings": {**vars(options), "cores": os.cpu_count()},
        **spent,
        **_ratios(spent["seconds"], ""),
        **_ratios(spent["cpu_seconds"], "cpu_"),
        "bar": 1.3,
        "same_bits": bool(np.array_equal(*scores)),
        "load_average": os.getloadavg()[0],
        "provenance": provenance(),
    }


def _write(folder: Path, table: pa.Table) -> None:
    folder.mkdir()
    cuts = np.linspace(0, len(table), _PARTS + 1).astype(int).tolist()
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        parquet.write_table(table[start:stop], folder / f"part-{number:05d}.parquet")


def _ratios(seconds: dict[str, list[float]], clock: str) -> dict[str, float]:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        f"{clock}ratio": median["ray"] / median["plain"],
        f"{clock}ratio_less_start": (median["ray"] - median["ray_start"]) / median["plain"],
    }


def _seconds(*arguments: str) -> tuple[float, float]:
    """By the wall, and on the cores: of the program and of every process that it started.

    Ray's do not tell their parents what they used: all are asked ten times a second.
    """
    used: dict[int, float] = {}
    start = time.perf_counter()
    program = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while program.poll() is None:
        used |= _cpu_seconds()
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(0.1)
    wall = time.perf_counter() - start
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, program.args)
    with contextlib.suppress(ChildProcessError):  # there are no more
        while True:
            os.wait()
    return wall, sum(used.values())


def _cpu_seconds() -> dict[int, float]:
    """Of each process below this one, so far."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number] = int(fields[1])
            seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def below(number: int) -> bool:
        parent = parents.get(number, 0)
        return parent == os.getpid() or (parent > 1 and below(parent))

    return {number: used for number, used in seconds.items() if below(number)}


def _adopt_orphans() -> None:
    """Ray's processes outlive the program for a moment: they become this one's children."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


if __name__ == "__main__":
    main()
