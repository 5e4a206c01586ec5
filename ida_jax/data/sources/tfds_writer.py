"""Face data sets in TFDS's format: ArrayRecord shards, and beside them what TFDS says of them.

A data set grows in DATA_DIR/NAME/incomplete and is renamed to DATA_DIR/NAME/1.0.0 when it is whole.
What its source was is noted in source.json, which goes last: a writer that was killed between the
two finds its own data set when it is run again.

N faces, C identities, P pairs.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.outputs import writing
from ida_jax.data.dataset import EncodedFaces
from ida_jax.data.sources.jpeg import check_image
from ida_jax.data.sources.shards import (
    LISTED,
    Example,
    Shard,
    remove_reports,
    serialize,
    shard_name,
    write_shards,
)
from ida_jax.data.sources.verification_bin import VerificationBin
from ida_jax.data.tfds_faces import TfdsImages, keep_labels

VERSION = "1.0.0"
_SOURCE = "source.json"
# (images, identities) of the releases: InsightFace's; of CASIA-WebFace also the original.
EXPECTED = {
    "ms1m": ((5_822_653, 85_742),),
    "ms1mv3": ((5_179_510, 93_431),),
    "casia_webface": ((490_623, 10_572), (494_414, 10_575)),
}


class Written(NamedTuple):
    """A data set that was written.

    Attributes:
      records: images, or pairs of them.
      converted: images that are no longer the source's bytes, being RGB now.
      skipped: what is wrong with each corrupt image that was left out.
    """

    path: Path
    records: int
    converted: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


class _Split(NamedTuple):
    """What is written: `source` identifies the source, `keep` adds files of ours."""

    name: str
    rows: int
    example: Callable[[int], Example]
    features: Any
    source: str
    keep: Callable[[Path, TfdsImages, list[int]], None] | None = None


def face_features(identities: tuple[str, ...] | None) -> Any:
    """TFDS's features of faces: image (RGB) and label; None where identities aren't known yet."""
    import tensorflow_datasets as tfds

    names = None if identities is None else list(identities)
    label = tfds.features.ClassLabel(names=names)
    return tfds.features.FeaturesDict({"image": _image(), "label": label})


def written_folders(path: Path) -> tuple[Path, Path]:
    """The folders within DATA_DIR/NAME that a data set is written to: while it grows, and whole."""
    return path / "incomplete", path / VERSION


def write_faces(
    name: str,
    faces: EncodedFaces,
    *,
    data_dir: str | os.PathLike[str],
    skip_corrupt: bool = False,
    size: int | None = None,
) -> Written:
    """Writes faces as the data set DATA_DIR/NAME, split "train", with its labels beside.

    Images stay the bytes that they are, but for those that are not RGB. Stopped at any moment, the
    same call resumes at the first shard that is missing.

    Args:
      name: the data set's, in small letters, digits and underscores.
      faces: N images of C identities.
      skip_corrupt: leave corrupt images out, and list them in DATA_DIR/NAME.skipped.txt.
      size: the crops' height and width, in pixels; another one is taken as corrupt. None takes any.

    Raises:
      UserError: a name that TFDS does not take; a data set that already exists; corrupt images,
        of which the first ten are listed, and then nothing is written; a full disk; an identity's
        name that is not a line of text.
    """

    def example(row: int) -> Example:
        try:
            image, converted, problem = check_image(faces.images[row], size=size)
        except UserError as error:  # of a damaged record, which it names
            return Example({}, problem=str(error))
        if problem is not None:
            return Example({}, problem=f"{faces.where(row)} {problem}")
        return Example({"image": image, "label": int(labels[row])}, int(converted))

    def keep(folder: Path, images: TfdsImages, left_out: list[int]) -> None:
        keep_labels(folder / "train_labels.safetensors", np.delete(labels, left_out), images)

    # TFDS keeps the names as a text file's lines.
    unfit = [name for name in faces.identities if name.strip().splitlines() != [name]]
    if unfit:
        raise UserError(
            f"identity {unfit[0]!r} is not a name: rename it, without white space at its ends"
        )
    labels = np.asarray(faces.labels, np.int32)
    digest = hashlib.sha256(labels.tobytes())
    digest.update("\n".join(faces.identities).encode())
    split = _Split(
        "train",
        len(labels),
        example,
        face_features(faces.identities),
        source=f"{digest.hexdigest()} size={size}",
        keep=keep,
    )
    written = _write(name, split, data_dir=Path(data_dir), skip_corrupt=skip_corrupt)
    return written._replace(notes=written.notes + faces.notes + _unexpected(name, faces))


def write_pairs(
    name: str, pairs: VerificationBin, *, data_dir: str | os.PathLike[str], size: int | None = None
) -> Written:
    """Writes P pairs as the data set DATA_DIR/NAME, split "test": first, second, same.

    Args:
      name: as in `write_faces`.
      pairs: 2P encoded images and P answers.
      size: as in `write_faces`.

    Raises:
      UserError: as in `write_faces`; a pair is never left out.
    """
    import tensorflow_datasets as tfds

    def example(pair: int) -> Example:
        rows = (2 * pair, 2 * pair + 1)
        first, second = (check_image(pairs.images[row], size=size) for row in rows)
        for row, image in zip(rows, (first, second), strict=True):
            if image.problem is not None:
                return Example({}, problem=f"{pairs.where(row)} {image.problem}")
        features = {"first": first.image, "second": second.image, "same": int(pairs.same[pair])}
        return Example(features, first.converted + second.converted)

    same = tfds.features.Scalar(np.bool_)
    split = _Split(
        "test",
        len(pairs.same),
        example,
        tfds.features.FeaturesDict({"first": _image(), "second": _image(), "same": same}),
        source=f"{hashlib.sha256(np.asarray(pairs.same, bool).tobytes()).hexdigest()} size={size}",
    )
    return _write(name, split, data_dir=Path(data_dir), skip_corrupt=False)


def require_new(name: str, *, data_dir: str | os.PathLike[str]) -> Path:
    """The folder of a data set that is to be written, or whose writer was killed as it ended."""
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise UserError(f"'{name}' is not a data set's name: use a-z, digits and underscores")
    path = Path(data_dir) / name / VERSION
    if path.exists() and not (path / _SOURCE).is_file():
        raise _exists(path)
    return path


def _exists(path: Path) -> UserError:
    return UserError(f"{path} already exists: delete it or take another --name")


def _write(name: str, split: _Split, *, data_dir: Path, skip_corrupt: bool) -> Written:
    path = require_new(name, data_dir=data_dir)
    if not split.rows:
        raise UserError(f"nothing to write as {name}: the source holds no image")
    skipped = data_dir / f"{name}.skipped.txt"
    listed = {"--data_dir (its skipped.txt)": skipped if skip_corrupt else None}
    with (
        writing({}, reading={}, folder=path.parent),
        writing(listed, reading={}),
    ):
        source = f"{split.source} rows={split.rows} {_sample(split)}"
        if path.exists():
            written = _written_before(path, source, split, skipped if skip_corrupt else None)
        else:
            written = _write_locked(name, split, path, source, skipped if skip_corrupt else None)
    (path / _SOURCE).unlink(missing_ok=True)
    return written


def _written_before(path: Path, source: str, split: _Split, skipped: Path | None) -> Written:
    """What a writer of the same source made, which was killed as it ended."""
    if not _is_of(path, source):
        raise _exists(path)
    remove_reports(path)
    info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    (lengths,) = (found["shardLengths"] for found in info["splits"] if found["name"] == split.name)
    records, corrupt = sum(map(int, lengths)), ()
    if records < split.rows and skipped is not None:
        corrupt = tuple(skipped.read_text(encoding="utf-8").splitlines())
    note = "it was whole already: the same command was killed as it ended"
    return Written(path, records, 0, corrupt, (note,))


def _write_locked(
    name: str, split: _Split, path: Path, source: str, skipped: Path | None
) -> Written:
    folder, _ = written_folders(path.parent)
    _begin(folder, source)
    prefix = f"{name}-{split.name}.array_record"
    stop = LISTED if skipped is None else None
    shards = write_shards(folder, prefix, split.example, rows=split.rows, stop_at_corrupt=stop)
    corrupt = [problem for shard in shards for _, problem in shard.corrupt]
    records = sum(shard.records for shard in shards)
    if corrupt and (skipped is None or not records):
        _remove(folder)
        seen = records + len(corrupt)
        raise UserError(
            f"{len(corrupt):,} of {'the first ' * (seen < split.rows)}{seen:,} are corrupt, and "
            f"nothing was written: {'; '.join(corrupt[:LISTED])}{'; …' * (len(corrupt) > LISTED)}"
        )
    try:
        _describe(name, split, folder, shards)
        if split.keep is not None:
            names = [str(folder / shard_name(prefix, n, len(shards))) for n in range(len(shards))]
            images = TfdsImages(names, [shard.records for shard in shards])
            split.keep(folder, images, [row for shard in shards for row, _ in shard.corrupt])
        if corrupt:
            with written_whole(skipped) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in corrupt), encoding="utf-8")
        folder.rename(path)
        remove_reports(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    converted = sum(shard.converted for shard in shards)
    return Written(path, records, converted, tuple(corrupt), ())


def _describe(name: str, split: _Split, folder: Path, shards: list[Shard]) -> None:
    """Writes dataset_info.json, features.json and the identities' names."""
    import tensorflow_datasets as tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=split.features, disable_shuffling=True)
    info.set_file_format("array_record")
    lengths = [shard.records for shard in shards]
    size = sum(shard.bytes for shard in shards)
    found = tfds.core.SplitInfo(name=split.name, shard_lengths=lengths, num_bytes=size)
    info.set_splits(tfds.core.splits.SplitDict([found]))
    info.write_to_directory(folder)


