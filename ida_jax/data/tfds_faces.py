"""Faces from a data set that TFDS prepared as ArrayRecord files, read without TensorFlow.

N faces, C identities.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ida_jax.data.dataset import FaceDataset
from ida_jax.errors import UserError


class _TfdsImages(Sequence[np.ndarray]):
    def __init__(self, source: Sequence[dict]) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[index]["image"]


def find_tfds(name: str, *, data_dir: str | os.PathLike[str]) -> Path:
    """The folder of the newest version of DATA_DIR/NAME.

    Raises:
      UserError: the data set is not there.
    """
    root = Path(data_dir) / name
    versions = sorted(p for p in root.glob("*.*.*") if (p / "dataset_info.json").is_file())
    if not versions:
        raise UserError(
            f"the data set {name} is not at {root}: prepare it as TFDS ArrayRecord files with the "
            "features image and label (README, 'Your own training set') under --config.data_dir"
        )
    return versions[-1]


def load_tfds(name: str, *, data_dir: str | os.PathLike[str], split: str = "train") -> FaceDataset:
    """The data set DATA_DIR/NAME with the features "image" (RGB) and "label" (identity).

    Images stay on disk and are decoded when asked for; labels are read once.

    Raises:
      UserError: the data set is not there, or has other features or files than expected.
    """
    path = find_tfds(name, data_dir=data_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{path} is in {builder.info.file_format.value} files: prepare it with "
            'file_format="array_record", which is read without TensorFlow'
        )
    if split not in builder.info.splits:
        raise UserError(f"{name} has no split '{split}': it has {', '.join(builder.info.splits)}")
    features = builder.info.features
    missing = {"image", "label"} - set(features)
    if missing:
        raise UserError(f"{name} lacks the feature {missing.pop()}: it has {', '.join(features)}")
    skip = {"image": tfds.decode.SkipDecoding()}
    undecoded = builder.as_data_source(split=split, decoders=skip)
    labels = np.fromiter((row["label"] for row in undecoded), np.int32, count=len(undecoded))
    return FaceDataset(
        _TfdsImages(builder.as_data_source(split=split)),
        labels,
        tuple(features["label"].names or map(str, range(features["label"].num_classes))),
    )
