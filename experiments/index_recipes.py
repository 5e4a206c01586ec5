"""The recipes of docs/vector_indexes.md on 1,000 probes and 100,000 faces, against brute force.

Command: python experiments/index_recipes.py [--stores=faiss,scann] [--dsn="host=… dbname=…"]
Prints one JSON. Each recipe is run as the page shows it; a store that is not installed is left out,
and so is PostgreSQL without --dsn. Brute force is in float64, of the float32 embeddings and log F.
The seconds are of one run, filling the store included.
"""

import argparse
import importlib.util
import json
import os
import re
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from bench_index import TOP, clustered

import ida_jax
from ida_jax.common.provenance import provenance

PAGE = Path(__file__).parents[1] / "docs" / "vector_indexes.md"
_PACKAGES = {"faiss": "faiss-cpu", "qdrant_client": "qdrant-client"}
# What the recipes call their index.
_INDEXES = ("flat", "ivf", "hnsw", "euclidean", "searcher", "client")


def brute_force(names: dict, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """The best scores of each probe and the threshold's count a probe, in float64, by blocks."""
    queries, gallery = names["queries"], names["gallery"]
    faces = np.asarray(gallery.embeddings).astype(np.float64)
    b = np.asarray(gallery.terms.values, np.float64)[:, 0]
    best, above = [], []
    for start in range(0, len(queries), 100):
        own = queries.take(slice(start, start + 100))
        a = own.terms.values.astype(np.float64)
        scores = tau * (own.faces.astype(np.float64) @ faces.T) + np.logaddexp(a, b[None])
        best.append(-np.sort(np.partition(-scores, TOP - 1, axis=1)[:, :TOP], axis=1))
        above.append(np.sum(scores >= names["threshold"], axis=1))
    return np.concatenate(best), np.concatenate(above)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default="faiss,scann,qdrant_client,duckdb,psycopg")
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--anchors", type=int, default=5000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--dsn", default="", help="of a PostgreSQL database with pgvector")
    options = parser.parse_args()
    setup, *recipes = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names = {
        "enrolled": clustered(options.faces, options.width, 2),
        "probes": clustered(options.probes, options.width, 3),
        "dsn": options.dsn,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "anchors.safetensors"
        anchors = ida_jax.AnchorSet(clustered(options.anchors, options.width, 1), tau=options.tau)
        anchors.save(path)
        exec(setup.replace('"anchors.safetensors"', repr(str(path))), names)
    names["threshold"] = float("inf")
    best, _ = brute_force(names, options.tau)
    names["threshold"] = float(np.median(best[:, 4]))
    best, above = brute_force(names, options.tau)
    out = []
    for recipe in recipes:
        store = re.match(r"(?:import|from) (\w+)", recipe).group(1)
        installed = importlib.util.find_spec(store) is not None
        if store not in options.stores.split(",") or not installed:
            continue
        if store == "psycopg" and not options.dsn:
            continue
        own, start = dict(names), time.perf_counter()
        exec(recipe, own)
        found = own["best"]
        row = {
            "store": store,
            "version": version(_PACKAGES.get(store, store)),
            "index": next((type(own[name]).__name__ for name in _INDEXES if name in own), "table"),
            "lines": len(recipe.splitlines()),
            "seconds": time.perf_counter() - start,
            "claim": found.claim,
            "probes_equal_to_brute_force": float(
                np.mean(np.all(np.abs(found.scores - best) < 1e-12 * (1 + abs(best)), axis=1))
            ),
            "largest_difference_in_score": float(np.max(np.abs(found.scores - best))),
            "recall": float(np.mean(found.scores >= best[:, -1:] - 1e-12)),
        }
        if "above" in own:
            counts = np.bincount(own["above"].probes, minlength=len(above))
            row["range_search"] = {
                "faces_above_the_threshold": int(above.sum()),
                "probes_equal_to_brute_force": float(np.mean(counts == above)),
            }
        out.append(row)
    load = os.getloadavg()[0]
    settings = {"settings": vars(options), "load_average": load, "provenance": provenance()}
    settings["settings"].pop("dsn")
    print(json.dumps({"recipes": out} | settings, indent=1))


if __name__ == "__main__":
    main()
