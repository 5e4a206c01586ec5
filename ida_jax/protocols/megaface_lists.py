"""MegaFace's lists: the development kit's, and noise lists.

    LIST          {"path": [...]} of distractors; FaceScrub's has "id": [...] too
    noises.txt    a path a line, or a file name alone (FaceScrub's); # begins a comment

N images, D embedding.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.metrics.distractors import SIZES, prefix_sets
from ida_jax.protocols.megaface_features import feature_blocks
from ida_jax.tables.blocks import one_line
from ida_jax.tables.embeddings import EmbeddingFile
from ida_jax.tables.text import text_lines


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
      images: what is left, of the same identities.
      kept: int64, their places in the whole list.
      unknown: noise names that are not in the list.
    """

    images: ImageList
    kept: np.ndarray
    unknown: tuple[str, ...]


class Lists(NamedTuple):
    """The files that say what is searched for, among what.

    Attributes:
      facescrub: the probes' list.
      megaface: the distractors'.
      facescrub_noises: noisy images, which are deleted; None deletes nothing.
      megaface_noises: the same of the distractors.
    """

    facescrub: Path
    megaface: Path
    facescrub_noises: Path | None = None
    megaface_noises: Path | None = None


class Megaface(NamedTuple):
    """All that the evaluation takes.

    Attributes:
      probes: float32 [F, D], rows of any norm.
      labels: int32 [F], their identities.
      distractors: float32 blocks [n, D], read as they are taken, once.
      sets: {size: the distractors' rows}.
      notes: what a reader of the figures must know of the lists.
    """

    probes: np.ndarray
    labels: np.ndarray
    distractors: Iterator[np.ndarray]
    sets: dict[int, np.ndarray]
    notes: tuple[str, ...]


def find_lists(folder: str | os.PathLike[str]) -> Lists:
    """The lists of a folder by the names that they are handed round under.

    facescrub_features_list.json (or the uncropped one), the megaface_features_list.json_N_1 of the
    largest N, and facescrub_noises.txt and megaface_noises.txt where they are.

    Raises:
      UserError: the folder lacks one of the first two.
    """
    folder = Path(folder)
    names = ("facescrub_features_list.json", "facescrub_uncropped_features_list.json")
    probes = next((folder / name for name in names if (folder / name).is_file()), None)
    found = {
        int(path.name.rsplit("_", 2)[1]): path
        for path in folder.glob("megaface_features_list.json_*_1")
        if path.name.rsplit("_", 2)[1].isdecimal()
    }
    if probes is None or not found:
        missing = names[0] if probes is None else "megaface_features_list.json_N_1"
        raise UserError(f"{folder} lacks {missing}: put MegaFace's development kit's lists there")
    noises = (folder / name for name in ("facescrub_noises.txt", "megaface_noises.txt"))
    return Lists(probes, found[max(found)], *(path if path.is_file() else None for path in noises))


def load_megaface(
    lists: Lists,
    *,
    facescrub: str | os.PathLike[str] | EmbeddingFile,
    megaface: str | os.PathLike[str] | EmbeddingFile,
    sizes: Sequence[int] | None = None,
) -> Megaface:
    """Probes in memory, distractors as blocks that are read when taken.

    Args:
      lists: the files; a size is the first so many of the distractors' list, noisy ones deleted.
      facescrub: the probes' features, as `feature_blocks` takes them.
      megaface: the distractors'.
      sizes: numbers of distractors; those of 10, 100, … 10⁶ that the list has if None.

    Raises:
      UserError: files that are absent or damaged; images without a feature; sizes larger than the
        list.
    """
    probes, distractors = read_image_list(lists.facescrub), read_image_list(lists.megaface)
    if probes.labels is None:
        raise UserError(f'{lists.facescrub} has no "id": expected the list of FaceScrub\'s probes')
    listed = len(distractors.paths)
    sizes = [size for size in SIZES if size <= listed] if sizes is None else sizes
    if not sizes or max(sizes) > listed:
        raise UserError(
            f"{max(sizes, default=SIZES[0]):,} distractors were asked for, {lists.megaface} lists "
            f"{listed:,}: take fewer, or a larger list"
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
    """Reads a list of the development kit, of either kind.

    Raises:
      UserError: no such file, or none of that form; a path that comes twice.
    """
    path = Path(path)
    require_file(path, what="MegaFace list")
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a whole JSON file: {one_line(error)}") from error
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
    """Reads the names of noisy images: lines without comments, the last of tab-separated fields.

    Raises:
      UserError: no such file, or not UTF-8 text.
    """
    lines = text_lines(Path(path), what="noise list")
    names = (line.split("\t")[-1].strip() for line in lines if not line.startswith("#"))
    return tuple(name for name in names if name)


def without_noise(images: ImageList, noises: Sequence[str]) -> Cleaned:
    """Leaves out the images of a noise list.

    A name without a folder stands for the file of that name in any folder. Suffixes are passed over
    and a blank is an underscore, in which lists of crops and of whole images differ.
    """
    keys = [_key(name) for name in images.paths]
    by_file: dict[str, list[str]] = {}
    for key in keys:
        by_file.setdefault(key.rsplit("/", 1)[-1], []).append(key)
    present, noisy, unknown = set(keys), set(), []
    for name in noises:
        key = _key(name)
        found = by_file.get(key, []) if "/" not in key else [key] if key in present else []
        noisy.update(found)
        if not found:
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


def _strings(path: Path, content: object, key: str) -> list[str]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise UserError(f'{path}: expected a JSON object with a list "{key}" that is not empty')
    for place, value in enumerate(found):
        if not isinstance(value, str) or not value:
            raise UserError(f'{path}: "{key}" entry {place} is {value!r:.40}, expected a name')
    return found


def _key(path: str) -> str:
    return os.path.splitext(path.removeprefix("./"))[0].replace(" ", "_")
