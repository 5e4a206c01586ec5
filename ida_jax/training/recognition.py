"""Trains a backbone with a margin head (section 4.1), on all devices of all processes."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ida_jax.artefacts.face_model import FaceModel, Preprocessing
from ida_jax.common.devices import pad_batch, put_batch, training_mesh
from ida_jax.common.errors import UserError
from ida_jax.common.processes import all_or_none, is_first
from ida_jax.data.dataset import FaceDataset
from ida_jax.planning.topology import peak_flops
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.length import in_steps
from ida_jax.training.loop import Progress, host_batches, open_metrics, preemption, training_steps
from ida_jax.training.optimizer import learning_rate_schedule
from ida_jax.training.train_step import TrainState, flops_per_image, make_program

# Classes fetched at a time: with several processes every device briefly holds a whole slab.
_SLAB = 1 << 18


def train(
    dataset: FaceDataset,
    config: ConfigDict,
    *,
    workdir: str | os.PathLike[str],
    start: FaceModel | None = None,
    verify: Callable[[FaceModel], Mapping[str, float]] | None = None,
) -> FaceModel:
    """Trains to `train.steps` (or `epochs`) and returns the model.

    Resumes from the workdir's last checkpoint.

    Args:
      dataset: faces with labels 0 … C−1.
      config: the run's, with model, train (`ida_jax.runs.config.train_section`) and seed.
      start: whose weights the backbone begins with (fine-tuning); None draws them by the seed. The
        class weights are drawn in either case.
      verify: returns a model's figures on held-out pairs, "accuracy" among them; called every
        `train.verify_every` steps.

    Raises:
      UserError: labels outside the classes, a start of another network, a batch that the devices
        do not divide, a loss that is no longer finite.
      Stopped: SIGTERM or Ctrl-C was received, and the state is saved.
    """
    config = config.copy_and_resolve_references()
    config.train = c = in_steps(config.train, len(dataset.labels))
    mesh = training_mesh(c.class_shards)
    program = make_program(config, num_classes=dataset.num_identities, mesh=mesh)
    schedule = learning_rate_schedule(c)
    peak = peak_flops(config.model.options.get("dtype", "float32"))
    flops = peak and flops_per_image(config, num_classes=dataset.num_identities)

    with (
        open_checkpoints(
            os.path.join(workdir, "checkpoints"), num_classes=dataset.num_identities
        ) as checkpoints,
        preemption() as stop_requested,
    ):
        restored = checkpoints.restore(program.state)
        progress = Progress(*(restored or (0, _begun(program.init(), start))))
        batches = host_batches(
            dataset, c, batch_size=c.batch_size, seed=config.seed, first_step=progress.step
        )
        with (
            closing(batches),
            open_metrics(workdir, stage="train", first_step=progress.step) as write,
        ):

            def check(step: int, values: dict[str, float]) -> None:
                # The loss is that of the weights before the step, the rest is of those after it.
                overflowed = [name for name, value in values.items() if not np.isfinite(value)]
                if not overflowed:
                    return
                saved = progress.saved
                kept = f"keeps its checkpoint of step {saved}" if saved else "has saved none"
                if (scale := values.get("loss_scale")) is not None:
                    if scale < 1:
                        raise UserError(
                            f"float16 overflows at step {step} whatever the loss scale, "
                            f"{values['skipped_steps']:g} steps were skipped: begin another "
                            "--workdir with model.options.dtype=bfloat16 or a lower "
                            f"train.learning_rate; this one {kept}"
                        )
                    # The step was skipped, and its record has the rest.
                    for name in overflowed:
                        del values[name]
                    return
                raise UserError(
                    f"the loss is {values['loss']}, the gradient's norm "
                    f"{values['gradient_norm']} at step {step}, after step {step - 1} was still "
                    "finite: begin another --workdir with a lower train.learning_rate; this one "
                    f"{kept}"
                )

            def record(step: int, values: dict[str, float], steps_per_second: float) -> str:
                speed = steps_per_second * c.batch_size
                taken = step - 1 - int(values.get("skipped_steps", 0))
                values["learning_rate"] = float(schedule(taken))
                values["images_per_second"] = speed
                if peak:
                    values["mfu"] = speed * flops / (peak * mesh.size)
                write(step, values)
                loss = f"loss {values['loss']:.4g}" if "loss" in values else "float16 overflow"
                return f"{loss}, rate {values['learning_rate']:.3g}, {speed:.4g} images/s"

            def accuracy(step: int) -> float | None:
                if verify is None:
                    return None
                figures = _verified(verify, config, progress.state)
                write(step, {f"verification_{name}": value for name, value in figures.items()})
                return figures["accuracy"]

            for _, batch in training_steps(
                progress,
                batches,
                stage="train",
                steps=c.steps,
                check=check,
                record=record,
                is_logged=lambda step: step % c.log_every == 0,
                checkpoints=checkpoints,
                checkpoint_every=c.checkpoint_every,
                evaluate_every=c.verify_every,
                accuracy=accuracy,
                stop_requested=stop_requested,
            ):
                (images, labels), mask = pad_batch(
                    batch.images, batch.labels, to_multiple_of=jax.local_device_count()
                )
                progress.state, progress.metrics = program.step(
                    progress.state, *put_batch((images, labels, mask), mesh)
                )
        if c.keep == "best":
            progress.state = None  # there may not be room for two
            kept = checkpoints.restore_best(program.state) or checkpoints.restore(program.state)
            progress.state = kept.state
    weights = _class_weights(progress.state.head.classes.weight, dataset.num_identities)
    return _model(config, progress.state, weights)


def _begun(state: TrainState, start: FaceModel | None) -> TrainState:
    """The first state, with another model's backbone if there is one."""
    if start is None:
        return state
    backbone = {"params": state.params, "batch_stats": state.batch_stats}
    variables = {"batch_stats": {}, **start.variables}
    own, given = (jax.tree.map(np.shape, tree) for tree in (backbone, variables))
    if own != given:
        raise UserError(
            f"the weights to begin with are of a {start.network} with other options than the "
            "config's model: set model.network and model.options to theirs"
        )

    def placed() -> Any:
        # Each a buffer of its own: the average's must not be the parameters', which are donated.
        return jax.tree.map(
            lambda x, like: jax.device_put(np.array(x, like.dtype), like.sharding),
            variables, backbone,
        )  # fmt: skip

    average = None if state.average is None else placed()
    return state._replace(**placed(), average=average)


