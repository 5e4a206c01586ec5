"""As many anchors of each group as of the smallest, so that no group's space is denser in anchors.

Where one group has more anchors, its faces' neighbourhoods are denser, and its scores come out
lower: the other groups' false accept rate rises beside its own. Groups are given, of people or of
rows, or they are clusters of the candidates' embeddings, which need not be anybody's groups.

A candidates, N rows, D embedding.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.common.command_line import user_path
from ida_jax.common.errors import UserError
from ida_jax.tables.groups import read_face_groups
from ida_jax.tables.text import whole_number

# Of fewer a group's density is chance; `anchors check` says how much of log F is.
_FEW = 100
_CLUSTERS, _ITERATIONS = 8, 50


class Balance(NamedTuple):
    """What anchors are balanced over.

    Attributes:
      codes: int [N], the rows' groups, −1 without one; None for clusters.
      names: the groups' names.
      clusters: the number of clusters, where there are no groups.
    """

    codes: np.ndarray | None = None
    names: tuple[str, ...] = ()
    clusters: int = 0


class Balanced(NamedTuple):
    """The candidates that become anchors.

    Attributes:
      places: int64, ascending places among the candidates.
      provenance: how they were chosen, for `AnchorSet.provenance`.
      said: the same in sentences.
    """

    places: np.ndarray
    provenance: dict[str, Any]
    said: tuple[str, ...]


def balance_option(text: str) -> Path | int:
    """An argparse type: a file of groups, or N of "clusters:N" (8 of "clusters").

    Raises:
      argparse.ArgumentTypeError: an N that is not a whole number of at least 2; an empty path.
    """
    kind, colon, count = text.partition(":")
    if kind != "clusters":
        return user_path(text)
    clusters = whole_number(count) if colon else _CLUSTERS
    if clusters is None or clusters < 2:
        raise ArgumentTypeError(f"'{text}': expected clusters:N, at least 2 clusters")
    return clusters


def requested_balance(
    asked: Path | int | None, names: Sequence[str] | None, rows: int
) -> Balance | None:
    """What `balance_option` asks for, of N rows by their names.

    Raises:
      UserError: as `ida_jax.tables.groups.read_face_groups`.
    """
    if asked is None:
        return None
    return (
        Balance(clusters=asked)
        if isinstance(asked, int)
        else Balance(*read_face_groups(asked, names, rows))
    )


def names_of_rows(names: Sequence[str] | None, people: np.ndarray | None) -> Sequence[str] | None:
    """What rows are listed under in a list of groups: PERSON/IMAGE, a person, an image."""
    if people is None:
        return names
    if names is None or people.dtype.kind != "U":
        return [str(person) for person in people.tolist()]
    files = (name.rsplit("/", 1)[-1] for name in names)
    return [f"{person}/{file}" for person, file in zip(people.tolist(), files, strict=True)]


def balanced(
    rows: np.ndarray,
    balance: Balance,
    *,
    size: int,
    seed: int,
    k: int,
    embeddings: Callable[[], np.ndarray],
) -> Balanced:
    """As many candidates of each group as of the smallest, drawn from `seed`.

    Args:
      rows: int [A], the candidates' rows among the N.
      balance: groups or clusters.
      size: at most this many in all.
      seed: of the draw, and of the clusters.
      k: the support set's size, of which each group must have as many.
      embeddings: the candidates' unit embeddings [A, D], which clusters are of.

    Raises:
      UserError: fewer than two groups, or one of fewer than k candidates.
    """
    if balance.codes is None:
        codes = cluster_codes(embeddings(), balance.clusters, seed=seed)
        names = tuple(f"cluster {number + 1}" for number in range(balance.clusters))
    else:
        codes, names = np.asarray(balance.codes)[rows], balance.names
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    listed = ", ".join(f"{name} {n:,}" for name, n in zip(names, counts.tolist(), strict=True))
    if len(names) < 2:
        raise UserError(f"one group alone ({listed}) leaves nothing to balance: give two or more")
    smallest = int(np.argmin(counts))
    if counts[smallest] < k:
        raise UserError(
            f"group '{names[smallest]}' has {counts[smallest]} people among the anchors, fewer "
            f"than k = {k} (of all: {listed}): add people, or leave the group out of the list"
        )
    per_group = int(min(counts[smallest], size // len(names)))
    if per_group < 1:
        raise UserError(f"a size of {size} is less than one anchor for each of {len(names)} groups")
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(codes == code), per_group, replace=False)
        for code in range(len(names))
    ]
    places = np.sort(np.concatenate(chosen))
    without = int(np.count_nonzero(codes < 0))
    said = [
        f"balanced: {per_group:,} anchors of each of {len(names)} groups (of {listed}); "
        f"{counts.sum() - places.size:,} dropped"
    ]
    if without:
        said.append(f"{without:,} candidates without a group were left out")
    if per_group < _FEW:
        said.append(
            f"group '{names[smallest]}' allows {per_group} anchors a group: of fewer than {_FEW} a "
            "density is mostly chance; add people of it"
        )
    provenance = {
        "groups": dict(zip(names, counts.tolist(), strict=True)),
        "each": per_group,
        "without_group": without,
        "seed": seed,
    }
    return Balanced(places, {"balance": provenance}, tuple(said))


def cluster_codes(embeddings: np.ndarray, clusters: int, *, seed: int) -> np.ndarray:
    """int [A]: the cluster of each unit row, by k-means from k-means++ starts.

    Raises:
      UserError: more clusters than half the candidates.
    """
    from scipy.cluster.vq import kmeans2

    if 2 * clusters > len(embeddings):
        raise UserError(
            f"{clusters} clusters of {len(embeddings)} candidates were asked for: expected at most "
            f"{len(embeddings) // 2}"
        )
    rows = np.asarray(embeddings, np.float64)
    _, codes = kmeans2(rows, clusters, iter=_ITERATIONS, minit="++", seed=seed, missing="raise")
    return codes
