"""The softmax over all classes, its gradient and the class weights' update, block by block.

With a million classes the logits [B, C] and the gradient [C, D] are what does not fit. Neither is
ever whole here. A first pass over blocks of classes keeps a running maximum and sum; a second one
computes each block's gradient and applies it to that block's weights at once, so that beside the
weights and their momentum only [R, block] and [block, D] are needed.

Every margin loss (`ops.margin`) changes the label's logit alone, z_y; the others are s · cos. So

    loss = log(exp z_y + Σ_{j≠y} exp(s c_j)) − z_y,
    ∂loss/∂c_j = s p_j for j ≠ y,    ∂loss/∂c_y = −(1 − p_y) ∂z_y/∂c_y.

Source: the formulas are those of the plain softmax. Running maximum and sum: Milakov & Gimelshein,
2018. Classes split over devices, and sampled: Partial FC (An et al., CVPR 2022).

The functions run on one device's share, inside `jax.shard_map` over a mesh with the axes "data" and
"model": images are split over both, classes over "model" alone. Devices exchange embeddings
([R, D]) and numbers of a row over "model". Only where "data" has several devices, which then hold
the same classes, is the classes' gradient summed over them.

The plain softmax is one block; Partial FC's sampling is a list of rows in place of a range.

B batch, R rows of the batch that share a "data" index, C classes of this device, S sub-centres of
a class, D embedding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from ida_jax.ops.class_optimizers import AdamW, ClassWeights, Sgd

# How the products with the embeddings are computed, by name; sums are float32 in all of them. The
# largest errors of a cosine, of 512 × 4,000 at D = 256, against float64:
#   float32      7e-7, in full precision, for which GPUs have no tensor cores;
#   bfloat16_x3  2e-6: each operand is the sum of two bfloat16 numbers, and three of their four
#                products are added up;
#   bfloat16     8e-4: the operands are rounded.
# What float32 products are rounded to by default on TPUs and GPUs moves a cosine in its third
# digit; near 1 the margin's √(1 − c²) magnifies that.
PRODUCTS: dict[str, tuple[str, lax.Precision | lax.DotAlgorithmPreset]] = {
    "float32": ("float32", lax.Precision.HIGHEST),
    "bfloat16": ("bfloat16", lax.Precision.HIGHEST),
    "bfloat16_x3": ("float32", lax.DotAlgorithmPreset.BF16_BF16_F32_X3),
}


class SoftmaxStep(NamedTuple):
    """What a step gives back.

    Attributes:
      losses: float32 [R], 0 on masked rows.
      label_cosines: float32 [R], cos θ_y before the margin.
      gradient: float32 [b, D], of Σ weights · losses by this device's own embeddings.
      classes: the updated classes.
      velocity_squared: float32 scalar, Σ v² over this device's classes; finite if they are.
    """

    losses: jax.Array
    label_cosines: jax.Array
    gradient: jax.Array
    classes: ClassWeights
    velocity_squared: jax.Array


@jax.named_scope("head")
def softmax_step(
    embeddings: jax.Array,
    labels: jax.Array,
    row_weights: jax.Array,
    classes: ClassWeights,
    label_logits: Callable[[jax.Array], jax.Array],
    optimizer: Sgd | AdamW,
    *,
    num_classes: int,
    scale: float,
    filter_above: float = 0.0,
    block: int = 0,
    sampled: "Sampled | None" = None,
    dense: bool = True,
    dtype: str = "float32",
) -> SoftmaxStep:
    """The loss of a batch over all classes, and one step of the class weights.

    The same loss and gradients as a plain softmax over [B, C] logits, whatever `block` is.

    Args:
      embeddings: float32 [b, D], this device's own, of norm 1.
      labels: int32 [R], of all rows that share the "data" index, classes of the whole problem.
      row_weights: float32 [R], each row's weight in the loss: 1 / rows for a mean, 0 where a row
        only pads the batch.
      classes: this device's, C = ⌈num_classes / devices⌉ or more; rows past `num_classes` pad.
      label_logits: [R] cosines to [R] logits with margin, elementwise.
      num_classes: of the whole problem.
      scale: s, of the other classes' logits.
      filter_above: t, where above 0: of a class other than the label's whose cosine is above it the
        logit is 0 and has no gradient, since such an image may be one of that class with a wrong
        label (arcface_torch's interclass_filtering_threshold).
      block: classes at a time; 0 takes all at once.
      sampled: the rows of `classes` that take part (`sample_classes`); all if None.
      dense: whether the others take the step of a gradient of 0, as in Partial FC's second version,
        whose optimiser sees a dense gradient: for SGD v ← μ v + λ w, w ← w − η v. False: they stay
        as they are, weight and momentum. Without effect where all take part.
      dtype: of the products, one of `PRODUCTS`.
    """
    gathered = lax.all_gather(embeddings, "model", tiled=True)
    products = _Products(gathered, dtype)
    first_class = lax.axis_index("model") * classes.weight.shape[0]
    blocks = _Blocks(classes.weight.shape[0], block, sampled)

    def look(i: jax.Array, old: jax.Array) -> "_Look":
        rows, fresh = blocks.rows(i)
        norms = _norms(old)
        cosines = products.cosines(old, norms)
        ids = first_class + rows
        nearest, is_label = jnp.max(cosines, axis=-1), labels[:, None] == ids[None, :]
        counts = fresh & (ids < num_classes)
        if filter_above > 0:
            is_out = ~is_label & (nearest > filter_above)
            return _Look(norms, cosines, nearest, is_label, counts, fresh, is_out)
        return _Look(norms, cosines, nearest, is_label, counts, fresh, None)

    def accumulate(i: jax.Array, carry: tuple) -> tuple:
        maximum, total, at_label = carry
        seen = look(i, blocks.take(classes.weight, i))
        others = seen.counts[None, :] & ~seen.is_label
        logits = jnp.where(others, scale * seen.kept_cosines, _LOW)
        higher = jnp.maximum(maximum, jnp.max(logits, axis=1))
        terms = jnp.where(others, jnp.exp(logits - higher[:, None]), 0.0)
        mine = jnp.where(seen.is_label & seen.counts[None, :], seen.cosines, 0.0)
        return (
            higher,
            total * jnp.exp(maximum - higher) + jnp.sum(terms, axis=1),
            at_label + jnp.sum(mine, axis=1),
        )

    nothing = jnp.zeros(labels.shape, jnp.float32)
    maximum, total, at_label = blocks.loop(accumulate, (nothing + _LOW, nothing, nothing))
    highest = lax.pmax(maximum, "model")
    total = lax.psum(total * jnp.exp(maximum - highest), "model")
    label_cosines = lax.psum(at_label, "model")
    others = highest + jnp.log(total)  # -inf where there is no other class

    logits, by_cosine = jax.vjp(label_logits, label_cosines)
    lead = others - logits
    is_real = row_weights > 0
    losses = jnp.where(is_real, jax.nn.softplus(lead), 0.0)
    (slope,) = by_cosine(-jax.nn.sigmoid(lead) * row_weights)
    slope = jnp.where(is_real, slope, 0.0)
    log_all = jnp.logaddexp(others, logits)

    def update(i: jax.Array, carry: tuple) -> tuple:
        classes, old, gradient, squared = carry
        seen = look(i, old.weight)
        p = jnp.exp(scale * seen.kept_cosines - log_all[:, None])
        slopes = jnp.where(seen.is_label, slope[:, None], scale * row_weights[:, None] * p)
        slopes = jnp.where(seen.counts[None, :] & is_real[:, None], slopes, 0.0)
        if seen.is_out is not None:
            slopes = jnp.where(seen.is_out, 0.0, slopes)
        # Of a class's sub-centres the nearest one alone is moved.
        slopes = jnp.where(seen.sub_cosines == seen.cosines[..., None], slopes[..., None], 0.0)
        # By w / ‖w‖ the slope is that by w times ‖w‖: one array serves both products.
        slopes = slopes / seen.norms[None, ..., 0]
        gradient = gradient + products.by_embeddings(slopes, old.weight)
        by_product = products.by_classes(slopes)
        if lax.axis_size("data") > 1:
            by_product = lax.psum(by_product, "data")
        # The derivative of w / ‖w‖ leaves nothing along w.
        along = jnp.sum(by_product * old.weight, axis=-1, keepdims=True) / jnp.square(seen.norms)
        new = optimizer.step(old, by_product - along * old.weight)
        classes, old, more = _put(classes, old, new, seen.fresh, blocks, i)
        return classes, old, gradient, squared + more

    whole = jax.tree.map(_row_major, classes)
    first = jax.tree.map(lambda array: blocks.take(array, jnp.int32(0)), whole)
    classes, _, gradient, squared = blocks.loop(
        update, (whole, first, jnp.zeros_like(gathered), jnp.float32(0))
    )
    if sampled is not None and dense:
        classes, more = _decay_others(classes, sampled, optimizer, block)
        squared = squared + more
    return SoftmaxStep(
        losses,
        label_cosines,
        lax.psum_scatter(gradient, "model", tiled=True),
        classes,
        squared,
    )


def _put(
    classes: ClassWeights, old: ClassWeights, new: ClassWeights, change: jax.Array,
    blocks: "_Blocks", i: jax.Array,
) -> tuple[ClassWeights, ClassWeights, jax.Array]:  # fmt: skip
    """The classes with block i as `new` where `change` [n]; the block i + 1; Σ v² of the changed.

    The next block is read after the write: were it read in the round that writes it, XLA would copy
    the whole weights wherever it cannot prove that every read comes first. (After the last block it
    is read again.)
    """
    change = change[:, None, None]
    new = jax.tree.map(lambda a, b: jnp.where(change, a, b), new, old)
    squared = jnp.sum(jnp.where(change, jnp.square(new.momentum), 0.0))
    put = jax.tree.map(lambda array, of: _row_major(blocks.put(array, of, i)), classes, new)
    return put, jax.tree.map(lambda array: blocks.take(array, i + 1), put), squared


def _decay_others(
    classes: ClassWeights, sampled: "Sampled", optimizer: Sgd | AdamW, block: int
) -> tuple[ClassWeights, jax.Array]:
    """The classes after a gradient of 0 on all rows but the sampled; Σ v² of the others.

    Blocks of classes too, read ahead as in `softmax_step`. A class's gradient is never in parts.
    """
    blocks = _Blocks(classes.weight.shape[0], block, None)
    taken = jnp.arange(sampled.rows.size) < sampled.used
    others = jnp.ones(classes.weight.shape[:1], bool)
    others = others.at[sampled.rows].set(~taken, unique_indices=True, mode="promise_in_bounds")

    def decay(i: jax.Array, carry: tuple) -> tuple:
        classes, old, squared = carry
        _, fresh = blocks.rows(i)
        new = optimizer.step(old, jnp.zeros_like(old.weight))
        classes, old, more = _put(classes, old, new, fresh & blocks.take(others, i), blocks, i)
        return classes, old, squared + more

    first = jax.tree.map(lambda array: blocks.take(array, jnp.int32(0)), classes)
    classes, _, squared = blocks.loop(decay, (classes, first, jnp.float32(0)))
    return classes, squared


class Sampled(NamedTuple):
    """Rows of this device's classes that take part in a step.

    Attributes:
      rows: int32 [n], without repetition.
      used: how many of them, from the front, take part: whole blocks, or all.
      size: of the blocks.
    """

    rows: jax.Array
    used: int | jax.Array
    size: int


def sample_classes(
    key: jax.Array,
    labels: jax.Array,
    *,
    num_local: int,
    num_classes: int,
    count: int,
    block: int = 0,
) -> Sampled:
    """Rows of this device's classes: all that the batch holds, the rest drawn evenly.

    Partial FC's sampling: `count` rows, or as many as the batch has classes here where that is
    more. That number is known only to the step: room is made for min(B, C), and the blocks beyond
    it are left out. The logits are not corrected for the sampling, as there.

    Args:
      key: the same on devices that hold the same classes, another on others.
      labels: int32 [B], the whole batch's.
      num_local: C.
      count: the number of classes that is wanted, 1 … C.
      block: classes at a time; 0 takes `count`.

    Returns:
      `Sampled`, those that take part in ascending order.
    """
    first_class = lax.axis_index("model") * num_local
    order = jax.random.uniform(key, (num_local,))
    # Rows that only pad come last, those of the batch first.
    order = jnp.where(first_class + jnp.arange(num_local) < num_classes, order, -1.0)
    here = labels - first_class
    # A negative row would count from the end.
    here = jnp.where((here >= 0) & (here < num_local), here, num_local)
    order = order.at[here].set(2.0, mode="drop")
    room, size = max(count, min(labels.size, num_local)), min(block or count, count)
    rows = lax.top_k(order, room)[1]
    if room == count:
        return Sampled(jnp.sort(rows), room, size)
    needed = jnp.maximum(count, jnp.sum((order > 1.0).astype(jnp.int32)))
    used = jnp.minimum(-(-needed // size) * size, room)
    # The others behind those that take part, each in ascending order.
    behind = jnp.where(jnp.arange(room) < used, 0, num_local).astype(jnp.int32)
    return Sampled(jnp.sort(rows + behind) - behind, used, size)


# Below every logit, and finite, so that the difference of two is a number.
_LOW = -1e30


class _Look(NamedTuple):
    """A block of classes as the batch sees it; n classes.

    norms [n, S, 1], sub_cosines [R, n, S], cosines [R, n] the best of a class, is_label [R, n],
    counts [n] whether a class takes part, fresh [n] whether this block is the first to hold it,
    is_out [R, n] where a class is filtered for a row (None: nowhere).
    """

    norms: jax.Array
    sub_cosines: jax.Array
    cosines: jax.Array
    is_label: jax.Array
    counts: jax.Array
    fresh: jax.Array
    is_out: jax.Array | None

    @property
    def kept_cosines(self) -> jax.Array:
        """[R, n], 0 where filtered."""
        return self.cosines if self.is_out is None else jnp.where(self.is_out, 0.0, self.cosines)


class _Blocks:
    """Blocks of one size over rows that it need not divide: the last one overlaps its neighbour."""

    def __init__(self, num_rows: int, block: int, sampled: Sampled | None) -> None:
        self._sampled = None if sampled is None else sampled.rows
        length = num_rows if sampled is None else sampled.rows.size
        self._size = min(block or length, length) if sampled is None else sampled.size
        self._count: int | jax.Array = -(-length // self._size)
        if sampled is not None:
            self._count = -(-sampled.used // self._size)
        self._last = length - self._size

    def loop(self, body: Callable, carry: tuple) -> tuple:
        if self._is_one:  # without a loop, XLA computes what both passes need once
            return body(jnp.int32(0), carry)
        return lax.fori_loop(0, self._count, body, carry)

    @property
    def _is_one(self) -> bool:
        return isinstance(self._count, int) and self._count == 1

    def rows(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block's rows, and which of them no earlier block has held."""
        start = self._start(i)
        places = start + jnp.arange(self._size, dtype=jnp.int32)
        rows = places if self._sampled is None else self._ids(i)
        return rows, places >= i * self._size

    def take(self, array: jax.Array, i: jax.Array) -> jax.Array:
        if self._sampled is not None:
            return array.at[self._ids(i)].get(
                unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
            )
        if self._is_one:
            return array
        return lax.dynamic_slice_in_dim(array, self._start(i), self._size)

    def put(self, array: jax.Array, values: jax.Array, i: jax.Array) -> jax.Array:
        if self._sampled is not None:
            return array.at[self._ids(i)].set(
                values, unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
            )
        if self._is_one:
            return values
        return lax.dynamic_update_slice_in_dim(array, values, self._start(i), axis=0)

    def _start(self, i: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.minimum(i, self._count - 1) * self._size, self._last)

    def _ids(self, i: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(self._sampled, self._start(i), self._size)


class _Products(NamedTuple):
    """The three matrix products with the embeddings, of one kind; the weights are of any norm."""

    embeddings: jax.Array
    kind: str

    def cosines(self, weight: jax.Array, norms: jax.Array) -> jax.Array:
        """[n, S, D] and [n, S, 1] → [R, n, S].

        XLA for CPUs transposes the operand on the right, twenty times the product's time if that is
        the weights.
        """
        products = lax.platform_dependent(
            self.embeddings,
            weight,
            cpu=lambda x, w: jnp.moveaxis(self._einsum("nsd,rd->nsr", w, x), 2, 0),
            default=lambda x, w: self._einsum("rd,nsd->rns", x, w),
        )
        return jnp.clip(products / norms[None, ..., 0], -1.0, 1.0)

    def by_embeddings(self, slopes: jax.Array, weight: jax.Array) -> jax.Array:
        """[R, n, S] and [n, S, D] → [R, D]."""
        return self._einsum("rns,nsd->rd", slopes, weight)

    def by_classes(self, slopes: jax.Array) -> jax.Array:
        """[R, n, S] → [n, S, D]."""
        return self._einsum("rns,rd->nsd", slopes, self.embeddings)

    def _einsum(self, subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
        dtype, precision = PRODUCTS[self.kind]
        return jnp.einsum(
            subscripts, a.astype(dtype), b.astype(dtype),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip


def _row_major(array: jax.Array) -> jax.Array:
    """The same; else XLA for TPUs copies all classes into the layout that a product likes best."""
    return with_layout_constraint(array, Layout((0, 1, 2)))


def _norms(weight: jax.Array) -> jax.Array:
    """‖w‖, [n, S, 1]; of a row of zeros it counts as 1e-12."""
    squared = jnp.sum(jnp.square(weight), axis=-1, keepdims=True)
    return jnp.sqrt(jnp.maximum(squared, 1e-24))
