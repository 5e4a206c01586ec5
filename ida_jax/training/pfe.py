"""Trains the uncertainty module of probabilistic face embeddings on a frozen backbone (PFE).

Source: Shi & Jain, "Probabilistic Face Embeddings" (ICCV 2019) and their code; the paper's section
4.7 trains it on the ArcFace ResNet-50.

The module's input is the frozen backbone's last feature map: the networks sow it, which costs
nothing unless it is collected. A batch is a function of (seed, its number) and holds whole
identities; with several processes so does each device. Pairs of an image with itself, with which
the authors' code fills up small identities, are left out of the loss. Checkpoints are named after
the model, and another model's are never resumed.

B batch, I identities a batch, M images of each, D embedding, H height, W width.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import path_aware_map
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ida_jax.artefacts.face_model import FaceModel, build_network
from ida_jax.artefacts.uncertainty_model import UncertaintyModel, means_and_maps
from ida_jax.common.devices import batch_sharding, put_batch, replicated, training_mesh
from ida_jax.common.errors import UserError
from ida_jax.common.processes import is_first
from ida_jax.data.balanced import BalancedRows, balanced_rows
from ida_jax.data.dataset import FaceDataset
from ida_jax.models.uncertainty_network import UncertaintyNetwork
from ida_jax.ops.hypersphere import normalize
from ida_jax.ops.mutual_likelihood import positive_pairs_loss
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.loop import Progress, host_batches, open_metrics, preemption, training_steps
from ida_jax.training.optimizer import learning_rate_schedule


class PfeState(NamedTuple):
    """Everything that a step changes: the uncertainty module, its optimiser, the steps taken."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


class PfeProgram(NamedTuple):
    """The training of a config, on a mesh.

    Attributes:
      freeze: (backbone, images) → (means, maps), jitted: uint8 [B, H, W, 3] to unit embeddings
        [B, D] and the backbone's last feature maps.
      step: (state, means, maps, labels, rows) → (state, metrics), jitted; the old state is donated.
        Images of one identity lie side by side; labels and rows are int32 [B]; metrics are the
        scalars loss and mean_log_variance.
      init: () → the state that the seed gives.
    """

    freeze: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    step: Callable[..., tuple[PfeState, dict[str, jax.Array]]]
    init: Callable[[], PfeState]


def check_pfe_batch(config: ConfigDict, devices: int) -> None:
    """Refuses a batch that these devices and processes cannot train with, as a UserError.

    The devices must divide the batch, since BatchNorm uses all rows. With several processes each
    device has whole identities: the mesh may place one process's rows apart from each other.
    """
    batch = config.identities * config.images
    if batch % devices:
        raise UserError(
            f"pfe.identities is {config.identities} and pfe.images {config.images}, a batch of "
            f"{batch}, which does not divide by {devices} devices: take a multiple"
        )
    if jax.process_count() == 1:
        return
    if config.identities % devices:
        raise UserError(
            f"pfe.identities is {config.identities}, which does not divide by the {devices} "
            "devices of several processes: take a multiple"
        )


def make_pfe_program(model: FaceModel, config: ConfigDict, *, seed: int, mesh: Mesh) -> PfeProgram:
    """The training of the uncertainty module of a face model.

    The backbone's BatchNorm takes its running statistics; gradients end at its outputs. Weight
    decay is on the two layers' weights alone, as in the authors' code.
    """
    network = build_network(model.network, model.network_options)
    module = UncertaintyNetwork(embedding_dim=model.width, hidden=config.hidden)
    is_kernel = partial(path_aware_map, lambda path, _: path[-1] == "kernel")
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_kernel),
        optax.sgd(learning_rate_schedule(config), momentum=config.momentum),
    )
    side = model.preprocessing.image_size

    def init() -> PfeState:
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        _, maps = jax.eval_shape(partial(means_and_maps, network), model.variables, images)
        example = jnp.zeros(maps.shape, maps.dtype)
        variables = module.init(jax.random.key(seed), example, train=False)
        params = variables["params"]
        return PfeState(jnp.int32(0), params, variables["batch_stats"], optimizer.init(params))

    def freeze(backbone: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        raw, maps = means_and_maps(network, backbone, model.preprocessing(images))
        return normalize(raw), maps

    def step(
        state: PfeState, means: jax.Array, maps: jax.Array, labels: jax.Array, rows: jax.Array
    ) -> tuple[PfeState, dict[str, jax.Array]]:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            log_variances, updates = module.apply(
                {"params": params, "batch_stats": state.batch_stats},
                maps,
                train=True,
                mutable=["batch_stats"],
            )
            loss = positive_pairs_loss(means, log_variances, labels, rows, run=config.images)
            return loss, (updates["batch_stats"], jnp.mean(log_variances))

        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (batch_stats, mean_log_variance)), gradient = grad(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "mean_log_variance": mean_log_variance}
        return PfeState(state.step + 1, params, batch_stats, opt_state), metrics

    shardings = jax.tree.map(lambda _: replicated(mesh), jax.eval_shape(init))
    return PfeProgram(
        jax.jit(freeze, out_shardings=batch_sharding(mesh)),
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
        # Copies, since a donated buffer must not occur twice.
        jax.jit(lambda: jax.tree.map(jnp.copy, init()), out_shardings=shardings),
    )


