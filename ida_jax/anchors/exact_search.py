"""The exact search by slabs of anchors: on the host's processors, or split over the devices.

N queries, A anchors, D embedding, K support, G groups.

A slab is read from the anchors in place, memory-mapped or not, compared with every query and then
released; only the K best so far of each query are kept. Nothing of size A is ever copied.

On a CPU it is NumPy's matrix product by blocks, then a selection by the maxima of groups (XLA's
product alone takes 1.5 times NumPy's; ScaNN's brute force is on a par). On other devices the
queries are split over them, and `largest_k` selects in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ida_jax.common.devices import block_size, padded
from ida_jax.common.processes import cores
from ida_jax.common.progress import progress_bar
from ida_jax.ops.hypersphere import Neighbours, nearest_anchors

Search = Callable[[np.ndarray, np.ndarray | None], Neighbours]

# On the host, 512 × 65,536 similarities (128 MiB) at once: BLAS reaches its full rate, and rows
# are long enough that their selection costs little beside it.
_HOST_QUERIES = 512
_HOST_ANCHORS = 65536
# Rows that one thread sorts at once, so that its groups' maxima stay in cache.
_ROWS = 32
# Queries a device takes at once. Few shapes, since each is compiled once.
DEVICE_QUERIES = (16, 512, 4096)
# Anchors a device holds at once where it cannot hold them all.
_DEVICE_ANCHORS = 262144


def host_search(
    embeddings: np.ndarray, anchor_labels: np.ndarray | None, *, k: int, slab: int = _HOST_ANCHORS
) -> Search:
    """Exact search by NumPy's matrix product and `largest_k_rows`, for a CPU.

    Args:
      embeddings: float32 [A, D], unit rows; may be memory-mapped.
      anchor_labels: int32 [A]; None where the search is never given labels.
      k: 1 … A.

    Returns:
      search(queries [N, D], labels [N] or None): `Neighbours` as NumPy arrays; -inf where fewer
      than k anchors were allowed.
    """
    embeddings = np.asarray(embeddings)

    def search(queries: np.ndarray, labels: np.ndarray | None) -> Neighbours:
        n = len(queries)
        slabs = list(slabs_of(len(embeddings), slab))
        best = BestSoFar(n, k)
        # Two rows at least: see `_product`.
        widest = max(columns.stop - columns.start for columns in slabs)
        tile = np.empty((max(2, min(n, _HOST_QUERIES)), widest), np.float32)
        starts = range(0, n, _HOST_QUERIES)
        with _progress(len(slabs) * len(starts)) as bar, ThreadPoolExecutor(cores()) as pool:
            for columns in slabs:
                anchors = embeddings[columns]
                own = None if labels is None else _own_columns(anchor_labels[columns])
                for start in starts:
                    rows = slice(start, min(start + _HOST_QUERIES, n))
                    similarities = _product(queries[rows], anchors, tile)
                    if own is not None:
                        similarities[own(labels[rows])] = -np.inf
                    sort = partial(_sort_rows, best, similarities, start, columns.start)
                    list(pool.map(sort, range(0, len(similarities), _ROWS)))
                    bar.update()
        return best.sorted()

    return search


def device_search(
    embeddings: np.ndarray,
    anchor_labels: np.ndarray | None,
    *,
    k: int,
    devices: Sequence[jax.Device] | None = None,
    slab: int | None = None,
    precision: str = "float32",
) -> Search:
    """Exact search on the devices: queries split over them, anchors on each.

    The anchors are uploaded once where they fill at most half of a device's memory, and otherwise
    by slabs at each call. Queries are padded to few shapes, so that no number of them compiles
    again.

    Args:
      embeddings: float32 [A, D], unit rows; may be memory-mapped.
      anchor_labels: int32 [A]; None where the search is never given labels.
      k: 1 … A.
      devices: those to use; this process's if None.
      slab: anchors held at once; chosen by the device's memory if None.
      precision: of the cosines, of `ops.products.PRECISIONS`.

    Returns:
      As `host_search`.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    embeddings = np.asarray(embeddings)
    mesh = search_mesh(devices)
    split, whole = PartitionSpec("data"), PartitionSpec()
    if slab is None:
        slab = len(embeddings) if _fits(embeddings.nbytes, devices[0]) else _DEVICE_ANCHORS
    slabs = list(slabs_of(len(embeddings), slab))
    compiled = {}
    cache = {}

    def uploaded(columns: slice, with_labels: bool) -> tuple[jax.Array, ...]:
        arrays = {"embeddings": embeddings} | ({"labels": anchor_labels} if with_labels else {})
        everywhere = NamedSharding(mesh, whole)
        if len(slabs) > 1:
            return tuple(jax.device_put(a[columns], everywhere) for a in arrays.values())
        for name, array in arrays.items():
            if name not in cache:
                cache[name] = jax.device_put(np.asarray(array), everywhere)
        return tuple(cache[name] for name in arrays)

    def compare(with_labels: bool, among: int) -> Callable[..., Neighbours]:
        key = with_labels, among
        if key not in compiled:
            compiled[key] = compared(
                mesh, k=min(k, among), with_labels=with_labels, precision=precision
            )
        return compiled[key]

    def search(queries: np.ndarray, labels: np.ndarray | None) -> Neighbours:
        n = len(queries)
        best = BestSoFar(n, k)
        step = block_size([len(devices) * size for size in DEVICE_QUERIES], n)
        given = (queries,) if labels is None else (queries, labels)
        starts = range(0, n, step)
        # The device always has the next block while the one before is fetched.
        fetch = None
        with _progress(len(slabs) * len(starts)) as bar:
            for columns in slabs:
                on_device = uploaded(columns, labels is not None)
                nearest = compare(labels is not None, columns.stop - columns.start)
                for start in starts:
                    rows = slice(start, min(start + step, n))
                    blocks = tuple(
                        jax.device_put(padded(g[rows], step), NamedSharding(mesh, split))
                        for g in given
                    )
                    neighbours = nearest(blocks, on_device)
                    if fetch is not None:
                        fetch()
                    fetch = partial(_fetch, best, rows, neighbours, columns.start)
                    bar.update()
            if fetch is not None:
                fetch()
        return best.sorted()

    return search


