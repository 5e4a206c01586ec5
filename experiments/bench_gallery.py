"""A stored gallery of millions of faces: enrolment, 1:N, and what memory they take.

Command: python experiments/bench_gallery.py [--faces=10000000] [--width=512] [--dtype=float16]
Prints JSON: the rate of enrolment by log-DAO, the densities' search included; seconds of each block
of probes in tenths of the gallery and in all of it, whose ratio shows whether time is linear; and
the peak of the memory that a process owned (RssAnon), beside that of the mapped pages, which the
system takes back (RssFile). A sample of the probes is compared with float64 sums over the whole
gallery. The folder is --folder, which needs the gallery's size; it is removed again.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.provenance import provenance
from ida_jax.rescoring.gallery import Gallery, identify
from ida_jax.rescoring.gallery_file import GalleryFile
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms

_CHUNK = 4096
_PROBES, _CHECKED = 512, 8


class _Peak:
    """The largest of this process's memory, in MiB, while it is watched."""

    def __init__(self) -> None:
        self.mib = {"RssAnon": 0.0, "RssFile": 0.0}

    @contextlib.contextmanager
    def watched(self) -> Iterator["_Peak"]:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                for line in Path("/proc/self/status").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in self.mib:
                        self.mib[name] = max(self.mib[name], int(value.split()[0]) / 1024)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()


def _unit(count: int, width: int, seed: int) -> np.ndarray:
    faces = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return faces / np.linalg.norm(faces, axis=1, keepdims=True)


def _enrol(
    folder: Path, scorer: Rescorer, faces: int, options: argparse.Namespace
) -> tuple[GalleryFile, dict[str, float]]:
    """Appends as many made-up faces, a command's worth of 1 M at a time."""
    if (folder / "gallery.json").is_file():
        file = GalleryFile.open(folder)
    else:
        file = GalleryFile.new(
            folder,
            origin=scorer.origin(),
            rule=scorer.rule,
            constants=scorer.constants,
            width=options.width,
            dtype=options.dtype,
        )
    searching = making = 0.0
    start = time.perf_counter()
    for first in range(file.rows, faces, options.batch):
        count = min(options.batch, faces - first)

        def blocks(first: int = first, count: int = count) -> Iterator[tuple]:
            nonlocal searching, making
            for at in range(first, first + count, _CHUNK):
                before = time.perf_counter()
                some = _unit(min(_CHUNK, first + count - at), options.width, seed=10 + at)
                made = time.perf_counter()
                values = np.asarray(scorer.terms(some).values)
                making += made - before
                searching += time.perf_counter() - made
                yield some, values

        names = [f"face {row:09}" for row in range(first, first + count)]
        file = file.append(names, blocks())
    whole = time.perf_counter() - start - making
    return file, {"seconds": whole, "search_seconds": searching}


def _probe(
    folder: Path, faces: np.ndarray, terms: FaceTerms, options: argparse.Namespace
) -> dict[str, object]:
    start = time.perf_counter()
    gallery = Gallery.load(folder)
    opened = time.perf_counter() - start
    identify(faces, terms, gallery, top=options.top)  # compiles
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        found = identify(faces, terms, gallery, top=options.top)
        seconds.append(time.perf_counter() - start)
    return {"open_seconds": opened, "block_seconds": seconds, "found": found, "gallery": gallery}


def _largest_error(faces: np.ndarray, terms: FaceTerms, found, gallery: Gallery) -> float:
    """Of a few probes' best scores, by float64 sums over every stored face."""
    own = np.asarray(terms.values, np.float64)
    best = np.full((len(faces), found.scores.shape[1]), -np.inf)
    values = np.asarray(gallery.terms.values, np.float64)[:, 0]
    for first in range(0, len(gallery.embeddings), 1 << 16):
        stored = gallery.embeddings[first : first + (1 << 16)].astype(np.float64)
        score = faces.astype(np.float64) @ stored.T
        score += np.logaddexp(own, values[None, first : first + len(stored)])
        best = -np.sort(-np.concatenate([best, score], axis=1), axis=1)[:, : best.shape[1]]
    return float(np.max(np.abs(best - found.scores[: len(faces)])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--anchors", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1_000_000)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    scorer = Rescorer(
        AnchorSet.from_embeddings(_unit(options.anchors, options.width, 1)),
        expected_faces=options.faces,
    )
    probes = _unit(_PROBES, options.width, 2)
    terms = scorer.terms(probes)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    record: dict[str, object] = {"settings": {**vars(options), "folder": None}, "sizes": {}}
    enrolling, searching = _Peak(), _Peak()
    spent = {"seconds": 0.0, "search_seconds": 0.0}
    try:
        for size in (options.faces // 10, options.faces):
            with enrolling.watched():
                file, took = _enrol(folder, scorer, size, options)
            spent = {name: spent[name] + took[name] for name in spent}
            with searching.watched():
                probed = _probe(folder, probes, terms, options)
            record["sizes"][str(len(file))] = {
                "mib": sum(path.stat().st_size for path in folder.iterdir()) / 2**20,
                "segments": len(file.segments),
                "open_seconds": probed["open_seconds"],
                "block_seconds": statistics.median(probed["block_seconds"]),
                "all_block_seconds": probed["block_seconds"],
            }
        few = terms._replace(values=terms.values[:_CHECKED])
        error = _largest_error(probes[:_CHECKED], few, probed["found"], probed["gallery"])
    finally:
        shutil.rmtree(folder)
    tenth, whole = (entry["block_seconds"] for entry in record["sizes"].values())
    record |= {
        "probes_a_block": _PROBES,
        "whole_over_tenth": whole / tenth,
        "enrolment": {**spent, "faces_a_second": options.faces / spent["seconds"]},
        "peak_mib": {"enrolment": enrolling.mib, "identification": searching.mib},
        "largest_error": error,
        "provenance": provenance(),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
