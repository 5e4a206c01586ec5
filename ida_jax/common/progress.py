"""Progress of long work: a bar on a terminal, a plain line a minute anywhere else."""

import sys
import time
from typing import Any

from tqdm import tqdm

_SECONDS = 60


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """A `tqdm`, with its arguments; on stderr.

    Where stderr is not a terminal (a log, a scheduler, a pipe), at most a line a minute is written,
    and one at the end if there was one before: what is done of how much, the rate, the time left.
    """
    return (tqdm if sys.stderr.isatty() else _Lines)(*args, **kwargs)


class _Lines(tqdm):
    """Whole lines in place of a bar that is drawn over and over."""

    monitor_interval = 0  # no thread: a line may wait for the next update

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_line = time.monotonic()
        self._begun = False
        format_ = "{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {remaining} left{postfix}"
        super().__init__(*args, **{"mininterval": 1, "bar_format": format_, **kwargs})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes a line where a minute has passed since the last, or where the work has ended."""
        now = time.monotonic()
        ended = self.disable  # what `close` sets first
        if msg == "" or not (self._begun if ended else now - self._last_line >= _SECONDS):
            return True
        self._last_line, self._begun = now, True
        self.fp.write(" ".join(str(self).split()) + "\n")  # tqdm pads the rate
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing was drawn that could be cleared."""

    def close(self) -> None:
        """Ends without the line break or return that follows a bar."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.leave:
            self.display()
