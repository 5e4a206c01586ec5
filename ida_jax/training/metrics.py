"""Scalars of a run: one JSON line a record in metrics.jsonl, and TensorBoard events."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole

Write = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def open_metrics(
    workdir: str | os.PathLike[str], *, stage: str, first_step: int = 0
) -> Iterator[Write]:
    """Yields write(step, scalars), which appends a record of the stage.

    Args:
      workdir: holds metrics.jsonl and tensorboard/.
      stage: "train", "gan", "ssr" or "pfe"; it is in every record, and a run of its own in
        TensorBoard.
      first_step: where the run goes on; the stage's records of later steps, which a killed run
        wrote after its last checkpoint, are dropped.

    Raises:
      UserError: the files cannot be written (a full disk, say).
    """
    path = Path(workdir) / "metrics.jsonl"
    kept = [r for r in read_metrics(workdir) if r["stage"] != stage or r["step"] <= first_step]
    with written_whole(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    with contextlib.ExitStack() as opened:
        with _written(path):
            lines = opened.enter_context(path.open("a", encoding="utf-8"))
            # A folder a stage: a writer that purges hides every later step in its folder.
            events = opened.enter_context(
                _events(Path(workdir) / "tensorboard" / stage, purge_step=first_step + 1)
            )

        def write(step: int, scalars: Mapping[str, float]) -> None:
            with _written(path):
                lines.write(json.dumps({"stage": stage, "step": step, **scalars}) + "\n")
                lines.flush()
                events(step, scalars)

        yield write


@contextlib.contextmanager
def _events(folder: Path, *, purge_step: int) -> Iterator[Write]:
    """As `open_metrics`, to TensorBoard's file alone.

    tensorboardX's SummaryWriter writes in a thread, which dies of a full disk; the tenth record
    after that waits for it for ever.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    writer.write_event(Event(step=purge_step, file_version="brain.Event:2"))
    started = SessionLog(status=SessionLog.START)
    writer.write_event(Event(step=purge_step, session_log=started))
    writer.flush()

    def write(step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            summary = scalar(name, value)
            writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    try:
        yield write
    finally:
        with contextlib.suppress(OSError):  # all was flushed before
            writer.close()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} or the TensorBoard files beside it: {error.strerror}; make room, "
            "and the same command continues from its last checkpoint"
        ) from error


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict]:
    """The records of metrics.jsonl; a last line torn by a kill is left out."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]