def search_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The devices that `device_search` splits queries over."""
    return Mesh(np.array(devices), ("data",))


def compared(
    mesh: Mesh, *, k: int, with_labels: bool, precision: str = "float32"
) -> Callable[..., Neighbours]:
    """(queries, anchors) → `nearest_anchors`, jitted: queries split over a `search_mesh`.

    Both are tuples: embeddings [N, D] or [A, D], and the labels where there are any.
    """
    split, whole = PartitionSpec("data"), PartitionSpec()

    def one_device(queries: tuple[jax.Array, ...], anchors: tuple[jax.Array, ...]) -> Neighbours:
        return nearest_anchors(
            queries[0],
            anchors[0],
            k=k,
            query_labels=queries[1] if with_labels else None,
            anchor_labels=anchors[1] if with_labels else None,
            precision=precision,
        )

    # Explicitly per device: its queries need nothing from another's.
    return jax.jit(
        jax.shard_map(
            one_device, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False
        )
    )


def largest_k_rows(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row and their columns, unsorted: `ops.hypersphere.largest_k` in NumPy.

    Columns are dealt into groups. The k-th largest of the groups' maxima is a bound that at least k
    values reach, and hardly more. Whole rows are only read for the maxima, which vectorise; the
    groups that reach the bound are read again: about 2·√(A k) values at groups of √(A / k).

    Args:
      values: [N, A], no NaN.
      k: 1 … A.

    Returns:
      [N, k] and int64 [N, k].
    """
    n, a = values.shape
    size = int((a / k) ** 0.5)
    if size < 2:
        return _partition(values, k)
    groups = a // size
    head = groups * size
    grouped = values[:, :head].reshape(n, size, groups)
    maxima = grouped.max(axis=1)
    bound = np.partition(maxima, groups - k, axis=1)[:, groups - k, None]
    row, group = _positions(maxima >= bound)
    hit, member = _positions(grouped[row, :, group] >= bound[row])
    row, column = row[hit], member * groups + group[hit]
    if head < a:
        tail_row, tail_column = _positions(values[:, head:] >= bound)
        row, column = np.append(row, tail_row), np.append(column, head + tail_column)
        by_row = np.argsort(row, kind="stable")
        row, column = row[by_row], column[by_row]
    count = np.bincount(row, minlength=n)
    position = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    top = np.full((n, count.max()), -np.inf, values.dtype)
    columns = np.zeros(top.shape, np.int64)
    top[row, position], columns[row, position] = values[row, column], column
    top, position = _partition(top, k)
    return top, np.take_along_axis(columns, position, axis=1)


