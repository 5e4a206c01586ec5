"""IDA-Q's constants, fitted on development faces of known people (`ida_jax.ops.quality`).

    T = ln 10 / (q(10⁻⁴) − q(10⁻³))        q(p): the impostors' cosine at FAR p
    a, b: Huber regression of the genuine cosines on l₁ + l₂, a pair's weight 1/(the images of its
    person)
    σ: 1.4826 times the median absolute residual

In the base form θ_u = T/2 and θ_l = 0. In the fitted one θ_u tilts the faces' distribution of u to
that of the impostor pairs above q(p):

    mean of u₁ + u₂ over the pairs = 2 Σ u e^(θ_u u) / Σ e^(θ_u u)        over the faces

It is the least of those at p = 10⁻², 10⁻³ and 10⁻⁴, from 0 to T/2; θ_l follows from l in the same
way at 10⁻², the faces weighted by e^(θ_u u). Ours, not the paper's.

N faces, A anchors, D embedding, K support, P pairs.
"""

import os
from dataclasses import asdict, dataclass

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.common.validation import require_unit
from ida_jax.metrics.resampling import genuine_rows, impostor_rows
from ida_jax.metrics.roc import accepted_impostors
from ida_jax.rescoring.development import Development, Support, development
from ida_jax.rescoring.log_norms import log_norms
from ida_jax.rescoring.pairs import score_all_pairs

CONSTANTS = ("rate", "density_weight", "norm_weight", "intercept", "slope", "deviation")
FORMS = ("fitted", "base")
_KIND = "quality_fit"
_FARS = (1e-2, 1e-3, 1e-4)
# T's relative error is about 1 / (2.3 √n) with n impostors above q(10⁻⁴): a fifth at the fewest,
# 6 % where there are enough.
_FEWEST_ABOVE, _ENOUGH_ABOVE = 5, 50
# With 10 people the genuine side's line is an accident (experiments/ida_q.py).
FEWEST_PEOPLE = 30
_MOST_ANCHORS = 30_000
_RANGE = (0.001, 0.999)
# 95 % efficient for normal residuals (Huber 1964).
_HUBER, _ROUNDS = 1.345, 50
_MAD = 1.4826


@dataclass(frozen=True)
class QualityFit:
    """Fitted constants of IDA-Q, made by `fit_quality`.

    Attributes:
      rate: T, nats a unit of cosine.
      density_weight: θ_u.
      norm_weight: θ_l.
      intercept: a.
      slope: b.
      deviation: σ.
      lowest: of the development faces' l, the 0.1 % quantile; what is below counts as it.
      highest: the 99.9 % quantile, likewise.
      percentiles: of the development faces' l, the 1st … 99th, ascending.
      k: the support set's size for u.
      width: D.
      anchors: how many anchors it was fitted with.
      anchors_sketch: `AnchorSet.sketch` of them.
      fingerprint: of the model whose embeddings it takes; "" where unknown.
      form: of `FORMS`.
      people: those with a genuine pair.
      genuine: the number of genuine pairs.
      impostor: the number of impostor pairs that T was taken from.
    """

    rate: float
    density_weight: float
    norm_weight: float
    intercept: float
    slope: float
    deviation: float
    lowest: float
    highest: float
    percentiles: tuple[float, ...]
    k: int
    width: int
    anchors: int
    anchors_sketch: str
    fingerprint: str = ""
    form: str = "fitted"
    people: int = 0
    genuine: int = 0
    impostor: int = 0

    @property
    def constants(self) -> tuple[float, ...]:
        """Those of the rule "quality", in its order."""
        return tuple(getattr(self, name) for name in CONSTANTS)

    def clipped(self, log_norms: np.ndarray) -> np.ndarray:
        """l of faces, brought into the development faces' range; NaN stays."""
        return np.clip(log_norms, self.lowest, self.highest)

    def check_anchors(self, anchors: AnchorSet) -> None:
        """Refuses, by UserError, anchors of another model or width, and other anchors."""
        anchors.check_fit(self, "quality fit", "quality")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fit as one safetensors file, whole or not at all."""
        metadata = asdict(self)
        constants = np.array([metadata.pop(name) for name in (*CONSTANTS, "lowest", "highest")])
        percentiles = np.array(metadata.pop("percentiles"))
        tensors = {"constants": constants, "percentiles": percentiles}
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "QualityFit":
        """Reads a saved fit.

        Raises:
          UserError: the file is absent, torn, or not a quality fit.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            percentiles = tuple(np.array(tensors["percentiles"], np.float64).tolist())
            loaded = cls(*np.array(tensors["constants"]).tolist(), percentiles, **metadata)
            require_types(loaded)
            if not min(loaded.rate, loaded.deviation, loaded.k, loaded.width, loaded.anchors) > 0:
                raise ValueError("T, σ, k, the width or the number of anchors is not above 0")
            if not loaded.lowest < loaded.highest or not percentiles:
                raise ValueError("the development faces' norms have no range")
        return loaded


