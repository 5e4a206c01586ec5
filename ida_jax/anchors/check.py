"""Anchors that show one person twice, and probes who are among the anchors.

An anchor of a probe's own identity is not an inter-class neighbour: it lowers that person's scores.
Two anchors of one person count double wherever they are near.

N probes, A anchors, D embedding, R anchors compared at once.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import own_neighbours
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.common.progress import progress_bar
from ida_jax.common.validation import require_unit
from ida_jax.tables.identities import name_among
from ida_jax.tables.text import canonical

_BLOCK = 2048
# An image that is in both sets is found whatever the model. A set whose own threshold would lie
# above it holds several images of one person without labels, and says nothing about strangers.
HIGHEST_THRESHOLD = 0.999


class Matches(NamedTuple):
    """Pairs of rows that may show one person, the most similar first.

    Attributes:
      total: the number found; the arrays may hold fewer.
      first: int32, rows of the probes, or of the anchors where those are compared with themselves.
      second: int32, rows of the anchors.
      similarity: float32, their cosines.
    """

    total: int
    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


def same_person_threshold(anchors: AnchorSet, *, faces: int) -> float:
    """The cosine to its nearest anchor that one of `faces` strangers is expected to reach.

    In the model's own scale: an anchor is a stranger to the anchors of other identities, and its
    cosine s to the nearest of them is the largest of many, modelled by the Gumbel distribution
    P(s ≤ t) = exp(−exp(−(t − μ)/β)). μ and β come from the quartiles of 1,000 anchors, which a
    few duplicates do not move, and P(s > t) = 1/faces gives t.

    Measured on LFW (2,870 anchors, other identities as probes): .504 is reached by 0.81 % of 5,195
    probes where 1 % are expected, .576 by 0.29 % where 0.1 % are. At 1/5,195 t is .63, and nearly
    all of the 12 probes above it are the anchor's person under another name, or a twin. Of other
    images of the anchors' people 65 % reach .63, and 81 % reach .576. Class weights of a model
    trained on LFW: 0.08 % where 0.1 % are expected. Only to a weak model's class weights (500
    rendered identities, iresnet_nano) strangers are nearer than those are to one another, 14 %
    for 0.1 %: choose another threshold there.

    Args:
      anchors: the set. It needs labels if it holds several images of a person.
      faces: the number of faces compared with it, at least 1.

    Returns:
      t, at most 0.999, so that an image that is in both is found whatever the model.

    Raises:
      UserError: anchors of one identity alone.
    """
    neighbours = own_neighbours(anchors, k=1)
    low, high = np.quantile(neighbours.similarities[:, 0].astype(np.float64), [0.25, 0.75])
    scale = (high - low) / (math.log(-math.log(0.25)) - math.log(-math.log(0.75)))
    location = low + scale * math.log(-math.log(0.25))
    expected = 1 / max(faces, 2)  # 1/1 gives no threshold
    return min(location - scale * math.log(-math.log1p(-expected)), HIGHEST_THRESHOLD)


def near_duplicates(anchors: AnchorSet, threshold: float, *, limit: int = 1000) -> Matches:
    """Pairs of anchors of different or unknown identity with a cosine of at least `threshold`.

    Exact, by tiles of the product of the anchors with themselves: A²·D operations.

    Args:
      threshold: a cosine, `same_person_threshold` with faces = A for one.
      limit: at most this many pairs are listed; all are counted.
    """
    a = len(anchors)
    block = min(_BLOCK, a)
    embeddings = jax.device_put(np.asarray(anchors.embeddings))
    labels = jax.device_put(anchors.people())
    total, best = 0, _none()
    starts = [(r, c) for r in range(0, a, block) for c in range(r, a, block)]
    for row, column in progress_bar(
        starts, desc="near-duplicates", unit="tile", delay=2, leave=False
    ):
        tile, count = _tile(embeddings, labels, row, column, np.float32(threshold), block=block)
        if count == 0:  # the usual case: the tile itself stays on the device
            continue
        total += int(count)
        first, second = np.nonzero(np.asarray(tile) >= np.float32(threshold))
        cosines = np.asarray(tile)[first, second]
        first, second = first + min(row, a - block), second + min(column, a - block)
        best = _most_similar(
            np.concatenate([best.first, first.astype(np.int32)]),
            np.concatenate([best.second, second.astype(np.int32)]),
            np.concatenate([best.similarity, cosines]),
            limit=limit,
        )
    return best._replace(total=total)


def identity_leaks(probes: np.ndarray, anchors: AnchorSet, threshold: float) -> Matches:
    """Probes whose nearest anchor has a cosine of at least `threshold`, each with that anchor.

    Args:
      probes: float32 [N, D], unit rows.
      threshold: a cosine, `same_person_threshold` with faces = N for one.

    Raises:
      UserError: as `support_sets`.
    """
    neighbours = support_sets(probes, anchors, k=1)
    similarity = np.asarray(neighbours.similarities)[:, 0]
    rows = np.flatnonzero(similarity >= np.float32(threshold)).astype(np.int32)
    nearest = np.asarray(neighbours.indices)[rows, 0].astype(np.int32)
    return _most_similar(rows, nearest, similarity[rows])


def known_leaks(
    probes: np.ndarray, people: Sequence[str] | np.ndarray, anchors: AnchorSet
) -> Matches:
    """Probes of people who are known to be among the anchors, each with its most similar such one.

    Args:
      probes: float32 [N, D], unit rows.
      people: who is on each probe: N names, or N integers in the numbering of the anchors' labels,
        negative where unknown.
      anchors: a set with names, or with labels.

    Raises:
      UserError: probes that are not unit-norm or not of the anchors' width, anchors without names
        (labels), a different number of names.
    """
    probes = require_unit(probes, what="probes")
    people = np.asarray(people)
    by_label = np.issubdtype(people.dtype, np.integer)
    known = anchors.labels if by_label else (anchors.names or None)
    if known is None:
        of = "integers" if by_label else f"names ({name_among(people)})"
        has = "integer labels alone" if not by_label and anchors.labels is not None else "none"
        raise UserError(
            f"the probes' labels are {of}, but the anchors have {has}: "
            "build the anchor set with --labels of the same kind"
        )
    if people.shape != (len(probes),):
        raise UserError(
            f"labels are {list(people.shape)} for {len(probes)} probes: expected one each"
        )
    if probes.shape[1] != anchors.width:
        raise UserError(f"the probes are {probes.shape[1]} wide, the anchors {anchors.width}")
    rows_of: dict[str | int, list[int]] = {}
    for row, person in enumerate(np.asarray(known).tolist()):
        rows_of.setdefault(person if by_label else canonical(person), []).append(row)
    first, second, similarity = [], [], []
    for row, person in enumerate(people.tolist()):
        if by_label:
            own = rows_of.get(person, []) if person >= 0 else []
        else:
            own = rows_of.get(canonical(person), [])
        if own:
            cosines = np.asarray(anchors.embeddings[own]) @ probes[row]
            first.append(row)
            second.append(own[int(np.argmax(cosines))])
            similarity.append(cosines.max())
    return _most_similar(
        np.array(first, np.int32), np.array(second, np.int32), np.array(similarity, np.float32)
    )


def refuse_self_matches(similarities: np.ndarray) -> None:
    """Refuses to fit to faces that are themselves among their anchors.

    What is fitted to them learns what no other face will show.

    Args:
      similarities: [N, K], to each face's nearest anchors, descending.
    """
    themselves = np.count_nonzero(similarities[:, 0] > 1 - 1e-5)
    # Data sets hold a few images under two names; anchors taken from the faces are a large share.
    if themselves > 0.01 * len(similarities):
        raise UserError(
            f"{themselves} of {len(similarities)} faces are themselves among their anchors: give "
            "the anchors labels in the faces' numbering, or take anchors of other people"
        )


def matches_json(matches: Matches, **entries: float) -> dict[str, Any]:
    """The matches for a JSON file, with other entries before them."""
    return {
        **entries,
        "total": matches.total,
        "first": matches.first.tolist(),
        "second": matches.second.tolist(),
        "cosine": [round(float(cosine), 6) for cosine in matches.similarity],
    }


@partial(jax.jit, static_argnames="block")
def _tile(
    embeddings: jax.Array,
    labels: jax.Array,
    row: jax.Array,
    column: jax.Array,
    threshold: jax.Array,
    *,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    """Cosines [R, R] of two blocks of anchors, −2 where excluded, and how many reach it."""
    a = embeddings.shape[0]
    # The last block starts early instead of running over; what was seen before is masked.
    top, left = jnp.minimum(row, a - block), jnp.minimum(column, a - block)
    above = lax.dynamic_slice_in_dim(embeddings, top, block)
    beside = lax.dynamic_slice_in_dim(embeddings, left, block)
    similarities = jnp.matmul(above, beside.T, precision=lax.Precision.HIGHEST)
    own = lax.dynamic_slice_in_dim(labels, top, block)[:, None]
    others = lax.dynamic_slice_in_dim(labels, left, block)[None, :]
    rows = top + jnp.arange(block, dtype=jnp.int32)[:, None]
    columns = left + jnp.arange(block, dtype=jnp.int32)[None, :]
    wanted = (rows < columns) & (rows >= row) & (columns >= column)
    wanted &= own != others
    similarities = jnp.where(wanted, similarities, -2.0)
    return similarities, jnp.count_nonzero(similarities >= threshold)


def _none() -> Matches:
    return Matches(0, np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def _most_similar(
    first: np.ndarray, second: np.ndarray, similarity: np.ndarray, *, limit: int | None = None
) -> Matches:
    order = np.argsort(-similarity, kind="stable")[:limit]
    return Matches(len(first), first[order], second[order], similarity[order])