def _verified(
    verify: Callable[[FaceModel], Mapping[str, float]], config: ConfigDict, state: TrainState
) -> Mapping[str, float]:
    """What process 0 measures; the others wait for its accuracy."""
    if jax.process_count() == 1:
        return verify(_model(config, state))
    from jax.experimental.multihost_utils import broadcast_one_to_all

    figures: Mapping[str, float] = {"accuracy": 0.0}
    with all_or_none():
        if is_first():
            figures = verify(_model(config, state))
    accuracy = float(broadcast_one_to_all(np.float32(figures["accuracy"])))
    return {**figures, "accuracy": accuracy}


def _model(
    config: ConfigDict, state: TrainState, class_weights: np.ndarray | None = None
) -> FaceModel:
    """The model of a state, on the host."""
    c = config.model
    backbone = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    return FaceModel(
        c.network,
        c.options.to_dict(),
        Preprocessing(c.image_size, tuple(c.mean), tuple(c.std)),
        jax.tree.map(np.asarray, backbone),
        class_weights,
    )


def _class_weights(weight: jax.Array, num_classes: int) -> np.ndarray:
    """One weight for each class, [C, D], on the host: the sub-centre with the largest norm.

    It is most likely the dominant one: weight decay alone moves, and shrinks, a sub-centre that no
    image is closest to.
    """
    out = np.empty((num_classes, weight.shape[-1]), np.float32)
    for start in range(0, num_classes, _SLAB):
        slab = _on_host(weight[start : min(start + _SLAB, num_classes)])
        dominant = np.argmax(np.linalg.norm(slab, axis=-1), axis=1)
        out[start : start + len(slab)] = slab[np.arange(len(slab)), dominant]
    return out


def _on_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))
