"""The margin head's part of a training step: loss, gradient and update on all devices.

The head is a step, not a layer: no [B, C] logits and no [C, D] gradient exist, so that 29 M classes
fit on one device. With gradient accumulation the momentum itself is the accumulator.
`MarginHead.__call__` is the readable definition of the same loss.

B batch, C classes padded to the devices, S sub-centres, D embedding.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from ida_jax.models.margin_head import MarginHead
from ida_jax.ops.class_optimizers import AdamW, ClassWeights, Sgd
from ida_jax.ops.class_softmax import sample_classes, softmax_step
from ida_jax.ops.margin import NormStatistics, adaface_quality
from ida_jax.training.optimizer import is_adamw


class Head(NamedTuple):
    """The margin head's part of the state.

    Attributes:
      classes: weight and momentum, float32 [C, S, D] each; AdamW's second moment too.
      norms: AdaFace's running statistics of the embeddings' norms.
    """

    classes: ClassWeights
    norms: NormStatistics


def margin_head(train: ConfigDict, *, num_classes: int) -> MarginHead:
    """The head that a config's section train describes.

    Raises:
      UserError: an unknown kind, or a margin outside its range.
    """
    return MarginHead(
        num_classes=num_classes,
        kind=train.head,
        scale=train.scale,
        margin=tuple(train.combined_margins) if train.head == "combined" else train.margin,
        sub_centres=train.sub_centres,
        straight_through=train.straight_through,
        interclass_filtering_threshold=train.get("interclass_filtering_threshold", 0.0),
    )


def head_step(
    state: Head,
    embeddings: jax.Array,
    norms: jax.Array,
    labels: jax.Array,
    row_weights: jax.Array,
    step: jax.Array,
    part: jax.Array,
    key: jax.Array,
    *,
    head: MarginHead,
    num_local: int,
    config: ConfigDict,
    schedule: optax.Schedule,
    mesh: Mesh,
) -> tuple[Head, jax.Array, dict[str, jax.Array]]:
    """One step of the head, or one of its parts with gradient accumulation.

    Args:
      embeddings: float32 [B, D], of norm 1.
      norms: float32 [B], the embeddings' before normalisation.
      labels: int32 [B].
      row_weights: float32 [B], see `softmax_step`.
      step: int32 scalar, the steps taken before: the schedule's argument.
      part: int32 scalar, which of `accumulate` parts.
      num_local: classes of each device along "model".

    Returns:
      The state after the step, the gradient with respect to the unit embeddings, and sums over the
      batch: loss, genuine_cosine, velocity_squared.
    """
    statistics = state.norms
    # Only AdaFace reads the quality.
    quality = jnp.zeros_like(norms)
    if head.kind == "adaface":
        quality, statistics = adaface_quality(norms, statistics, mask=row_weights > 0)
    count = math.ceil(config.sample_rate * num_local)

    if is_adamw(config):
        optimizer = AdamW(schedule(step), config.weight_decay, count=step + 1)
    else:
        optimizer = Sgd(
            schedule(step), config.momentum, config.weight_decay,
            is_first=part == 0, is_last=part == config.accumulate - 1,
        )  # fmt: skip

    def on_device(
        classes: ClassWeights, embeddings: jax.Array, quality: jax.Array, labels: jax.Array,
        row_weights: jax.Array,
    ) -> Any:  # fmt: skip
        gather = partial(jax.lax.all_gather, axis_name="model", tiled=True)
        quality, row_labels, row_weights = gather(quality), gather(labels), gather(row_weights)
        sampled = None
        if config.sample_rate < 1:
            sampled = sample_classes(
                jax.random.fold_in(key, jax.lax.axis_index("model") + 1),
                jax.lax.all_gather(row_labels, "data", tiled=True),
                num_local=num_local,
                num_classes=head.num_classes,
                count=count,
                block=config.class_block,
            )
        out = softmax_step(
            embeddings,
            row_labels,
            row_weights,
            classes,
            lambda cosines: head.label_logits(cosines, quality),
            optimizer,
            num_classes=head.num_classes,
            scale=head.scale,
            filter_above=head.interclass_filtering_threshold,
            block=config.class_block,
            sampled=sampled,
            dense=config.get("sample_rule", "frozen") == "dense",
            dtype=config.head_dtype,
        )
        sums = {
            "loss": jax.lax.psum(jnp.sum(row_weights * out.losses), "data"),
            "genuine_cosine": jax.lax.psum(jnp.sum(row_weights * out.label_cosines), "data"),
            "velocity_squared": jax.lax.psum(out.velocity_squared, "model"),
        }
        return out.classes, out.gradient, sums

    by_rows, by_classes = PartitionSpec(("data", "model")), PartitionSpec("model")
    classes, gradient, sums = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(by_classes, by_rows, by_rows, by_rows, by_rows),
        out_specs=(by_classes, by_rows, PartitionSpec()),
        check_vma=False,
    )(state.classes, embeddings, quality, labels, row_weights)
    return Head(classes, statistics), gradient, sums
