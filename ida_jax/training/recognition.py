"""Trains a backbone with a margin head (section 4.1), on all devices of all processes."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ida_jax.artefacts.face_model import FaceModel, Preprocessing
from ida_jax.common.devices import pad_batch, put_batch, training_mesh
from ida_jax.common.errors import Stopped, UserError
from ida_jax.common.processes import all_or_none, is_first
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.pipeline import training_batches
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.metrics import Write, open_metrics
from ida_jax.training.optimizer import learning_rate_schedule
from ida_jax.training.preemption import preemption
from ida_jax.training.train_step import TrainState, make_program
from ida_jax.training.utilisation import flops_per_image, peak_flops

# Classes fetched at a time: with several processes a slab is on every device for a moment.
_SLAB = 1 << 18


def train(
    dataset: FaceDataset,
    config: ConfigDict,
    *,
    workdir: str | os.PathLike[str],
    verify: Callable[[FaceModel], float] | None = None,
) -> FaceModel:
    """Trains to `train.steps` and returns the model; goes on from the workdir's last checkpoint.

    Args:
      dataset: faces with labels 0 … C−1.
      config: the run's, with model, train (`ida_jax.runs.config.train_section`) and seed.
      workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
      verify: a model's accuracy on held-out pairs, asked for every `train.verify_every` steps.

    Raises:
      UserError: labels outside the classes, a batch that the devices do not divide, a loss that is
        no longer finite.
      Stopped: SIGTERM or Ctrl-C came, and the state is saved.
    """
    c = config.train
    mesh = training_mesh(c.class_shards)
    program = make_program(config, num_classes=dataset.num_identities, mesh=mesh)
    schedule = learning_rate_schedule(c)
    peak = peak_flops(config.model.options.get("dtype", "float32"))
    flops = peak and flops_per_image(config, num_classes=dataset.num_identities)

    with (
        open_checkpoints(
            os.path.join(workdir, "checkpoints"), num_classes=dataset.num_identities
        ) as checkpoints,
        preemption() as asked_to_stop,
    ):
        restored = checkpoints.restore(program.state)
        first_step, state = restored or (0, program.init())
        batches = training_batches(
            dataset,
            batch_size=c.batch_size,
            seed=config.seed,
            first_step=first_step,
            shard=jax.process_index(),
            shards=jax.process_count(),
            augment=c.augment,
            workers=c.workers,
        )
        with (
            closing(batches),
            _metrics(workdir, first_step) as write,
            tqdm(
                total=c.steps, initial=first_step, desc="train", unit="step", disable=not is_first()
            ) as bar,
        ):
            bar.set_postfix_str("compiling")
            mark = (first_step, time.perf_counter())
            last_finite = saved = first_step

            def finish(step: int, metrics: dict[str, jax.Array]) -> None:
                """Waits for a step; counts, checks and, every log_every steps, records it."""
                nonlocal mark, last_finite
                values = {name: float(value) for name, value in metrics.items()}
                # The loss is of the weights before the step, the others tell of those after it.
                if not all(map(np.isfinite, values.values())):
                    kept = f"keeps its checkpoint of step {saved}" if saved else "has saved none"
                    raise UserError(
                        f"the loss is {values['loss']}, the gradient's norm "
                        f"{values['gradient_norm']} at step {step}, after step {last_finite} was "
                        "still finite: begin another --workdir with a lower train.learning_rate; "
                        f"this one {kept}"
                    )
                last_finite = step
                bar.update()
                now = time.perf_counter()
                if step % c.log_every:
                    if step == first_step + 1:
                        mark = (step, now)  # before it, the step was compiled
                    return
                speed = (step - mark[0]) * c.batch_size / (now - mark[1])
                values["learning_rate"] = float(schedule(step - 1))
                values["images_per_second"] = speed
                if peak:
                    values["mfu"] = speed * flops / (peak * mesh.size)
                mark = (step, now)
                write(step, values)
                bar.set_postfix_str(
                    f"loss {values['loss']:.4g}, rate {values['learning_rate']:.3g}, "
                    f"{speed:.4g} images/s"
                )

            previous = None
            for step, batch in zip(range(first_step + 1, c.steps + 1), batches, strict=False):
                (images, labels), mask = pad_batch(
                    batch.images, batch.labels, to_multiple_of=jax.local_device_count()
                )
                state, metrics = program.step(state, *put_batch((images, labels, mask), mesh))
                # Waiting for the step before leaves the device one step to work on meanwhile.
                if previous:
                    finish(*previous)
                previous = (step, metrics)
                stopping = asked_to_stop(step)
                verifying = bool(c.verify_every) and step % c.verify_every == 0
                saving = stopping or verifying or step % c.checkpoint_every == 0
                if not saving and step < c.steps:
                    continue
                finish(*previous)
                previous = None
                accuracy = None
                if verify and (verifying or step == c.steps) and not stopping:
                    accuracy = _verified(verify, config, state)
                    write(step, {"verification_accuracy": accuracy})
                checkpoints.save(step, state, accuracy=accuracy)
                saved = step
                if stopping and step < c.steps:
                    checkpoints.wait()
                    raise Stopped(
                        f"at step {step} of {c.steps}, which is saved: the same command "
                        "goes on from there"
                    )
                # What was just done is not the training's speed.
                mark = (step, time.perf_counter())
        checkpoints.wait()
        if c.keep == "best":
            del state  # there may not be room for two
            found = checkpoints.restore_best(program.state) or checkpoints.restore(program.state)
            state = found.state
    weights = _class_weights(state.head.classes.weight, dataset.num_identities)
    return _model(config, state, weights)


def _metrics(workdir: str | os.PathLike[str], first_step: int) -> AbstractContextManager[Write]:
    """The run's records, which the first process alone writes."""
    if is_first():
        return open_metrics(workdir, stage="train", first_step=first_step)
    return nullcontext(lambda step, scalars: None)


def _verified(verify: Callable[[FaceModel], float], config: ConfigDict, state: TrainState) -> float:
    """The accuracy that the first process finds; the others wait for it."""
    if jax.process_count() == 1:
        return verify(_model(config, state))
    from jax.experimental.multihost_utils import broadcast_one_to_all

    accuracy = np.float32(0)
    with all_or_none():
        if is_first():
            accuracy = np.float32(verify(_model(config, state)))
    return float(broadcast_one_to_all(accuracy))


def _model(
    config: ConfigDict, state: TrainState, class_weights: np.ndarray | None = None
) -> FaceModel:
    """The model that a state is, on the host."""
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
    """One weight a class, [C, D], on the host: of sub-centres the one with the largest norm.

    A guess at the dominant one: a sub-centre that wins no image is moved by the weight decay alone,
    which shrinks it.
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
