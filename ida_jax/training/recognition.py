"""Trains a backbone with a margin head (section 4.1), data parallel over all devices.

B batch, C classes, D embedding, H height, W width.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from ida_jax.data.dataset import FaceDataset
from ida_jax.data.pipeline import training_batches
from ida_jax.errors import UserError
from ida_jax.face_model import FaceModel, Preprocessing, build_network
from ida_jax.models.margin_head import MarginHead
from ida_jax.ops.margin import cross_entropy
from ida_jax.sharding import batch_sharding, data_mesh, pad_batch, replicated
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.metrics import open_metrics
from ida_jax.training.optimizer import learning_rate_schedule, sgd


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, steps taken.
      params: {"backbone": …, "head": {"weight": [C, D]}}.
      batch_stats: the backbone's BatchNorm statistics.
      opt_state: the optimiser's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def create_state(
    network: nn.Module,
    head: MarginHead,
    optimizer: optax.GradientTransformation,
    *,
    image_size: int,
    seed: int,
) -> TrainState:
    """Initial parameters from the seed."""
    backbone_key, head_key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((2, image_size, image_size, 3), jnp.float32)
    variables = network.init(backbone_key, images, train=False)
    embeddings, labels = jnp.zeros((2, network.embedding_dim)), jnp.zeros(2, jnp.int32)
    params = {
        "backbone": variables["params"],
        "head": head.init(head_key, embeddings, labels)["params"],
    }
    return TrainState(
        jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params)
    )


def make_train_step(
    network: nn.Module,
    head: MarginHead,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    *,
    seed: int,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, images, labels, mask) → (state, metrics), jitted; the old state is donated.

    images are uint8 [B, H, W, 3], labels int32 [B]; mask, bool [B] or None, is false on rows that
    only pad the batch to the device count: they enter neither the loss nor any statistic.
    """

    def loss_fn(
        params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array,
        mask: jax.Array | None, key: jax.Array,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        embeddings, updates = network.apply(
            {"params": params["backbone"], "batch_stats": batch_stats},
            preprocessing(images),
            train=True,
            mask=mask,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        logits = head.apply({"params": params["head"]}, embeddings, labels)
        losses = cross_entropy(logits, labels)
        return jnp.mean(losses, where=mask), updates["batch_stats"]

    def step(
        state: TrainState, images: jax.Array, labels: jax.Array, mask: jax.Array | None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, images, labels, mask, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def train(
    dataset: FaceDataset,
    config: ConfigDict,
    *,
    network: str,
    network_options: dict[str, Any],
    preprocessing: Preprocessing,
    workdir: str | os.PathLike[str],
    seed: int,
) -> FaceModel:
    """Trains to `config.steps` and returns the model; goes on from the workdir's last checkpoint.

    Args:
      dataset: faces with labels 0 … C−1.
      config: head, scale, margin, batch_size, steps, learning_rate, decay_steps, decay_factor,
        momentum, weight_decay, checkpoint_every, log_every.
      network: the backbone's name.
      network_options: the backbone's options.
      preprocessing: of the crops.
      workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
      seed: of parameters, order and dropout.

    Raises:
      UserError: labels outside the classes, or a loss that is no longer finite.
    """
    mesh = data_mesh()
    module = build_network(network, network_options)
    head = MarginHead(
        num_classes=dataset.num_identities, kind=config.head, scale=config.scale,
        margin=config.margin,
    )  # fmt: skip
    optimizer = sgd(config)
    schedule = learning_rate_schedule(config)
    train_step = make_train_step(module, head, optimizer, preprocessing, seed=seed)
    state = create_state(module, head, optimizer, image_size=preprocessing.image_size, seed=seed)
    state = jax.device_put(state, replicated(mesh))

    with open_checkpoints(os.path.join(workdir, "checkpoints")) as checkpoints:
        first_step = checkpoints.latest_step or 0
        if first_step:
            state = checkpoints.load(first_step, state)
        batches = training_batches(
            dataset, batch_size=config.batch_size, seed=seed, first_step=first_step
        )
        with (
            open_metrics(workdir, stage="train", first_step=first_step) as write,
            tqdm(total=config.steps, initial=first_step, desc="train", unit="step") as bar,
        ):
            mark = (first_step, time.perf_counter())

            def finish(step: int, metrics: dict[str, jax.Array]) -> None:
                """Waits for a step; counts, checks and, every log_every steps, records it."""
                nonlocal mark
                loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
                # The loss is of the weights before the step, the gradient tells of those after it.
                if not (np.isfinite(loss) and np.isfinite(norm)):
                    raise UserError(
                        f"the loss is {loss} and the gradient's norm {norm} at step {step}: begin "
                        "another --workdir with a lower train.learning_rate; this one keeps its "
                        "last good checkpoint"
                    )
                bar.update()
                if step % config.log_every:
                    return
                now = time.perf_counter()
                scalars = {
                    "loss": loss,
                    "gradient_norm": norm,
                    "learning_rate": float(schedule(step - 1)),
                    "images_per_second": (step - mark[0]) * config.batch_size / (now - mark[1]),
                }
                mark = (step, now)
                write(step, scalars)
                bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items()})

            previous = None
            for step, batch in zip(range(first_step + 1, config.steps + 1), batches, strict=False):
                (images, labels), mask = pad_batch(
                    batch.images, batch.labels, to_multiple_of=mesh.size
                )
                on_device = jax.device_put((images, labels, mask), batch_sharding(mesh))
                state, metrics = train_step(state, *on_device)
                # Waiting for the step before leaves the device one step to work on meanwhile.
                if previous:
                    finish(*previous)
                previous = (step, metrics)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    finish(*previous)
                    previous = None
                    checkpoints.save(step, state)

    variables = {"params": state.params["backbone"], "batch_stats": state.batch_stats}
    variables, class_weights = jax.tree.map(np.asarray, (variables, state.params["head"]["weight"]))
    return FaceModel(network, network_options, preprocessing, variables, class_weights)
