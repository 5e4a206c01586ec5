"""Data parallelism: the batch is split over all devices, everything else is on each of them.

B batch.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class PaddedBatch(NamedTuple):
    """A batch filled up to a multiple of the device count.

    Attributes:
      arrays: as given, with B' ≥ B rows; the rows added repeat the first one.
      mask: bool [B'], true on the B real rows; None where nothing was added.
    """

    arrays: tuple[np.ndarray, ...]
    mask: np.ndarray | None


def data_mesh() -> Mesh:
    """All devices along one axis named "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def pad_batch(*arrays: np.ndarray, to_multiple_of: int) -> PaddedBatch:
    """Fills a batch up to a multiple of the device count; the mask tells what is real."""
    rows = arrays[0].shape[0]
    missing = -rows % to_multiple_of
    if not missing:
        return PaddedBatch(arrays, None)
    padded = tuple(np.concatenate([a, np.repeat(a[:1], missing, axis=0)]) for a in arrays)
    return PaddedBatch(padded, np.arange(rows + missing) < rows)
