"""LFW's faces, clean and degraded, by the given MobileFaceNet: embeddings and PFE's log-variances.

Kept in a cache. `experiments/degraded_anchors.py` scores them. N faces, D embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ida_jax.artefacts.face_model import FaceModel
from ida_jax.artefacts.uncertainty_model import UncertaintyModel
from ida_jax.common.parts import Parts
from ida_jax.data.dataset import LazyImages
from ida_jax.data.degrade import blur, degradation, degraded, degraded_rows, jpeg, low_resolution
from ida_jax.data.lfw_crops import load_lfw, read_split
from ida_jax.interop.weights import import_model

IMAGES = 10
_PART = 512
_PROBES_SEED, _MIXED_SEED, _OTHERS_SEED, _ANCHORS_SEED = 1, 3, 102, 1


class People(NamedTuple):
    """LFW's faces, at most 10 images per person.

    Attributes:
      numbers: int64 [N], rows of LFW's whole list, by name.
      labels: int32 [N], identities.
      is_eval: bool [N], of the split's eval half.
      is_first: bool [N], a person's first image.
      is_mixed: bool [N], about half of the faces, those degraded among mixed probes.
      has_copy: bool [N], about half of the faces, those that have a copy at a share of 0.5.
    """

    numbers: np.ndarray
    labels: np.ndarray
    is_eval: np.ndarray
    is_first: np.ndarray
    is_mixed: np.ndarray
    has_copy: np.ndarray


def people(data_dir: Path) -> People:
    """Whose faces the rows of `embedded` are."""
    faces = load_lfw(data_dir / "lfw")
    place = np.array([int(name.rsplit("_", 1)[1]) for name in faces.names])
    rows = np.flatnonzero(place <= IMAGES)
    roles = read_split(data_dir / "lfw" / "split.csv")
    role = np.array([roles[person] for person in faces.identities])[faces.labels]
    mixed = np.random.default_rng(_MIXED_SEED).random(len(place)) < 0.5
    half = degradation("varied", seed=_ANCHORS_SEED)
    return People(
        rows,
        faces.labels[rows],
        role[rows] == "eval",
        place[rows] == 1,
        mixed[rows],
        degraded_rows(half, rows),
    )


def _probe(image: np.ndarray, number: int) -> np.ndarray:
    """One of a blur of 1 to 3 pixels, 20 to 48 pixels a side and JPEG of quality 5 to 25."""
    rng = np.random.default_rng([_PROBES_SEED, number])
    match rng.integers(3):
        case 0:
            return blur(image, rng.uniform(1, 3), rng)
        case 1:
            return low_resolution(image, rng.uniform(20, 48), rng)
        case _:
            return jpeg(image, rng.uniform(5, 25), rng)


# {name: (the degradation by the library's words, its seed, the copy's number, the rows)}. Probes by
# `_probe`, whose amounts and seeds are not those of the anchors; the other probes' kinds are not
# among those of the anchors "of the probes' kinds".
KINDS_OF_PROBES, OTHER_KINDS = "blur,low_resolution,jpeg", "low_light,motion_blur,noise"
SETS = {
    "probes": ("", _PROBES_SEED, 0, lambda own: np.ones(len(own.numbers), bool)),
    "varied": ("varied", _ANCHORS_SEED, 0, lambda own: own.is_first),
    "other probes": (OTHER_KINDS, _OTHERS_SEED, 0, lambda own: own.is_eval & own.is_mixed),
    "probes' kinds": (KINDS_OF_PROBES, _ANCHORS_SEED, 0, lambda own: own.is_first & own.has_copy),
    "second copy": ("varied", _ANCHORS_SEED, 1, lambda own: own.is_first & own.has_copy),
    "medium": ("medium", _ANCHORS_SEED, 0, lambda own: own.is_first & own.has_copy),
}


def given_model(data_dir: Path) -> FaceModel:
    """The given MobileFaceNet."""
    return import_model(data_dir / "weights" / "mobilefacenet.npz")


def embedded(data_dir: Path, cache: Path, name: str) -> np.ndarray:
    """Raw embeddings float32 [N, D] of `people`'s rows in a set of `SETS`; NaN for other rows."""
    rows = np.flatnonzero(SETS[name][-1](people(data_dir)))
    return _made(data_dir, cache, name, rows, given_model(data_dir).raw_embeddings)


def log_variances(
    data_dir: Path, cache: Path, name: str, uncertainty: UncertaintyModel, wanted: np.ndarray
) -> np.ndarray:
    """log σ² float32 [N, D] of some of `people`'s rows in a set; NaN for other rows.

    Args:
      cache: of this uncertainty module.
      name: of `SETS`, or "clean".
      wanted: bool [N].
    """
    model = given_model(data_dir)

    def of(images: LazyImages) -> np.ndarray:
        return uncertainty.raw_embeddings(model, images)[1]

    return _made(data_dir, cache, name, np.flatnonzero(wanted), of)


def _made(
    data_dir: Path,
    cache: Path,
    name: str,
    rows: np.ndarray,
    of: Callable[[LazyImages], np.ndarray],
) -> np.ndarray:
    """What `of` makes of the images of some rows, [N, D], in parts, which are kept."""
    own, image = people(data_dir), _images(data_dir, name)
    folder = cache / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)

    def part(some: range) -> np.ndarray:
        numbers = own.numbers[rows[some.start : some.stop]].tolist()
        return of(LazyImages(len(numbers), lambda at: image(numbers[at])))

    width = given_model(data_dir).width
    whole = np.full((len(own.numbers), width), np.nan, np.float32)
    whole[rows] = Parts(folder, len(rows), _PART).whole(part, (width,))
    return whole


def _images(data_dir: Path, name: str) -> Callable[[int], np.ndarray]:
    """The image of a row of LFW's whole list in a set."""
    images = load_lfw(data_dir / "lfw").images
    if name == "clean":
        return lambda number: images[number]
    spec, seed, copy, _ = SETS[name]
    how = degradation(spec, seed=seed)
    if how is None:
        return lambda number: _probe(images[number], number)
    return lambda number: degraded(images[number], how, number=number, copy=copy)
