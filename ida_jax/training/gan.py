"""Trains a StyleGAN2 generator of faces, from which the fake-db's anchors are drawn (section 3.2).

N faces, S crop size, R resolution.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.devices import put_batch, training_mesh
from ida_jax.common.errors import Stopped, UserError
from ida_jax.common.files import written_whole
from ida_jax.common.processes import all_or_none, is_first
from ida_jax.data.contact_sheet import contact_sheet
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.pipeline import training_batches
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.collapse import WINDOW, collapse_reason
from ida_jax.training.gan_step import (
    GanState,
    check_gan_batch,
    make_gan_program,
    network_options,
)
from ida_jax.training.metrics import Write, open_metrics, read_metrics
from ida_jax.training.preemption import preemption

_SHEET = 8  # faces along a side of a sample sheet
# The same faces at every moment of a training, so that sheets can be compared.
_SHEET_SEED = 0
# StyleGAN2-ADA's article trains on 1,000 to 140,000 images; below some thousands with losses.
_FEW = 5_000

Evaluate = Callable[[FaceGenerator], Mapping[str, float]]


def train_gan(
    dataset: FaceDataset,
    config: ConfigDict,
    *,
    workdir: str | os.PathLike[str],
    seed: int,
    evaluate: Evaluate,
    title: str = "",
) -> FaceGenerator:
    """Trains to `gan.steps` and returns the generator; goes on from the workdir's last checkpoint.

    Args:
      dataset: faces; their labels are not looked at.
      config: the section gan (`ida_jax.runs.config.gan_section`).
      workdir: gets gan_checkpoints/, metrics.jsonl, tensorboard/, and for every evaluation
        generators/STEP.safetensors and samples/STEP.png.
      seed: of everything that is drawn.
      evaluate: a generator's figures, among them frechet, asked for every `gan.evaluate_every`
        steps.
      title: of the training, for the generator's provenance.

    Returns:
      The last generator, or with `gan.keep` "best" the one with the least Fréchet distance; to the
      first process with its figures, to the others the last.

    Raises:
      UserError: a batch that the devices do not divide, a loss that is no longer finite, or a
        collapse (`ida_jax.training.collapse`), with the last good generator's file.
      Stopped: SIGTERM or Ctrl-C came, and the state is saved.
    """
    c, workdir = config, Path(workdir)
    mesh = training_mesh(1)
    check_gan_batch(c.batch_size, mesh.size)
    program = make_gan_program(c, seed=seed, mesh=mesh)
    size = dataset.images[0].shape[0]
    described = {"title": title, "faces": len(dataset.labels)}
    described |= {"identities": dataset.num_identities, "seed": seed, **c.to_dict()}

    def snapshot(step: int, state: GanState) -> FaceGenerator:
        provenance = {**described, "step": step, "images": step * c.batch_size}
        return FaceGenerator.of(
            network_options(c), state.average, image_size=size, provenance=provenance
        )

    with (
        open_checkpoints(workdir / "gan_checkpoints") as checkpoints,
        preemption() as asked_to_stop,
    ):
        restored = checkpoints.restore(program.state)
        first_step, state = restored or (0, program.init())
        batches = training_batches(
            dataset,
            batch_size=c.batch_size,
            seed=seed,
            first_step=first_step,
            shard=jax.process_index(),
            shards=jax.process_count(),
            augment=c.augment,
            workers=c.workers,
        )
        with (
            closing(batches),
            open_metrics(workdir, stage="gan", first_step=first_step)
            if is_first()
            else nullcontext(lambda step, scalars: None) as write,
            tqdm(
                total=c.steps, initial=first_step, desc="gan", unit="step", disable=not is_first()
            ) as bar,
        ):

            def is_due(step: int) -> bool:
                return step > 0 and (step % c.evaluate_every == 0 or step == c.steps)

            def evaluate_if_due(step: int, state: GanState) -> None:
                if not is_due(step):
                    return
                generator = snapshot(step, state)
                with all_or_none():
                    if is_first() and step not in _evaluations(workdir):
                        _evaluated(workdir, step, generator, evaluate, write)

            with all_or_none():
                if is_first() and not first_step:
                    _warn_of_few(len(dataset.labels))
                    _write_sheet(_path(workdir, "samples", "real", "png"), _some(dataset))
                    _show(workdir, 0, snapshot(0, state))
            # Those of this call alone, which all processes have alike: they must stop together.
            records: list[dict[str, float]] = []
            evaluate_if_due(first_step, state)  # where the training stopped between the two
            mark, previous = (first_step, time.perf_counter()), None
            for step, batch in zip(range(first_step + 1, c.steps + 1), batches, strict=False):
                (images,) = put_batch((batch.images,), mesh)
                state, of_generator = program.generator(state)
                if c.path_weight and step % c.path_every == 0:
                    state = program.paths(state)
                state, of_discriminator = program.discriminator(state, images)
                if step % c.r1_every == 0:
                    state = program.steepness(state, images)
                metrics = of_generator | of_discriminator
                # Waiting for the step before leaves the device one step to work on meanwhile.
                if previous is not None:
                    previous.block_until_ready()
                previous = metrics["discriminator_loss"]
                bar.update()

                stopping = asked_to_stop(step)
                saving = stopping or is_due(step) or step % c.checkpoint_every == 0
                if saving or step % c.log_every == 0:
                    record = {name: float(value) for name, value in metrics.items()}
                    record |= {"step": step, "images": step * c.batch_size}
                    # What is saved is healthy.
                    _check_health([*records, record], step, workdir)
                if step % c.log_every == 0:
                    now = time.perf_counter()
                    if step > first_step + c.log_every:  # before it, the updates were compiled
                        speed = (step - mark[0]) * c.batch_size / (now - mark[1])
                        record["images_per_second"] = speed
                    mark = (step, now)
                    write(step, record)
                    records.append(record)
                    bar.set_postfix_str(
                        f"loss G {record['generator_loss']:.3g} "
                        f"D {record['discriminator_loss']:.3g}, "
                        f"p {record['augment_probability']:.2f}, "
                        f"{record.get('images_per_second', float('nan')):.3g} images/s"
                    )
                if not saving:
                    continue
                checkpoints.save(step, state)
                if stopping and step < c.steps:
                    checkpoints.wait()
                    raise Stopped(
                        f"at step {step} of {c.steps}, which is saved: the same command "
                        "goes on from there"
                    )
                evaluate_if_due(step, state)
                # What was just done is not the training's speed.
                mark = (step, time.perf_counter())
        checkpoints.wait()
    if not is_first():
        return snapshot(c.steps, state)
    distances = _evaluations(workdir)
    finite = [step for step, distance in distances.items() if np.isfinite(distance)]
    step = min(finite, key=distances.get) if c.keep == "best" and finite else c.steps
    return FaceGenerator.load(_path(workdir, "generators", step, "safetensors"))


def _evaluated(
    workdir: Path, step: int, generator: FaceGenerator, evaluate: Evaluate, write: Write
) -> None:
    """Figures to the run's records, a sheet of samples, and the generator with both its figures."""
    _show(workdir, step, generator)
    figures = {name: float(value) for name, value in evaluate(generator).items()}
    provenance = {**generator.provenance, "figures": figures}
    path = _path(workdir, "generators", step, "safetensors")
    replace(generator, provenance=provenance).save(path)
    write(step, {**figures, "images": provenance["images"]})


