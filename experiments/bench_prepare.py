"""RecordIO to ArrayRecord: images/s of `prepare recordio`, beside TFDS's own way and a plain copy.

Command: python experiments/bench_prepare.py [--images=20000] [--cores=1]
Prints one JSON. Made-up 112×112 crops of about 6 KB as InsightFace's train.rec, in a temporary
folder.

prepare: `read_recordio` and `write_faces`, every image checked.
tfds: TFDS's GeneratorBasedBuilder on the same source: no checks, records shuffled.
copy: the bytes of train.rec to another file.
`per_core` is images per second of CPU time, so that other programs on the machine weigh less.
"""

import argparse
import contextlib
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ida_jax.common.provenance import provenance

_DIFFERENT = 256  # images; drawing 20,000 would take longer than what is measured
_PER_IDENTITY = 40


def write_source(folder: Path, *, images: int) -> float:
    """Writes train.rec, train.idx and property; returns the mean size of an image in bytes."""
    import cv2

    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(_DIFFERENT):
        coarse = rng.integers(0, 256, (14, 14, 3), np.uint8)
        image = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC).astype(int)
        image = np.clip(image + rng.normal(0, 7, image.shape), 0, 255).astype(np.uint8)
        drawn.append(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes())
    identities = -(-images // _PER_IDENTITY)
    first = images + 1
    position = 0
    with (folder / "train.rec").open("wb") as records, (folder / "train.idx").open("w") as index:

        def add(key: int, flag: int, label: float, content: bytes) -> None:
            nonlocal position
            payload = struct.pack("<IfQQ", flag, label, key, 0) + content
            framed = (
                struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)
            )
            records.write(framed)
            index.write(f"{key}\t{position}\n")
            position += len(framed)

        add(0, 2, 0, struct.pack("<2f", first, first + identities))
        for row in range(images):
            add(row + 1, 0, row // _PER_IDENTITY, drawn[row % _DIFFERENT])
        for identity in range(identities):
            start = 1 + identity * _PER_IDENTITY
            stop = min(start + _PER_IDENTITY, first)
            add(first + identity, 2, 0, struct.pack("<2f", start, stop))
    (folder / "property").write_text(f"{identities},112,112\n")
    return float(np.mean([len(drawn[row % _DIFFERENT]) for row in range(images)]))


def measure(folder: Path, *, images: int) -> dict[str, dict[str, float]]:
    """The three ways, each once; the source's file is in the page cache."""
    import tensorflow_datasets as tfds

    from ida_jax.data.builders import Ms1m
    from ida_jax.data.sources.recordio import read_recordio
    from ida_jax.data.sources.tfds_writer import write_faces

    def theirs() -> None:
        builder = Ms1m(data_dir=folder / "theirs", file_format="array_record")
        manual = tfds.download.DownloadConfig(manual_dir=folder)
        tfds.core.GeneratorBasedBuilder.download_and_prepare(builder, download_config=manual)

    def rate(run: Callable[[], object]) -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"images_per_second": images / wall, "per_core": images / cpu}

    with contextlib.redirect_stdout(sys.stderr):  # where TFDS reports what it does
        return {
            "copy": rate(lambda: shutil.copyfile(folder / "train.rec", folder / "copy")),
            "prepare": rate(
                lambda: write_faces("ms1m", read_recordio(folder), data_dir=folder / "ours")
            ),
            "tfds": rate(theirs),
        }


def main() -> None:
    """Parses flags, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--cores", type=int, default=1, help="that this process may use")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_source(folder, images=options.images)
        rates = measure(folder, images=options.images)
    record = {
        "mean_jpeg_bytes": size,
        "rates": rates,
        "settings": vars(options),
        "load_average": os.getloadavg()[0],
        "provenance": provenance(),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