def slabs_of(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0 … count, of equal length within one row."""
    number = max(1, -(-count // size))
    edges = [i * count // number for i in range(number + 1)]
    return (slice(a, b) for a, b in pairwise(edges))


class BestSoFar:
    """The k largest similarities of each query, over the slabs seen so far."""

    def __init__(self, n: int, k: int) -> None:
        self.k = k
        self.similarities = np.full((n, k), -np.inf, np.float32)
        self.indices = np.zeros((n, k), np.int32)

    def merge(self, rows: slice, similarities: np.ndarray, indices: np.ndarray) -> None:
        """Merges a slab's candidates [n, any] for these rows."""
        values = np.concatenate([self.similarities[rows], similarities], axis=1)
        known = np.concatenate([self.indices[rows], indices.astype(np.int32)], axis=1)
        top, position = _partition(values, self.k)
        self.similarities[rows] = top
        self.indices[rows] = np.take_along_axis(known, position, axis=1)

    def sorted(self) -> Neighbours:
        """The most similar first; among equals the lower row."""
        # One integer a neighbour, since NumPy sorts those many times faster than two keys: a
        # float's bits, negative ones mirrored, rise as it does.
        bits = self.similarities.view(np.int32)
        rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
        key = np.sort((rising << 32) | (0xFFFFFFFF - self.indices.astype(np.int64)), axis=1)
        key = key[:, ::-1]
        rising = (key >> 32).astype(np.int32)
        return Neighbours(
            (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(np.float32),
            (0xFFFFFFFF - (key & 0xFFFFFFFF)).astype(np.int32),
        )


def _sort_rows(
    best: BestSoFar, similarities: np.ndarray, first_query: int, first_anchor: int, row: int
) -> None:
    part = similarities[row : row + _ROWS]
    values, columns = largest_k_rows(part, min(best.k, part.shape[1]))
    rows = slice(first_query + row, first_query + row + len(part))
    best.merge(rows, values, first_anchor + columns)


def _product(queries: np.ndarray, anchors: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """queries · anchorsᵀ within the memory of `tile`."""
    n, a = len(queries), len(anchors)
    if n == 1:
        # BLAS sums in another order for a vector than for a matrix: so a face's similarities are
        # the same to the last bit, whatever others it is searched with.
        queries = np.concatenate([queries, queries])
    out = tile.reshape(-1)[: len(queries) * a].reshape(len(queries), a)
    return np.matmul(queries, anchors.T, out=out)[:n]


def _positions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.nonzero` of a matrix, which takes longer."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])


def _partition(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    columns = np.argpartition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
    return np.take_along_axis(values, columns, axis=1), columns


def _own_columns(anchor_labels: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """A function from queries' labels to the (row, column) of anchors of the same identity."""
    order = np.argsort(anchor_labels, kind="stable")
    ascending = np.asarray(anchor_labels)[order]

    def own(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = np.searchsorted(ascending, labels, side="left")
        count = np.searchsorted(ascending, labels, side="right") - first
        count = np.where(labels >= 0, count, 0)
        rows = np.repeat(np.arange(len(labels)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return rows, order[np.repeat(first, count) + within]

    return own


def _fetch(best: BestSoFar, rows: slice, neighbours: Neighbours, first_anchor: int) -> None:
    count = rows.stop - rows.start
    similarities, indices = (np.asarray(x)[:count] for x in neighbours)
    best.merge(rows, similarities, first_anchor + indices)


def _fits(size: int, device: jax.Device) -> bool:
    limit = (device.memory_stats() or {}).get("bytes_limit", 4 << 30)
    return size <= limit // 2


def _progress(blocks: int) -> tqdm:
    return progress_bar(total=blocks, desc="search", unit="block", delay=2, leave=False)
