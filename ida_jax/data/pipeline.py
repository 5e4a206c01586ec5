"""Training batches, from Grain: the order is a function of the seed and the step alone.

B batch, N faces, H height, W width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ida_jax.data.dataset import FaceDataset
from ida_jax.errors import UserError


class Batch(NamedTuple):
    """A training batch.

    Attributes:
      images: uint8 [B, H, W, 3], RGB.
      labels: int32 [B], classes.
    """

    images: np.ndarray
    labels: np.ndarray


class _Rows:
    """A data set's rows as Grain reads them."""

    def __init__(self, dataset: FaceDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self._dataset.images[index], "label": self._dataset.labels[index]}


def training_batches(
    dataset: FaceDataset, *, batch_size: int, seed: int, first_step: int = 0, threads: int = 4
) -> Iterator[Batch]:
    """Endless batches: every epoch shuffled anew, each image mirrored with probability ½.

    Batch number s is the same whatever `first_step` is, so that a resumed run sees what an
    undisturbed one would have seen.

    Args:
      dataset: the faces.
      batch_size: B; an epoch's remainder runs on into the next epoch.
      seed: of the order and of the mirroring.
      first_step: the number of the first batch.
      threads: that read and decode ahead.

    Raises:
      UserError: an empty data set, or a label outside 0 … C−1.
    """
    check_labels(dataset)
    import grain.python as grain

    rows = (
        grain.MapDataset.source(_Rows(dataset))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_maybe_mirror)
        .batch(batch_size)
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    iterator = iter(rows.to_iter_dataset(options))
    iterator.set_state({"next_index": first_step})
    for batch in iterator:
        yield Batch(batch["image"], batch["label"])


def check_labels(dataset: FaceDataset) -> None:
    """Refuses labels that no class weight stands for.

    Raises:
      UserError: no faces, or a label outside 0 … C−1, named by row.
    """
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


def _maybe_mirror(row: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    if rng.random() < 0.5:
        return {**row, "image": row["image"][:, ::-1]}
    return row
