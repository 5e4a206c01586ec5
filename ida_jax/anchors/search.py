"""The search for support sets: exact, or approximate and checked; one signature.

N queries, A anchors, D embedding, K support. This is the only place that imports scann.

The search takes labels and masks a face's own identity before the top-k (inter-class by label); a
negative label is unknown and masks nothing. ScaNN cannot mask, so it fetches as many more
neighbours as one identity can take away.

ScaNN's partitioned search is chosen by "auto" only where it was measured to be at least twice as
fast, and used only after a sample was searched exactly too: recall and the error in log F are
printed, and beyond the tolerance the search is exact. So are products of bfloat16 parts on a GPU,
which are used where they are asked for.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.exact_search import BestSoFar, Search, device_search, host_search, slabs_of
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_unit
from ida_jax.ops.dao import log_density
from ida_jax.ops.hypersphere import Neighbours
from ida_jax.ops.products import PRECISIONS

SEARCHERS = ("auto", "exact", *PRECISIONS[1:], "scann", "scann_partitioned")

# ScaNN's brute-force scorer copies what it searches: 65,536 anchors at once.
_SCANN_ANCHORS = 65536
# Shares of the partitioned index's leaves that are tried in turn, until the tolerance holds. A
# smaller share leaves rare faces without a whole cluster, too rare for the check to see.
_LEAVES = (0.4, 0.6, 1.0)
# Faces that an approximate search is checked on, and the fewest of a call that suffice for it.
_CHECKED, _ENOUGH = 256, 64


def support_sets(
    queries: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int,
    labels: np.ndarray | None = None,
    searcher: str = "auto",
) -> Neighbours:
    """Ψ of each query: its k most similar anchors of other identities (Algorithm 1, lines 2-3).

    `SupportSearch` for one call; keep one of those where there are several.

    Args:
      queries: float32 [N, D], unit rows.
      k: the support set's size (paper: 10).
      labels: int [N], the queries' identities in the numbering of the anchors' labels; an anchor of
        the same identity never enters the support set. None where no identity is shared.
      searcher: see `SupportSearch`.

    Returns:
      `Neighbours` as NumPy arrays, similarities descending.

    Raises:
      UserError: queries that are not unit-norm, and as `SupportSearch`.
    """
    search = SupportSearch(anchors, k=k, searcher=searcher, expected_queries=len(queries))
    return search(require_unit(queries), labels)


class SupportSearch:
    """A search that is prepared once and then called with any number of faces at a time.

    The index, or the devices' copy of the anchors, is made at the first call and kept; anchors
    that fit no device are read slab by slab from where they lie, at each call. On a CPU a face's
    exact result is the same to the last bit however the faces are divided among calls.

    Args:
      anchors: the anchor set.
      k: the support set's size, 1 … A.
      searcher: "exact": NumPy's product on a CPU, otherwise the devices, queries split over them.
        "bfloat16_x6" and "bfloat16_x3": exact but for that precision of the cosines on a GPU
        (`ida_jax.ops.products`), by estimate 2 and 3 times as fast; on a CPU as "exact".
        "scann": ScaNN's brute-force scorer, exact too, on the host. "scann_partitioned": ScaNN's
        tree and quantised scores, approximate; it copies the anchors. "auto": exact, but
        partitioned on a CPU where that is at least twice as fast (`_partitioned_wins`).
      expected_queries: how many faces will be searched in all, for "auto"; unknown if None.
      tau: τ of the log F that an approximate search is checked by; the anchor set's own if None.
      tolerance: the largest RMS error in log F, as a share of log F's standard deviation, that an
        approximate search may make on a sample of the first call's faces (of the anchors where they
        are few). Past it, "auto" searches exactly and a searcher that was asked for is refused.

    Raises:
      UserError: k outside 1 … A, an unknown searcher, a tolerance that is not positive; scann asked
        for where it is not installed or cannot be imported.
    """

    def __init__(
        self,
        anchors: AnchorSet,
        *,
        k: int,
        searcher: str = "auto",
        expected_queries: int | None = None,
        tau: float | None = None,
        tolerance: float = 0.02,
    ) -> None:
        if searcher not in SEARCHERS:
            raise UserError(
                f"searcher '{searcher}' is unknown: choose one of {', '.join(SEARCHERS)}"
            )
        if not 1 <= k <= len(anchors):
            raise UserError(
                f"k = {k} neighbours were asked for among {len(anchors)} anchors: "
                f"expected 1 … {len(anchors)}; lower k or take more anchors"
            )
        if not tolerance > 0:
            raise UserError(f"tolerance is {tolerance}: expected a share > 0, say 0.02")
        self.anchors, self.k = anchors, k
        self.tau = anchors.tau if tau is None else tau
        self.tolerance = tolerance
        self._may_fall_back = searcher == "auto"
        if searcher == "auto":
            searcher = "exact"
            if _partitioned_wins(expected_queries or 0, anchors):
                try:
                    _import_scann()
                    searcher = "scann_partitioned"
                except UserError as error:
                    print(f"{error}; searching exactly instead", file=sys.stderr)
        elif searcher.startswith("scann"):
            _import_scann()
        self.searcher = searcher
        self._search: Search | None = None

    def __call__(self, queries: np.ndarray, labels: np.ndarray | None = None) -> Neighbours:
        """Ψ of each query, as `support_sets`; that its rows are unit-norm is not checked.

        Raises:
          UserError: widths that differ, labels that the anchors lack, fewer than k anchors left
            after the exclusion, an approximate search past the tolerance.
        """
        if queries.shape[1] != self.anchors.width:
            raise UserError(
                f"the faces' embeddings are {queries.shape[1]} wide, the anchors' "
                f"{self.anchors.width}: both must come from the same model"
            )
        if labels is not None:
            labels = self._checked_labels(labels, len(queries))
        if not len(queries):
            return BestSoFar(0, self.k).sorted()
        if self._search is None:
            self._search = self._prepared(queries, labels)
        neighbours = self._search(queries, labels)
        short = np.flatnonzero(np.isneginf(neighbours.similarities[:, -1]))
        if short.size:
            left = int(np.sum(np.isfinite(neighbours.similarities[short[0]])))
            raise UserError(
                f"{left} of k = {self.k} anchors are left for row {short[0]} once its own identity "
                "is excluded: lower k or take anchors of more identities"
            )
        return neighbours

    def _checked_labels(self, labels: np.ndarray, count: int) -> np.ndarray:
        if self.anchors.labels is None:
            raise UserError(
                "the own identity must be excluded, but the anchors have no labels: "
                "build the anchor set with labels"
            )
        labels = np.asarray(labels, np.int32)
        if labels.shape != (count,):
            raise UserError(f"{labels.size} labels for {count} faces: expected one each")
        return labels

    def _prepared(self, queries: np.ndarray, labels: np.ndarray | None) -> Search:
        arrays = np.asarray(self.anchors.embeddings), self.anchors.labels
        if self.searcher == "scann":
            return _scann_brute_force(*arrays, k=self.k)
        if self.searcher == "scann_partitioned":
            partitioned = _scann_partitioned(*arrays, k=self.k)
            tried = {
                f"scann_partitioned, {share:.0%} of its leaves": partial(partitioned, share=share)
                for share in _LEAVES
            }
        elif self.searcher in PRECISIONS and jax.default_backend() != "cpu":
            tried = {self.searcher: device_search(*arrays, k=self.k, precision=self.searcher)}
        else:
            return _exact(*arrays, k=self.k)
        good = self._within_tolerance(tried, queries, labels)
        if good is None:
            self.searcher = "exact"
            return _exact(*arrays, k=self.k)
        return good

    def _within_tolerance(
        self, searches: Mapping[str, Search], queries: np.ndarray, labels: np.ndarray | None
    ) -> Search | None:
        """The first of the searches that is good enough; prints how good it is."""
        embeddings, anchor_labels = np.asarray(self.anchors.embeddings), self.anchors.labels
        if len(queries) < _ENOUGH:
            # Too few for a spread: anchors stand in for faces, each its own nearest neighbour.
            queries, labels = embeddings, None
        rows = np.linspace(0, len(queries) - 1, min(_CHECKED, len(queries))).astype(int)
        queries, labels = queries[rows], None if labels is None else labels[rows]
        exact = _exact(embeddings, anchor_labels, k=self.k)(queries, labels)
        for name, search in searches.items():
            error = approximation_error(search(queries, labels), exact, tau=self.tau)
            good = error.rms <= self.tolerance
            line = (
                f"{name}: recall@{self.k} {error.recall:.4f}; "
                f"error in log F {error.rms:.2%} of its spread (RMS), {error.largest:.2%} at most, "
                f"on {error.faces} faces searched exactly too"
            )
            if good:
                break
        if not good and not self._may_fall_back:
            raise UserError(
                f"{line}; past the tolerance of {self.tolerance:.2%}: choose the exact searcher, "
                "or a larger tolerance"
            )
        print(line + ("" if good else "; searching exactly instead"), file=sys.stderr)
        return search if good else None


def largest_identity(anchor_labels: np.ndarray) -> int:
    """The most anchors of one known identity: how many an exclusion can take away."""
    known = np.asarray(anchor_labels)
    return int(np.max(np.unique(known[known >= 0], return_counts=True)[1], initial=0))


def usual_neighbours(anchors: AnchorSet, usual: int) -> int:
    """`usual`, or as many as a small set has for every face, its own identity left out."""
    own = 0 if anchors.labels is None else largest_identity(anchors.labels)
    return max(1, min(usual, len(anchors) - own))


class ApproximationError(NamedTuple):
    """The difference between two searches of the same faces.

    Attributes:
      recall: the share of the exact support sets' members that were found.
      rms: root mean square of the difference in log F, over the standard deviation of log F.
      largest: the largest difference in log F, over the same.
      faces: how many were compared; those with fewer than K allowed anchors are left out.
    """

    recall: float
    rms: float
    largest: float
    faces: int


def approximation_error(
    neighbours: Neighbours, exact: Neighbours, *, tau: float = 1.0
) -> ApproximationError:
    """Compares the support sets [N, K] of the same faces, found approximately and exactly.

    A missed neighbour matters by what takes its place: log F sees the similarities alone, so that
    recall may be low and log F right, or the reverse.
    """
    whole = np.isfinite(exact.similarities[:, -1])
    neighbours = Neighbours(*(x[whole] for x in neighbours))
    exact = Neighbours(*(x[whole] for x in exact))
    common = sum(
        len(np.intersect1d(a, b)) for a, b in zip(neighbours.indices, exact.indices, strict=True)
    )
    true = np.asarray(log_density(exact.similarities, tau=tau), np.float64)
    difference = np.asarray(log_density(neighbours.similarities, tau=tau), np.float64) - true
    # A spread that is only rounding would amplify rounding.
    spread = max(float(true.std()), 1e-4) if true.size else 1.0
    return ApproximationError(
        common / max(exact.indices.size, 1),
        float(np.sqrt(np.mean(difference**2))) / spread if true.size else 0.0,
        float(np.max(np.abs(difference), initial=0.0)) / spread,
        len(true),
    )


def has_scann() -> bool:
    """Whether scann is installed; it has wheels for Linux alone."""
    return importlib.util.find_spec("scann") is not None


def _import_scann() -> ModuleType:
    if not has_scann():
        raise UserError("scann is not installed (it has wheels for Linux alone): use exact or auto")
    try:
        import scann
    except (ImportError, OSError) as error:  # a library it needs, or another NumPy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"scann is installed but cannot be imported ({reason}): "
            "install it again, or use the exact searcher"
        ) from error
    return scann


def _partitioned_wins(queries: int, anchors: AnchorSet) -> bool:
    """Whether the partitioned search takes at most half the exact one's time on a CPU.

    In units of one face's exact search, building takes about 9,000 + 6·10⁸/A and a face 0.3
    (experiments/bench_search.py, 2 cores, 256-d, k = 10, A from 50,000 to 10⁶).
    """
    a = len(anchors)
    return (
        jax.default_backend() == "cpu"
        and a >= 50_000  # measured for no fewer
        and anchors.embeddings.nbytes <= 4 << 30  # ScaNN copies them
        and 9_000 + 6e8 / a + 0.3 * queries <= 0.5 * queries
        and has_scann()
    )


def _exact(embeddings: np.ndarray, anchor_labels: np.ndarray | None, *, k: int) -> Search:
    # XLA's matrix product takes about 1.5 times NumPy's on a CPU.
    search = host_search if jax.default_backend() == "cpu" else device_search
    return search(embeddings, anchor_labels, k=k)


def _scann_brute_force(
    embeddings: np.ndarray, anchor_labels: np.ndarray | None, *, k: int, slab: int = _SCANN_ANCHORS
) -> Search:
    scann = _import_scann()
    slabs = list(slabs_of(len(embeddings), slab))
    cache = {}

    def index(columns: slice) -> object:
        if 0 in cache:
            return cache[0]
        block = np.ascontiguousarray(embeddings[columns])
        built = scann.scann_ops_pybind.builder(block, 1, "dot_product").score_brute_force().build()
        if len(slabs) == 1:
            cache[0] = built
        return built

    def search(queries: np.ndarray, labels: np.ndarray | None) -> Neighbours:
        best = BestSoFar(len(queries), k)
        more = 0 if labels is None else largest_identity(anchor_labels)
        for columns in slabs:
            count = min(k + more, columns.stop - columns.start)
            neighbours = index(columns).search_batched_parallel(queries, final_num_neighbors=count)
            _merge(best, neighbours, labels, anchor_labels, first=columns.start)
        return best.sorted()

    return search


def _scann_partitioned(
    embeddings: np.ndarray, anchor_labels: np.ndarray | None, *, k: int
) -> Callable[..., Neighbours]:
    """A tree of √A leaves; a share of them is searched by 2-dimension codes, the best rescored."""
    scann = _import_scann()
    leaves = max(1, round(len(embeddings) ** 0.5))
    index = (
        scann.scann_ops_pybind.builder(np.ascontiguousarray(embeddings), k, "dot_product")
        .set_n_training_threads(0)
        .tree(leaves, leaves, training_sample_size=min(len(embeddings), 50_000))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(_rescored(k))
        .build()
    )
    exact = _exact(embeddings, anchor_labels, k=k)

    def search(queries: np.ndarray, labels: np.ndarray | None, *, share: float) -> Neighbours:
        best = BestSoFar(len(queries), k)
        more = 0 if labels is None else largest_identity(anchor_labels)
        count = min(k + more, len(embeddings))
        neighbours = index.search_batched_parallel(
            queries,
            final_num_neighbors=count,
            pre_reorder_num_neighbors=_rescored(count),
            leaves_to_search=max(1, round(share * leaves)),
        )
        _merge(best, neighbours, labels, anchor_labels)
        result = best.sorted()
        # The leaves searched may hold too few.
        short = np.flatnonzero(np.isneginf(result.similarities[:, -1]))
        if short.size:
            again = exact(queries[short], None if labels is None else labels[short])
            result.similarities[short], result.indices[short] = again
        return result

    return search


def _rescored(count: int) -> int:
    return max(200, 4 * count)


def _merge(
    best: BestSoFar,
    neighbours: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray | None,
    anchor_labels: np.ndarray | None,
    *,
    first: int = 0,
) -> None:
    """Merges ScaNN's result, which excludes nothing and is NaN where it has too few."""
    indices, similarities = neighbours
    missing = np.isnan(similarities)
    indices = np.where(missing, 0, indices.astype(np.int64)) + first
    if labels is not None:
        found_labels = np.asarray(anchor_labels)[indices]
        missing = missing | ((found_labels == labels[:, None]) & (found_labels >= 0))
    best.merge(slice(None), np.where(missing, -np.inf, similarities), indices)
