"""What training the SSR module costs: its targets' search, a step of ours and of PyTorch.

    PYTHONPATH=. python experiments/bench_ssr.py > experiments/results/bench_ssr.json

Made-up unit embeddings in clusters. Times are of a hundred steps each, ours by `train_ssr` without
its compilation; PyTorch (eager, fused SGD) takes the same steps on the same data in turn with it.
The machine's load is beside them, and CPU time (of all threads, waiting ones too) beside the wall
clock's: where others work on the machine, the least of the blocks says more than their median.
"""

import argparse
import contextlib
import itertools
import json
import os
import time
from typing import NamedTuple
from unittest import mock

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.provenance import provenance
from ida_jax.rescoring.density import searched_log_density
from ida_jax.runs.config import ssr_section
from ida_jax.training import ssr as training

_BLOCK = 100


class _Block(NamedTuple):
    """Milliseconds a step, of a hundred."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=200_000)
    parser.add_argument("--anchors", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--searched", type=int, default=20_000, help="faces whose search is timed")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch_threads", type=int, default=2)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.torch_threads)
    faces, anchors = _embeddings(options.faces, options.anchors, options.width)

    searched_log_density(faces[:64], anchors)  # compiles
    start = time.perf_counter(), time.process_time()
    found = searched_log_density(faces[: options.searched], anchors)
    record = {
        "faces": options.faces, "anchors": options.anchors, "width": options.width,
        "torch": {"version": torch.__version__, "threads": options.torch_threads},
        "load before": round(os.getloadavg()[0], 2),
        "search": {"faces": options.searched, **_since(start)},
    }  # fmt: skip
    # Any target will do for a step's time; a searched one per face would take the whole search.
    log_density = np.resize(found, len(faces))
    record["training"] = {}
    for hidden in (256, 512):
        ours, theirs, loads = [], [], []
        for _ in range(options.rounds):
            loads.append(round(os.getloadavg()[0], 2))
            ours += _ours(faces, log_density, hidden, options.steps)
            theirs += _torch(faces, log_density, hidden, options.steps)
        record["training"][f"hidden {hidden}"] = _summary(ours, theirs, loads)
    record["load after"] = round(os.getloadavg()[0], 2)
    record["provenance"] = provenance()
    print(json.dumps(record, indent=1))


def _embeddings(faces: int, anchors: int, width: int) -> tuple[np.ndarray, AnchorSet]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, width), np.float32)

    def clustered(count: int) -> np.ndarray:
        rows = centres[rng.integers(0, len(centres), count)]
        rows += 1.5 * rng.standard_normal(rows.shape, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return clustered(faces), AnchorSet.from_embeddings(clustered(anchors))


def _since(start: tuple[float, float]) -> dict[str, float]:
    return {
        "seconds": round(time.perf_counter() - start[0], 3),
        "cpu_seconds": round(time.process_time() - start[1], 3),
    }


def _ours(faces: np.ndarray, log_density: np.ndarray, hidden: int, steps: int) -> list[_Block]:
    config = ssr_section()
    config.hidden, config.steps = hidden, steps + _BLOCK
    times = []

    @contextlib.contextmanager
    def timed(*_, **__):
        yield lambda *_: times.append((time.perf_counter(), time.process_time()))

    # The loop writes its metrics every hundred steps; here they are times.
    with mock.patch.object(training, "open_metrics", timed):
        training.train_ssr(faces, log_density, config, k=10, tau=1.0, workdir="", seed=0)
    return _blocks(times)


def _torch(faces: np.ndarray, log_density: np.ndarray, hidden: int, steps: int) -> list[_Block]:
    import torch

    config = ssr_section()
    torch.manual_seed(0)
    data = torch.from_numpy(faces)
    target = torch.from_numpy(training.make_target(log_density, config.target).values)
    module = torch.nn.Sequential(
        torch.nn.Linear(faces.shape[1], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
    )
    optimizer = torch.optim.SGD(
        module.parameters(), lr=config.learning_rate, momentum=config.momentum,
        weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip

    def run(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(len(data), (config.batch_size,))
            loss = torch.mean((module(data[rows])[:, 0] - target[rows]) ** 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run(_BLOCK)
    times = [(time.perf_counter(), time.process_time())]
    for _ in range(steps // _BLOCK):
        run(_BLOCK)
        times.append((time.perf_counter(), time.process_time()))
    return _blocks(times)


def _blocks(times: list[tuple[float, float]]) -> list[_Block]:
    return [
        _Block(*(1000 * (after - before) / _BLOCK for before, after in zip(*pair, strict=True)))
        for pair in itertools.pairwise(times)
    ]


def _summary(ours: list[_Block], torch: list[_Block], loads: list[float]) -> dict:
    found = {}
    for name, blocks in (("ours", ours), ("torch", torch)):
        wall, cpu = np.array(blocks).T
        found[name] = {
            "wall": {"least": wall.min().round(3), "median": np.median(wall).round(3)},
            "cpu": {"least": cpu.min().round(3), "median": np.median(cpu).round(3)},
        }
    mine, theirs = found["ours"], found["torch"]
    return {
        "load at each round": loads,
        "ms a step": found,
        "ours / torch": {
            clock: {kind: round(mine[clock][kind] / theirs[clock][kind], 3) for kind in mine[clock]}
            for clock in ("wall", "cpu")
        },
        "minutes of 30,000 steps, ours": {
            kind: round(ms * 30 / 60, 2) for kind, ms in mine["wall"].items()
        },
    }


if __name__ == "__main__":
    main()
