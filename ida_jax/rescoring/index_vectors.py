"""Gallery faces and probes as the vectors of an index that ranks by inner product.

    ŝ = scale(q) · ⟨v(g), u(q)⟩ + offset(q) ≥ s

for the score s of any method whose rule has an index form (`ida_jax.rescoring.index_forms`), with
equality but for DAO. `ida_jax.rescoring.certificate` makes exact results of an index' candidates.

A gallery vector is its unit embedding, J times where the rule says so, and a few extra coordinates:
the enrolled face's numbers, less their mean and over their largest distance from it, and, for DAO,
the square of the first. These then lie in −1 … 1 and are stretched to the length of an embedding's
largest coordinates, so that they neither govern how an index parts the space, nor vanish between a
quantiser's steps. For DAO the first D coordinates are the embedding as it is.

G gallery faces, M probes, D embedding, S values of a face, W width of the vectors.
"""

from typing import NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_unit
from ida_jax.rescoring.index_forms import EnrolledPart, IndexForm, tangent
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.tables.score_origin import ScoreOrigin, differences

_BLOCK = 8192
# Times D^−½, the mean coordinate of a unit vector: where the largest of its coordinates lie.
_STRETCH = 3.0
# Faces enrolled later may exceed the first ones' scales and numbers by this factor.
_ROOM = 2.0
# The squared length of vectors made equally long, over that of the longest one.
_HEADROOM = 1.1
# float32's, relative.
_ROUNDING = 2.0**-24


class IndexSpace(NamedTuple):
    """What the coordinates of an index' vectors mean: kept beside the index, as JSON (`_asdict`).

    Attributes:
      rule: of `ida_jax.rescoring.terms`.
      constants: the rule's.
      width: D.
      scales: [J], the largest scale of each copy of the embedding, by which it is divided.
      means: [U], of each number over the gallery.
      spreads: [U], its largest distance from that mean.
      variances: [U], its variance.
      length: of all vectors, where a last coordinate makes them equally long; 0 without.
      origin: `ScoreOrigin.to_json` of the scorer that made it; {} where unknown.
    """

    rule: str
    constants: tuple[float, ...]
    width: int
    scales: tuple[float, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    variances: tuple[float, ...]
    length: float = 0.0
    origin: dict = {}  # noqa: RUF012 - never written to

    @property
    def curved(self) -> bool:
        """Whether the first number's square is a coordinate."""
        return index_form(self.rule).curved

    @property
    def dimensions(self) -> int:
        """W."""
        extra = len(self.means) + self.curved + (self.length > 0)
        return len(self.scales) * self.width + extra


class IndexVectors(NamedTuple):
    """What is put in an index.

    Attributes:
      vectors: float32 [G, W].
      space: what a probe's `query_vectors`, and faces enrolled later, need.
    """

    vectors: np.ndarray
    space: IndexSpace


class Queries(NamedTuple):
    """What an index is asked with, and what makes scores of its inner products.

    Attributes:
      vectors: float32 [M, W].
      scale: float64 [M]; ŝ = scale · ⟨v, u⟩ + offset.
      offset: float64 [M].
      error: float64 [M], how far a ŝ that is computed in float32 may lie from its true value.
      faces: float32 [M, D], the probes' unit embeddings.
      terms: the method's numbers of them.
      space: of the index.
    """

    vectors: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    faces: np.ndarray
    terms: FaceTerms
    space: IndexSpace

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: np.ndarray | slice) -> "Queries":
        """Those of some probes."""
        of = (array[rows] for array in self[:5])
        return Queries(*of, self.terms._replace(values=self.terms.values[rows]), self.space)

    def radius(self, threshold: float, *, error: float = 0.0) -> np.ndarray:
        """The inner product from which on an index must return faces, float32 [M].

        Every face with s ≥ threshold has a larger one.

        Args:
          threshold: of the score.
          error: as in `ida_jax.rescoring.certificate.certified_top_k`.
        """
        least = (threshold - self.offset - self.error - error) / self.scale
        return np.nextafter(least.astype(np.float32), np.float32(-np.inf))


