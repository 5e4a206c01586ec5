"""The process that reads the mutated files, within limits of time and memory."""

import contextlib
import importlib
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ida_jax.common.errors import UserError

from .seeds import Seeds

SECONDS = 5
# Seconds are the processor's, so that other work on the machine makes no findings; a reader that
# waits is caught after as many times their number.
WAITING = 6
MEMORY = 1 << 30
_LONGEST_MESSAGE = 2000


class _TooSlow(BaseException):
    """An input took more than its seconds. Not an Exception, so that no reader takes it for one."""


class Task(NamedTuple):
    """What a run reads.

    Attributes:
      module: with READERS, by its name.
      names: of those readers that are fed in turn.
      seed: of the mutations.
      folder: where the inputs are written.
      end: the monotonic time after which none is begun.
      inputs: how many in all, at most.
      seconds: for each of them, at most.
    """

    module: str
    names: list[str]
    seed: int
    folder: str
    end: float
    inputs: int
    seconds: float


def work(pipe: Connection, task: Task, first: int) -> None:
    """The second process: reads one input after the other, and says what became of each."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # whose reserves are not what was asked for
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _too_slow)
    readers, folder = importlib.import_module(task.module).READERS, Path(task.folder)
    seeds = Seeds(readers)
    for name in task.names:  # whatever is imported and allocated once
        with contextlib.suppress(Exception):
            readers[name].read(seeds.write(name, seeds.of(name)[0], folder))
    number = first
    while time.monotonic() < task.end and number < task.inputs:
        rng = random.Random(f"{task.seed} {number}")
        name = task.names[number % len(task.names)]
        reader = readers[name]
        choices = seeds.of(name)
        mutate = rng.choice(reader.mutations)
        content = mutate(rng.choice(choices), rng.choice(choices), rng)
        path = seeds.write(name, content, folder)
        pipe.send(("begin", number, name, str(path)))
        outcome, text = _outcome(reader.read, path, task.seconds)
        pipe.send(("end", number, outcome, text))
        if outcome == "finding":
            pipe.recv()  # the input is kept before the next one takes its place
        number += 1
    pipe.send(("done", number))


def _outcome(
    read: Callable[[Path], object], path: Path, seconds: float
) -> tuple[str, tuple[str, str] | None]:
    """("taken" | "refused" | "finding", what it was and the details)."""
    try:
        with _limited(seconds):
            read(path)
    except UserError as error:
        problem = _unclear(str(error))
        return ("finding", (problem, str(error))) if problem else ("refused", None)
    except _TooSlow:
        return "finding", (f"takes more than {seconds:g} s", traceback.format_exc())
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in place if "ida_jax" in frame.filename] or place
        where = f"{Path(own[-1].filename).name}:{own[-1].name}"
        return "finding", (f"{type(error).__name__} in {where}", traceback.format_exc())
    return "taken", None


def _unclear(message: str) -> str | None:
    if len(message) > _LONGEST_MESSAGE:
        return "a message of more than 2,000 characters"
    if not message.isprintable():
        return "a message with line breaks or control characters"
    return None


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """These seconds and MEMORY for what is done inside."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_slow(signum, frame) -> None:
    raise _TooSlow
