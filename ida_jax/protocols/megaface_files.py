"""MegaFace's files: the development kit's lists, noise lists, and features of images.

    LIST             {"path": [...]} of distractors; FaceScrub's has "id": [...] too
    noises.txt       one path per line, or a file name alone (FaceScrub's); # begins a comment
    ROOT/<path>_<model>.bin    an image's feature: int32 (length, 1, 4, 5), then float32, all
                               little-endian

In place of feature files, embeddings in one file (`ida_jax.tables.embeddings`) whose names are the
list's paths.

N images, D embedding.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import read_json
from ida_jax.metrics.identification import DISTRACTOR_SIZES, prefix_sets
from ida_jax.tables.embeddings import EmbeddingFile
from ida_jax.tables.text import text_lines

_BLOCK = 8192
_HEADER = 4
_STRIDE, _FLOAT32 = 4, 5


class ImageList(NamedTuple):
    """A list of the development kit.

    Attributes:
      paths: N distinct paths.
      labels: int32 [N], places in `identities`; None for distractors.
      identities: the people's names, sorted; empty for distractors.
    """

    paths: tuple[str, ...]
    labels: np.ndarray | None
    identities: tuple[str, ...]


class Cleaned(NamedTuple):
    """A list without its noisy images.

    Attributes:
      images: the other images, of the same identities.
      kept: int64, their places in the whole list.
      unknown: noise names that are not in the list.
    """

    images: ImageList
    kept: np.ndarray
    unknown: tuple[str, ...]


class Lists(NamedTuple):
    """The lists of probes (FaceScrub) and distractors (MegaFace), and of their noisy images."""

    facescrub: Path
    megaface: Path
    facescrub_noises: Path | None = None
    megaface_noises: Path | None = None


class Megaface(NamedTuple):
    """The evaluation's data.

    Attributes:
      probes: float32 [F, D], rows of any norm.
      labels: int32 [F], their identities.
      distractors: float32 blocks [n, D], an iterator that reads files.
      sets: {size: the distractors' rows}.
      notes: remarks on the lists for a reader of the figures.
    """

    probes: np.ndarray
    labels: np.ndarray
    distractors: Iterator[np.ndarray]
    sets: dict[int, np.ndarray]
    notes: tuple[str, ...]


def find_lists(folder: str | os.PathLike[str]) -> Lists:
    """The lists of a folder by their usual names.

    facescrub_features_list.json (or the uncropped one), the megaface_features_list.json_N_1 of the
    largest N, and facescrub_noises.txt and megaface_noises.txt if they exist.
    """
    folder = Path(folder)
    names = ("facescrub_features_list.json", "facescrub_uncropped_features_list.json")
    probes = next((folder / name for name in names if (folder / name).is_file()), None)
    distractors = {
        int(path.name.rsplit("_", 2)[1]): path
        for path in folder.glob("megaface_features_list.json_*_1")
        if path.name.rsplit("_", 2)[1].isdecimal()
    }
    if probes is None or not distractors:
        missing = names[0] if probes is None else "megaface_features_list.json_N_1"
        raise UserError(f"{folder} lacks {missing}: put MegaFace's development kit's lists there")
    noises = (folder / name for name in ("facescrub_noises.txt", "megaface_noises.txt"))
    return Lists(
        probes,
        distractors[max(distractors)],
        *(path if path.is_file() else None for path in noises),
    )


def load_megaface(
    lists: Lists,
    *,
    facescrub: str | os.PathLike[str] | EmbeddingFile,
    megaface: str | os.PathLike[str] | EmbeddingFile,
    sizes: Sequence[int] | None = None,
) -> Megaface:
    """Probes in memory, distractors as blocks that are read when taken.

    Args:
      lists: the files; a size takes that many from the start of the distractors' list, less noise.
      facescrub: the probes' features, as `feature_blocks` takes them.
      sizes: numbers of distractors; those of 10, 100, … 10⁶ that the list has if None.
    """
    probes, distractors = read_image_list(lists.facescrub), read_image_list(lists.megaface)
    if probes.labels is None:
        raise UserError(f'{lists.facescrub} has no "id": expected the list of FaceScrub\'s probes')
    listed = len(distractors.paths)
    sizes = [size for size in DISTRACTOR_SIZES if size <= listed] if sizes is None else sizes
    if not sizes or max(sizes) > listed:
        raise UserError(
            f"{max(sizes, default=DISTRACTOR_SIZES[0]):,} distractors were asked for, "
            f"{lists.megaface} lists {listed:,}: take fewer, or a larger list"
        )
    notes: list[str] = []
    probes, _ = _clean(probes, lists.facescrub_noises, "FaceScrub images", notes)
    distractors, kept = _clean(distractors, lists.megaface_noises, "distractors", notes)
    if not probes.paths:
        raise UserError(f"{lists.facescrub_noises} deletes every image of {lists.facescrub}")
    return Megaface(
        np.concatenate(list(feature_blocks(facescrub, probes.paths))),
        probes.labels,
        feature_blocks(megaface, distractors.paths),
        prefix_sets(sizes, kept),
        tuple(notes),
    )


def read_image_list(path: str | os.PathLike[str]) -> ImageList:
    """Reads a list of the development kit, of either kind."""
    path = Path(path)
    content = read_json(path, what="MegaFace list")
    paths = _strings(path, content, "path")
    if len(set(paths)) < len(paths):
        first = {}
        again = next(i for i, name in enumerate(paths) if first.setdefault(name, i) != i)
        raise UserError(
            f'{path}: "path" entry {again} repeats {paths[again]!r} of entry {first[paths[again]]}'
        )
    if "id" not in content:
        return ImageList(tuple(paths), None, ())
    people = _strings(path, content, "id")
    if len(people) != len(paths):
        raise UserError(f'{path} has {len(paths)} of "path" and {len(people)} of "id"')
    identities = sorted(set(people))
    number = {name: i for i, name in enumerate(identities)}
    labels = np.array([number[name] for name in people], np.int32)
    return ImageList(tuple(paths), labels, tuple(identities))


def read_noise_list(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads the names of noisy images: lines without comments, the last of tab-separated fields."""
    lines = text_lines(Path(path), what="noise list")
    names = (line.split("\t")[-1].strip() for line in lines if not line.startswith("#"))
    return tuple(name for name in names if name)


def without_noise(images: ImageList, noises: Sequence[str]) -> Cleaned:
    """Leaves out the images of a noise list.

    A name without a folder stands for the file of that name in any folder. Suffixes are ignored
    and a blank is an underscore, since lists of crops and of whole images differ in both.
    """
    keys = [_key(name) for name in images.paths]
    by_file: dict[str, list[str]] = {}
    for key in keys:
        by_file.setdefault(key.rsplit("/", 1)[-1], []).append(key)
    present, noisy, unknown = set(keys), set(), []
    for name in noises:
        key = _key(name)
        matches = by_file.get(key, []) if "/" not in key else [key] if key in present else []
        noisy.update(matches)
        if not matches:
            unknown.append(name)
    kept = np.flatnonzero([key not in noisy for key in keys])
    paths = tuple(images.paths[row] for row in kept)
    labels = None if images.labels is None else images.labels[kept]
    return Cleaned(ImageList(paths, labels, images.identities), kept, tuple(unknown))


def _clean(
    images: ImageList, noises: str | os.PathLike[str] | None, what: str, notes: list[str]
) -> tuple[ImageList, np.ndarray]:
    if noises is None:
        return images, np.arange(len(images.paths))
    cleaned = without_noise(images, read_noise_list(noises))
    deleted = len(images.paths) - len(cleaned.kept)
    notes.append(
        f"{deleted:,} of {len(images.paths):,} {what} were deleted by the noise list"
        + (f"; {len(cleaned.unknown):,} of its names are not among them" * bool(cleaned.unknown))
    )
    return cleaned.images, cleaned.kept


def _strings(path: Path, content: dict, key: str) -> list[str]:
    values = content.get(key)
    if not isinstance(values, list) or not values:
        raise UserError(f'{path}: expected a JSON object with a list "{key}" that is not empty')
    for place, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise UserError(f'{path}: "{key}" entry {place} is {value!r:.40}, expected a name')
    return values


def _key(path: str) -> str:
    return os.path.splitext(path.removeprefix("./"))[0].replace(" ", "_")


def feature_blocks(
    source: str | os.PathLike[str] | EmbeddingFile,
    paths: Sequence[str],
    *,
    ending: str | None = None,
    block: int = _BLOCK,
) -> Iterator[np.ndarray]:
    """The features of a list's images in its order, float32 [n, D] blocks of any norm.

    A missing feature is an error of the call; features are read when a block is taken.

    Args:
      source: a folder of feature files, or embeddings whose names are the paths.
      paths: N paths.
      ending: of feature files, "_<model>.bin"; that of the first image's file if None.
    """
    starts = range(0, len(paths), block)
    if not isinstance(source, EmbeddingFile):
        folder = Path(source)
        if not folder.is_dir():
            raise UserError(f"no folder of feature files at {folder}")
        ending = _only_ending(folder / paths[0]) if ending is None and paths else ending
        files = [f"{folder}/{path}{ending}" for path in paths]
        _require_all([f for f in files if not os.path.isfile(f)], len(files), f"in {folder}")
        return _read_features(files, starts, block)
    embeddings, own = source.embeddings, source.names
    if own is None:
        raise UserError("the embeddings have no names: give one per row, the list's paths")
    row_of_name = {name.removeprefix("./"): row for row, name in enumerate(own)}
    _require_all([p for p in paths if p not in row_of_name], len(paths), "among the embeddings")
    rows = np.array([row_of_name[path] for path in paths], np.int64)
    return (np.asarray(embeddings[rows[start : start + block]], np.float32) for start in starts)


def read_feature(path: str | os.PathLike[str]) -> np.ndarray:
    """One image's feature, float32 [D]."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    header = np.frombuffer(content[: 4 * _HEADER], "<i4") if len(content) >= 4 * _HEADER else ()
    if len(header) < _HEADER or header[0] < 1 or tuple(header[1:]) != (1, _STRIDE, _FLOAT32):
        raise UserError(
            f"{path} begins with {list(map(int, header))}: expected the header "
            f"(length, 1, {_STRIDE}, {_FLOAT32}) of a feature file"
        )
    expected = 4 * (_HEADER + int(header[0]))
    if len(content) != expected:
        raise UserError(
            f"{path} has {len(content)} bytes, its header promises {expected}: "
            f"{'truncated' if len(content) < expected else 'not a feature file'}"
        )
    feature = np.frombuffer(content, "<f4", offset=4 * _HEADER).astype(np.float32)
    if not np.isfinite(feature).all():
        offset = 4 * (_HEADER + int(np.argmin(np.isfinite(feature))))
        raise UserError(f"{path}: byte {offset} begins a number that is NaN or infinite")
    return feature


def _read_features(files: Sequence[str], starts: range, block: int) -> Iterator[np.ndarray]:
    width = None
    for start in starts:
        rows = []
        for file in files[start : start + block]:
            feature = read_feature(file)
            width = len(feature) if width is None else width
            if len(feature) != width:
                raise UserError(
                    f"{file} is {len(feature)} wide, {files[0]} {width}: expected one model's"
                )
            rows.append(feature)
        yield np.stack(rows)


def _require_all(missing: Sequence[str], count: int, where: str) -> None:
    if missing:
        raise UserError(
            f"{len(missing):,} of {count:,} images have no feature {where}, the first is "
            f"{missing[0]!r}: embed them, or delete them by the noise list"
        )


def _only_ending(image: Path) -> str:
    try:
        files = os.listdir(image.parent)
    except (OSError, ValueError):
        files = []
    endings = [file[len(image.name) :] for file in files if file.startswith(image.name)]
    endings = sorted(ending for ending in endings if ending.endswith(".bin"))
    if len(endings) != 1:
        raise UserError(
            f"{len(endings)} feature files ({', '.join(endings[:3]) or 'none'}) of {str(image)!r}: "
            "expected one model's, named IMAGE_<model>.bin"
        )
    return endings[0]
