"""`rescore --engine=ray` on one host beside plain `rescore`: what Ray costs where it gains nothing.

Command: python experiments/bench_engines.py [--faces=23124] [--anchors=50000] [--pairs=15658489]
Prints JSON: wall seconds of both commands, folders of Parquet in and out, in turn and in one run;
the ratio of the medians of `--repeats` (the bar is 1.3), of the whole commands and less what Ray
takes to start on a host, which a cluster has behind it; whether the scores are the same bits.
Needs ida_jax[ray].
"""

import argparse
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
    parser.add_argument("--actors", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
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
    seconds = {"plain": [], "ray": [], "ray_start": []}
    for _ in range(options.repeats):
        seconds["plain"].append(_seconds(*command, f"--output={folder / 'plain'}"))
        ray = ("--engine=ray", f"--actors={options.actors}")
        seconds["ray"].append(_seconds(*command, f"--output={folder / 'ray'}", *ray))
        seconds["ray_start"].append(_seconds("-c", _START))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    scores = [parquet.read_table(folder / name)["score"].to_numpy() for name in ("plain", "ray")]
    return {
        "settings": {**vars(options), "cores": os.cpu_count()},
        "seconds": seconds,
        "ratio": median["ray"] / median["plain"],
        "ratio_less_start": (median["ray"] - median["ray_start"]) / median["plain"],
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


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
