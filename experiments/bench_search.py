"""The search for support sets: beside FAISS flat, at growing sizes, from disk, and approximate.

Command: python experiments/bench_search.py [--parts=flat,scaling,disk,partitioned] [--faces=23124]
Prints one JSON. FAISS is measured where it is installed, scann likewise.

flat: the exact searches and FAISS's flat index, in turn in one run, indexing included, k = 10 and
  300; seconds are medians, `ratio_to_faiss` the median of each round's ratio.
scaling: seconds per 10⁹ faces × anchors, over three decades.
disk: a memory-mapped set and the largest growth of anonymous memory (RssAnon) in its search.
partitioned: ScaNN's tree against the exact search, 256-d: where it wins, and its error in log F.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ida_jax.anchors import search
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import SupportSearch, approximation_error, has_scann, support_sets
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings


def _clustered(rows: int, width: int, seed: int) -> np.ndarray:
    """Embeddings in 500 clusters, as faces lie; the centres do not depend on the seed."""
    centres = np.random.default_rng(0).normal(size=(500, width)).astype(np.float32)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(size=(rows, width), dtype=np.float32)
    return unit_embeddings(centres[rng.integers(500, size=rows)] + noise)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _flat(options: argparse.Namespace) -> dict:
    faces = _clustered(options.faces, options.width, seed=1)
    anchors = AnchorSet(_clustered(options.anchors, options.width, seed=2))

    def faiss_flat(queries: np.ndarray, k: int) -> np.ndarray:
        import faiss

        index = faiss.IndexFlatIP(options.width)
        index.add(anchors.embeddings)
        return index.search(queries, k)[0]

    out = {}
    for k, queries in ((10, faces), (300, faces[: len(faces) // 4])):
        searches = {
            name: lambda name=name, q=queries, k=k: (
                support_sets(q, anchors, k=k, searcher=name).similarities
            )
            for name in ("exact", "scann")
            if name == "exact" or has_scann()
        }
        try:
            import faiss  # noqa: F401
        except ImportError:
            pass
        else:
            searches["faiss_flat"] = lambda q=queries, k=k: faiss_flat(q, k)
        found = {name: run() for name, run in searches.items()}  # touches the memory once
        seconds = {name: [] for name in searches}
        for _ in range(options.repeats):
            for name, run in searches.items():
                seconds[name].append(_seconds(run))
        sample = np.random.default_rng(3).choice(len(queries), min(500, len(queries)), False)
        true = queries[sample].astype(np.float64) @ anchors.embeddings.astype(np.float64).T
        true = -np.sort(np.partition(-true, k - 1, axis=1)[:, :k], axis=1)
        out[f"k={k}"] = {
            "faces": len(queries),
            "seconds": {name: statistics.median(s) for name, s in seconds.items()},
            "ratio_to_faiss": {
                name: statistics.median(np.divide(s, seconds["faiss_flat"]).tolist())
                for name, s in seconds.items()
                if "faiss_flat" in seconds
            },
            "largest_error_against_float64": {
                name: float(np.max(np.abs(s[sample] - true))) for name, s in found.items()
            },
        }
    one = SupportSearch(anchors, k=10)
    one(faces[:1])
    out["one_face_milliseconds"] = 1e3 * statistics.median(
        _seconds(lambda: one(faces[:1])) for _ in range(20)
    )
    return out


def _scaling(options: argparse.Namespace) -> list[dict]:
    faces = _clustered(10_000, options.width, seed=1)
    anchors = AnchorSet(_clustered(100_000, options.width, seed=2))
    out = []
    for n, a in ((100, 10_000), (1000, 10_000), (1000, 100_000), (10_000, 100_000)):
        run = SupportSearch(AnchorSet(anchors.embeddings[:a]), k=10, searcher="exact")
        run(faces[:n])
        seconds = statistics.median(
            _seconds(lambda run=run, n=n: run(faces[:n])) for _ in range(options.repeats)
        )
        per_billion = 1e9 * seconds / (n * a)
        out.append({"faces": n, "anchors": a, "seconds": seconds, "per_billion": per_billion})
    return out


def _rss_anon() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon: the part 'disk' needs Linux")


def _largest_growth(run: Callable[[], object]) -> int:
    before, largest, done = _rss_anon(), 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.005):
            largest = max(largest, _rss_anon() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return largest


def _disk(options: argparse.Namespace) -> dict:
    faces = _clustered(512, options.width, seed=1)
    out = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        path = os.path.join(folder, "anchors.npy")
        shape = (options.disk_anchors, options.width)
        stored = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        for start in range(0, len(stored), 100_000):
            block = stored[start : start + 100_000]
            block[:] = _clustered(len(block), options.width, seed=start)
        stored.flush()
        del stored, block
        anchors = AnchorSet(np.load(path, mmap_mode="r"))
        out["bytes"] = anchors.embeddings.nbytes
        for name in ["exact", "scann"] if has_scann() else ["exact"]:
            # The libraries' own buffers, made once whatever is searched, are not the search's.
            support_sets(faces, AnchorSet(anchors.embeddings[:1000]), k=10, searcher=name)
            start = time.perf_counter()
            growth = _largest_growth(lambda name=name: support_sets(faces, anchors, k=10,
                                                                    searcher=name))  # fmt: skip
            out[name] = {
                "seconds": time.perf_counter() - start,
                "largest_growth_of_anonymous_memory_mib": growth / 2**20,
            }
    return out


def _partitioned(options: argparse.Namespace) -> list[dict]:
    faces, out = _clustered(4096, 256, seed=1), []
    for size in options.partitioned_anchors:
        embeddings = _clustered(size, 256, seed=2)
        exact = search._exact(embeddings, None, k=10)
        true = exact(faces, None)
        per_face = _seconds(lambda exact=exact: exact(faces, None)) / len(faces)
        start = time.perf_counter()
        index = search._scann_partitioned(embeddings, None, k=10)
        build = time.perf_counter() - start
        row = {"anchors": size, "exact_seconds": per_face * len(faces), "build_seconds": build,
               "build_in_exact_faces": build / per_face, "leaves": {}}  # fmt: skip
        for share in search._LEAVES:
            found = index(faces, None, share=share)
            run = _seconds(lambda i=index, s=share: i(faces, None, share=s)) / len(faces)
            row["leaves"][f"{share:.0%}"] = {
                "seconds": {n: build + run * n for n in (4096, 100_000)},
                "ratio_to_exact": {n: (build / n + run) / per_face for n in (4096, 100_000)},
                "face_in_exact_faces": run / per_face,
                **approximation_error(found, true)._asdict(),
            }
        out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="flat,scaling,disk,partitioned")
    parser.add_argument("--faces", type=int, default=23_124)
    parser.add_argument("--anchors", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--disk-anchors", type=int, default=1_100_000)
    parser.add_argument("--scratch", default=None, help="a folder on a disk, for --parts=disk")
    parser.add_argument(
        "--partitioned-anchors", default=[50_000, 200_000, 1_000_000],
        type=lambda text: [int(part) for part in text.split(",")],
    )  # fmt: skip
    options = parser.parse_args()
    parts = {"flat": _flat, "scaling": _scaling, "disk": _disk, "partitioned": _partitioned}
    results = {name: parts[name](options) for name in options.parts.split(",")}
    load = os.getloadavg()[0]
    settings = {"settings": vars(options), "load_average": load, "provenance": provenance()}
    print(json.dumps(results | settings, indent=1))


if __name__ == "__main__":
    main()
