"""The anchor sets of `experiments/safe_anchors.py`: right ones, other domains, spoilt, mixtures.

N faces, A anchors, D embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from lfw_faces import LfwFaces
from scipy import ndimage

from ida_jax.common.validation import unit_embeddings
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.data.rendered import rendered_faces
from ida_jax.interop.weights import import_model


def _low_resolution(images: np.ndarray, size: int) -> np.ndarray:
    n, *_, side, colours = images.shape
    small = jax.image.resize(images.astype(np.float32), (n, size, size, colours), "linear")
    back = jax.image.resize(small, (n, side, side, colours), "linear")
    return np.asarray(back).round().clip(0, 255).astype(np.uint8)


def _zoomed_out(images: np.ndarray) -> np.ndarray:
    """The face at 85 % of its size, as another alignment template has it."""
    return np.stack(
        [
            ndimage.affine_transform(
                x, (1 / 0.85, 1 / 0.85, 1), (-9.8, -9.8, 0), order=1, mode="nearest"
            )
            for x in images
        ]
    )


def _noisy(images: np.ndarray, rng: np.random.Generator, sigma: float = 60) -> np.ndarray:
    return (images + rng.normal(0, sigma, images.shape)).round().clip(0, 255).astype(np.uint8)


class Anchors(NamedTuple):
    """Unit rows float32 [A, D] and identities int32 [A], negative where nobody's."""

    rows: np.ndarray
    labels: np.ndarray


SPOILT: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blurred, sigma 1": lambda x, _: ndimage.gaussian_filter(x, (0, 1, 1, 0)),
    "zoomed out to 85 %": lambda x, _: _zoomed_out(x),
    "40 pixels": lambda x, _: _low_resolution(x, 40),
    "noisy, sigma 15": lambda x, rng: _noisy(x, rng, 15),
    "grey": lambda x, _: np.broadcast_to(x.mean(-1, keepdims=True), x.shape).astype(np.uint8),
    "blurred, sigma 2": lambda x, _: ndimage.gaussian_filter(x, (0, 2, 2, 0)),
    "blurred, sigma 5": lambda x, _: ndimage.gaussian_filter(x, (0, 5, 5, 0)),
    "upside down": lambda x, _: x[:, ::-1],
}


