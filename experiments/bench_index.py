"""DAO in a vector index: its bound, its cost beside the plain cosine, and quantised vectors.

Command: python experiments/bench_index.py [--parts=flat,ivf] [--faces=1000000]
Needs faiss, whose OpenBLAS falls back to its slowest kernels on a processor that it does not know:
see which with OPENBLAS_VERBOSE=2, and name better ones by OPENBLAS_CORETYPE; the record holds it.
Prints one JSON. Faces are made up: clusters of varied width, as people crowd more or
less; log F is searched among made-up anchors of the same clusters.

bounds: the number K′ of candidates that the best 10 of 30,000 faces need by each upper bound, over
  τ, and by the cosine: the tangent of `ida_jax.rescoring.index_forms`, that at ξ = 0, and the best
  polynomials over the gallery's range of log F, of degree 2 and 3.
flat: FAISS flat with ŝ and the certificate, FAISS flat by the cosine alone and `identify`, in turn
  in one run; seconds are medians, ratios medians of each round's; from the probes' log F on.
ivf, hnsw: the same beside the cosine at growing shares of the index looked at, and by how much
  slower it finds as large a share of its own best 10 as the cosine of its; HNSW of 100,000 faces.
quantised: how far ŝ is off in fewer bits, in all and by the extra coordinates alone, at several
  lengths of these.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np

import ida_jax
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.rescoring.certificate import Certified
from ida_jax.rescoring.gallery import Gallery, identify
from ida_jax.rescoring.index_forms import tangent
from ida_jax.rescoring.index_vectors import Queries, query_vectors
from ida_jax.rescoring.rescorer import Rescorer

TOP = 10


def clustered(rows: int, width: int, seed: int, *, clusters: int = 2000) -> np.ndarray:
    """Unit embeddings in clusters, cosines of 0.14 … 0.74 within one; the same for every seed."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, width), np.float32)
    spread = np.exp(rng.uniform(np.log(0.6), np.log(2.5), clusters)).astype(np.float32)
    rng, out = np.random.default_rng(seed), np.empty((rows, width), np.float32)
    for start in range(0, rows, 100_000):
        own = rng.integers(clusters, size=min(100_000, rows - start))
        noise = rng.standard_normal((len(own), width), np.float32)
        out[start : start + len(own)] = unit_embeddings(centres[own] + spread[own, None] * noise)
    return out


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def both_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Of one call, by the wall and by all of the process' threads."""
    before = time.process_time()
    wall = seconds(run)
    return wall, time.process_time() - before


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict:
    """Median seconds of each, in turn, and the median of each round's ratio to the first.

    Beside wall time also the processor's, which other programs on the machine change less.
    """
    for run in runs.values():
        run()
    rounds = [{name: both_seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    first, out = next(iter(runs)), {}
    for place, clock in enumerate(("", "cpu_")):
        took = [{name: both[place] for name, both in each.items()} for each in rounds]
        out[f"{clock}seconds"] = {name: statistics.median(t[name] for t in took) for name in runs}
        out[f"{clock}ratio_to_{first}"] = {
            name: statistics.median(t[name] / t[first] for t in took) for name in runs
        }
    return out


class Made:
    """A gallery, its scorer and probes."""

    def __init__(self, faces: int, options: argparse.Namespace) -> None:
        anchors = clustered(options.anchors, options.width, 1)
        self.scorer = Rescorer(anchors, k=10, tau=options.tau)
        self.gallery: Gallery = self.scorer.gallery(clustered(faces, options.width, 2))
        self.probes = clustered(options.probes, options.width, 3)
        self.terms = self.scorer.terms(self.probes)
        self.vectors, self.space = self.scorer.index_vectors(self.gallery)

    def queries(self) -> Queries:
        """From the probes' log F on."""
        return query_vectors(self.probes, self.terms, self.space)

    def exact(self) -> np.ndarray:
        """Rows of the best."""
        return identify(self.probes, self.terms, self.gallery, top=TOP).rows


def _bounds(options: argparse.Namespace) -> list[dict]:
    anchors = clustered(20_000, 128, 1, clusters=300)
    faces, probes = (clustered(n, 128, s, clusters=300) for n, s in ((30_000, 2), (200, 3)))
    cosine, out = np.float64(probes) @ np.float64(faces).T, []
    for tau in (1, 4, 10, 30, 50):
        scorer = Rescorer(anchors, k=10, tau=tau)
        b, a = (np.float64(scorer.log_densities(x)) for x in (faces, probes))
        level = a[:, None]
        exact = np.logaddexp(level, b[None])
        scores = tau * cosine + exact
        best = np.argsort(-scores, axis=1)[:, :TOP]
        least = np.take_along_axis(scores, best, axis=1)[:, -1:]
        y, x = b[None] - level, b - np.mean(b)
        r0, r1, r2 = (r[:, None] for r in tangent(a, np.mean(b), np.var(b)))
        middle, half = (b.max() + b.min()) / 2, np.ptp(b) / 2
        uppers = {
            "at xi = 0": (level + b[None]) / 2 + np.log(2) + y**2 / 8,
            "tangent": r0 + r1 * x + r2 * x**2,
        }
        grid = np.cos(np.linspace(0, np.pi, 513))
        on_grid = np.logaddexp(level, middle + half * grid[None])
        chebyshev = np.polynomial.chebyshev
        for degree in (2, 3):
            fit = chebyshev.chebfit(grid, on_grid.T, degree, w=(1 - grid**2 + 1e-6) ** -0.25)
            lift = np.max(on_grid - chebyshev.chebval(grid, fit), axis=1)
            # What the function may do between two points of the grid.
            lift += half**2 * (np.pi / 512) ** 2 / 8
            fitted = chebyshev.chebval((b - middle) / half, fit)
            uppers[f"range, degree {degree}"] = fitted + lift[:, None]
        found = {}
        for name, upper in uppers.items():
            assert np.all(upper >= exact - 1e-9), name
            needed = np.sum(tau * cosine + upper >= least, axis=1)
            found[name] = {
                "mean_excess": float(np.mean(upper - exact)),
                "largest_excess": float(np.max(upper - exact)),
                "candidates_median": float(np.median(needed)),
                "candidates_95_percent": float(np.quantile(needed, 0.95)),
            }
        by_cosine = np.sum(
            cosine >= np.min(np.take_along_axis(cosine, best, axis=1), axis=1)[:, None], axis=1
        )
        found["cosine, which cannot know"] = {
            "candidates_median": float(np.median(by_cosine)),
            "candidates_95_percent": float(np.quantile(by_cosine, 0.95)),
        }
        out.append({"tau": tau, "log_f": [float(b.min()), float(b.max())], "bounds": found})
    return out


def _flat(options: argparse.Namespace) -> dict:
    made = Made(options.faces, options)
    index = faiss.IndexFlatIP(made.space.dimensions)
    index.add(made.vectors)
    made.vectors = None
    plain = faiss.IndexFlatIP(options.width)
    plain.add(np.asarray(made.gallery.embeddings))

    def certified() -> Certified:
        return ida_jax.certified_search(
            lambda q, k: index.search(q, k)[1],
            made.queries(), made.gallery, top=TOP, fetch=options.fetch,
        )  # fmt: skip

    queries = made.queries()
    first = ida_jax.certified_top_k(
        index.search(queries.vectors, options.fetch)[1], queries, made.gallery, top=TOP
    )
    rows = made.exact()
    found = certified()
    timed = interleaved(
        {
            "cosine": lambda: plain.search(made.probes, TOP),
            "certified": certified,
            "identify": made.exact,
        },
        options.repeats,
    )
    return {
        "faces": options.faces,
        "probes": options.probes,
        "first_candidates": options.fetch,
        "certified_at_first": float(np.mean(first.certified)),
        "claim": found.claim,
        "rows_as_identify": float(np.mean(found.rows == rows)),
        "rows_of_the_cosine_in_common": _recall(plain.search(made.probes, TOP)[1], rows),
        **timed,
    }


def _recall(found: np.ndarray, true: np.ndarray) -> float:
    pairs = zip(found, true, strict=True)
    return float(np.mean([np.isin(t, f, assume_unique=True).mean() for f, t in pairs]))


def _beside_cosine(
    made: Made,
    index: faiss.Index,
    plain: faiss.Index,
    efforts: list[int],
    set_effort: Callable[[faiss.Index, int], None],
    options: argparse.Namespace,
) -> list[dict]:
    true = made.exact()
    flat = faiss.IndexFlatIP(made.probes.shape[1])
    flat.add(np.asarray(made.gallery.embeddings))
    nearest = flat.search(made.probes, TOP)[1]
    del flat

    def certified() -> Certified:
        return ida_jax.certified_search(
            lambda q, k: index.search(q, k)[1],
            made.queries(), made.gallery, top=TOP, fetch=options.fetch, approximate=True,
        )  # fmt: skip

    out = []
    for effort in efforts:
        set_effort(index, effort)
        set_effort(plain, effort)
        runs = {"cosine": lambda: plain.search(made.probes, TOP), "certified": certified}
        out.append(
            {
                "effort": effort,
                "recall": {
                    "cosine": _recall(plain.search(made.probes, TOP)[1], nearest),
                    "certified": _recall(certified().rows, true),
                },
                **interleaved(runs, options.repeats),
            }
        )
    return out


def _at_the_same_recall(curves: list[dict]) -> list[dict]:
    """The certified search's time over the cosine's, where both find the same share.

    Between the efforts that were tried the logarithm of its time is interpolated by its recall.
    """
    out, kinds = [], ("seconds", "cpu_seconds")
    # Of equal shares the first effort.
    reached, first = np.unique([each["recall"]["certified"] for each in curves], return_index=True)
    best = -1.0
    for each in curves:
        recall = each["recall"]["cosine"]
        if recall <= best or not reached[0] <= recall <= reached[-1]:
            continue
        best = recall
        row = {"effort_of_the_cosine": each["effort"], "recall": recall}
        for kind in kinds:
            spent = np.log([curves[place][kind]["certified"] for place in first])
            at = np.exp(np.interp(recall, reached, spent))
            row[kind.replace("seconds", "ratio")] = float(at / each[kind]["cosine"])
        out.append(row)
    return out


def _ivf(options: argparse.Namespace) -> dict:
    made = Made(options.faces, options)
    cells = 2 ** round(np.log2(options.faces**0.5))
    indexes, building = [], []
    for vectors in (made.vectors, np.asarray(made.gallery.embeddings)):
        index = faiss.index_factory(
            vectors.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT
        )
        index.cp.max_points_per_centroid = 64

        def build(index: faiss.Index = index, vectors: np.ndarray = vectors) -> None:
            index.train(vectors)
            index.add(vectors)

        building.append(seconds(build))
        indexes.append(index)
    made.vectors = None

    def set_effort(index: faiss.Index, effort: int) -> None:
        index.nprobe = effort

    efforts = [e for e in (1, 2, 4, 8, 16, 32, 64) if e <= cells]
    curves = _beside_cosine(made, *indexes, efforts, set_effort, options)
    return {
        "faces": options.faces,
        "cells": cells,
        "nprobe": curves,
        "at_the_same_recall": _at_the_same_recall(curves),
        "build_seconds": building,
    }


def _hnsw(options: argparse.Namespace) -> dict:
    faces = min(options.faces, 100_000)
    made = Made(faces, options)
    indexes, building = [], []
    for vectors in (made.vectors, np.asarray(made.gallery.embeddings)):
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        building.append(seconds(lambda index=index, vectors=vectors: index.add(vectors)))
        indexes.append(index)

    def set_effort(index: faiss.Index, effort: int) -> None:
        index.hnsw.efSearch = effort

    curves = _beside_cosine(made, *indexes, [32, 64, 128, 256, 512], set_effort, options)
    return {
        "faces": faces,
        "efSearch": curves,
        "at_the_same_recall": _at_the_same_recall(curves),
        "build_seconds": building,
    }


def _quantised(options: argparse.Namespace) -> list[dict]:
    made = Made(min(options.faces, 100_000), options)
    queries, true, width, out = made.queries(), made.exact(), options.width, []
    kinds = {"SQfp16": "SQfp16", "SQ8": "SQ8", "SQ8 uniform": None, "PQ, 8 dimensions a byte": "PQ"}
    for name, factory in kinds.items():
        # 1 is what index_vectors makes; the bits need W divisible where PQ parts it.
        for factor in (1,) if factory == "PQ" else (1 / 3, 1, 3):
            stretch = np.ones(made.space.dimensions, np.float32)
            stretch[width:] = factor
            padded = -made.space.dimensions % 8 if factory == "PQ" else 0
            vectors = np.pad(made.vectors * stretch, ((0, 0), (0, padded)))
            asked = np.pad(queries.vectors / stretch, ((0, 0), (0, padded)))
            dimensions = vectors.shape[1]
            if factory is None:
                kind = faiss.ScalarQuantizer.QT_8bit_uniform
                index = faiss.IndexScalarQuantizer(dimensions, kind, faiss.METRIC_INNER_PRODUCT)
            else:
                key = f"PQ{dimensions // 8}" if factory == "PQ" else factory
                index = faiss.index_factory(dimensions, key, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.add(vectors)
            some = np.arange(0, len(vectors), 97)
            wrong = np.stack([index.reconstruct(int(row)) for row in some]) - vectors[some]
            extra = asked[:, width:] @ wrong[:, width:].T
            total = asked @ wrong.T
            found = index.search(asked, 4 * TOP)[1]
            lost = np.linalg.norm(index.reconstruct_n(0, len(vectors)) - vectors, axis=1).max()
            allowed = float(lost * np.max(np.linalg.norm(asked, axis=1)))
            fetched = []

            def search(
                some: np.ndarray, k: int, index: faiss.Index = index, by: np.ndarray = stretch
            ) -> np.ndarray:
                fetched.append(k)  # noqa: B023 - called before the next round
                return index.search(some / by, k)[1]

            if factory != "PQ" and factor == 1:  # PQ would fetch nearly all
                ida_jax.certified_search(search, queries, made.gallery, top=TOP, error=allowed)
            out.append(
                {
                    "vectors": name,
                    "extra_coordinates_times": factor,
                    "bytes_a_face": index.sa_code_size(),
                    "error_rms": float(np.sqrt(np.mean(total**2))),
                    "error_largest": float(np.max(np.abs(total))),
                    "error_of_extra_rms": float(np.sqrt(np.mean(extra**2))),
                    "error_of_extra_largest": float(np.max(np.abs(extra))),
                    "error_allowed_for": allowed,
                    "candidates_until_all_are_certified": fetched[-1] if fetched else None,
                    "best_10_among_first_10": _recall(found[:, :TOP], true),
                    "best_10_among_first_40": _recall(found, true),
                }
            )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="bounds,flat,ivf,hnsw,quantised")
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--anchors", type=int, default=5000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument(
        "--fetch", type=int, default=2 * TOP, help="the first K′ of flat, ivf and hnsw"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    parts = {"bounds": _bounds, "flat": _flat, "ivf": _ivf, "hnsw": _hnsw, "quantised": _quantised}
    results = {name: parts[name](options) for name in options.parts.split(",")}
    load = os.getloadavg()[0]
    chosen = {**vars(options), "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE")}
    settings = {"settings": chosen, "load_average": load, "provenance": provenance()}
    print(json.dumps(results | settings, indent=1))


if __name__ == "__main__":
    main()
