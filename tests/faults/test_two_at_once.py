"""Two commands on one output: the second says who works there, the first is not disturbed."""

import os
import signal

import pytest
from faults.cases import CASES, contents


@pytest.mark.parametrize("name", CASES)
def test_the_second_command_on_an_output_is_refused(name, server, fresh):
    case, folder = CASES[name], fresh()
    whole = server.run(case, folder)
    assert whole.code == 0, whole.text
    expected = contents(folder, case.volatile)
    folder = fresh()
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
    assert contents(folder, case.volatile) == expected


@pytest.mark.parametrize("name", ["rescore", "embed"])
def test_a_killed_commands_lock_is_taken_over(name, server, fresh):
    case, folder = CASES[name], fresh()
    assert server.run(case, folder, fault="kill", at=1).code == -signal.SIGKILL
    again = server.run(case, folder)
    assert again.code == 0, again.text