def fit_quality(
    faces: np.ndarray,
    norms: np.ndarray,
    labels: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int = 30,
    form: str = "fitted",
    images_per_identity: int = 10,
    exclude_own: bool = True,
    searcher: str = "auto",
) -> QualityFit:
    """The constants by this module's formulas, over all pairs of the faces.

    Both identities of a pair are left out of its two support sets
    (`ida_jax.rescoring.development`). Where the faces have fewer than 500,000 impostor pairs, too
    few for q(10⁻⁴), those of faces and anchors stand in for them, and the base form is made.

    Args:
      faces: float32 [N, D], unit rows: development faces of the probes' kind, never the probes.
      norms: [N], those of the embeddings as the model gave them.
      labels: int [N], their identities; a negative one is unknown, and its face left out.
      k: the support set's size.
      form: "fitted" or "base".
      images_per_identity: at most this many faces of an identity are taken, the first ones.
      exclude_own: the anchors' labels, where they have any, are in the numbering of `labels`. False
        where the numberings differ: then no person may be in both.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: faces that are not unit-norm, or were normalised; a norm that is zero, negative,
        infinite or NaN, named by row; labels that do not fit; too few
        people with two faces, impostor pairs or anchors; an unknown form.
    """
    if form not in FORMS:
        raise UserError(f"form '{form}' is unknown: choose one of {', '.join(FORMS)}")
    faces = require_unit(faces)
    given = development(
        faces, labels, anchors, images_per_identity=images_per_identity, exclude_own=exclude_own
    )
    log_norm = log_norms(norms, len(faces), method="the quality fit")[given.rows]
    log_norm = log_norm.astype(np.float64)
    faces, labels = faces[given.rows], given.labels
    if not 1 <= k <= given.most_neighbours:
        raise UserError(
            f"k = {k} neighbours were asked for among {len(anchors)} anchors, of which "
            f"{given.most_neighbours} are of other people: lower k, or take more anchors"
        )
    images = np.bincount(labels)
    people = int(np.count_nonzero(images > 1))
    if people < FEWEST_PEOPLE:
        raise UserError(
            f"the development faces show {people} people twice or more often: a quality fit needs "
            f"at least {FEWEST_PEOPLE} such people, better 100; or take ida_q_label_free, which "
            "needs none"
        )
    support = given.support(faces, k, searcher=searcher)
    cosines = score_all_pairs(faces, labels)
    rows = genuine_rows(labels, np.arange(cosines.genuine.size))
    line = huber_line(
        log_norm[rows.first] + log_norm[rows.second],
        cosines.genuine,
        weights=1 / images[labels[rows.first]],
    )
    impostors = cosines.impostor
    if accepted_impostors(_FARS[-1], impostors.size) < _ENOUGH_ABOVE:
        impostors, form = _with_anchors(faces, given), "base"
        if accepted_impostors(_FARS[-1], impostors.size) < _FEWEST_ABOVE:
            raise UserError(
                f"{cosines.impostor.size:,} impostor pairs of the development faces, and "
                f"{impostors.size:,} with the anchors: a quality fit needs at least "
                f"{round(_FEWEST_ABOVE / _FARS[-1]):,}; give more faces of more people"
            )
    high = {far: _at_far(impostors, far) for far in _FARS}
    gap = high[1e-4] - high[1e-3]
    if not (gap > 0 and line[2] > 0):
        raise UserError(
            "the cosines of the development pairs are all alike: expected different images of "
            "different people"
        )
    rate = np.log(10) / gap
    weights = rate / 2, 0.0
    if form == "fitted":
        weights = _tilts(support, log_norm, impostors, high, rate)
    percents = np.arange(1, 100) / 100
    return QualityFit(
        float(rate), *map(float, weights), *map(float, line),
        *np.quantile(log_norm, _RANGE).tolist(), tuple(np.quantile(log_norm, percents).tolist()),
        k=k, width=anchors.width, anchors=len(anchors), anchors_sketch=anchors.sketch,
        fingerprint=anchors.fingerprint, form=form, people=people,
        genuine=cosines.genuine.size, impostor=impostors.size,
    )  # fmt: skip


