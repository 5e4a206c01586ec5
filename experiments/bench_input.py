"""The input pipeline alone: images/s beside OpenCV's bare decode of the same JPEG bytes.

Command: python experiments/bench_input.py [--batch=512] [--batches=16] [--workers=1,2]
Prints one JSON. Without --data_dir and --dataset it renders faces and writes them as a TFDS set of
JPEGs into a temporary folder.

bare: cv2.imdecode over the encoded images in memory, one thread, nothing else.
loader: `training_batches`, a row for each augmentation and kind of parallelism: reading threads in
  this process, or worker processes of one thread each. `ratio_to_bare` compares images/s with those
  of the bare decode just before and after; `ratio_per_core` images per second of CPU time, of all
  processes, so that cores in use are counted and other programs on the machine weigh less.
costs: microseconds of each step of one image, in one thread.
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.processes import cores
from ida_jax.common.provenance import provenance
from ida_jax.data.augment import CHANGES, stream
from ida_jax.data.dataset import EncodedFaces, FaceDataset
from ida_jax.data.pipeline import training_batches
from ida_jax.data.rendered import rendered_faces
from ida_jax.data.sources.tfds_writer import write_faces
from ida_jax.data.tfds_faces import load_tfds

AUGMENTS = ("none", "flip", "insightface", "low_quality")


class Rate(NamedTuple):
    """Images a second of the clock, and a second of CPU time, worker processes' included."""

    wall: float
    cpu: float


def _cpu_seconds() -> float:
    seconds = time.process_time()
    for process in multiprocessing.active_children():
        # After the name in brackets: the 12th and 13th are user and system time.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _rate(run: Callable[[], object], images: int) -> Rate:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    run()
    return Rate(images / (time.perf_counter() - wall), images / (_cpu_seconds() - cpu))


def _write_rendered(folder: str, *, images: int, size: int, quality: int) -> None:
    import cv2

    per_identity = 8
    data = rendered_faces(
        identities=-(-images // per_identity), images_per_identity=per_identity, image_size=size
    )
    settings = (cv2.IMWRITE_JPEG_QUALITY, quality)
    images = [cv2.imencode(".jpg", image[:, :, ::-1], settings)[1].tobytes()
              for image in data.images]  # fmt: skip
    faces = EncodedFaces(images, data.labels, data.identities, "image {}".format)
    write_faces("rendered", faces, data_dir=folder)


def _costs(data: FaceDataset, encoded: list[np.ndarray]) -> dict[str, float]:
    import cv2

    rows = np.random.default_rng(0).permutation(len(encoded)).tolist()
    images = [data.images[row] for row in rows[:256]]
    out = np.empty_like(images[0])

    def each(run: Callable[[int], object], count: int) -> float:
        return 1e6 / max(_rate(lambda: [run(i) for i in range(count)], count).cpu for _ in range(3))

    costs = {
        "read": each(
            lambda i: data.images.features(rows[i])["image"].bytes_list.value[0], len(rows)
        ),
        "decode": each(lambda i: cv2.imdecode(encoded[i], cv2.IMREAD_COLOR_RGB) is None, len(rows)),
        "copy": each(lambda i: np.copyto(out, images[i]), len(images)),
        "random_stream": each(lambda i: stream(seed=0, number=i) is None, len(rows)),
    }
    for name, change in CHANGES.items():
        rng = stream(seed=0, number=0)
        costs[name] = each(lambda i, c=change, r=rng: c(images[i], r) is None, len(images))
    return costs


def _loader(data: FaceDataset, options: argparse.Namespace, **how: object) -> Rate:
    batches = training_batches(data, batch_size=options.batch, seed=0, **how)

    def drop(count: int) -> None:
        # Kept batches would take fresh memory each, which a trainer's do not.
        collections.deque(itertools.islice(batches, count), maxlen=0)

    # What was prepared ahead of the clock must not count: as many batches as can be are waited for.
    drop(2 * how["threads"] * max(1, how["workers"]) + how["workers"])
    rate = _rate(lambda: drop(options.batches), options.batch * options.batches)
    batches.close()
    time.sleep(0.3)  # the batches under way come to their end
    return rate


def measure(data: FaceDataset, options: argparse.Namespace) -> dict:
    """The whole record of a TFDS data set."""
    import cv2

    rows = range(min(len(data.labels), options.images))
    encoded = [np.frombuffer(data.images.features(row)["image"].bytes_list.value[0], np.uint8)
               for row in rows]  # fmt: skip

    def bare() -> Rate:
        return _rate(lambda: [cv2.imdecode(e, cv2.IMREAD_COLOR_RGB) is None for e in encoded],
                     len(encoded))  # fmt: skip

    bare()
    kinds = [{"threads": 1, "workers": 0}, {"threads": cores(), "workers": 0}]
    kinds += [{"threads": 1, "workers": count} for count in options.workers]
    loaders, bares = [], []
    for augment in options.augments:
        for how in kinds:
            rounds = []
            for _ in range(options.repeats):
                before = bare()
                rate = _loader(data, options, augment=augment, **how)
                after = bare()
                bares += [before, after]
                base = Rate(*np.mean([before, after], axis=0).tolist())
                rounds.append((rate.wall, rate.wall / base.wall, rate.cpu / base.cpu))
            names = ("images_per_second", "ratio_to_bare", "ratio_per_core")
            medians = np.median(rounds, axis=0).tolist()
            loaders.append({"augment": augment, **how, **dict(zip(names, medians, strict=True))})
    return {
        "images": len(data.labels),
        "image_shape": data.images[0].shape,
        "mean_jpeg_bytes": statistics.mean(len(e) for e in encoded),
        "bare": Rate(*np.median(bares, axis=0).tolist())._asdict(),
        "loader": loaders,
        "costs_microseconds": _costs(data, encoded),
    }


def main() -> None:
    """Parses flags, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=None, help="with --dataset: a TFDS set to read")
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--images", type=int, default=2048, help="rendered, or decoded bare")
    parser.add_argument("--size", type=int, default=112, help="of rendered images")
    parser.add_argument("--quality", type=int, default=95, help="of rendered images' JPEGs")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--batches", type=int, default=16, help="in a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--workers", default=[1, 2], type=lambda text: [int(part) for part in text.split(",")]
    )
    parser.add_argument("--augments", default=AUGMENTS, type=lambda text: text.split(","))
    options = parser.parse_args()
    if (options.data_dir is None) != (options.dataset is None):
        parser.error("--data_dir and --dataset belong together")
    with tempfile.TemporaryDirectory() as folder:
        name, data_dir = options.dataset, options.data_dir
        if name is None:
            name, data_dir = "rendered", folder
            _write_rendered(folder, images=options.images, size=options.size,
                            quality=options.quality)  # fmt: skip
        record = measure(load_tfds(name, data_dir=data_dir), options)
    load = os.getloadavg()[0]
    settings = {"settings": vars(options), "load_average": load, "provenance": provenance()}
    print(json.dumps(record | settings, indent=1))


if __name__ == "__main__":
    main()
