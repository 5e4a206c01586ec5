"""The rescore command on a list of IJB-C's size, files in and file out, beside FAISS and NumPy.

Command: python experiments/bench_rescore.py [--faces=23124] [--anchors=50000] [--pairs=15658489]
Prints JSON: wall seconds and peak memory of the whole command and of the baseline (FAISS's flat
inner product for the 10 nearest anchors, then NumPy in chunks of 100,000 pairs) in one run, each in
a process of its own, the median of `--repeats`; their ratios; the largest difference of log-DAO
from float64; the same with 10 times the pairs; the pair stage over three decades.
Needs faiss-cpu.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def _data(options: argparse.Namespace) -> None:
    np.save(options.folder / "faces.npy", _clustered(options.faces, options.width, seed=1))
    np.save(options.folder / "anchors.npy", _clustered(options.anchors, options.width, seed=2))
    _pairs(options, "pairs.npy", options.pairs)


def _ten(options: argparse.Namespace) -> None:
    _pairs(options, "ten.npy", 10 * options.pairs)


def _pairs(options: argparse.Namespace, file: str, count: int) -> None:
    rng = np.random.default_rng(3)
    np.save(options.folder / file, rng.integers(options.faces, size=(count, 2), dtype=np.int32))
    os.sync()  # what is written back later would slow what is timed


def _baseline(options: argparse.Namespace) -> None:
    """FAISS flat, then NumPy; prints its stages' seconds."""
    import faiss

    folder = options.folder

    start = time.perf_counter()
    faces, anchors = (_unit(np.load(folder / f"{n}.npy")) for n in ("faces", "anchors"))
    pairs = np.load(folder / "pairs.npy")
    read = time.perf_counter()
    index = faiss.IndexFlatIP(faces.shape[1])
    index.add(anchors)
    similarities, _ = index.search(faces, 10)
    log_f = -np.log(np.sum(np.exp(similarities), axis=1))
    searched = time.perf_counter()
    scores = np.empty(len(pairs), np.float32)
    for chunk in range(0, len(pairs), 100_000):
        first, second = pairs[chunk : chunk + 100_000].T
        cosine = np.einsum("pd,pd->p", faces[first], faces[second])
        scores[chunk : chunk + 100_000] = cosine + np.logaddexp(log_f[first], log_f[second])
    paired = time.perf_counter()
    np.save(folder / "baseline.npy", scores)
    print(json.dumps({"read": read - start, "search": searched - read, "pairs": paired - searched}))


def _stages(options: argparse.Namespace) -> None:
    """The search and the pair stage of ida_jax alone, warm; prints seconds and compilations."""
    import jax

    from ida_jax.rescoring.pairs import CHUNK, score_chunk
    from ida_jax.rescoring.rescorer import Rescorer

    folder, compiled = options.folder, []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    faces, anchors = (_unit(np.load(folder / f"{n}.npy")) for n in ("faces", "anchors"))
    pairs = np.load(folder / "pairs.npy")
    scorer = Rescorer(anchors, searcher=options.searcher)
    scorer.terms(faces[:512])
    start = time.perf_counter()
    terms = scorer.terms(faces)
    search = time.perf_counter() - start
    on_device = jax.device_put(faces)
    result = {"search": search, "pairs": {}}
    count = len(pairs)
    while count >= 1000:
        score_chunk(on_device, pairs[: min(count, CHUNK)], terms)
        before, start = len(compiled), time.perf_counter()
        for chunk in range(0, count, CHUNK):
            score_chunk(on_device, pairs[chunk : min(chunk + CHUNK, count)], terms)
        seconds = time.perf_counter() - start
        result["pairs"][count] = {"seconds": seconds, "compilations": len(compiled) - before}
        count //= 10
    print(json.dumps(result))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _clustered(rows: int, width: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(500, width)).astype(np.float32)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(rows, width)).astype(np.float32)
    return centres[rng.integers(500, size=rows)] + noise


