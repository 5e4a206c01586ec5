"""Training checkpoints by Orbax: a folder a step, written while the training goes on.

The newest two are kept, and the most accurate. Each carries the CRC-32 of its files: Orbax's format
has checksums of its indices, not of the arrays, so that an altered weight would load in silence.

The checksums are written before Orbax's rename, so that a checkpoint is whole and verified or does
not count. They are compared first and shapes afterwards, which tells damage from another config.
Class padding may differ: that is how a training resumes on another number of devices.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ida_jax.common.errors import UserError
from ida_jax.common.processes import is_first
from ida_jax.training.checkpoint_damage import damage_of, put_damaged_aside, write_checksums


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      step: steps taken before it, which is also the number of the next batch.
      state: in the shapes, types and shardings of `like`.
    """

    step: int
    state: Any


class Checkpoints(NamedTuple):
    """An open folder of checkpoints. Several processes call every function together.

    Attributes:
      restore: (like) → the newest one, None where there is none. `like` is a pytree of arrays or
        ShapeDtypeStructs with shardings, of any device count. Raises UserError where another
        structure, shape or type was saved; below a key `head` the padding may differ.
      restore_best: (like) → the most accurate one, None where none has an accuracy.
      save: (step, state, *, accuracy=None) copies the state off the devices and returns: it may be
        donated then; the writing goes on behind. A step that is there already is left as it is.
        Raises UserError where this write or the one before fails.
      wait: () returns when all is on disk. Raises UserError where that fails.
    """

    restore: Callable[[Any], Restored | None]
    restore_best: Callable[[Any], Restored | None]
    save: Callable[..., None]
    wait: Callable[[], None]


@contextmanager
def open_checkpoints(
    folder: str | os.PathLike[str], *, num_classes: int | None = None
) -> Iterator[Checkpoints]:
    """Opens DIR for saving and restoring; when it is left, what was saved is on disk.

    A checkpoint is written under a temporary name and renamed when whole, so that a run killed at
    any moment finds its newest whole one. One that is damaged nevertheless (files missing, cut or
    altered) is renamed to `corrupt-STEP`, with a line on stderr, and the one before is the newest.

    Args:
      folder: DIR, on a file system that all processes share.
      num_classes: real rows of the leaves below `head`; the others are padding.

    Raises:
      UserError: there are checkpoints, and all are damaged; or a write failed.
    """
    from orbax.checkpoint import v1 as ocp

    folder = Path(folder).absolute()
    put_damaged_aside(folder)
    log = logging.getLogger("absl")
    log_level = log.level
    log.setLevel(logging.CRITICAL)  # Orbax reports every step of a save, and errors at length
    here = {
        "num_classes": num_classes,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }
    writing = 0

    def add_checksums() -> None:
        """Called when all files are written, before the rename that makes them a checkpoint."""
        if is_first():
            (unfinished,) = folder.glob(f"{writing}.orbax-checkpoint-tmp*")
            write_checksums(unfinished)

    context = ocp.Context()
    context.array_options.saving.use_compression = False  # floats shrink by 8 % and take the cores
    context.array_options.loading.enable_padding_and_truncation = True  # _check_fits() says where
    context.checkpointables_options.registry = ocp.handlers.local_registry().add(
        ocp.handlers.JsonHandler, checkpointable_name="loader"
    )
    context.async_options.post_finalization_callback = add_checksums
    context.async_options.timeout_secs = 3600
    keep = ocp.training.preservation_policies
    best = keep.BestN(
        n=1, get_metric_fn=lambda m: m["accuracy"], keep_checkpoints_without_metrics=False
    )
    checkpointer = ocp.training.Checkpointer(
        folder,
        context=context,
        preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(2), best]),
        cleanup_tmp_directories=True,
    )

    def wait() -> None:
        with _write_errors(folder):
            checkpointer.wait()

    def save(step: int, state: Any, *, accuracy: float | None = None) -> None:
        nonlocal writing
        wait()
        if any(step == there.step for there in checkpointer.checkpoints):
            return
        writing = step
        known = accuracy is not None and math.isfinite(accuracy)
        with _write_errors(folder, kind=OSError):
            checkpointer.save_checkpointables_async(
                step,
                {"state": state, "loader": {"next_batch": step, **here}},
                force=True,
                metrics={"accuracy": float(accuracy)} if known else None,
            )

    def load(step: int, like: Any) -> Restored:
        saved = checkpointer.metadata(step).metadata
        there = checkpointer.load_checkpointables(step, {"loader": None})["loader"]
        _check_fits(folder / str(step), saved, like, there["num_classes"], num_classes)
        if (there["devices"], there["processes"]) != (here["devices"], here["processes"]):
            _say(
                f"step {step} was saved by {there['devices']} devices in {there['processes']} "
                f"processes; {here['devices']} in {here['processes']} go on: the batches are the "
                "same, sums are rounded otherwise"
            )
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return Restored(step, checkpointer.load(step, shapes))

    def restore(like: Any) -> Restored | None:
        wait()
        newest = checkpointer.latest
        return None if newest is None else load(newest.step, like)

    def restore_best(like: Any) -> Restored | None:
        wait()
        rated = [(c.metrics["accuracy"], c.step) for c in checkpointer.checkpoints if c.metrics]
        for _, step in sorted(rated, reverse=True):
            damage = damage_of(folder / str(step), every_byte=True)
            if damage is None:
                return load(step, like)
            _say(f"checkpoint {folder / str(step)} is damaged ({damage}): the next best is read")
        return None

    try:
        yield Checkpoints(restore, restore_best, save, wait)
        wait()
    finally:
        with suppress(Exception):  # a failed write was reported by wait(), or the body's error is
            checkpointer.close()
        log.setLevel(log_level)


