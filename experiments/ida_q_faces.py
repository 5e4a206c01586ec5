"""LFW's halves by the models that `ida_q.py` compares: their unit rows, norms and identities.

Embeddings of changed images, or by changed weights, are kept in CACHE.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from lfw_faces import HALVES, LfwFaces, lfw_embeddings, lfw_faces

from ida_jax.common.validation import unit_rows
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.interop.weights import import_model

IMAGES, PERTURBED = 10, 0.15
GIVEN, DEGRADED = "MobileFaceNet", "half degraded"
HALVED = "64 dimensions"
MODELS = (GIVEN, "56 pixels", HALVED, "24 pixels", "perturbed weights")


class Faces(NamedTuple):
    """Unit rows float32 [N, D], the norms that they had [N], identities from 0 [N]."""

    rows: np.ndarray
    norms: np.ndarray
    labels: np.ndarray


def _small(image: np.ndarray, side: int) -> np.ndarray:
    import cv2

    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def _degraded(image: np.ndarray, row: int) -> np.ndarray:
    import cv2

    rng = np.random.default_rng([7, row])
    match rng.integers(3):
        case 0:
            return cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 3))
        case 1:
            return _small(image, int(rng.integers(20, 49)))
        case _:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(5, 26))]
            return cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)


CHANGES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "56 pixels": lambda image, _: _small(image, 56),
    "24 pixels": lambda image, _: _small(image, 24),
    "perturbed weights": lambda image, _: image,
    DEGRADED: _degraded,
}


class _Changed:
    """The images of some rows, changed one by one."""

    def __init__(self, images: Any, rows: np.ndarray, name: str) -> None:
        self._images, self._rows, self._name = images, rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        row = int(self._rows[index])
        return CHANGES[self._name](self._images[row], row)


def _perturbed(model: Any) -> Any:
    rng = np.random.default_rng(0)

    def changed(weight: Any) -> np.ndarray:
        weight = np.asarray(weight)
        if weight.ndim < 2:
            return weight
        return (weight * (1 + PERTURBED * rng.standard_normal(weight.shape))).astype(weight.dtype)

    params = jax.tree.map(changed, model.variables["params"])
    return replace(model, variables={**model.variables, "params": params})


def _raw(name: str, lfw: LfwFaces, options: Any) -> np.ndarray:
    """Raw embeddings, float32 [13233, D]; rows that are not evaluated may be 0."""
    if name in (GIVEN, HALVED):
        raw = lfw_embeddings(options.data_dir / "lfw")
        return raw[:, : raw.shape[1] // 2] if name == HALVED else raw
    options.cache.mkdir(parents=True, exist_ok=True)
    path = options.cache / f"{name}.npy"
    if not path.is_file():
        model = import_model(options.data_dir / "weights" / "mobilefacenet.npz")
        if name == "perturbed weights":
            model = _perturbed(model)
        faces = load_lfw(options.data_dir / "lfw")
        assert list(faces.names) == lfw.names
        rows = np.flatnonzero(lfw.number <= IMAGES)
        found = model.raw_embeddings(_Changed(faces.images, rows, name), progress=name)
        raw = np.zeros((len(lfw.names), found.shape[1]), np.float32)
        raw[rows] = found
        np.save(path, raw)
    return np.load(path)


def halves_by_model(options: Any, *names: str) -> dict[str, list[Faces]]:
    """{half: its faces by each model}."""
    lfw = lfw_faces(options.data_dir / "lfw")
    raws = [_raw(name, lfw, options) for name in names]
    halves = {}
    for half in HALVES:
        kept = lfw.rows(half, images=IMAGES)
        _, own = np.unique(lfw.labels[kept], return_inverse=True)
        halves[half] = []
        for raw in raws:
            rows, _, norms = unit_rows(raw[kept])
            halves[half].append(Faces(rows, norms, own.astype(np.int32)))
    return halves
