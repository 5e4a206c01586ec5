"""Exact results from an index' candidates, and whether they are proved to be all.

An index of `ida_jax.rescoring.index_vectors` ranks by ŝ ≥ s. Of its best K′ faces the scores s are
computed from the embeddings as they are stored, in float64. A face that was not fetched has a ŝ of
at most the smallest one fetched, and so no larger s: if the k-th exact score is at least that, the
best k are certified, whatever else the gallery holds. If not, more are fetched.

ŝ are computed here anew in float64; the store's own may differ from them by e, the rounding of
float32 (`Queries.error`) and what the store's quantisation adds. So the order of the rows is right
to 2e, and the bound on all faces that were not fetched is the smallest ŝ fetched plus 2e. An order
that is worse is not that of our vectors' inner products, and is refused.

An approximate index leaves faces out whatever their ŝ: its results are exact given its recall.

M probes, G gallery faces, K′ candidates of a probe, R faces found, D embedding.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.processes import cores
from ida_jax.rescoring.gallery_segments import Joined, on_host
from ida_jax.rescoring.index_forms import tangent
from ida_jax.rescoring.index_vectors import Queries, in_float64, index_form
from ida_jax.rescoring.terms import FaceTerms

# Entries of the fetched embeddings at once: 512 KiB in float64, which a core's cache holds.
_BLOCK = 1 << 16
# Too few to be worth a thread, which takes 0.1 ms to start.
_BLOCKS_A_THREAD = 8
# Scores at once, of 8 bytes and as many again for each number of the rule.
_SCORES = 1 << 19


class StoredFaces(Protocol):
    """A gallery: `ida_jax.rescoring.gallery.Gallery`, or arrays that are memory-mapped.

    Faces that were deleted since the index was made (`enrolled` is false) are in no result.
    """

    embeddings: np.ndarray | jax.Array | Joined
    terms: FaceTerms
    enrolled: np.ndarray | None


class Certified(NamedTuple):
    """Each probe's best gallery faces among an index' candidates, the best first.

    Attributes:
      scores: float64 [M, top], exact; −inf where there is no further face.
      rows: int64 [M, top], rows of the gallery; −1 where there is none.
      certified: bool [M], whether no face that the index holds and can find has a higher score.
      more: int64 [M], how many candidates beyond K′ to fetch next: as many again, or what is left;
        0 where certified.
      approximate: the index was, so that a face which it missed may have a higher score.
    """

    scores: np.ndarray
    rows: np.ndarray
    certified: np.ndarray
    more: np.ndarray
    approximate: bool

    @property
    def claim(self) -> str:
        """What may be said of these results, in words."""
        lacking = int(np.count_nonzero(~self.certified))
        if lacking:
            return f"not certified for {lacking:,} of {len(self.certified):,} probes"
        return "exact given the index's recall" if self.approximate else "exact"

    def require_exact(self) -> "Certified":
        """These results.

        Raises:
          UserError: they are not exact, or only given an approximate index' recall.
        """
        if self.claim != "exact":
            raise UserError(
                f"the results are {self.claim}: expected exact ones; search a flat index, or fetch "
                "more candidates"
            )
        return self


class Found(NamedTuple):
    """All gallery faces whose score reaches a threshold, by probe, the best of each first.

    Attributes:
      probes: int64 [R], rows of the probes, ascending.
      rows: int64 [R], of the gallery.
      scores: float64 [R], exact.
      approximate: the index was, so that faces may be missing.
    """

    probes: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    approximate: bool


def certified_top_k(
    candidates: np.ndarray,
    queries: Queries,
    gallery: StoredFaces,
    *,
    top: int = 10,
    error: float = 0.0,
    approximate: bool = False,
) -> Certified:
    """The best `top` of an index' candidates by their exact scores, and whether they are the best.

    Args:
      candidates: int [M, K′], rows of the gallery in the index' order, the largest inner product
        first; −1 where the index found no further one.
      queries: what the index was asked with.
      gallery: the faces that are in the index.
      top: how many, 1 ≤ top ≤ K′.
      error: how far the index' ŝ may lie from the true ones beyond float32's rounding, in units of
        the score: for vectors stored in fewer bits.
      approximate: the index may miss a face whatever its inner product (IVF, HNSW, ScaNN's tree).

    Raises:
      UserError: candidates of another shape, repeated or outside the gallery; a K′ below top; an
        order that is not that of the inner products; too few candidates from an index that is said
        to be exact.
    """
    total = len(gallery.embeddings)
    candidates = _checked(candidates, len(queries), total)
    fetched = candidates.shape[1]
    if not 1 <= top <= min(fetched, total):
        raise UserError(
            f"the best {top} were asked for of {fetched} candidates and {total} gallery faces: "
            "expected at least 1, and as many candidates or more"
        )
    absent = candidates < 0
    short = np.sum(~absent, axis=1) < min(fetched, total)
    if short.any() and not approximate:
        probe = int(np.argmax(short))
        raise UserError(
            f"the index found {np.sum(~absent[probe])} of {fetched} candidates for probe {probe} "
            f"among {total} faces: it is approximate (approximate=True), or does not hold them all"
        )
    scores, bounds = _scores(candidates, queries, gallery)
    # The index may hold them still: their ŝ bounds what it has not given.
    deleted = _deleted(candidates, gallery)
    scores[deleted] = -np.inf
    wrong = queries.error + error
    _check_order(bounds, absent, wrong)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(scores, order, axis=1)
    rest = np.min(np.where(absent, np.inf, bounds), axis=1) + 2 * wrong
    # Nothing is left to fetch.
    rest = np.where(absent.any(axis=1) | (fetched >= total), -np.inf, rest)
    certified = (best[:, -1] >= rest) & (best[:, -1] > -np.inf)
    more = np.where(certified | (rest == -np.inf), 0, min(fetched, total - fetched))
    rows = np.take_along_axis(np.where(deleted, -1, candidates), order, axis=1)
    return Certified(best, rows, certified, more, approximate)


def _deleted(candidates: np.ndarray, gallery: StoredFaces) -> np.ndarray:
    """bool as the candidates, true of faces that are enrolled no more."""
    if gallery.enrolled is None:
        return np.zeros(candidates.shape, bool)
    return (candidates >= 0) & ~gallery.enrolled[candidates]


def certified_search(
    search: Callable[[np.ndarray, int], np.ndarray],
    queries: Queries,
    gallery: StoredFaces,
    *,
    top: int = 10,
    fetch: int | None = None,
    error: float = 0.0,
    approximate: bool = False,
) -> Certified:
    """`certified_top_k`, fetching twice as many for probes that are not certified, until all are.

    Args:
      search: (vectors float32 [m, W], K′) → rows of the gallery, int [m, K′], in the order of their
        inner products, the largest first; −1 where there is no further one.
      queries: of the probes.
      fetch: the first K′; 2·top if None.
      gallery, top, error, approximate: as in `certified_top_k`.

    Raises:
      UserError: as `certified_top_k`.
    """
    fetch = max(1, min(2 * top if fetch is None else fetch, len(gallery.embeddings)))
    options = {"top": top, "error": error, "approximate": approximate}
    found = certified_top_k(search(queries.vectors, fetch), queries, gallery, **options)
    while (left := np.flatnonzero(found.more)).size:
        fetch += int(found.more[left[0]])
        some = queries.take(left)
        again = certified_top_k(search(some.vectors, fetch), some, gallery, **options)
        for whole, part in zip(found[:4], again[:4], strict=True):
            whole[left] = part
    return found


def certified_above(
    search: Callable[[np.ndarray, float], np.ndarray],
    queries: Queries,
    gallery: StoredFaces,
    *,
    threshold: float,
    error: float = 0.0,
    approximate: bool = False,
) -> Found:
    """All gallery faces with s ≥ threshold, by one range search per probe: complete, without a K′.

    Args:
      search: (vectors float32 [1, W], radius) → rows of the gallery, int [r], of all faces whose
        inner product is above the radius, in any order.
      queries: of the probes.
      threshold: of the score.
      gallery, error, approximate: as in `certified_top_k`.

    Raises:
      UserError: rows that are repeated or outside the gallery.
    """
    parts = []
    for probe, radius in enumerate(queries.radius(threshold, error=error)):
        own = queries.take(slice(probe, probe + 1))
        rows = np.asarray(search(own.vectors, float(radius)))
        rows = _checked(rows.reshape(1, -1), 1, len(gallery.embeddings))
        scores = np.where(_deleted(rows, gallery), -np.inf, _scores(rows, own, gallery)[0])[0]
        order = np.argsort(-scores, kind="stable")
        order = order[: np.count_nonzero(scores >= threshold)]
        parts.append((np.full(len(order), probe, np.int64), rows[0, order], scores[order]))
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return Found(*map(np.concatenate, zip(empty, *parts, strict=True)), approximate)


def _checked(candidates: np.ndarray, probes: int, total: int) -> np.ndarray:
    """int64 [M, K′]."""
    candidates = np.asarray(candidates)
    if candidates.ndim != 2 or len(candidates) != probes or candidates.dtype.kind not in "iu":
        raise UserError(
            f"the candidates are {candidates.dtype} {list(candidates.shape)} for {probes} probes: "
            "expected rows of the gallery, one line of integers for each probe"
        )
    candidates = candidates.astype(np.int64)
    outside = np.any((candidates < -1) | (candidates >= total), axis=1)
    ordered = np.sort(candidates, axis=1)
    repeated = np.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), axis=1)
    for wrong, said in (
        (outside, f"rows outside the gallery's {total}"),
        (repeated, "a row twice"),
    ):
        if wrong.any():
            raise UserError(
                f"the candidates of probe {np.argmax(wrong)} hold {said}: give rows of the gallery "
                "that is in the index"
            )
    return candidates


def _scores(
    candidates: np.ndarray, queries: Queries, gallery: StoredFaces
) -> tuple[np.ndarray, np.ndarray]:
    """s and ŝ of the candidates, float64 [M, K′] each, −inf where there is none."""
    form = index_form(queries.space.rule)
    scores = np.full(candidates.shape, -np.inf)
    bounds = np.full(candidates.shape, -np.inf)
    cosines = _cosines(candidates, queries.faces, gallery.embeddings)
    values = np.asarray(gallery.terms.values)
    step = max(1, _SCORES // max(1, candidates.shape[1]))
    for start in range(0, len(candidates), step):
        rows = slice(start, start + step)
        some = candidates[rows]
        own = gallery.terms._replace(values=values[some.ravel()])
        enrolled = form.enrolled(*in_float64(own, what="candidates"))
        probe = form.probe(*in_float64(queries.take(rows).terms, what="probes"))
        scales, numbers = (part.reshape(*some.shape, part.shape[1]) for part in enrolled)
        linear = cosines[rows] * np.einsum("mkj,mj->mk", scales, probe.scales)
        linear += np.einsum("mku,mu->mk", numbers, probe.weights) + probe.offset[:, None]
        exact = bound = linear
        if form.curved:
            mean, variance = queries.space.means[0], queries.space.variances[0]
            r0, r1, r2 = (r[:, None] for r in tangent(probe.level, mean, variance))
            x = numbers[..., 0] - mean
            exact = linear + np.logaddexp(probe.level[:, None], numbers[..., 0])
            bound = linear + r0 + r1 * x + r2 * x**2
        scores[rows], bounds[rows] = (np.where(some < 0, -np.inf, s) for s in (exact, bound))
    return scores, bounds


def _cosines(
    candidates: np.ndarray, probes: np.ndarray, embeddings: np.ndarray | jax.Array | Joined
) -> np.ndarray:
    """Of the candidates, float64 [M, K′]; of any face where there is none."""
    embeddings = on_host(embeddings)
    out = np.empty(candidates.shape)
    at_once = max(1, _BLOCK // probes.shape[1])
    columns = max(1, min(candidates.shape[1], at_once))
    step = at_once // columns

    def fill(starts: range) -> None:
        for start in starts:
            faces = probes[start : start + step].astype(np.float64)[:, :, None]
            for first in range(0, candidates.shape[1], columns):
                block = slice(start, start + step), slice(first, first + columns)
                some = candidates[block]
                fetched = embeddings[some.ravel()].astype(np.float64).reshape(*some.shape, -1)
                out[block] = np.matmul(fetched, faces)[..., 0]

    # NumPy releases the interpreter's lock while it fetches, converts and multiplies.
    starts = range(0, len(candidates), step)
    threads = max(1, min(cores(), len(starts) // _BLOCKS_A_THREAD))
    if threads == 1:
        fill(starts)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, (starts[first::threads] for first in range(threads))))
    return out


def _check_order(bounds: np.ndarray, absent: np.ndarray, wrong: np.ndarray) -> None:
    least = np.minimum.accumulate(np.where(absent, np.inf, bounds), axis=1)[:, :-1]
    excess = np.max(bounds[:, 1:] - least, axis=1, initial=-np.inf)
    if np.any(excess > 2 * wrong):
        probe = int(np.argmax(excess - 2 * wrong))
        raise UserError(
            f"the candidates of probe {probe} are not in the order of the index vectors' inner "
            f"products (by {excess[probe]:.2g}, {2 * wrong[probe]:.2g} is rounding): search by the "
            "inner product, let the store not normalise, and state its quantisation as error"
        )
