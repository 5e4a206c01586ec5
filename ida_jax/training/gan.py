"""Trains a StyleGAN2 generator of faces, from which the fake-db's anchors are drawn (section 3.2).

N faces, S crop size, R resolution.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.devices import put_batch, training_mesh
from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.processes import all_or_none, is_first
from ida_jax.data.contact_sheet import contact_sheet
from ida_jax.data.dataset import FaceDataset
from ida_jax.training.checkpoint import open_checkpoints
from ida_jax.training.collapse import WINDOW, collapse_reason
from ida_jax.training.gan_step import GanState, check_gan_batch, make_gan_program, network_options
from ida_jax.training.loop import (
    Progress,
    Write,
    host_batches,
    open_metrics,
    preemption,
    read_metrics,
    training_steps,
)

_SHEET = 8  # faces along a side of a sample sheet
# The same latents at every step of a training, so that sheets can be compared.
_SHEET_SEED = 0
# The article on StyleGAN2-ADA trains on 1,000 to 140,000 images; below a few thousand it loses
# quality.
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
    """Trains to `gan.steps` and returns the generator; resumes from the workdir's last checkpoint.

    Args:
      dataset: faces; their labels are ignored.
      workdir: gets gan_checkpoints/, metrics.jsonl, tensorboard/, and for every evaluation
        generators/STEP.safetensors and samples/STEP.png.
      evaluate: returns a generator's figures, among them frechet; called every
        `gan.evaluate_every` steps.

    Returns:
      The last generator, or with `gan.keep` "best" the one with the smallest Fréchet distance.
      Process 0 gets it with its figures; the other processes always get the last one.

    Raises:
      UserError: a batch that the devices do not divide, a loss that is no longer finite, or a
        collapse (`ida_jax.training.collapse`), with the last good generator's file.
      Stopped: SIGTERM or Ctrl-C was received, and the state is saved.
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
        preemption() as stop_requested,
    ):
        progress = Progress(*(checkpoints.restore(program.state) or (0, program.init())))
        batches = host_batches(
            dataset, c, batch_size=c.batch_size, seed=seed, first_step=progress.step
        )
        with (
            closing(batches),
            open_metrics(workdir, stage="gan", first_step=progress.step) as write,
        ):
            compiled = progress.step + c.log_every  # before it, the updates were compiled
            # Those of this call alone, which all processes have alike: they must stop together.
            records: list[dict[str, float]] = []

            def with_counts(step: int, values: dict[str, float]) -> dict[str, float]:
                return {**values, "step": step, "images": step * c.batch_size}

            def check(step: int, values: dict[str, float]) -> None:
                _check_health([*records, with_counts(step, values)], step, workdir)

            def record(step: int, values: dict[str, float], steps_per_second: float) -> str:
                entry = with_counts(step, values)
                if step > compiled:
                    entry["images_per_second"] = steps_per_second * c.batch_size
                write(step, entry)
                records.append(entry)
                return (
                    f"loss G {entry['generator_loss']:.3g} D {entry['discriminator_loss']:.3g}, "
                    f"p {entry['augment_probability']:.2f}, "
                    f"{entry.get('images_per_second', float('nan')):.3g} images/s"
                )

            def evaluate_if_due() -> None:
                step = progress.step
                if not step or (step % c.evaluate_every and step < c.steps):
                    return
                generator = snapshot(step, progress.state)
                with all_or_none():
                    if is_first() and step not in _evaluations(workdir):
                        _evaluated(workdir, step, generator, evaluate, write)

            with all_or_none():
                if is_first() and not progress.step:
                    _warn_of_few(len(dataset.labels))
                    _write_sheet(_path(workdir, "samples", "real", "png"), _some(dataset))
                    _show(workdir, 0, snapshot(0, progress.state))
            for step, batch in training_steps(
                progress,
                batches,
                stage="gan",
                steps=c.steps,
                check=check,
                record=record,
                is_logged=lambda step: step % c.log_every == 0,
                check_every_step=False,
                checkpoints=checkpoints,
                checkpoint_every=c.checkpoint_every,
                evaluate_every=c.evaluate_every,
                stop_requested=stop_requested,
            ):
                # The state before is saved; a training stopped between the two is evaluated here.
                evaluate_if_due()
                (images,) = put_batch((batch.images,), mesh)
                state, of_generator = program.generator(progress.state)
                if c.path_weight and step % c.path_every == 0:
                    state = program.path_length(state)
                state, of_discriminator = program.discriminator(state, images)
                if step % c.r1_every == 0:
                    state = program.r1(state, images)
                progress.state, progress.metrics = state, of_generator | of_discriminator
            evaluate_if_due()
    if not is_first():
        return snapshot(c.steps, progress.state)
    distances = _evaluations(workdir)
    finite = [step for step, distance in distances.items() if np.isfinite(distance)]
    step = min(finite, key=distances.get) if c.keep == "best" and finite else c.steps
    return FaceGenerator.load(_path(workdir, "generators", step, "safetensors"))


def _evaluated(
    workdir: Path, step: int, generator: FaceGenerator, evaluate: Evaluate, write: Write
) -> None:
    """Evaluates: writes a sheet of samples, the generator with its figures, and their record."""
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
    """Raises UserError if the last records show a collapse, and names the last good generator."""
    reason = collapse_reason(records)
    if reason is None:
        return
    # It began with the window that shows it.
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
            "come near theirs (see the privacy check of ida-jax anchors fake)",
            file=sys.stderr,
        )


def _show(workdir: Path, step: int, generator: FaceGenerator) -> None:
    faces = generator.faces(0, _SHEET**2, seed=_SHEET_SEED)
    _write_sheet(_path(workdir, "samples", step, "png"), faces)


def _some(dataset: FaceDataset) -> list[np.ndarray]:
    """Faces spread evenly over the set, as many as a sheet of samples holds."""
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
