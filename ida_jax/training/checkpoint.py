"""Training checkpoints by Orbax: a folder a step, written while the training goes on.

The newest two are kept, and the most accurate one. Each holds the size and CRC-32 of its files:
Orbax checks its indices, not the arrays, so that an altered weight would load silently.

The checksums are written before Orbax renames the folder, so that a checkpoint is whole and
verifiable or does not count. They are compared before shapes, which separates damage from another
config. Class padding may differ: that is how a training resumes on a different number of devices.
"""

import json
import logging
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ida_jax.common.errors import UserError
from ida_jax.common.processes import OthersFailed, agree, cores, is_first

_CHECKSUMS = "checksums.json"
_SMALL = 2**20  # bytes
_ORBAX_METADATA = "_CHECKPOINT_METADATA"  # gets a date after the checksums are made


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
      restore: (like) → the newest one, or None. `like` is a pytree of arrays or ShapeDtypeStructs
        with shardings, for any device count. Raises UserError if another structure, shape or type
        was saved; below a key `head` the padding may differ.
      restore_best: (like) → the most accurate one, or None if none has an accuracy.
      save: (step, state, *, accuracy=None) copies the state off the devices and returns: it may
        then be donated; the writing continues in the background. A step that already exists is left
        as it is. Raises UserError if this write or the previous one fails.
      wait: () returns when everything is on disk. Raises UserError if a write fails.
    """

    restore: Callable[[Any], Restored | None]
    restore_best: Callable[[Any], Restored | None]
    save: Callable[..., None]
    wait: Callable[[], None]


@contextmanager
def open_checkpoints(
    folder: str | os.PathLike[str], *, num_classes: int | None = None
) -> Iterator[Checkpoints]:
    """Opens DIR for saving and restoring; on leaving it, everything saved is on disk.

    A checkpoint is written under a temporary name and renamed when whole, so that a run killed at
    any moment finds its newest whole one. One damaged later (files missing, truncated or altered)
    is renamed to `corrupt-STEP`, with a line on stderr, and the one before it counts as the newest.

    Args:
      folder: DIR, on a file system that all processes share.
      num_classes: real rows of the leaves below `head`; the others are padding.

    Raises:
      UserError: all checkpoints are damaged, or a write failed.
    """
    from orbax.checkpoint import v1 as ocp

    folder = Path(folder).absolute()
    _put_damaged_aside(folder)
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
            _write_checksums(unfinished)

    context = ocp.Context()
    context.array_options.saving.use_compression = False  # floats shrink by 8 % and take the cores
    # A replicated array is cut into a slice a device to be written in parallel, each cut a program
    # to compile: not worth it below a MiB.
    context.array_options.saving.min_slice_bytes_for_replica_parallel = _SMALL
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
            damage = _damage(folder / str(step), every_byte=True)
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
    """Raises UserError if a state of another structure was saved; Orbax would pad or cast it."""
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
    """Turns the error of a failed write, immediate or in the background, into a UserError."""
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


def _write_checksums(checkpoint: Path) -> None:
    """Writes checksums.json, {name: [bytes, CRC-32]} of all files below a folder."""
    files = (p for p in checkpoint.rglob("*") if p.is_file() and p.name != _ORBAX_METADATA)
    names = [file.relative_to(checkpoint).as_posix() for file in files]
    sizes = [(checkpoint / name).stat().st_size for name in names]
    sums = zip(names, sizes, _crcs(checkpoint, names), strict=True)
    text = json.dumps({name: [size, crc] for name, size, crc in sums})
    (checkpoint / _CHECKSUMS).write_text(text)


def _put_damaged_aside(folder: Path) -> None:
    """Renames the damaged checkpoints of a folder to `corrupt-STEP`, if a whole one is left.

    Every byte is read from the newest down to the first whole one; of older ones only the small
    files, which Orbax reads when it opens the folder. Several processes call it together.
    """
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), reverse=True)
    damaged, newest_whole = {}, None
    for step in steps:
        damage = _damage(folder / str(step), every_byte=newest_whole is None)
        if damage is not None:
            damaged[step] = damage
        elif newest_whole is None:
            newest_whole = step
    if steps and newest_whole is None:
        what = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
        raise UserError(
            f"every checkpoint in {folder} is damaged ({what}): put a whole one there, or delete "
            "the folder to begin again"
        )
    for step, damage in damaged.items() if is_first() else ():
        aside = folder / f"corrupt-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        (folder / str(step)).rename(aside)
        _say(
            f"checkpoint {folder / str(step)} is damaged ({damage}): it is renamed to "
            f"{aside.name}; the newest whole one is of step {newest_whole}"
        )
    agree()


def _damage(checkpoint: Path, *, every_byte: bool) -> str | None:
    """What process 0 finds wrong with a checkpoint's files, on every process; None if nothing.

    Without `every_byte` only files up to 1 MiB are read, and the others' sizes.
    """
    damage = _own_damage(checkpoint, every_byte=every_byte) if is_first() else None
    try:
        agree(damage is None)
    except OthersFailed:
        return "as process 0 says"
    return damage


def _own_damage(checkpoint: Path, *, every_byte: bool) -> str | None:
    try:
        json.loads((checkpoint / _ORBAX_METADATA).read_bytes())
        expected = json.loads((checkpoint / _CHECKSUMS).read_bytes())
        for name, (size, _) in expected.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            present = (checkpoint / name).stat().st_size
            if present != size:
                return f"{name} has {present} bytes of {size}"
        names = [name for name, (size, _) in expected.items() if every_byte or size <= _SMALL]
        for name, crc in zip(names, _crcs(checkpoint, names), strict=True):
            if crc != expected[name][1]:
                return f"{name} was altered"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(checkpoint)} is missing"
    # Beyond OSError: checksums.json is not JSON, or not a list of files.
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _crcs(folder: Path, names: list[str]) -> list[int]:
    with ThreadPoolExecutor(min(4, cores())) as threads:  # zlib and reads release the GIL
        return list(threads.map(lambda name: _crc(folder / name), names))


def _crc(file: Path) -> int:
    crc, buffer = 0, bytearray(2**22)
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            crc = zlib.crc32(memoryview(buffer)[:count], crc)
    return crc
