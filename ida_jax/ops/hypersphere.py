"""Unit embeddings, and the exact search among them.

N queries, A anchors, D embedding, K neighbours (the support set), G groups.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ida_jax.ops.products import row_products

# XLA's TopK kernel for GPUs takes rows at least this long and no more than that many of each; other
# rows are sorted whole.
_GPU_ROW, _GPU_MOST = 1024, 16


class Neighbours(NamedTuple):
    """The nearest anchors of each query, the most similar first.

    Attributes:
      similarities: float32 [N, K], cosines; -inf where fewer than K anchors were allowed.
      indices: int32 [N, K], rows of the anchors; meaningless where the similarity is -inf.
    """

    similarities: jax.Array
    indices: jax.Array


def normalize(x: jax.Array) -> jax.Array:
    """x / max(‖x‖₂, 1e-12) a row: a zero vector stays zero, with a finite gradient."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, 1e-24))


def largest_k(
    values: jax.Array, k: int, *, group_size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row, exactly: `lax.top_k` for long rows and small k.

    The columns are dealt into groups. The k largest values lie in the k groups with the largest
    maxima: a group left out has k groups before it, each with a value at least as large as all of
    its own. So only maxima, which vectorise, touch the whole row, and sorting sees
    A / group_size + k · group_size values of it.

    Args:
      values: [N, A].
      k: how many, 1 ≤ k ≤ A.
      group_size: columns a group; the power of two below √(A / k), at most 64, if None, which
        balances the two sums above. On GPUs it is chosen so that XLA's TopK kernel takes both.

    Returns:
      The values [N, k], descending, and their columns, int32 [N, k]. Among equal values any
      column may be named; of −inf, one that is not its own.
    """
    a = values.shape[1]
    if group_size is not None:
        return grouped_largest_k(values, k, group_size)
    balanced = min(64, 1 << int(math.log2(max(1, a // k)) / 2))
    general = partial(grouped_largest_k, k=k, group_size=balanced)
    if k > _GPU_MOST or a < _GPU_ROW:
        return general(values)
    size = min(64, 1 << int(math.log2(a // _GPU_ROW)))
    on_gpu = partial(grouped_largest_k, k=k, group_size=size, shortest=_GPU_ROW)
    return lax.platform_dependent(values, cuda=on_gpu, default=general)


def grouped_largest_k(
    values: jax.Array, k: int, group_size: int, *, shortest: int = 0
) -> tuple[jax.Array, jax.Array]:
    """`largest_k` by groups of a size; rows to choose from are filled up to `shortest` by −inf."""
    n, a = values.shape
    groups = a // group_size
    if group_size == 1 or groups < 2 * k:
        top, position = lax.top_k(values, k)
        return top, position
    head, tail = values[:, : groups * group_size], values[:, groups * group_size :]
    # Column j belongs to group j mod G, so that a group's maximum is taken across whole rows.
    grouped = head.reshape(n, group_size, groups)
    _, best = lax.top_k(jnp.max(grouped, axis=1), k)
    candidates = jnp.take_along_axis(grouped, best[:, None, :], axis=2).reshape(n, group_size * k)
    columns = jnp.arange(group_size, dtype=jnp.int32)[None, :, None] * groups + best[:, None, :]
    columns = columns.reshape(n, group_size * k)
    tail_columns = jnp.arange(groups * group_size, a, dtype=jnp.int32)
    candidates = jnp.concatenate([candidates, tail], axis=1)
    columns = jnp.concatenate(
        [columns, jnp.broadcast_to(tail_columns[None, :], tail.shape)], axis=1
    )
    if (missing := shortest - candidates.shape[1]) > 0:
        candidates = jnp.pad(candidates, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        columns = jnp.pad(columns, ((0, 0), (0, missing)))
    top, position = lax.top_k(candidates, k)
    return top, jnp.take_along_axis(columns, position, axis=1)


def blockwise_top_k(
    columns_from: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int],
    *,
    k: int,
    block_size: int,
) -> Neighbours:
    """The k largest of each row of a matrix [N, A] that only exists by blocks of columns.

    Args:
      columns_from: float32 [N, block_size], the columns that begin with the given one.
      shape: (N, A).
      k: 1 ≤ k ≤ block_size.
      block_size: columns at once, at most A.

    Returns:
      `Neighbours`: the values, descending, and their columns.
    """
    n, a = shape

    def best_of_block(start: jax.Array) -> Neighbours:
        # The last block starts early instead of running over; what was seen before is masked.
        first = jnp.minimum(start, a - block_size)
        column = first + jnp.arange(block_size, dtype=jnp.int32)
        values = jnp.where((column >= start)[None, :], columns_from(first), -jnp.inf)
        top, place = largest_k(values, k)
        return Neighbours(top, first + place)

    def merge(best: Neighbours, start: jax.Array) -> tuple[Neighbours, None]:
        block = best_of_block(start)
        values = jnp.concatenate([best.similarities, block.similarities], axis=1)
        columns = jnp.concatenate([best.indices, block.indices], axis=1)
        top, place = lax.top_k(values, k)
        return Neighbours(top, jnp.take_along_axis(columns, place, axis=1)), None

    if block_size == a:
        return best_of_block(jnp.int32(0))
    nothing = Neighbours(jnp.full((n, k), -jnp.inf, jnp.float32), jnp.zeros((n, k), jnp.int32))
    starts = jnp.arange(-(-a // block_size), dtype=jnp.int32) * block_size
    best, _ = lax.scan(merge, nothing, starts)
    return best


@partial(jax.jit, static_argnames=("k", "block_size", "precision"))
def nearest_anchors(
    queries: jax.Array,
    anchors: jax.Array,
    *,
    k: int,
    query_labels: jax.Array | None = None,
    anchor_labels: jax.Array | None = None,
    block_size: int = 65536,
    precision: str = "float32",
) -> Neighbours:
    """The support set Ψ: each query's k most similar anchors of other identities (section 3.2).

    Exact, by blocks of anchors: the similarities held at once are [N, block_size]. An anchor whose
    label equals the query's is never chosen: a face's own identity is not an inter-class neighbour.
    Negative labels stand for unknown and exclude nothing.

    Args:
      queries: float32 [N, D], unit rows.
      anchors: float32 [A, D], unit rows.
      k: the support set's size, 1 ≤ k ≤ A.
      query_labels: int32 [N], with `anchor_labels`.
      anchor_labels: int32 [A], with `query_labels`.
      precision: of the cosines, of `ops.products.PRECISIONS`.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: k outside 1 … A, or only one side has labels.
    """
    n, (a, _) = queries.shape[0], anchors.shape
    if not 1 <= k <= a:
        raise ValueError(f"k = {k} neighbours were asked for among A = {a} anchors")
    if (query_labels is None) != (anchor_labels is None):
        raise ValueError("the exclusion by label needs the queries' and the anchors' labels")
    block_size = max(k, min(block_size, a))

    def similarities(first: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(anchors, first, block_size)
        cosines = row_products(queries, block, precision=precision)
        if query_labels is None:
            return cosines
        labels = lax.dynamic_slice_in_dim(anchor_labels, first, block_size)
        same = (query_labels[:, None] == labels[None, :]) & (labels >= 0)[None, :]
        return jnp.where(same, -jnp.inf, cosines)

    return blockwise_top_k(similarities, (n, a), k=k, block_size=block_size)
