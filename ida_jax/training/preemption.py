"""Stopping on SIGTERM or Ctrl-C between two steps, with the state saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Yields requested(step) → whether to save after this step and stop.

    SIGTERM (a scheduler's notice) and a first Ctrl-C ask for it; a second Ctrl-C ends at once.
    Handlers are those before again when the block is left. In another thread than the main one
    no signal can be caught, and the answer of a single process is False.

    Several processes must all ask once a step, from the same one on: whichever is signalled, all
    get True at the same step, one to two seconds later (jax.distributed agrees on it behind).
    There SIGTERM is caught by jax.distributed, and a Ctrl-C is passed on to it.
    """
    import jax
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    several = jax.process_count() > 1
    received = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            # print() fails where the signal interrupts another print.
            os.write(2, b"\nstopping soon, with the state saved; Ctrl-C again ends at once\n")
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {}
    if threading.current_thread() is threading.main_thread():
        # Python's handler of SIGTERM would take the place of jax.distributed's.
        for number in (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, on_signal)
    try:
        yield reached_preemption_sync_point if several else lambda step: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if several and before:
            # jax.distributed would go on catching it, and nobody asks any more: Python's handler of
            # before takes its place.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
