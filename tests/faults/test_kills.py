"""Killed just before any rename or removal, the same command ends in the same bytes."""

import signal

import pytest
from faults.cases import CASES, contents


@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_ends_in_the_same_bytes_when_run_again(name, server, fresh, request):
    case, folder = CASES[name], fresh()
    whole = server.run(case, folder)
    assert whole.code == 0, whole.text
    expected = contents(folder, case.volatile)
    assert not [path for path in expected if "/." in path], "hidden files are left"
    count = len(whole.changes)
    assert count, "nothing was renamed: the output does not appear at once"
    points = range(1, count + 1)
    if not request.config.getoption("--every-kill"):
        points = sorted({1, count})
    for at in points:
        folder = fresh()
        killed = server.run(case, folder, fault="kill", at=at)
        assert killed.code == -signal.SIGKILL, killed.text
        again = server.run(case, folder)
        where = f"killed before change {at} of {count}, {killed.changes[-1]}"
        assert again.code == 0, f"{where}: {again.text}"
        got = contents(folder, case.volatile)
        assert got.keys() == expected.keys(), where
        assert got == expected, where