def _image() -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.Image(shape=(None, None, 3))


def _unexpected(name: str, faces: EncodedFaces) -> tuple[str, ...]:
    counts, expected = (len(faces.labels), len(faces.identities)), EXPECTED.get(name)
    if expected is None or counts in expected:
        return ()
    known = " or ".join(f"{images:,} images of {people:,}" for images, people in expected)
    return (f"warning: {counts[0]:,} images of {counts[1]:,} identities, but {name} has {known}",)


def _sample(split: _Split) -> str:
    """A digest of a few records: another source of as many rows is not resumed."""
    digest = hashlib.sha256()
    for row in np.linspace(0, split.rows - 1, min(split.rows, 16)).astype(int).tolist():
        digest.update(serialize(split.example(row).features))
    return digest.hexdigest()


def _begin(folder: Path, source: str) -> None:
    """Keeps the shards that an earlier call left of this source, and those of no other."""
    noted = folder / _SOURCE
    try:
        if _is_of(folder, source):
            for torn in folder.glob(".*"):  # what a killed process was writing
                torn.unlink()
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with written_whole(noted) as temporary:
            temporary.write_bytes(json.dumps(source).encode())
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}; name a writable --data_dir"
        ) from error


def _is_of(folder: Path, source: str) -> bool:
    noted = folder / _SOURCE
    return noted.is_file() and noted.read_bytes() == json.dumps(source).encode()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