def _check_fits(
    checkpoint: Path, saved: Any, like: Any, classes: int | None, num_classes: int | None
) -> None:
    """Raises UserError where a state of another structure was saved; Orbax would pad or cast."""
    there, wanted = _leaves(saved), _leaves(like)
    if unlike := sorted(there.keys() ^ wanted.keys()):
        name = unlike[0]
        difference = f"has {'no ' if name in wanted else ''}{name} and this run's state "
        difference += "has" if name in wanted else "has not"
    elif classes != num_classes:
        difference = f"is of {classes} classes and this run has {num_classes}"
    else:
        unlike = [n for n in sorted(wanted) if not _fits(n, there[n], wanted[n], num_classes)]
        if not unlike:
            return
        a, b = there[unlike[0]], wanted[unlike[0]]
        difference = (
            f"holds {unlike[0]} as {a.dtype}{list(a.shape)} and this run as {b.dtype}"
            f"{list(b.shape)}"
        )
    raise UserError(
        f"checkpoint {checkpoint} {difference}: another config wrote it; give that config, or "
        "another --workdir"
    )


def _leaves(state: Any) -> dict[str, Any]:
    """{"params/conv/kernel": leaf}: Orbax names a NamedTuple's fields as it does a dict's keys."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _fits(name: str, saved: Any, wanted: Any, num_classes: int | None) -> bool:
    if saved.dtype != wanted.dtype:
        return False
    if saved.shape == wanted.shape:
        return True
    padded = num_classes is not None and "head" in name.split("/")
    return (
        padded
        and len(saved.shape) == len(wanted.shape) > 0
        and saved.shape[1:] == wanted.shape[1:]
        and min(saved.shape[0], wanted.shape[0]) >= num_classes
    )


@contextmanager
def _write_errors(folder: Path, *, kind: type[Exception] = Exception) -> Iterator[None]:
    """What a failed write raises, at once or behind, as a UserError."""
    try:
        yield
    except kind as error:
        raise UserError(
            f"a checkpoint could not be written to {folder}: {str(error).splitlines()[0]}: see "
            "that the disk has room, and give the same command to go on from the one before"
        ) from error


def _say(line: str) -> None:
    if is_first():
        print(line, file=sys.stderr)
