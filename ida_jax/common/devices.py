"""Devices as a mesh, and batches and blocks filled up to sizes that compile once.

Images are split over all devices, the head's classes over an axis of their own.

B batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ida_jax.common.errors import UserError


class PaddedBatch(NamedTuple):
    """A batch filled up to a multiple of the device count.

    Attributes:
      arrays: as given, with B' ≥ B rows; the rows added repeat the first one.
      mask: bool [B'], true on the B real rows; None where nothing was added.
    """

    arrays: tuple[np.ndarray, ...]
    mask: np.ndarray | None


def local_mesh() -> Mesh:
    """This process's devices, for what each process computes by itself."""
    devices = np.array(jax.local_devices()).reshape(-1, 1)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def training_mesh(class_shards: int = 0, *, devices: list[jax.Device] | None = None) -> Mesh:
    """All devices of all processes as a mesh with the axes "data" and "model".

    Args:
      class_shards: the size of "model", over which the head's classes are split; 0 splits them over
        all devices, 1 keeps them whole on each (plain data parallelism).
      devices: which, where not those of this run (a planned pod's, say).

    Raises:
      UserError: it does not divide the device count.
    """
    count = jax.device_count() if devices is None else len(devices)
    model = class_shards or count
    if count % model:
        raise UserError(
            f"train.class_shards is {model}, which does not divide the {count} devices: take one "
            "of their divisors, or 0 for all"
        )
    shape, names = (count // model, model), ("data", "model")
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "model")))


def class_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over "model"."""
    return NamedSharding(mesh, PartitionSpec("model"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def padded_classes(num_classes: int, mesh: Mesh) -> int:
    """The classes, filled up to a multiple of the devices that share them."""
    shards = mesh.shape["model"]
    return math.ceil(num_classes / shards) * shards


def pad_batch(*arrays: np.ndarray, to_multiple_of: int) -> PaddedBatch:
    """Fills a batch up to a multiple of the device count; the mask marks the real rows."""
    rows = arrays[0].shape[0]
    missing = -rows % to_multiple_of
    if not missing:
        return PaddedBatch(arrays, None)
    padded = tuple(np.concatenate([a, np.repeat(a[:1], missing, axis=0)]) for a in arrays)
    return PaddedBatch(padded, np.arange(rows + missing) < rows)


def put_batch(arrays: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch onto its devices, as parts of the whole batch's arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), arrays)


def block_size(sizes: Sequence[int], rows: int) -> int:
    """The smallest of the ascending sizes that holds this many rows; the largest if none does."""
    return next((size for size in sizes if size >= rows), sizes[-1])


def padded(rows: np.ndarray, block: int) -> np.ndarray:
    """A copy of the rows, filled up to a block with zeros.

    A copy in any case: jax may take a NumPy array's memory as it is, and then keeps all of it, and
    what it is a view of, until some later call.
    """
    out = np.zeros((block, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out


def in_blocks(
    function: Callable[[np.ndarray], jax.Array], rows: np.ndarray, sizes: Sequence[int]
) -> np.ndarray:
    """A jitted function of rows, float32 [N], computed by padded blocks of one of the sizes.

    Args:
      function: [B, …] → [B], each number from its own row.
      rows: [N, …].
      sizes: ascending; see `block_size`.
    """
    out = np.empty(len(rows), np.float32)
    block = block_size(sizes, len(rows))
    for start in range(0, len(rows), block):
        values = function(padded(rows[start : start + block], block))
        out[start : start + block] = np.asarray(values)[: len(rows) - start]
    return out