def _run(*arguments: str) -> dict:
    """Runs python with the arguments: wall seconds, peak memory in MiB, and what it printed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, *arguments], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"{arguments} ended with status {status}")
        out.seek(0)
        return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024, "printed": out.read()}


def _rescore(folder: Path, pairs_file: str) -> dict:
    # Anchors as an array: their normalisation is part of the command's time, as of the baseline's.
    files = {"embeddings": "faces.npy", "anchors": "anchors.npy", "pairs": pairs_file,
             "output": "scores.npy"}  # fmt: skip
    return _run("-m", "ida_jax.rescore", *(f"--{k}={folder / v}" for k, v in files.items()))


def _error(options: argparse.Namespace) -> None:
    """Prints the largest |Δ log-DAO| of a million pairs against float64."""
    folder = options.folder
    faces, anchors = (
        _unit(np.load(folder / f"{n}.npy").astype(np.float64)) for n in ("faces", "anchors")
    )
    pairs, scores = np.load(folder / "pairs.npy"), np.load(folder / "scores.npy")
    log_f = np.empty(len(faces))
    for start in range(0, len(faces), 1024):
        similarities = faces[start : start + 1024] @ anchors.T
        nearest = np.partition(similarities, -10, axis=1)[:, -10:]
        log_f[start : start + 1024] = -np.log(np.sum(np.exp(nearest), axis=1))
    sample = np.random.default_rng(0).choice(len(pairs), min(len(pairs), 1_000_000), replace=False)
    worst = 0.0
    for rows in np.array_split(sample, 20):
        first, second = pairs[rows].T
        exact = np.einsum("pd,pd->p", faces[first], faces[second])
        exact += np.logaddexp(log_f[first], log_f[second])
        worst = max(worst, float(np.max(np.abs(scores[rows] - exact))))
    print(worst)


_STAGES = {"data": _data, "ten": _ten, "baseline": _baseline, "stages": _stages, "error": _error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=23_124)
    parser.add_argument("--anchors", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=15_658_489)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--searcher", default="auto", help="of the stages alone")
    parser.add_argument("--stage", choices=list(_STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        _STAGES[options.stage](options)
        return

    from ida_jax.common.provenance import provenance

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [f"--{n}={getattr(options, n)}" for n in ("faces", "anchors", "width", "pairs")]
        # A process's peak memory begins with its parent's: whatever is large has its own process.
        stage = (__file__, f"--folder={folder}", *sizes, "--stage")
        _run(*stage, "data")
        baseline, command = [], []
        for _ in range(options.repeats):  # in turn, so that a busy machine slows both
            baseline.append(_run(*stage, "baseline"))
            command.append(_rescore(folder, "pairs.npy"))
        error = float(_run(*stage, "error")["printed"])
        stages = json.loads(_run(*stage, "stages")["printed"])
        _run(*stage, "ten")
        ten = _rescore(folder, "ten.npy")

    def median(runs: list[dict], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    of_baseline = [json.loads(run["printed"]) for run in baseline]
    result = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("stage", "folder")},
        "seconds": {"command": median(command, "seconds"), "baseline": median(baseline, "seconds")},
        "all_seconds": {
            "command": [run["seconds"] for run in command],
            "baseline": [run["seconds"] for run in baseline],
        },
        "peak_mib": {
            "command": median(command, "peak_mib"),
            "baseline": median(baseline, "peak_mib"),
            "command_ten_times_the_pairs": ten["peak_mib"],
        },
        "command_ten_times_the_pairs_seconds": ten["seconds"],
        "baseline_stages": {key: median(of_baseline, key) for key in of_baseline[0]},
        "stages": stages,
        "largest_error_of_log_dao": error,
        "provenance": provenance(),
    }
    pair_seconds = stages["pairs"][str(options.pairs)]["seconds"]
    result["ratios"] = {
        "command_to_baseline": result["seconds"]["command"] / result["seconds"]["baseline"],
        "search_to_faiss": stages["search"] / result["baseline_stages"]["search"],
        "numpy_to_pair_stage": result["baseline_stages"]["pairs"] / pair_seconds,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
