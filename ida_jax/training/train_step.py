"""One training step of a backbone and its margin head, compiled for a mesh of devices.

Images are split over all devices, classes over the mesh's axis "model"; the backbone is on each.

The axis "model" has all devices unless `train.class_shards` is smaller. Devices exchange embeddings
and per-row scalars, B·D, never C·D. In one process dropout is the same on any number of devices;
with several processes a mesh may place a batch's images differently. A batch that the devices do
not divide is padded, and the padding travels as a mask to every BatchNorm and to the loss, so that
training is the same on one device and on eight.

With bfloat16 convolutions their gradients are summed over devices in bfloat16, since XLA puts the
sum before the cast. Parameters, momentum and the head are float32. A float16 network is trained
with loss scaling (`training.loss_scale`): a step that overflows is undone, for which the state
before it is kept until its gradients are known, class weights and all; bfloat16 needs neither.

B batch, M microbatches, C classes padded to the devices, S sub-centres, D embedding, H height,
W width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ida_jax.artefacts.face_model import Preprocessing, build_network
from ida_jax.common.devices import batch_sharding, class_sharding, padded_classes, replicated
from ida_jax.common.errors import UserError
from ida_jax.ops.class_optimizers import ClassWeights
from ida_jax.ops.hypersphere import normalize
from ida_jax.ops.margin import initial_norm_statistics
from ida_jax.planning.flops import count_flops
from ida_jax.training.head_step import Head, head_step, margin_head
from ida_jax.training.loss_scale import LossScale, adjusted, initial_loss_scale
from ida_jax.training.optimizer import backbone_optimizer, is_adamw, learning_rate_schedule


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, steps taken.
      params: the backbone's parameters.
      batch_stats: the backbone's BatchNorm statistics.
      opt_state: of the backbone's optimiser; `Scaled` for a float16 network.
      head: the margin head's.
      average: the moving average of both, {"params": …, "batch_stats": …}, which is then the model;
        None if the config asks for none. The head's weights are not averaged.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    head: Head
    average: Any


class Scaled(NamedTuple):
    """A state of the optimiser with its loss scaling.

    Not a field of `TrainState`: checkpoints of other types, also of earlier versions, are without.
    """

    optimizer: optax.OptState
    loss_scale: LossScale


class Program(NamedTuple):
    """What a config trains, on a mesh.

    Attributes:
      step: (state, images, labels, mask) → (state, metrics), jitted; the old state is donated.
        images are uint8 [B, H, W, 3], labels int32 [B]; mask, bool [B] or None, is false on rows
        that only pad the batch to the device count: they enter neither the loss nor any statistic.
        metrics are scalars: loss, gradient_norm (the backbone's, before clipping), head_velocity
        (‖v‖ of the class weights), genuine_cosine (the mean of cos θ_y); for float16 loss_scale,
        and skipped_steps, those so far whose loss or norm was not finite: they overflowed.
      init: () → the state that the seed gives, on the mesh's devices.
      state: the state's shapes, types and shardings, for compiling and restoring.
      batch: (images, labels, mask), likewise.
    """

    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    init: Callable[[], TrainState]
    state: TrainState
    batch: tuple[Any, Any, Any]


def make_program(config: ConfigDict, *, num_classes: int, mesh: Mesh) -> Program:
    """The training that a run's config describes.

    Args:
      config: a run's, with the sections model and train (`ida_jax.runs.config`) and the seed.

    Raises:
      UserError: values that are incompatible with each other or with the devices.
    """
    train = config.train
    check_batch(train, mesh)
    shards, rows = mesh.shape["model"], padded_batch(train.batch_size, mesh)
    module = build_network(
        config.model.network,
        {
            **config.model.options.to_dict(),
            "remat": train.remat,
            "batch_norm_groups": {"global": 1, "per_device": mesh.size, "frozen": 0}[
                train.batch_norm
            ],
        },
    )
    head = margin_head(train, num_classes=num_classes)
    classes = padded_classes(num_classes, mesh)
    c = config.model
    preprocessing = Preprocessing(c.image_size, tuple(c.mean), tuple(c.std))
    optimizer = backbone_optimizer(train)

    def init() -> TrainState:
        head_key = jax.random.key(config.seed)
        # The default generator takes several times as long to compile, and again for every shape.
        backbone_key = jax.random.key(config.seed, impl="rbg")
        images = jnp.zeros((2, c.image_size, c.image_size, 3), jnp.float32)
        variables = module.clone(batch_norm_groups=1).init(backbone_key, images, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        shape = (classes, train.sub_centres, module.embedding_dim)
        # A value depends on its position alone, so that padding changes no class's weight.
        opt_state = optimizer.init(params)
        if c.options.get("dtype") == "float16":
            opt_state = Scaled(opt_state, initial_loss_scale())
        weight = 0.01 * jax.random.normal(head_key, shape, jnp.float32)
        moments = [jnp.zeros_like(weight) for _ in range(2 if is_adamw(train) else 1)]
        return TrainState(
            jnp.int32(0),
            params,
            batch_stats,
            opt_state,
            Head(ClassWeights(weight, *moments), initial_norm_statistics()),
            {"params": params, "batch_stats": batch_stats} if train.ema_decay else None,
        )

    shapes = jax.eval_shape(init)
    shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
    by_class = jax.tree.map(lambda _: class_sharding(mesh), shapes.head.classes)
    shardings = shardings._replace(head=Head(by_class, shardings.head.norms))
    size = (rows, c.image_size, c.image_size, 3)
    batch = (
        jax.ShapeDtypeStruct(size, jnp.uint8, sharding=batch_sharding(mesh)),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=batch_sharding(mesh)),
        None
        if rows == train.batch_size
        else jax.ShapeDtypeStruct((rows,), jnp.bool_, sharding=batch_sharding(mesh)),
    )
    update_head = partial(
        head_step,
        head=head,
        num_local=classes // shards,
        config=train,
        schedule=learning_rate_schedule(train),
        mesh=mesh,
    )
    step = partial(
        _step, module=module, update_head=update_head, optimizer=optimizer,
        preprocessing=preprocessing, config=train, seed=config.seed, mesh=mesh,
    )  # fmt: skip
    return Program(
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
        # Copies, since a donated buffer must not occur twice.
        jax.jit(lambda: jax.tree.map(jnp.copy, init()), out_shardings=shardings),
        jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shardings,
        ),
        batch,
    )


def padded_batch(batch_size: int, mesh: Mesh) -> int:
    """The batch's rows, rounded up to a multiple of the devices."""
    return -(-batch_size // mesh.size) * mesh.size


def check_batch(train: ConfigDict, mesh: Mesh) -> None:
    """Refuses a batch that parts, devices or processes cannot share, as a UserError."""
    rows = padded_batch(train.batch_size, mesh)
    if train.batch_size % train.accumulate or (rows // train.accumulate) % mesh.size:
        raise UserError(
            f"train.batch_size is {train.batch_size}, in {train.accumulate} parts "
            f"(train.accumulate) on {mesh.size} devices: take a multiple of their product"
        )
    processes = len({device.process_index for device in mesh.devices.flat})
    exact = {
        "train.batch_norm is per_device": train.batch_norm == "per_device",
        f"there are {processes} processes": processes > 1,
    }
    for why, needed in exact.items():
        if needed and train.batch_size % mesh.size:
            raise UserError(
                f"train.batch_size is {train.batch_size}, which does not divide by {mesh.size} "
                f"devices, and {why}: take a multiple"
            )


class _Carry(NamedTuple):
    """Passed from one microbatch to the next; sums over those before."""

    gradient: Any
    batch_stats: Any
    head: Head
    loss: jax.Array
    genuine_cosine: jax.Array
    velocity_squared: jax.Array


def _step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None,
    *,
    module: nn.Module,
    update_head: Callable,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    config: ConfigDict,
    seed: int,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, jax.Array]]:
    parts = config.accumulate
    real = jnp.ones(labels.shape, jnp.bool_) if mask is None else mask
    row_weights = real.astype(jnp.float32) / jnp.sum(real, dtype=jnp.float32)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    opt_state, scaling = state.opt_state, None
    if isinstance(opt_state, Scaled):
        opt_state, scaling = opt_state
    # Steps that moved the weights: the optimiser's and the schedule's count.
    taken = state.step if scaling is None else state.step - scaling.skipped

    def embed(params: Any, batch_stats: Any, images: jax.Array, mask: Any, key: Any) -> Any:
        embeddings, updates = module.apply(
            {"params": params, "batch_stats": batch_stats},
            preprocessing(images),
            train=True,
            mask=mask,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        norms = jnp.linalg.norm(jax.lax.stop_gradient(embeddings), axis=-1)
        return normalize(embeddings), (updates.get("batch_stats", {}), norms)

    def microbatch(carry: _Carry, part: tuple) -> tuple[_Carry, None]:
        number, images, labels, row_weights, mask = part
        part_key = jax.random.fold_in(key, number)
        embeddings, backward, (batch_stats, norms) = jax.vjp(
            lambda params: embed(params, carry.batch_stats, images, mask, part_key),
            state.params,
            has_aux=True,
        )
        head, by_embeddings, sums = update_head(
            carry.head, embeddings, norms, labels, row_weights, taken, number, part_key
        )
        if scaling is not None:
            by_embeddings = by_embeddings * scaling.scale
        (gradient,) = backward(by_embeddings)
        return _Carry(
            jax.tree.map(jnp.add, carry.gradient, gradient),
            batch_stats,
            head,
            carry.loss + sums["loss"],
            carry.genuine_cosine + sums["genuine_cosine"],
            sums["velocity_squared"],
        ), None

    zero = jnp.float32(0)
    carry = _Carry(
        jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, state.head, zero, zero, zero
    )
    if parts == 1:
        carry, _ = microbatch(carry, (jnp.int32(0), images, labels, row_weights, mask))
    else:
        # Row r goes to part r mod M, so that each device keeps its own rows in every part.
        split = partial(_split, parts=parts, mesh=mesh)
        numbers = jnp.arange(parts, dtype=jnp.int32)
        batch = jax.tree.map(split, (images, labels, row_weights, mask))
        carry, _ = jax.lax.scan(microbatch, carry, (numbers, *batch))

    gradient = carry.gradient
    if scaling is not None:
        gradient = jax.tree.map(lambda x: x / scaling.scale, gradient)
    gradient_norm = optax.tree.norm(gradient)
    gradient = jax.tree.map(_row_major, gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        # As TensorFlow's ExponentialMovingAverage: the first steps lose their weight quickly.
        before = taken.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1.0 + before) / (10.0 + before))
        new = {"params": params, "batch_stats": carry.batch_stats}
        average = jax.tree.map(lambda a, x: a + (1.0 - decay) * (x - a), average, new)
    metrics = {
        "loss": carry.loss,
        "gradient_norm": gradient_norm,
        "head_velocity": jnp.sqrt(carry.velocity_squared),
        "genuine_cosine": carry.genuine_cosine,
    }
    new = TrainState(state.step + 1, params, carry.batch_stats, opt_state, carry.head, average)
    if scaling is None:
        return new, metrics
    new = new._replace(opt_state=Scaled(opt_state, scaling))
    finite = jnp.isfinite(carry.loss) & jnp.isfinite(gradient_norm)
    kept = jax.tree.map(partial(jnp.where, finite), new, state)
    scaled = adjusted(scaling, finite)
    metrics |= {"loss_scale": scaling.scale, "skipped_steps": scaled.skipped}
    kept = kept._replace(step=new.step, opt_state=kept.opt_state._replace(loss_scale=scaled))
    return kept, metrics


def _row_major(gradient: jax.Array) -> jax.Array:
    """The same; else XLA for GPUs takes over a convolution's gradient's own layout.

    It updates weights and momentum in that one then, and copies both.
    """
    return with_layout_constraint(gradient, Layout(tuple(range(gradient.ndim))))


def _split(x: jax.Array, *, parts: int, mesh: Mesh) -> jax.Array:
    x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "model")))
    return jax.lax.with_sharding_constraint(x, sharding)


def flops_per_image(config: ConfigDict, *, num_classes: int) -> float:
    """FLOPs of training on one image: three forward passes of the backbone and the head's product.

    A multiplication and an addition count as two, the backward pass as two forward ones. What is
    computed again (remat, blocks of classes) counts once, as in MFU (model FLOPs utilisation).
    """
    c = config.model
    module = build_network(c.network, c.options.to_dict())
    image = jax.ShapeDtypeStruct((1, c.image_size, c.image_size, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda image: module.init(jax.random.key(0), image, train=False), image
    )
    forward = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, image)
    classes = config.train.sample_rate * num_classes * config.train.sub_centres
    return 3 * (count_flops(forward).flops + 2 * classes * module.embedding_dim)