def huber_line(x: np.ndarray, y: np.ndarray, *, weights: np.ndarray) -> tuple[float, float, float]:
    """(a, b, σ) of y = a + b x, by reweighted least squares with Huber's weights, in float64.

    Args:
      x, y, weights: [P].

    Returns:
      σ is 1.4826 times the median absolute residual, 0 where the residuals are.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    robust = np.ones_like(y)
    for _ in range(_ROUNDS):
        w = weights * robust
        total = w.sum()
        x_mean, y_mean = w @ x / total, w @ y / total
        spread = w @ (x - x_mean) ** 2
        slope = w @ ((x - x_mean) * (y - y_mean)) / spread if spread > 0 else 0.0
        intercept = y_mean - slope * x_mean
        residual = np.abs(y - intercept - slope * x)
        deviation = _MAD * np.median(residual)
        robust = _HUBER * deviation / np.maximum(residual, max(_HUBER * deviation, 1e-30))
        if not deviation > 0:
            break
    return intercept, slope, deviation


def tilt(
    values: np.ndarray, target: float, *, bounds: tuple[float, float], log_weights: np.ndarray
) -> float:
    """θ with 2 Σ v e^(θ v + w) / Σ e^(θ v + w) = target, or the nearer bound.

    Args:
      values: float64 [N], v.
      target: the mean of v₁ + v₂ over the pairs.
      bounds: of θ.
      log_weights: float64 [N], w.
    """
    from scipy.optimize import brentq

    def excess(theta: float) -> float:
        exponent = theta * values + log_weights
        weights = np.exp(exponent - exponent.max())
        return 2 * float(weights @ values) / float(weights.sum()) - target

    low, high = bounds
    if excess(low) >= 0:
        return low
    return high if excess(high) <= 0 else brentq(excess, low, high, xtol=1e-6)


def _tilts(
    support: Support,
    log_norm: np.ndarray,
    impostors: np.ndarray,
    high: dict[float, float],
    rate: float,
) -> tuple[float, float]:
    """θ_u and θ_l."""
    u = support.similarities[:, : support.k].mean(axis=1, dtype=np.float64)
    flat = np.zeros_like(u)
    found = []
    for threshold in high.values():
        first, second = impostor_rows(support.labels, np.flatnonzero(impostors > threshold))
        crowding = support.without(first, second).mean(axis=1, dtype=np.float64)
        crowding += support.without(second, first).mean(axis=1, dtype=np.float64)
        found.append(tilt(u, crowding.mean(), bounds=(0, rate / 2), log_weights=flat))
    density_weight = min(found)
    first, second = impostor_rows(support.labels, np.flatnonzero(impostors > high[_FARS[0]]))
    norm_weight = tilt(
        log_norm,
        np.mean(log_norm[first] + log_norm[second]),
        bounds=(-rate, rate),
        log_weights=density_weight * u,
    )
    return density_weight, norm_weight


def _with_anchors(faces: np.ndarray, given: Development) -> np.ndarray:
    """The cosines of faces, a thousand at most, and anchors of other people, float32 [P]."""
    anchors = given.anchors
    rows = np.linspace(0, len(anchors) - 1, min(len(anchors), _MOST_ANCHORS)).astype(int)
    cosines = faces @ np.asarray(anchors.embeddings[rows]).T
    if given.own:
        return cosines[given.labels[:, None] != anchors.labels[None, rows]]
    return cosines.reshape(-1)


def _at_far(impostors: np.ndarray, far: float) -> float:
    """The threshold at a FAR: the highest impostor that is not accepted."""
    place = impostors.size - 1 - accepted_impostors(far, impostors.size)
    return float(np.partition(impostors, place)[place])
