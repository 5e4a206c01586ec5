"""Killed just before any rename or removal, the same command ends in the same bytes."""

import signal

from faults.cases import contents, unfinished


def test_a_killed_command_ends_in_the_same_bytes_when_run_again(
    case, server, fresh, whole, request, record_property
):
    expected, count = whole(case).contents, len(whole(case).changes)
    old = contents(fresh(case) / "out", case)
    points = range(1, count + 1)
    if not request.config.getoption("--every-kill"):
        points = sorted({max(1, count // 2), count})
    for at in points:
        out = (folder := fresh(case)) / "out"
        killed = server.run(case, folder, fault="kill", at=at)
        assert killed.code == -signal.SIGKILL, killed.text
        where = f"killed before change {at} of {count}, {killed.changes[-1]}"
        if case.together:
            left = {name: content for name, content in contents(out, case).items()
                    if name in case.together}  # fmt: skip
            versions = [{name: version.get(name) for name in case.together}
                        for version in (old, expected)]  # fmt: skip
            assert case.together[0] not in left or left in versions, where
        again = server.run(case, folder)
        assert again.code == 0, f"{where}: {again.text}"
        got = contents(out, case)
        assert got.keys() == expected.keys(), where
        assert got == expected, where
        assert not unfinished(out), where
    record_property("commands", 1)
    record_property("kills", len(points))
