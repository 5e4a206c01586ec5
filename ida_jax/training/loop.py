"""What every training loop does between two steps: waiting, checks, records, checkpoints, stopping.

recognition.py, gan.py, pfe.py and ssr.py drive `training_steps` with `for` and take their own step
in its body, where it can be read. A record is a line of metrics.jsonl, and TensorBoard events.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from ida_jax.common.errors import Damaged, Stopped, UserError
from ida_jax.common.files import written_whole
from ida_jax.common.processes import is_first
from ida_jax.common.progress import progress_bar
from ida_jax.data import pipeline
from ida_jax.data.dataset import FaceDataset
from ida_jax.training.checkpoint import Checkpoints

Batch = TypeVar("Batch")
Scalars = Mapping[str, float]
Write = Callable[[int, Scalars], None]


@dataclass
class Progress:
    """How far a training is. The loop's body replaces `state` and `metrics`.

    Attributes:
      step: steps taken.
      state: the state after them.
      metrics: scalars of the last of them, on the device.
      saved: the step of the last checkpoint, 0 if there is none.
    """

    step: int
    state: Any
    metrics: dict[str, jax.Array] = field(default_factory=dict)
    saved: int = field(init=False)

    def __post_init__(self) -> None:
        self.saved = self.step


def host_batches(
    dataset: FaceDataset, config: ConfigDict, **options: Any
) -> Iterator[pipeline.Batch]:
    """This host's part of `training_batches`, with a config section's augment and workers."""
    return pipeline.training_batches(
        dataset,
        shard=jax.process_index(),
        shards=jax.process_count(),
        augment=config.augment,
        workers=config.workers,
        **options,
    )


def training_steps(
    progress: Progress,
    batches: Iterable[Batch],
    *,
    stage: str,
    steps: int,
    check: Callable[[int, dict[str, float]], None],
    record: Callable[[int, dict[str, float], float], str],
    is_logged: Callable[[int], bool],
    check_every_step: bool = True,
    stride: int = 1,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    evaluate_every: int = 0,
    accuracy: Callable[[int], float | None] = lambda step: None,
    stop_requested: Callable[[int], bool] = lambda step: False,
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) to `steps`; the body takes that step and sets state and metrics.

    While the body's step runs on the device, the one before is waited for, checked and recorded.
    A step is saved every `checkpoint_every` and `evaluate_every` steps, at the end and on a stop,
    after its own check: whatever is saved has passed it.

    Args:
      batches: one for each turn.
      stage: "train", "gan", "ssr" or "pfe", which the progress bar shows.
      check: (step, metrics) raises UserError if they show that the training has failed.
      record: (step, metrics, steps a second) writes a record; returns the bar's text.
      check_every_step: False checks, and copies from the device, only what is recorded or saved.
      stride: steps that one turn takes; the last turn takes what is left.
      checkpoints: where states are saved; None saves nothing and cannot be stopped.
      evaluate_every: steps between two evaluations, each of which has a checkpoint; 0 for none.
      accuracy: (step) → the accuracy that goes into the checkpoint of an evaluated step, or None.
      stop_requested: from `preemption`.

    Raises:
      Stopped: a stop was requested before the last step, and the state is saved.
    """
    first_step = clock_start = pause = progress.step
    clock = time.perf_counter()
    bar = progress_bar(
        total=steps, initial=first_step, desc=stage, unit="step", disable=not is_first()
    )

    def finish(metrics: dict[str, jax.Array], step: int, *, saved: bool = False) -> None:
        nonlocal clock, clock_start
        if check_every_step or saved or is_logged(step):
            values = {name: float(value) for name, value in metrics.items()}
            check(step, values)
        else:
            jax.block_until_ready(metrics)
        bar.update(step - bar.n)
        now = time.perf_counter()
        if is_logged(step):
            bar.set_postfix_str(record(step, values, (step - clock_start) / (now - clock)))
        # The step after a pause may have waited for more: a compilation, an evaluation.
        if is_logged(step) or step == pause + 1:
            clock, clock_start = now, step

    with bar:
        bar.set_postfix_str("compiling")
        pending = None
        for start, batch in zip(range(first_step, steps, stride), batches, strict=False):
            step = min(start + stride, steps)
            yield step, batch
            # Waiting for the step before leaves the device one step to work on meanwhile.
            if pending:
                finish(*pending)
            progress.step, pending = step, (progress.metrics, step)
            stopping = stop_requested(step)
            evaluated = step == steps or (bool(evaluate_every) and step % evaluate_every == 0)
            if not (stopping or evaluated or (checkpoint_every and step % checkpoint_every == 0)):
                continue
            finish(*pending, saved=True)
            pending = None
            if checkpoints is None:
                continue
            measured = accuracy(step) if evaluated and not stopping else None
            checkpoints.save(step, progress.state, accuracy=measured)
            progress.saved = step
            if stopping and step < steps:
                checkpoints.wait()
                raise Stopped(
                    f"at step {step} of {steps}, which is saved: the same command goes on from "
                    "there"
                )
            # What was just done does not count for the training's speed.
            clock, clock_start, pause = time.perf_counter(), step, step


@contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Yields requested(step) → whether to save after this step and stop.

    SIGTERM (a scheduler's notice) and a first Ctrl-C request it; a second Ctrl-C ends the process
    at once. Leaving the block restores the previous handlers. Outside the main thread no signal can
    be caught, and a single process always gets False.

    Several processes must all call it once a step, starting at the same step: whichever is
    signalled, all get True at the same step, one to two seconds later (jax.distributed agrees on it
    in the background). There SIGTERM is caught by jax.distributed, and a Ctrl-C is passed on to it.
    """
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    several = jax.process_count() > 1
    received = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            # print() fails if the signal interrupts another print.
            os.write(2, b"\nstopping soon, with the state saved; Ctrl-C again ends at once\n")
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {}
    if threading.current_thread() is threading.main_thread():
        # Python's handler of SIGTERM would replace that of jax.distributed.
        for number in (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, on_signal)
    try:
        yield reached_preemption_sync_point if several else lambda step: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if several and before:
            # jax.distributed would go on catching it, and nothing asks for it any more: Python's
            # handler of before takes its place.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def open_metrics(
    workdir: str | os.PathLike[str] | None, *, stage: str, first_step: int = 0
) -> Iterator[Write]:
    """Yields write(step, scalars), which appends a record of the stage; only process 0 writes.

    Args:
      workdir: where; None keeps no records.
      stage: "train", "gan", "ssr" or "pfe"; it is in every record, and a run of its own in
        TensorBoard.
      first_step: where the run continues; the stage's records of later steps, which a killed run
        wrote after its last checkpoint, are dropped.

    Raises:
      UserError: the files cannot be written (a full disk, say).
    """
    if workdir is None or not is_first():
        yield lambda step, scalars: None
        return
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

        def write(step: int, scalars: Scalars) -> None:
            with _written(path):
                lines.write(json.dumps({"stage": stage, "step": step, **scalars}) + "\n")
                lines.flush()
                events(step, scalars)

        yield write


@contextmanager
def _events(folder: Path, *, purge_step: int) -> Iterator[Write]:
    """As `open_metrics`, to TensorBoard's file alone.

    tensorboardX's SummaryWriter writes in a thread, which dies of a full disk; the tenth record
    after that waits for it for ever. The core installation, with which the SSR module of a file of
    embeddings can be trained, is without tensorboardX.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar
    except ImportError:
        print("no TensorBoard files without tensorboardX: pip install 'ida_jax[train]'")
        yield lambda step, scalars: None
        return

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    writer.write_event(Event(step=purge_step, file_version="brain.Event:2"))
    started = SessionLog(status=SessionLog.START)
    writer.write_event(Event(step=purge_step, session_log=started))
    writer.flush()

    def write(step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            summary = scalar(name, value)
            writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    try:
        yield write
    finally:
        with contextlib.suppress(OSError):  # all was flushed before
            writer.close()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path} or the TensorBoard files beside it: {error.strerror}; make room, "
            "and the same command continues from its last checkpoint"
        ) from error


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict]:
    """The records of metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
      Damaged: another line is not a record, named by its number.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    return [_record(line, f"{path}:{number}") for number, line in enumerate(whole, 1)]


def _record(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line)
        stage, step = record["stage"], record["step"]
        figures = [value for key, value in record.items() if key != "stage"]
        whole = isinstance(stage, str) and type(step) is int
        whole &= all(value is None or type(value) in (int, float) for value in figures)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(
            f"{where} is damaged: not a training record of stage, step and figures; remove the "
            "line, or copy the file again"
        )
    return record
