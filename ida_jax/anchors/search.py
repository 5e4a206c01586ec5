"""The search for support sets: exact on the device, or ScaNN; one signature.

N queries, A anchors, D embedding, K support. This is the only place that imports scann.
"""

import importlib.util

import jax
import numpy as np
from tqdm import tqdm

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.errors import UserError
from ida_jax.ops.hypersphere import Neighbours, nearest_anchors
from ida_jax.validation import require_unit

SEARCHERS = ("auto", "exact", "scann")

# Queries and anchors compared at once: 8 MiB of similarities, the fastest of those tried on a CPU.
_QUERY_BLOCK = 512
_ANCHOR_BLOCK = 4096


def support_sets(
    queries: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int,
    labels: np.ndarray | None = None,
    searcher: str = "auto",
) -> Neighbours:
    """Ψ of each query: its k most similar anchors of other identities (Algorithm 1, lines 2-3).

    Args:
      queries: float32 [N, D], unit rows.
      anchors: the anchor set.
      k: the support set's size (paper: 10).
      labels: int [N], the queries' identities in the numbering of the anchors' labels; an anchor of
        the same identity never enters the support set. None where no identity is shared.
      searcher: "exact" on the device; "scann", ScaNN's brute-force scorer, exact too; "auto" takes
        ScaNN on a CPU that has it, where it is about 1.5 times faster
        (experiments/results/bench_search.json), and the device everywhere else.

    Returns:
      `Neighbours` as NumPy arrays, similarities descending.

    Raises:
      UserError: queries that are no unit rows, widths that differ, k outside 1 … A, labels that the
        anchors lack, fewer than k anchors left after the exclusion, an unknown searcher, or scann
        asked for where it has no wheel.
    """
    if searcher not in SEARCHERS:
        raise UserError(f"searcher '{searcher}' is unknown: choose one of {', '.join(SEARCHERS)}")
    queries = require_unit(queries)
    if queries.shape[1] != anchors.width:
        raise UserError(
            f"the faces' embeddings are {queries.shape[1]} wide, the anchors' {anchors.width}: "
            "both must come from the same model"
        )
    if not 1 <= k <= len(anchors):
        raise UserError(
            f"k = {k} neighbours were asked for among {len(anchors)} anchors: "
            f"expected 1 … {len(anchors)}; lower k or take more anchors"
        )
    if labels is not None:
        if anchors.labels is None:
            raise UserError(
                "the own identity is to be excluded, but the anchors have no labels: "
                "build the anchor set with labels"
            )
        labels = np.asarray(labels, np.int32)
        if labels.shape != queries.shape[:1]:
            raise UserError(f"{labels.size} labels for {queries.shape[0]} faces: expected one each")
    if searcher == "auto":
        searcher = "scann" if jax.default_backend() == "cpu" and has_scann() else "exact"
    search = _scann if searcher == "scann" else _exact
    found = search(queries, anchors, k, labels)
    empty = np.flatnonzero(np.isneginf(found.similarities[:, -1]))
    if empty.size:
        left = int(np.sum(np.isfinite(found.similarities[empty[0]])))
        raise UserError(
            f"{left} of k = {k} anchors are left for row {empty[0]} once its own identity is "
            "excluded: lower k or take anchors of more identities"
        )
    return found


def has_scann() -> bool:
    """Whether scann is installed; it has wheels for Linux alone."""
    return importlib.util.find_spec("scann") is not None


def _exact(
    queries: np.ndarray, anchors: AnchorSet, k: int, labels: np.ndarray | None
) -> Neighbours:
    n = queries.shape[0]
    block = min(_QUERY_BLOCK, max(n, 1))
    on_device = jax.device_put(np.asarray(anchors.embeddings))
    anchor_labels = None if labels is None else jax.device_put(np.asarray(anchors.labels))
    similarities = np.empty((n, k), np.float32)
    indices = np.empty((n, k), np.int32)
    for start in tqdm(range(0, n, block), desc="search", unit="block", delay=2, leave=False):
        # Every block has one shape, so that the search is compiled once: the last starts early.
        rows = slice(max(0, min(start, n - block)), max(0, min(start, n - block)) + block)
        found = nearest_anchors(
            queries[rows],
            on_device,
            k=k,
            query_labels=None if labels is None else labels[rows],
            anchor_labels=anchor_labels,
            block_size=_ANCHOR_BLOCK,
        )
        similarities[rows], indices[rows] = found.similarities, found.indices
    return Neighbours(similarities, indices)


def _scann(
    queries: np.ndarray, anchors: AnchorSet, k: int, labels: np.ndarray | None
) -> Neighbours:
    if not has_scann():
        raise UserError("scann is not installed (it has wheels for Linux alone): use exact or auto")
    import scann

    embeddings = np.asarray(anchors.embeddings)
    # ScaNN cannot exclude: so many more are fetched as one identity can take away.
    own = 0
    if labels is not None:
        known = anchors.labels[anchors.labels >= 0]
        own = int(np.max(np.unique(known, return_counts=True)[1], initial=0))
    fetched = min(k + own, len(anchors))
    searcher = (
        scann.scann_ops_pybind.builder(embeddings, fetched, "dot_product")
        .score_brute_force()
        .build()
    )
    indices, similarities = searcher.search_batched_parallel(queries)
    indices = indices.astype(np.int32)
    if labels is not None:
        found_labels = np.asarray(anchors.labels)[indices]
        same = (found_labels == labels[:, None]) & (found_labels >= 0)
        similarities = np.where(same, -np.inf, similarities)
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
    return Neighbours(similarities, indices)
