"""TAR against the support set's size k, τ and the number of anchors: Fig. 6 and 7 of the paper.

All pairs of the faces are scored at every setting. One search serves them all: support sets of the
largest k, over nested subsets of the anchors, whose prefixes are the smaller sets. The pairs'
cosines are computed once, by tiles; a setting then is an elementwise rule on them, and of the
impostors only the highest scores are kept.

N faces, A anchors, K support, D embedding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import SupportSearch
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_tau
from ida_jax.metrics.evaluation import far_key
from ida_jax.metrics.ignored import ignored_positions, labels_as_units
from ida_jax.metrics.roc import accepted_impostors
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.terms import FaceTerms, cosine_terms, dao_terms
from ida_jax.rescoring.tiles import all_pair_tiles, checked_labels, cosine_rows, pair_counts


class _Setting(NamedTuple):
    """What log F is a function of, beside the face."""

    k: int
    tau: float
    anchors: int


def sweep(
    faces: np.ndarray,
    labels: ArrayLike,
    anchors: AnchorSet,
    *,
    fars: Sequence[float],
    ks: Sequence[int] = (1, 2, 5, 10, 20, 50, 100),
    taus: Sequence[float] = (0.25, 0.5, 1, 2, 4, 8, 16),
    sizes: Sequence[int] | None = None,
    ignored: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """IDA-R's TAR over all pairs, one of k, τ and |A| changed at a time.

    The others stay at the anchor set's own k and τ, and at all its anchors. No face's own person
    may be among the anchors.

    Args:
      faces: float32 [N, D], unit rows.
      labels: int [N], the faces' identities.
      fars: FARs in (0, 1].
      ks: those above A are left out.
      sizes: numbers of anchors, nested subsets in an order that the seed draws; those below the
        set's k or above A are left out. 10, 20, 50, 100, … and A if None.
      ignored: as in `evaluate_all_pairs`.

    Returns:
      {"k": {"values": [1, 2], "tar@far": {"0.001": [0.90, 0.91]}, "cosine": {"0.001": 0.89}},
      "tau": …, "anchors": …}; a dimension of which no value is left is left out.
    """
    labels = checked_labels(labels, len(faces))
    own = _Setting(anchors.k, anchors.tau, len(anchors))
    if own.k > own.anchors:
        raise UserError(f"k is {own.k}, but there are {own.anchors} anchors: lower k")
    for name, values in (("k", ks), ("the number of anchors", sizes or ())):
        if any(value < 1 for value in values):
            raise UserError(f"{name} is {min(values)} in a sweep: expected at least 1")
    for tau in taus:
        require_tau(tau, what="tau in a sweep")
    steps = _steps(own.anchors) if sizes is None else sizes
    dimensions = {
        "k": [own._replace(k=k) for k in ks if k <= own.anchors],
        "tau": [own._replace(tau=float(tau)) for tau in taus],
        "anchors": [own._replace(anchors=size) for size in steps if own.k <= size <= own.anchors],
    }
    settings = list(dict.fromkeys(setting for given in dimensions.values() for setting in given))
    terms = {
        setting: dao_terms(log_density, tau=setting.tau)
        for setting, log_density in _log_densities(faces, anchors, settings, seed).items()
    }
    identities, units = np.unique(labels, return_inverse=True)
    removed = ignored_positions(units, labels_as_units(ignored, identities))
    methods = [cosine_terms(len(faces)), *terms.values()]
    cosine, *found = _tars(faces, labels, methods, fars, removed)
    tars = dict(zip(terms, found, strict=True))
    keys = [far_key(far) for far in fars]
    return {
        name: {
            "values": [getattr(setting, name) for setting in given],
            "tar@far": {key: [tars[setting][i] for setting in given] for i, key in enumerate(keys)},
            "cosine": dict(zip(keys, cosine, strict=True)),
        }
        for name, given in dimensions.items()
        if given
    }


def _steps(anchors: int) -> tuple[int, ...]:
    """10, 20, 50, 100, … below the number of anchors, and that number."""
    steps = [m * 10**e for e in range(1, 9) for m in (1, 2, 5)]
    return (*(step for step in steps if step < anchors), anchors)


def _log_densities(
    faces: np.ndarray, anchors: AnchorSet, settings: Sequence[_Setting], seed: int
) -> dict[_Setting, np.ndarray]:
    """log F of all faces at each setting, float32 [N].

    Anchors are searched in segments, from each size to the next; the best of all segments so far
    are a smaller set's support sets, at the end the whole set's.
    """
    order = np.random.default_rng(seed).permutation(len(anchors))
    ends = sorted({setting.anchors for setting in settings} | {len(anchors)})
    most = max(setting.k for setting in settings)
    similarities = np.empty((len(faces), 0), np.float32)
    out, start = {}, 0
    for end in ends:
        # In their own order within a segment: equal rows are read one after the other.
        segment = AnchorSet(anchors.embeddings[np.sort(order[start:end])])
        search = SupportSearch(segment, k=min(most, end - start), searcher="exact")
        merged = np.concatenate([similarities, search(faces).similarities], axis=1)
        similarities = -np.sort(-merged, axis=1)[:, :most]
        for setting in settings:
            if setting.anchors == end:
                nearest = similarities[:, : setting.k]
                out[setting] = log_density_of(nearest, tau=setting.tau)
        start = end
    return out


def _tars(
    faces: np.ndarray,
    labels: np.ndarray,
    methods: Sequence[FaceTerms],
    fars: Sequence[float],
    removed: np.ndarray,
) -> list[list[float]]:
    """TAR at each FAR (`metrics.roc`'s rule) by each method, over all pairs (i, j), i < j.

    `removed` are the places of the impostor pairs that are left out, ascending.
    """
    genuine, impostors = pair_counts(labels)
    impostors -= removed.size
    for kind, count in (("genuine", genuine), ("impostor", impostors)):
        if not count:
            raise UserError(
                f"0 {kind} pairs among {len(labels)} faces, at least 1 is needed: see the labels"
            )
    accepted = [accepted_impostors(far, impostors) for far in fars]
    depth = min(impostors, max(accepted, default=0) + 1)
    of_genuine: list[list[np.ndarray]] = [[] for _ in methods]
    highest = [np.empty(0, np.float32) for _ in methods]
    floors = [-np.inf for _ in methods]
    done = 0
    for tile in all_pair_tiles(
        partial(cosine_rows, jax.device_put(faces)), labels, dict(enumerate(methods))
    ):
        places = np.flatnonzero(tile.impostor)
        here = removed[slice(*np.searchsorted(removed, (done, done + places.size)))]
        tile.impostor.flat[places[here - done]] = False
        done += places.size
        for i, scores in tile.scores:
            of_genuine[i].append(scores.ravel()[tile.genuine])
            above = scores[tile.impostor & (scores > floors[i])]
            highest[i] = np.concatenate([highest[i], above])
            if len(highest[i]) > 2 * depth:
                highest[i] = np.partition(highest[i], len(highest[i]) - depth)[-depth:]
                floors[i] = highest[i].min()
    tars = []
    for scores, kept in zip(of_genuine, highest, strict=True):
        scores, kept = np.concatenate(scores), np.sort(kept)[::-1]
        thresholds = [kept[r] if r < impostors else -np.inf for r in accepted]
        tars.append([float(np.mean(scores > threshold)) for threshold in thresholds])
    return tars
