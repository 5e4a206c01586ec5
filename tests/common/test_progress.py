"""Progress where nobody watches: a plain line a minute."""

import io
import re

import pytest

from ida_jax.common import progress as module
from ida_jax.common.progress import progress_bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so, for our class and for tqdm."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr("tqdm.std.time", lambda: Clock.now)
    return Clock


def _work(clock, out, *, steps, seconds, **options):
    with progress_bar(total=steps, file=out, desc="train", unit="step", **options) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.update()
            bar.set_postfix_str("loss 1.5")


def test_a_line_a_minute(clock):
    out = io.StringIO()
    _work(clock, out, steps=400, seconds=1.0)
    lines = out.getvalue().splitlines()
    assert len(lines) == 7  # six full minutes, and the end
    for line, done in zip(lines, (60, 120, 180, 240, 300, 360, 400), strict=True):
        assert re.fullmatch(
            rf"train: {done} of 400 steps, 1\.00step/s, [0-9:]+ left(, loss 1\.5)?", line
        ), line
    assert "05:40 left" in lines[0]
    assert "\r" not in out.getvalue()


def test_short_work_writes_nothing(clock):
    out = io.StringIO()
    _work(clock, out, steps=50, seconds=1.0)
    assert out.getvalue() == ""


def test_nothing_is_left_where_a_bar_would_not_stay(clock):
    out = io.StringIO()
    _work(clock, out, steps=100, seconds=1.0, leave=False)
    assert len(out.getvalue().splitlines()) == 1


def test_a_disabled_bar_is_silent(clock):
    out = io.StringIO()
    _work(clock, out, steps=200, seconds=1.0, disable=True)
    assert out.getvalue() == ""


def test_an_iterable_passes_through():
    assert list(progress_bar(range(5), desc="x")) == [0, 1, 2, 3, 4]
