"""Training batches, from Grain: each is a function of the seed and its number alone.

Grain's source is whole batches, in the order of one permutation an epoch, and an image's changes
are drawn by (seed, its number in the training). So a checkpoint needs no loader state, and hosts,
worker processes and batch sizes all agree. Row by row, Grain's own shuffle, repeat and map would
cost a fifth of a decode.

B global batch, P hosts, N faces, H height, W width. Image number i of a training is row i mod B of
batch ⌊i / B⌋; epoch e is the numbers e·N … (e+1)·N − 1.
"""

import atexit
import functools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import parent_process
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.processes import cores
from ida_jax.data.augment import FLIP, augmentation, augmented, drawn, stream
from ida_jax.data.dataset import FaceDataset


class Batch(NamedTuple):
    """A training batch, or this host's part of it.

    Attributes:
      images: uint8 [B/P, H, W, 3], RGB.
      labels: int32 [B/P], classes.
    """

    images: np.ndarray
    labels: np.ndarray


def training_batches(
    dataset: FaceDataset,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    shard: int = 0,
    shards: int = 1,
    augment: str | Mapping[str, float] = FLIP,
    threads: int | None = None,
    workers: int = 0,
    rows: Callable[[int, int], np.ndarray] | None = None,
) -> Iterator[Batch]:
    """Endless batches: every epoch shuffled anew, every image changed anew.

    Batch number s is the same whatever `first_step`, `threads` and `workers` are, so that a resumed
    run sees what an undisturbed one would have seen; and the P hosts' parts, one after the other,
    are the batch of a single host.

    Args:
      dataset: the faces. With workers it is pickled: its images should lie in files.
      batch_size: B, over all hosts; an epoch's remainder runs on into the next epoch.
      seed: of the order and of the augmentation, 0 or more.
      shard: this host's number p, which gets rows p·B/P … (p+1)·B/P − 1.
      shards: P.
      augment: what `ida_jax.data.augment.augmentation` takes.
      threads: that read and decode ahead, a batch each, in this process or in each worker; by
        default as many as there are cores, 2 to 6, and one in a worker.
      workers: processes that do so instead of this one; 0 for none. Python's lock lets one process
        use some six cores.
      rows: (first, count) → the rows that are images number `first` … `first` + `count` − 1, in
        place of epochs (`ida_jax.data.balanced`).

    Raises:
      UserError: an empty data set, a label outside 0 … C−1, sizes that do not fit; while iterating,
        an image that cannot be decoded or has another size (its row is named), or a worker's death.
    """
    check_labels(dataset)
    if threads is None:
        threads = 1 if workers else min(max(2, cores()), 6)
    _check_sizes(batch_size, seed, shard, shards, threads, workers)
    rows = rows or functools.partial(_rows, len(dataset.labels), seed)
    batches = _Batches(dataset, batch_size, seed, shard, shards, augmentation(augment), rows)
    iterator = _iterate(batches, first_step, threads, workers)
    # Workers end badly once the interpreter is half gone; a loop that failed may not close them.
    atexit.register(_close, weakref.ref(iterator))
    return iterator


def _close(iterator: weakref.ref) -> None:
    if (alive := iterator()) is not None:
        alive.close()


def check_labels(dataset: FaceDataset) -> None:
    """Refuses labels that no class weight stands for."""
    labels, classes = dataset.labels, dataset.num_identities
    if not len(labels):
        raise UserError("the training set holds no faces")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        row = outside[0]
        raise UserError(
            f"label {labels[row]} of row {row} is outside the {classes} classes "
            f"(0 … {classes - 1}): number the identities from 0"
        )


def _check_sizes(
    batch_size: int, seed: int, shard: int, shards: int, threads: int, workers: int
) -> None:
    if batch_size < 1 or shards < 1 or batch_size % shards:
        raise UserError(
            f"a batch of {batch_size} cannot be shared out over {shards} hosts: give a multiple"
        )
    if not 0 <= shard < shards:
        raise UserError(f"shard {shard} is not one of the {shards} (0 … {shards - 1})")
    if seed < 0 or threads < 1 or workers < 0:
        raise UserError(
            f"seed {seed}, threads {threads}, workers {workers}: give a seed of at least 0, at "
            "least 1 thread, and 0 workers for none"
        )


class _Batches:
    """Batches by number, as Grain reads a source: any of them, by any thread or process."""

    def __init__(
        self, dataset: FaceDataset, batch_size: int, seed: int, shard: int, shards: int,
        augment: dict[str, float], rows: Callable[[int, int], np.ndarray],
    ) -> None:  # fmt: skip
        self.images, self.labels = dataset.images, dataset.labels
        self.batch_size, self.seed, self.augment, self.rows = batch_size, seed, augment, rows
        self.first, self.count = shard * batch_size // shards, batch_size // shards

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size + self.first
        rows = self.rows(first, self.count)
        changes = drawn(self.augment, seed=self.seed, first=first, count=self.count)
        names, called = list(self.augment), [[] for _ in range(self.count)]
        for i, change in np.argwhere(changes).tolist():
            called[i].append(names[change])
        images = None
        for i, row in enumerate(rows.tolist()):
            image = self.images[row]
            if called[i]:
                rng = None if called[i] == ["flip"] else stream(seed=self.seed, number=first + i)
                image = augmented(image, called[i], rng)
            if images is None:
                shape, images = image.shape, np.empty((self.count, *image.shape), np.uint8)
            if image.shape != shape:
                raise UserError(
                    f"the image of row {row} is {image.shape} and that of row {rows[0]} {shape}: "
                    "crop all to one size"
                )
            images[i] = image
        return Batch(images, self.labels[rows])


def _rows(faces: int, seed: int, first: int, count: int) -> np.ndarray:
    """By epochs: the rows that are images number `first` … `first` + `count` − 1."""
    epochs, places = np.divmod(np.arange(first, first + count), faces)
    rows = np.empty(count, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        inside = epochs == epoch
        rows[inside] = _epoch_order(faces, seed, epoch)[places[inside]]
    return rows


# Threads of one run are at most two epochs apart; a permutation of 42 M faces takes 170 MB.
@functools.lru_cache(maxsize=2)
def _epoch_order(faces: int, seed: int, epoch: int) -> np.ndarray:
    dtype = np.int32 if faces < 2**31 else np.int64
    return np.random.default_rng([seed, epoch]).permutation(np.arange(faces, dtype=dtype))


def _iterate(batches: _Batches, first_step: int, threads: int, workers: int) -> Iterator[Batch]:
    import grain.python as grain
    from absl import flags

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    numbered = grain.MapDataset.source(batches)[first_step:].to_iter_dataset(options)
    if workers:
        # Grain reads its settings from absl's flags, which a command of ours need not have parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        numbered = numbered.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker
        )
    iterator, step = iter(numbered), first_step
    try:
        while True:
            try:
                batch = next(iterator)
            except RuntimeError as error:
                if not workers:
                    raise
                raise UserError(
                    f"a loader process ended while it made batch {step}: where memory or /dev/shm "
                    "ran out take fewer workers or threads, and in a script of your own start "
                    f'under if __name__ == "__main__" ({error})'
                ) from error
            yield batch
            step += 1
    finally:
        iterator.close()


def _begin_worker(number: int, count: int) -> None:
    """Leaves signals to the trainer, the cores to the other workers, and ends with the trainer."""
    import cv2

    cv2.setNumThreads(1)
    # A preempted job's SIGTERM goes to all its processes; the trainer saves, then closes these.
    for to_all in (signal.SIGINT, signal.SIGTERM):
        signal.signal(to_all, signal.SIG_IGN)

    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
