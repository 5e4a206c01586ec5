"""What the uncertainty module is trained on: the frozen backbone's means and feature maps.

B batch, N faces, D embedding, H, W and C the last feature map's size.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ida_jax.data.augment import augmentation, drawn
from ida_jax.data.balanced import BalancedRows
from ida_jax.data.dataset import FaceDataset, ImageSubset
from ida_jax.data.pipeline import training_batches
from ida_jax.face_model import FaceModel, by_batches
from ida_jax.files import written_whole
from ida_jax.sharding import put_batch, replicated

Freeze = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]


class FrozenBatch(NamedTuple):
    """A batch as the module sees it, on the mesh's devices.

    Attributes:
      means: float32 [B, D], unit rows.
      maps: [B, H, W, C], the backbone's last feature maps.
      labels: int32 [B], identities.
      rows: int32 [B], which face each is.
    """

    means: jax.Array
    maps: jax.Array
    labels: jax.Array
    rows: jax.Array


def fresh_batches(
    dataset: FaceDataset,
    model: FaceModel,
    config: ConfigDict,
    rows: BalancedRows,
    freeze: Freeze,
    mesh: Mesh,
    *,
    first_step: int,
) -> Iterator[FrozenBatch]:
    """Batches from images: the backbone runs on each, as a GPU does.

    Args:
      dataset: the faces.
      model: the frozen face model.
      config: the section pfe.
      rows: the balanced batches' rows.
      freeze: (backbone, images) → (means, maps), on the mesh.
      mesh: all devices.
      first_step: the number of the first batch.
    """
    size, shard, shards = rows.identities * rows.images, jax.process_index(), jax.process_count()
    own = size // shards
    backbone = jax.device_put(model.variables, replicated(mesh))
    batches = training_batches(
        dataset,
        batch_size=size,
        seed=rows.seed,
        first_step=first_step,
        shard=shard,
        shards=shards,
        augment=config.augment,
        workers=config.workers,
        rows=rows,
    )
    with closing(batches):
        for step, batch in enumerate(batches, start=first_step):
            which = rows(step * size + shard * own, own).astype(np.int32)
            images, labels, which = put_batch((batch.images, batch.labels, which), mesh)
            yield FrozenBatch(*freeze(backbone, images), labels, which)


def kept_batches(
    dataset: FaceDataset,
    model: FaceModel,
    config: ConfigDict,
    rows: BalancedRows,
    freeze: Freeze,
    mesh: Mesh,
    *,
    first_step: int,
    folder: Path,
) -> Iterator[FrozenBatch]:
    """The same batches from maps computed once, for a small training set on few cores.

    The maps of the faces and of their mirror images lie in two files in `folder`, as float16: 50 kB
    a map of 7 × 7 × 512.

    Args:
      folder: keeps the files; the other arguments are as in `fresh_batches`. `config.augment` is
        none or flip, and there is one process.
    """
    flip = augmentation(config.augment)
    views = 1 + len(flip)
    faces = ImageSubset(dataset.images, rows.rows)
    means, maps = _kept(faces, model, views, freeze, mesh, folder)
    place = np.zeros(len(dataset.labels), np.int64)
    place[rows.rows] = np.arange(len(faces))
    size, step = rows.identities * rows.images, first_step
    while True:
        which = rows(step * size, size)
        mirrored = drawn(flip, seed=rows.seed, first=step * size, count=size).any(axis=1)
        found = views * place[which] + mirrored
        arrays = means[found], maps[found], dataset.labels[which], which.astype(np.int32)
        yield FrozenBatch(*put_batch(arrays, mesh))
        step += 1


def _kept(
    faces: ImageSubset, model: FaceModel, views: int, freeze: Freeze, mesh: Mesh, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Means and maps of each face's views, side by side, mapped from the files that keep them."""
    paths = [folder / f"{what}-{model.fingerprint}-{views}.npy" for what in ("means", "maps")]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        backbone = jax.device_put(model.variables, replicated(mesh))

        def of_views(images: jax.Array) -> tuple[jax.Array, ...]:
            seen = [freeze(backbone, images)]
            if views == 2:
                seen.append(freeze(backbone, images[:, :, ::-1]))
            return tuple(array for view in seen for array in view)

        batches = by_batches(
            of_views, faces, model.preprocessing, batch_size=128, progress="feature maps"
        )
        with written_whole(paths[0]) as means_file, written_whole(paths[1]) as maps_file:
            means, maps, start = None, None, 0
            for batch in batches:
                if means is None:
                    shape = (views * len(faces), *batch[0].shape[1:])
                    means = np.empty(shape, np.float32)
                    shape = (views * len(faces), *batch[1].shape[1:])
                    maps = np.lib.format.open_memmap(maps_file, "w+", np.float16, shape)
                stop = start + views * len(batch[0])
                for view in range(views):
                    means[start + view : stop : views] = batch[2 * view]
                    maps[start + view : stop : views] = batch[2 * view + 1]
                start = stop
            maps.flush()
            with means_file.open("wb") as file:
                np.save(file, means)
    return np.load(paths[0]), np.load(paths[1], mmap_mode="r")
