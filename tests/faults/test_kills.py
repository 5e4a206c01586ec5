"""Killed just before any rename or removal, the same command ends in the same bytes."""

import signal

from faults.cases import CASES, contents, unfinished


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


def test_a_folder_that_was_to_be_replaced_is_the_old_or_the_new_one(
    server, fresh, whole, record_property
):
    case = CASES["rescore_folder_over_another"]
    old = contents(fresh(case) / "out", case)
    expected, changes = whole(case).contents, whole(case).changes
    assert expected != old
    renames = [at for at, change in enumerate(changes, 1) if change.startswith("replace")][-2:]
    for at in (*renames, renames[-1] + 1):
        out = (folder := fresh(case)) / "out"
        assert server.run(case, folder, fault="kill", at=at).code == -signal.SIGKILL
        # A command that fails over its input has looked at its output before.
        failed = case._replace(flags=(*case.flags, "--pairs=absent.npy"))
        assert server.run(failed, folder).code == 2
        left = {name: content for name, content in contents(out, case).items()
                if name.startswith("S/")}  # fmt: skip
        assert left == (old if at < renames[-1] + 1 else expected), changes[at - 1]
    record_property("kills", len(renames) + 1)
