"""Faces and pairs of TFDS data sets in ArrayRecord files, read without TensorFlow.

N faces, P pairs, C identities, H height, W width.
"""

import bisect
import contextlib
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import load_tensors, require_file, save_tensors
from ida_jax.common.progress import progress_bar
from ida_jax.data.dataset import FaceDataset, LazyImages
from ida_jax.data.sources.image_files import decode


class TfdsImages(Sequence[np.ndarray]):
    """The images of N records, each read and decoded when it is asked for.

    It pickles as the files' names: another process opens them for itself. Threads may share it.

    Attributes:
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
        """The image of a row, uint8 [H, W, 3] RGB."""
        return self.image(index, "image")

    def image(self, index: int, feature: str) -> np.ndarray:
        """One of a row's images, uint8 [H, W, 3] RGB."""
        encoded = self.features(index)[feature].bytes_list.value[0]
        try:
            return decode(encoded, where=f"of row {index}")
        except UserError as error:
            raise UserError(
                f"{error} ({len(self)} rows, in {os.path.dirname(self.files[0])}): prepare the "
                "data set again without it"
            ) from error

    def features(self, index: int) -> Any:
        """A row's features as they are stored: a map of names to protobuf lists."""
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
                "again, or prepare it again"
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


class PairImages(NamedTuple):
    """P labelled pairs of images.

    Attributes:
      images: 2P images, uint8 [H, W, 3] RGB, decoded when asked for; pair i is 2i and 2i + 1.
      same: bool [P], True for one identity's pair.
    """

    images: Sequence[np.ndarray]
    same: np.ndarray


def find_tfds(
    name: str,
    *,
    data_dir: str | os.PathLike[str],
    source: str = "folder (or recordio) --from=FOLDER",
) -> Path:
    """The folder of the newest version of DATA_DIR/NAME.

    Args:
      source: how `ida_jax.prepare` makes such a data set, for the message.
    """
    root = Path(data_dir) / name
    versions = sorted(
        (p for p in root.glob("*.*.*") if (p / "dataset_info.json").is_file()),
        key=lambda p: [int(part) if part.isdigit() else -1 for part in p.name.split(".")],
    )
    if not versions:
        raise UserError(
            f"the data set {name} is not at {root}: prepare it there with "
            f"ida-jax prepare {source} --name={name} --data_dir={data_dir}, or name the folder "
            "that holds it as data_dir (--config.data_dir)"
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
    info, images = _open(path, split, ("image", "label"))
    label = info.features["label"]
    names = label.names or tuple(map(str, range(label.num_classes)))
    return FaceDataset(images, _labels(images, path / f"{split}_labels.safetensors"), tuple(names))


def load_pairs(name: str, *, data_dir: str | os.PathLike[str], split: str = "test") -> PairImages:
    """The data set DATA_DIR/NAME of pairs, with the features "first", "second" (RGB) and "same".

    Raises:
      UserError: the data set is not there, or has other features or files than expected.
    """
    path = find_tfds(name, data_dir=data_dir, source="bin --from=X.bin")
    _, pairs = _open(path, split, ("first", "second", "same"))
    same = [pairs.features(row)["same"].int64_list.value[0] for row in range(len(pairs))]

    def image(index: int) -> np.ndarray:
        return pairs.image(index // 2, ("first", "second")[index % 2])

    return PairImages(LazyImages(2 * len(pairs), image), np.array(same, bool))


def _open(path: Path, split: str, expected: tuple[str, ...]) -> tuple[Any, TfdsImages]:
    """What TFDS says of a data set, and its records."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(path).info
    except Exception as error:  # whatever a damaged JSON makes TFDS and protobuf raise
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}): prepare it again"
        ) from error
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{path} is in {info.file_format.value} files: prepare it with "
            'file_format="array_record", which is read without TensorFlow'
        )
    if split not in info.splits:
        raise UserError(f"{path} has no split '{split}': it has {', '.join(info.splits)}")
    missing = [feature for feature in expected if feature not in info.features]
    if missing:
        raise UserError(
            f"{path} lacks the feature {missing[0]}: it has {', '.join(sorted(info.features))}"
        )
    split_info = info.splits[split]
    try:
        files = tuple(map(str, split_info.filepaths))
    except (ValueError, KeyError) as error:  # a template that TFDS cannot fill
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}): prepare it again"
        ) from error
    lengths = tuple(split_info.shard_lengths)
    for file, length in zip(files, lengths, strict=True):
        require_file(Path(file), what=f"shard of {path}")
        if not 0 <= length <= os.path.getsize(file):  # no record is empty
            raise UserError(f"{path} promises {length:,} records in {file}: prepare it again")
    return info, TfdsImages(files, lengths)


def _labels(images: TfdsImages, path: Path) -> np.ndarray:
    """int32 [N]: from the file at `path` if it is of these records, else from the records."""
    expected = _fingerprint(images)
    if path.is_file():
        try:
            kept, _ = load_tensors(path, kind="labels")
        except UserError:  # torn, or another program's: as good as none
            kept = {}
        sample = np.linspace(0, len(images) - 1, 16).astype(int)
        if all(np.array_equal(kept.get(name), value) for name, value in expected.items()) and (
            np.shape(kept.get("labels")) == (len(images),)
            and np.array_equal(kept["labels"][sample], [_label(images, row) for row in sample])
        ):
            return np.array(kept["labels"])
    rows = progress_bar(range(len(images)), desc="labels", unit="face", delay=2, leave=False)
    labels = np.fromiter((_label(images, row) for row in rows), np.int32, count=len(images))
    with contextlib.suppress(UserError):  # a folder that is not ours is read again each time
        keep_labels(path, labels, images)
    return labels


def keep_labels(path: Path, labels: np.ndarray, images: TfdsImages) -> None:
    """Writes the labels of records, int32 [N], where `load_tfds` finds them."""
    tensors = {"labels": labels, **_fingerprint(images)}
    save_tensors(path, tensors, kind="labels", metadata={})


def _fingerprint(images: TfdsImages) -> dict[str, np.ndarray]:
    """What changes with the records' files: their sizes, and how many each holds."""
    sizes = [os.stat(file).st_size for file in images.files]
    return {"bytes": np.array(sizes, np.int64), "records": np.array(images.records, np.int64)}


def _label(images: TfdsImages, row: int) -> int:
    return images.features(row)["label"].int64_list.value[0]
