"""Faces as a TFDS data set in ArrayRecord files, written and read without TensorFlow.

N faces, C identities, H height, W width.
"""

import bisect
import contextlib
import io
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ida_jax.data.dataset import FaceDataset
from ida_jax.errors import UserError
from ida_jax.files import load_tensors, save_tensors


class TfdsImages(Sequence[np.ndarray]):
    """The images of N records, each read and decoded when it is asked for.

    It pickles as the files' names: another process opens them for itself. Threads may share it.

    Attributes:
      files: the ArrayRecord files.
      records: how many records each file holds.
    """

    def __init__(self, files: Sequence[str], records: Sequence[int]) -> None:
        self.files, self.records = tuple(files), tuple(records)
        self._ends = tuple(itertools.accumulate(self.records))
        self._readers: dict[int, Any] = {}
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple:
        return TfdsImages, (self.files, self.records)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> np.ndarray:
        """The image of a row, uint8 [H, W, 3] RGB.

        Raises:
          UserError: its bytes are no image.
        """
        import cv2

        encoded = np.frombuffer(self.features(index)["image"].bytes_list.value[0], np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
        if image is None:
            raise UserError(
                f"the image of row {index} cannot be decoded (of {len(self)} in "
                f"{os.path.dirname(self.files[0])}): prepare the data set anew without it"
            )
        return image

    def features(self, index: int) -> Any:
        """A row's features as they are stored: a map of names to protobuf lists.

        Raises:
          UserError: the record is damaged.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect.bisect_right(self._ends, index)
        position = int(index) - self._ends[file] + self.records[file]
        try:
            reader = self._readers.get(file) or self._open(file)
            # A range, since a list of positions costs time in proportion to the file's records.
            record = reader.read(position, position + 1)[0]
            return tf_example_pb2.Example.FromString(record).features.feature
        except Exception as error:  # array_record and protobuf each have their own
            raise UserError(
                f"row {index} cannot be read from {self.files[file]} ({error}): copy the file "
                "again, or prepare the data set anew"
            ) from error

    def _open(self, file: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        with self._opening:
            if file not in self._readers:
                # Single records in any order: nothing is worth reading ahead.
                self._readers[file] = ArrayRecordReader(
                    self.files[file],
                    options="readahead_buffer_size:0",
                    file_reader_buffer_size=32768,
                )
            return self._readers[file]


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

    Images stay on disk and are decoded when asked for. The labels are read from the records once
    and then kept in SPLIT_labels.safetensors beside them, if that folder can be written.

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
    info = builder.info.splits[split]
    images = TfdsImages(tuple(map(str, info.filepaths)), tuple(info.shard_lengths))
    names = features["label"].names or tuple(map(str, range(features["label"].num_classes)))
    return FaceDataset(images, _labels(images, path / f"{split}_labels.safetensors"), tuple(names))


def _labels(images: TfdsImages, path: Path) -> np.ndarray:
    """int32 [N]: from the file at `path` if it is of these records, else from the records."""
    sizes = np.array([os.stat(file).st_size for file in images.files], np.int64)
    expected = {"bytes": sizes, "records": np.array(images.records, np.int64)}
    if path.is_file():
        try:
            kept, _ = load_tensors(path, kind="labels")
        except UserError:  # torn, or another program's: as good as none
            kept = {}
        sample = np.linspace(0, len(images) - 1, 16).astype(int)
        if all(np.array_equal(kept.get(name), value) for name, value in expected.items()) and (
            np.array_equal(kept["labels"][sample], [_label(images, row) for row in sample])
        ):
            return np.array(kept["labels"])
    rows = tqdm(range(len(images)), desc="labels", unit="face", delay=2, leave=False)
    labels = np.fromiter((_label(images, row) for row in rows), np.int32, count=len(images))
    with contextlib.suppress(UserError):  # a folder that is not ours is read anew each time
        save_tensors(path, {"labels": labels, **expected}, kind="labels", metadata={})
    return labels


def _label(images: TfdsImages, row: int) -> int:
    return images.features(row)["label"].int64_list.value[0]


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
    load_tfds(name, data_dir=data_dir)  # keeps the labels for every later start
    return Path(builder.data_path)