def train_pfe(
    dataset: FaceDataset,
    model: FaceModel,
    config: ConfigDict,
    *,
    workdir: str | os.PathLike[str],
    seed: int,
) -> UncertaintyModel:
    """Trains to `pfe.steps`; resumes from the workdir's last checkpoint.

    Args:
      dataset: faces with labels; identities with a single image are left out, and counted on
        stderr.
      workdir: gets pfe_checkpoints/ (those of another model are not resumed), metrics.jsonl and
        tensorboard/.

    Raises:
      UserError: too few identities with two images, a batch that the devices do not divide, a loss
        or variances that are no longer finite.
      Stopped: SIGTERM or Ctrl-C was received, and the state is saved.
    """
    c = config
    mesh = training_mesh(1)
    check_pfe_batch(c, mesh.size)
    rows = balanced_rows(dataset.labels, identities=c.identities, images=c.images, seed=seed)
    if rows.left_out and is_first():
        print(
            f"pfe: {rows.left_out:,} of {len(dataset.labels):,} faces are left out: the only image "
            "of their identity, which gives no pair",
            file=sys.stderr,
        )
    batch_size = c.identities * c.images
    program = make_pfe_program(model, c, seed=seed, mesh=mesh)
    schedule = learning_rate_schedule(c)
    with (
        open_checkpoints(Path(workdir) / "pfe_checkpoints" / model.fingerprint) as checkpoints,
        preemption() as stop_requested,
    ):
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
            jax.eval_shape(program.init),
        )
        progress = Progress(*(checkpoints.restore(like) or (0, program.init())))
        first_step = progress.step
        batches = _frozen_batches(dataset, model, c, rows, program.freeze, mesh, first_step)
        with closing(batches), open_metrics(workdir, stage="pfe", first_step=first_step) as write:

            def check(step: int, values: dict[str, float]) -> None:
                if not all(map(np.isfinite, values.values())):
                    raise UserError(
                        f"the PFE loss is {values['loss']}, the mean log σ² "
                        f"{values['mean_log_variance']} at step {step}: begin another --workdir "
                        "with a lower pfe.learning_rate"
                    )

            def is_logged(step: int) -> bool:
                return step % c.log_every == 0 or step == c.steps

            def record(step: int, values: dict[str, float], steps_per_second: float) -> str:
                values["learning_rate"] = float(schedule(step - 1))
                if step > first_step + 1:  # that step was compiled: no speed
                    values["images_per_second"] = steps_per_second * batch_size
                write(step, values)
                return (
                    f"loss {values['loss']:.5g}, log σ² {values['mean_log_variance']:.3g}, "
                    f"{values.get('images_per_second', float('nan')):.4g} images/s"
                )

            for _, batch in training_steps(
                progress,
                batches,
                stage="pfe",
                steps=c.steps,
                check=check,
                record=record,
                is_logged=is_logged,
                checkpoints=checkpoints,
                checkpoint_every=c.checkpoint_every,
                stop_requested=stop_requested,
            ):
                progress.state, progress.metrics = program.step(progress.state, *batch)
    state = progress.state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return UncertaintyModel(jax.tree.map(np.asarray, variables), model.fingerprint)


def _frozen_batches(
    dataset: FaceDataset,
    model: FaceModel,
    config: ConfigDict,
    rows: BalancedRows,
    freeze: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    mesh: Mesh,
    first_step: int,
) -> Iterator[tuple[jax.Array, ...]]:
    """Means, maps, labels and rows of each batch, on the mesh: what `PfeProgram.step` takes."""
    size = rows.identities * rows.images
    own = size // jax.process_count()
    backbone = jax.device_put(model.variables, replicated(mesh))
    batches = host_batches(
        dataset, config, seed=rows.seed, first_step=first_step, batch_size=size, rows=rows
    )
    with closing(batches):
        for step, batch in enumerate(batches, start=first_step):
            numbers = rows(step * size + jax.process_index() * own, own).astype(np.int32)
            images, labels, numbers = put_batch((batch.images, batch.labels, numbers), mesh)
            yield *freeze(backbone, images), labels, numbers