def _evaluations(workdir: Path) -> dict[int, float]:
    """{step: its generator's Fréchet distance} of the run's records."""
    records = [r for r in read_metrics(workdir) if r["stage"] == "gan" and "frechet" in r]
    return {record["step"]: record["frechet"] for record in records}


def _check_health(records: Sequence[Mapping[str, float]], step: int, workdir: Path) -> None:
    """Raises UserError where the last records show a collapse, naming what is still good."""
    reason = collapse_reason(records)
    if reason is None:
        return
    # It began before it was sure.
    began = records[-min(WINDOW, len(records))]["step"]
    good = [p for p in (workdir / "generators").glob("*.safetensors") if int(p.stem) < began]
    last = max(good, key=lambda path: int(path.stem), default=None)
    kept = f"the last good generator is {last}" if last else "no generator was evaluated before"
    raise UserError(
        f"the training has collapsed by step {step}: {reason}; {kept}: begin another --workdir "
        "with a lower gan.learning_rate or another gan.r1_weight"
    )


def _warn_of_few(faces: int) -> None:
    if faces < _FEW:
        print(
            f"warning: {faces:,} training faces are few for a generator: below about {_FEW:,} its "
            "discriminator knows them by heart even with gan.augment_target set, and its faces "
            "come near theirs (see the privacy check of python -m ida_jax.anchors fake)",
            file=sys.stderr,
        )


def _show(workdir: Path, step: int, generator: FaceGenerator) -> None:
    faces = generator.faces(0, _SHEET**2, seed=_SHEET_SEED)
    _write_sheet(_path(workdir, "samples", step, "png"), faces)


def _some(dataset: FaceDataset) -> list[np.ndarray]:
    """Faces spread over the set, as many as a sheet of samples has."""
    rows = np.linspace(0, len(dataset.labels) - 1, min(_SHEET**2, len(dataset.labels)))
    return [dataset.images[int(row)] for row in rows]


def _write_sheet(path: Path, images: Sequence[np.ndarray]) -> None:
    import cv2

    sheet = contact_sheet(images, columns=_SHEET)
    _, png = cv2.imencode(".png", sheet[:, :, ::-1])
    with written_whole(path) as temporary:
        temporary.write_bytes(png.tobytes())


def _path(workdir: Path, folder: str, name: str | int, ending: str) -> Path:
    """WORKDIR/FOLDER/NAME.ENDING, a step's number in nine digits; the folder is made."""
    (workdir / folder).mkdir(exist_ok=True)
    return workdir / folder / f"{name if isinstance(name, str) else f'{name:09}'}.{ending}"
