"""Training checkpoints by Orbax: a folder a step, the newest two kept."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Checkpoints(NamedTuple):
    """An open folder of checkpoints.

    Attributes:
      latest_step: the newest whole checkpoint's step, None where there is none.
      save: (step, state) writes a checkpoint; it is complete when the call returns.
      load: (step, like) reads one into the shapes, types and shardings of `like`.
    """

    latest_step: int | None
    save: Callable[[int, Any], None]
    load: Callable[[int, Any], Any]


@contextmanager
def open_checkpoints(folder: str | os.PathLike[str]) -> Iterator[Checkpoints]:
    """Opens DIR for saving and restoring.

    A checkpoint is written under a temporary name and renamed when whole, so that a run killed at
    any moment finds its newest whole one.
    """
    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every step of a save
    checkpointer = ocp.training.Checkpointer(
        Path(folder).absolute(),
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=True,
    )

    def save(step: int, state: Any) -> None:
        checkpointer.save(step, state, force=True)

    def load(step: int, like: Any) -> Any:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return checkpointer.load(step, shapes)

    try:
        latest = checkpointer.latest
        yield Checkpoints(None if latest is None else latest.step, save, load)
    finally:
        checkpointer.close()
