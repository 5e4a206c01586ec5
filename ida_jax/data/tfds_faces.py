"""Faces as a TFDS data set in ArrayRecord files, written and read without TensorFlow.

N faces, C identities.
"""

import io
import os
from collections.abc import Iterator, Sequence
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
        if not 0 <= index < len(self):  # ArrayRecord's ValueError would not end an iteration
            raise IndexError(index)
        return self._source[index]["image"]


def find_tfds(name: str, *, data_dir: str | os.PathLike[str]) -> Path:
    """The folder of the newest version of DATA_DIR/NAME.

    Raises:
      UserError: the data set is not there.
    """
    root = Path(data_dir) / name
    versions = sorted(
        (p for p in root.glob("*.*.*") if (p / "dataset_info.json").is_file()),
        key=lambda p: [int(part) if part.isdigit() else -1 for part in p.name.split(".")],
    )
    if not versions:
        raise UserError(
            f"the data set {name} is not at {root}: prepare it there with python -m "
            f"ida_jax.prepare folder --from=FOLDER --name={name} --data_dir={data_dir}, and set "
            "--config.data_dir to that folder"
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


def write_tfds(
    name: str,
    files: Sequence[Path],
    labels: Sequence[int],
    identities: Sequence[str],
    *,
    data_dir: str | os.PathLike[str],
) -> Path:
    """Writes encoded images as the data set DATA_DIR/NAME; their bytes are kept as they are.

    Args:
      name: the data set's, in small letters, digits and underscores.
      files: N JPEG files.
      labels: N labels, 0 … C−1.
      identities: the C identities' names.
      data_dir: where data sets are.

    Returns:
      The data set's folder.

    Raises:
      UserError: a name that TFDS does not take, or a data set that is there already.
    """
    import tensorflow_datasets as tfds

    if not name.isidentifier() or name != name.lower():
        raise UserError(f"'{name}' names no data set: use small letters, digits and underscores")

    class Faces(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            label = tfds.features.ClassLabel(names=list(identities))
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, manager: tfds.download.DownloadManager) -> dict:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict]]:
            for row, (file, label) in enumerate(zip(files, labels, strict=True)):
                # Bytes, since TFDS encodes an array with TensorFlow.
                yield row, {"image": io.BytesIO(file.read_bytes()), "label": int(label)}

    Faces.name = name
    builder = Faces(data_dir=data_dir, file_format="array_record")
    if builder.is_prepared():
        raise UserError(f"{builder.data_path} is there already: delete it or take another --name")
    builder.download_and_prepare()
    return Path(builder.data_path)