def spoilt_embeddings(
    data_dir: Path, cache: Path, faces: LfwFaces
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of every tenth person's first image, and {name: raw embeddings} of them spoilt."""
    rows = np.unique(faces.labels, return_index=True)[1][::5]
    cache.mkdir(parents=True, exist_ok=True)
    made: dict[str, np.ndarray] = {}
    model = images = None
    for name in (*SPOILT, "rendered"):
        path = cache / f"{name}.npy"
        if not path.is_file():
            if model is None:
                model = import_model(data_dir / "weights" / "mobilefacenet.npz")
                stored = load_lfw(data_dir / "lfw").images
                images = np.stack([stored[row] for row in rows])
            if name == "rendered":
                drawn = rendered_faces(identities=600, images_per_identity=1, image_size=112)
                changed = drawn.images
            else:
                rng, parts = np.random.default_rng(0), np.array_split(images, 9)
                changed = np.concatenate([SPOILT[name](part, rng) for part in parts])
            np.save(path, model.raw_embeddings(np.ascontiguousarray(changed), progress=name))
        made[name] = np.load(path)
    return rows, made


def anchor_sets(
    embeddings: np.ndarray,
    faces: LfwFaces,
    half: str,
    spoilt: dict[str, np.ndarray],
    rows: np.ndarray,
) -> dict[str, Anchors]:
    """The right domain (names that start with "right"), other ones, and mixtures.

    Args:
      embeddings: float32 [N, D], not normalised.
      half: that the anchors are of.
      spoilt: raw embeddings of spoilt images, of which `rows` are the originals.
    """
    rng = np.random.default_rng(0)
    given = np.abs(embeddings).max(axis=1) > 0
    mine = faces.rows(half) & given
    first = np.flatnonzero(mine & (faces.number == 1))
    order = rng.permutation(first)
    images = np.bincount(
        faces.labels[mine & (faces.number <= 20)], minlength=faces.labels.max() + 1
    )[faces.labels]
    x = np.zeros_like(embeddings)
    x[given] = unit_embeddings(embeddings[given])

    def part(chosen: np.ndarray) -> Anchors:
        return Anchors(x[chosen], faces.labels[chosen])

    def nobody(vectors: np.ndarray) -> Anchors:
        return Anchors(
            unit_embeddings(vectors.astype(np.float32)), np.full(len(vectors), -1, np.int32)
        )

    sets = {"right": part(first)}
    sets |= {f"right, {n} of them": part(order[:n]) for n in (1000, 300, 100, 50, 20)}
    for n in (4, 8):
        many = np.flatnonzero(mine & (images >= n) & (faces.number <= 20))
        sets[f"people of at least {n} images, all"] = part(many)
        sets[f"people of at least {n} images, one each"] = part(first[images[first] >= n])
    norms = np.argsort(np.linalg.norm(embeddings[first], axis=1))
    third = len(first) // 3
    sets |= {
        "the lowest third of norms": part(first[norms[:third]]),
        "the highest third of norms": part(first[norms[-third:]]),
    }
    centred = x[first] - x[first].mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2]
    for number in (0, 1, 2):
        side = centred @ directions[number]
        for sign, word in ((1, "along"), (-1, "against")):
            odds = np.exp(sign * side / side.std())
            chosen = rng.choice(first, third, replace=False, p=odds / odds.sum())
            sets[f"tilted {word} direction {number + 1}"] = part(chosen)
    side = np.argsort(centred @ directions[0])
    sets |= {
        "half, by a principal direction": part(first[side[: len(side) // 2]]),
        "the other half": part(first[side[len(side) // 2 :]]),
        "a tenth, by a principal direction": part(first[side[: len(side) // 10]]),
    }
    central = np.argsort(x[first] @ x[first].mean(axis=0))
    sets |= {
        "the outer third": part(first[central[:third]]),
        "the central third": part(first[central[-third:]]),
    }
    random = rng.normal(size=(len(first), x.shape[1]))
    rotation = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]
    sets |= {
        "random directions": nobody(random),
        "random directions, 100": nobody(random[:100]),
        "another space (rotated)": nobody(x[first] @ rotation),
        "another space (negated)": nobody(-x[first]),
    }
    own = faces.half[rows] == half
    for name, vectors in spoilt.items():
        if name == "rendered":
            sets[name] = nobody(vectors)
        else:
            sets[name] = Anchors(unit_embeddings(vectors[own]), faces.labels[rows[own]])
    half_right = part(order[: max(len(first) // 10, 1)])
    mixed = ("random directions", *(each for each in MIXED if each in sets))
    for name in mixed:
        sets[f"half right, half {name}"] = _joined(half_right, sets[name])
    if "blurred, sigma 5" in sets:
        both = _joined(sets["random directions"], sets["blurred, sigma 5"])
        sets["half random, half blurred, sigma 5"] = both
    return sets | _fresh_sets(x, first, images, centred, directions, faces.labels)


def _fresh_sets(
    x: np.ndarray,
    first: np.ndarray,
    images: np.ndarray,
    centred: np.ndarray,
    directions: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Anchors]:
    """Sets that nothing was chosen with.

    Args:
      x: float32 [N, D], unit rows.
      first: int [A], the rows of the right anchors.
      images: int [N], how many images the row's person has.
      centred: float32 [A, D], the right anchors less their mean.
      directions: [D, D], their principal directions.
      labels: int32 [N].
    """
    rng = np.random.default_rng(29)

    def part(chosen: np.ndarray) -> Anchors:
        return Anchors(x[chosen], labels[chosen])

    sets = {f"right, another {n}": part(rng.permutation(first)[:n]) for n in (2000, 700, 250)}
    for number in (7, 9):
        side = centred @ directions[number]
        for sign, word in ((1, "along"), (-1, "against")):
            odds = np.exp(1.5 * sign * side / side.std())
            chosen = rng.choice(first, len(first) // 3, replace=False, p=odds / odds.sum())
            sets[f"tilted {word} direction {number + 1}"] = part(chosen)
    near = np.argmax(centred @ centred[rng.choice(len(first), 8, replace=False)].T, axis=1)
    sets["two clusters of eight"] = part(first[near < 2])
    sets["six clusters of eight"] = part(first[near >= 2])
    side = np.argsort(centred @ directions[7])
    narrow = part(first[side[-len(side) // 6 :]])
    sets["a sixth, by direction 8"] = narrow
    sets["half right, half that sixth"] = _joined(part(rng.permutation(first)[:600]), narrow)
    few = part(first[images[first] >= 5])
    sets["half right, half people of at least 5 images"] = _joined(
        part(rng.permutation(first)[:600]), few
    )
    return sets


MIXED = ("blurred, sigma 1", "zoomed out to 85 %", "40 pixels", "blurred, sigma 5", "rendered")


def _joined(first: Anchors, second: Anchors) -> Anchors:
    count = min(len(first.rows), len(second.rows))
    return Anchors(
        *(np.concatenate([a[:count], b[:count]]) for a, b in zip(first, second, strict=True))
    )
