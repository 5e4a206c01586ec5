"""From a config's data section to faces: the one place that knows the data sets' names."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.lfw_crops import find_crops, load_lfw
from ida_jax.data.rendered import rendered_faces
from ida_jax.data.tfds_faces import find_tfds, load_tfds


def load_faces(config: ConfigDict, *, data_dir: str | os.PathLike[str], seed: int) -> FaceDataset:
    """The faces that a config's train_data or eval_data names.

    Args:
      config: `name` and the options of that source: "rendered" (synthetic, no files), "lfw"
        (DATA_DIR/lfw), or "tfds" with `dataset` (DATA_DIR/DATASET).

    Raises:
      UserError: an unknown name, or data that is missing or damaged.
    """
    options = config.to_dict()
    match options.pop("name"):
        case "rendered":
            return rendered_faces(seed=seed, **options)
        case "lfw":
            return load_lfw(Path(data_dir) / "lfw", **options)
        case "tfds":
            return load_tfds(options.pop("dataset"), data_dir=data_dir, **options)
        case name:
            raise UserError(f"data set '{name}' is unknown: choose rendered, lfw or tfds")


def require_faces(config: ConfigDict, *, data_dir: str | os.PathLike[str]) -> None:
    """Raises the UserError of `load_faces` where files are missing, without reading them."""
    match config.name:
        case "lfw":
            find_crops(Path(data_dir) / "lfw")
        case "tfds":
            find_tfds(config.dataset, data_dir=data_dir)
        case "rendered":
            pass
        case name:
            raise UserError(f"data set '{name}' is unknown: choose rendered, lfw or tfds")
