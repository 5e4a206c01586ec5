"""Two commands on one output: the second says who works there, the first is not disturbed."""

import os
import signal

from faults.cases import contents


def test_the_second_command_on_an_output_is_refused(case, server, fresh, whole, record_property):
    expected, folder = whole(case).contents, fresh(case)
    pid = server.start(case, folder, fault="stop", at=1)
    assert server.wait(pid) is None
    try:
        second = server.run(case, folder)
    finally:
        os.kill(pid, signal.SIGCONT)
    first = server.wait(pid)
    assert second.code == 2, second.text
    *_, line = second.text.strip().splitlines()
    assert line.startswith("error: ")
    assert str(pid) in line
    assert first.code == 0, first.text
    assert contents(folder / "out", case) == expected
    record_property("pairs at once", 1)