def index_form(rule: str, method: str = "") -> IndexForm:
    """The rule's index form.

    Raises:
      UserError: it has none.
    """
    form = RULES[rule].index
    if form is None:
        raise UserError(
            f"{method or rule} scores are not the inner product of two vectors, nor bounded by "
            "one: search with Rescorer.identify, or take another method"
        )
    return form


def index_space(
    terms: FaceTerms, width: int, *, equal_lengths: bool = False, origin: dict | None = None
) -> IndexSpace:
    """The coordinates that suit these gallery faces.

    Args:
      terms: the method's numbers of them.
      width: D.
      equal_lengths: makes all vectors equally long by one more coordinate, for a store that ranks
        by the Euclidean distance or by the cosine alone: then these rank as the inner product.
      origin: see `IndexSpace`.

    Raises:
      UserError: a rule without an index form, no faces, numbers that are not finite.
    """
    part = _part(terms)
    if not len(part.numbers):
        raise UserError("the gallery has no faces: an index' coordinates are set by some")
    scales = np.max(part.scales, axis=0)
    means = np.mean(part.numbers, axis=0)
    away = part.numbers - means
    spreads = np.max(np.abs(away), axis=0)
    spreads = np.where(spreads > 0, spreads, 1.0)
    space = IndexSpace(
        terms.rule,
        tuple(np.asarray(terms.constants, np.float64).tolist()),
        width,
        *(tuple(each.tolist()) for each in (scales, means, spreads, np.mean(away**2, axis=0))),
        origin=origin or {},
    )
    if equal_lengths:
        extras = _extras(part, space)
        squares = np.sum((part.scales / scales) ** 2, axis=1) + np.sum(extras**2, axis=1)
        space = space._replace(length=float(np.sqrt(_HEADROOM * np.max(squares))))
    return space


