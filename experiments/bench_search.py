"""The search for support sets: exact on the device, ScaNN's brute force, FAISS flat.

Command: python experiments/bench_search.py [--faces=4096] [--anchors=50000] [--width=256]
Prints JSON: seconds (the median of `--repeats`), and each one's ratio to ScaNN in the same run.
FAISS is measured where it is installed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.provenance import provenance
from ida_jax.validation import unit_embeddings


def _clustered(rows: int, width: int, seed: int) -> np.ndarray:
    """Embeddings in 500 clusters, as faces lie; the centres do not depend on the seed."""
    centres = np.random.default_rng(0).normal(size=(500, width)).astype(np.float32)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(rows, width)).astype(np.float32)
    return unit_embeddings(centres[rng.integers(500, size=rows)] + noise)


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()  # compiles, and touches the memory once
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=4096)
    parser.add_argument("--anchors", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    faces = _clustered(options.faces, options.width, seed=1)
    anchors = AnchorSet.from_embeddings(_clustered(options.anchors, options.width, seed=2))
    searches = {
        name: lambda name=name: support_sets(faces, anchors, k=options.k, searcher=name)
        for name in ("exact", "scann")
    }
    try:
        import faiss
    except ImportError:
        pass
    else:
        index = faiss.IndexFlatIP(options.width)
        index.add(anchors.embeddings)
        searches["faiss_flat"] = lambda: index.search(faces, options.k)
    seconds = {name: _median_seconds(run, options.repeats) for name, run in searches.items()}
    found = {name: searches[name]().similarities for name in ("exact", "scann")}
    print(
        json.dumps(
            {
                "settings": vars(options),
                "seconds": seconds,
                "ratio_to_scann": {name: s / seconds["scann"] for name, s in seconds.items()},
                "largest_difference_of_similarity": float(
                    np.max(np.abs(found["exact"] - found["scann"]))
                ),
                "provenance": provenance(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
