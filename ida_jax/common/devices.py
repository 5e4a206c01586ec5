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
from ida_jax.common.progress import progress_bar


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


def on_cpu(array: jax.Array) -> bool:
    """Whether the array lies in a processor's own memory."""
    return next(iter(array.devices())).platform == "cpu"


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


def filled(rows: np.ndarray) -> np.ndarray:
    """The rows and zeros up to a power of two, at least 64; more than 32,768 stay as they are.

    For what is indexed by a compiled function: a few sizes stand for every number of rows. Beyond
    them one compilation is little beside the work on the rows.
    """
    size = max(64, 1 << max(0, len(rows) - 1).bit_length())
    return rows if size > 1 << 15 or size == len(rows) else padded(rows, size)


def by_blocks(
    function: Callable[..., Any],
    *arrays: np.ndarray,
    sizes: Sequence[int],
    title: str | None = None,
) -> Any:
    """function(*arrays), computed by blocks of one of few shapes, so that it compiles seldom.

    Args:
      function: of blocks of the arrays' rows to arrays, or a pytree of them, of as many rows.
      arrays: [N, …] each; the last block is filled up with zeros, and what they give is cut off.
      sizes: of blocks, ascending; `block_size` chooses one.
      title: of a progress bar; none is shown if None.
    """
    n, parts = len(arrays[0]), []
    block = block_size(sizes, n) if n else 0
    starts = range(0, max(n, 1), max(block, 1))
    for start in progress_bar(
        starts, title, unit="block", delay=2, leave=False, disable=title is None
    ):
        parts.append(function(*(padded(x[start : start + block], block) for x in arrays)))
        # The block before is fetched while the device works on this one.
        parts[-2:-1] = jax.device_get(parts[-2:-1])
    return jax.tree.map(lambda *blocks: np.concatenate(jax.device_get(blocks))[:n], *parts)