def index_vectors(faces: np.ndarray, terms: FaceTerms, space: IndexSpace) -> np.ndarray:
    """v of gallery faces, float32 [G, W].

    Args:
      faces: float32 [G, D], unit rows; they may be memory-mapped.
      terms: the method's numbers of them.
      space: of `index_space`, of these faces or of those that the index was made with.

    Raises:
      UserError: another rule, constants or width than the space's; rows that are not unit-norm, or
        whose numbers are not finite or far outside those that the space was made for, by row.
    """
    _check(faces, terms, space, what="gallery")
    part = _part(terms)
    extras = _extras(part, space)
    scales = part.scales / space.scales
    limits = np.full(extras.shape[1], _ROOM)
    if space.curved:
        limits[-1] = _ROOM**2
    outside = np.any(np.abs(extras) > limits * _stretch(space), axis=1)
    outside |= np.any(scales > _ROOM, axis=1)
    if outside.any():
        raise UserError(
            f"gallery: the {terms.rule} numbers of row {np.argmax(outside)} are far outside those "
            "of the faces that the index was made with: make the index anew with all faces"
        )
    copies, width = len(space.scales), space.width
    out = np.empty((len(faces), space.dimensions), np.float32)
    for start in range(0, len(faces), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = require_unit(np.asarray(faces[rows]), what="gallery").astype(np.float64)
        for j in range(copies):
            out[rows, j * width : (j + 1) * width] = scales[rows, j, None] * block
    out[:, copies * width : copies * width + extras.shape[1]] = extras
    if space.length:
        rest = space.length**2 - np.sum(scales**2, axis=1) - np.sum(extras**2, axis=1)
        if np.min(rest, initial=0) < 0:
            raise UserError(
                f"gallery: the vector of row {np.argmin(rest)} is longer than all of the index "
                "are made: make the index anew with all faces"
            )
        out[:, -1] = np.sqrt(rest)
    return out


def query_vectors(faces: np.ndarray, terms: FaceTerms, space: IndexSpace) -> Queries:
    """u of probes, and what makes scores of the index' inner products.

    Args:
      faces: float32 [M, D], unit rows.
      terms: the method's numbers of them.
      space: of the index.

    Raises:
      UserError: another rule, constants or width than the space's; bad rows, named.
    """
    _check(faces, terms, space, what="probes")
    faces = require_unit(faces, what="probes")
    part = index_form(terms.rule).probe(*in_float64(terms, what="probes"))
    weights = part.weights * space.spreads
    offset = part.offset + part.weights @ np.asarray(space.means)
    if space.curved:
        constant, linear, square = tangent(part.level, space.means[0], space.variances[0])
        spread, offset = space.spreads[0], offset + constant
        weights[:, 0] += linear * spread
        weights = np.concatenate([weights, square[:, None] * spread**2], axis=1)
    extras = weights / _stretch(space)
    scales = part.scales * space.scales
    # A bound on Σ |v_i u_i|, by Cauchy and Schwarz for the copies of the embedding.
    reach = np.full(weights.shape[1], _ROOM)
    if space.curved:
        reach[-1] = _ROOM**2
    products = _ROOM * np.sum(np.abs(scales), axis=1) + np.abs(weights) @ reach
    scale = np.ones(len(faces))
    if space.length:
        squares = np.einsum("md,md->m", faces, faces, dtype=np.float64)
        squares = squares * np.sum(scales**2, axis=1) + np.sum(extras**2, axis=1)
        scale = np.sqrt(squares) / space.length
        # ½ (|v|² + |u|² + 2 |v| |u|), where distances are computed.
        products = 2 * scale * space.length**2
    vectors = np.zeros((len(faces), space.dimensions), np.float32)
    copies, width = scales.shape[1], space.width
    for j in range(copies):
        # In float64, rounded as they are written.
        own = vectors[:, j * width : (j + 1) * width]
        np.multiply(faces, (scales[:, j] / scale)[:, None], out=own, casting="same_kind")
    end = copies * width + extras.shape[1]
    vectors[:, copies * width : end] = extras / scale[:, None]
    # Each product is of two rounded numbers; their sum in any order, and the store's own scaling.
    error = (space.dimensions + 8) * _ROUNDING * 1.001 * products
    return Queries(vectors, scale, offset, error, faces, terms, space)


def check_space(space: IndexSpace, origin: ScoreOrigin) -> None:
    """Refuses, by UserError, a space of another method, setting, model or anchor set."""
    if space.origin and (wrong := differences(ScoreOrigin.from_json(space.origin), origin)):
        raise UserError(
            f"the index was made otherwise: {'; '.join(wrong)}; use the scorer that made it, or "
            "make the index anew"
        )


def in_float64(terms: FaceTerms, *, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The values [N, S] and constants [C], refused where one is not finite, by row."""
    values = np.asarray(terms.values, np.float64)
    bad = np.flatnonzero(~np.all(np.isfinite(values), axis=1))
    if bad.size:
        raise UserError(
            f"{what}: the {terms.rule} numbers of row {bad[0]} are not finite; such a face cannot "
            "match: leave it out or embed it again"
        )
    return values, np.asarray(terms.constants, np.float64)


def _part(terms: FaceTerms) -> EnrolledPart:
    return index_form(terms.rule).enrolled(*in_float64(terms, what="gallery"))


def _stretch(space: IndexSpace) -> float:
    return _STRETCH / np.sqrt(space.width)


def _extras(part: EnrolledPart, space: IndexSpace) -> np.ndarray:
    """The extra coordinates, float64 [G, U] or, with the first one's square, [G, U + 1]."""
    extras = (part.numbers - space.means) / space.spreads
    if space.curved:
        extras = np.concatenate([extras, extras[:, :1] ** 2], axis=1)
    return _stretch(space) * extras


def _check(faces: np.ndarray, terms: FaceTerms, space: IndexSpace, *, what: str) -> None:
    terms.check(len(faces))
    constants = np.asarray(terms.constants, np.float64).tolist()
    if terms.rule != space.rule or constants != list(space.constants):
        raise UserError(
            f"the index was made for {space.rule} with the constants {list(space.constants)}, the "
            f"{what} for {terms.rule} with {constants}: make both with one Rescorer"
        )
    if np.shape(faces)[1:] != (space.width,):
        raise UserError(
            f"the embeddings of the {what} are {list(np.shape(faces)[1:])} wide, the index' "
            f"{space.width}: both must come from the same model"
        )
