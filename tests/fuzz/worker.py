"""The process that reads the mutated files, within limits of time and memory."""

import contextlib
import os
import random
import resource
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from ida_jax.common.errors import UserError
from tests.fuzz.readers import READERS, Seeds

SECONDS = 5
MEMORY = 1 << 30
_LONGEST_MESSAGE = 2000


class _TooSlow(BaseException):
    """An input took more than SECONDS. Not an Exception, so that no reader takes it for one."""


def work(
    pipe: Connection, names: list[str], seed: int, first: int, folder: str, end: float
) -> None:
    """The second process: reads one input after the other, and says what became of each."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # whose reserves are not what was asked for
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    signal.signal(signal.SIGALRM, _too_slow)
    seeds = Seeds()
    for name in names:  # whatever is imported and allocated once
        with contextlib.suppress(Exception):
            READERS[name].read(seeds.write(name, seeds.of(name)[0], Path(folder)))
    number = first
    while time.monotonic() < end:
        rng = random.Random(f"{seed} {number}")
        name = names[number % len(names)]
        choices = seeds.of(name)
        mutate = rng.choice(READERS[name].mutations)
        content = mutate(rng.choice(choices), rng.choice(choices), rng)
        path = seeds.write(name, content, Path(folder))
        pipe.send(("begin", number, name, str(path)))
        pipe.send(("end", number, *_outcome(lambda n=name, p=path: READERS[n].read(p))))
        number += 1
    pipe.send(("done", number))


def _outcome(read) -> tuple[str, tuple[str, str] | None]:
    """("taken" | "refused" | "finding", what it was and the details)."""
    try:
        with _limited():
            read()
    except UserError as error:
        problem = _unclear(str(error))
        return ("finding", (problem, str(error))) if problem else ("refused", None)
    except _TooSlow:
        return "finding", (f"takes more than {SECONDS} s", traceback.format_exc())
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
def _limited():
    """SECONDS and MEMORY for what is done inside."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_slow(signum, frame) -> None:
    raise _TooSlow
