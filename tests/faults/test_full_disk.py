"""A full disk: one line, exit code 2, what was there stays; with room, the command goes on."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from faults.cases import contents


@pytest.fixture
def small_disk(case, fresh, whole):
    """The inputs, and on a file system of its own out/ as a run without faults leaves it."""
    left = whole(case).out
    folder = fresh(case)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder / "out")]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    shutil.copytree(left, folder / "out", dirs_exist_ok=True)
    yield folder
    subprocess.run(["umount", str(folder / "out")], check=True)


def _fill(path: Path) -> None:
    """Writes until nothing more fits."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass


def test_a_full_disk(case, server, whole, small_disk, record_property):
    # Filled to the last page, the outputs of before in their places.
    expected, out = whole(case).contents, small_disk / "out"
    if case.final:  # what is there is not written again
        shutil.rmtree(out / case.final)
    before = contents(out, case)
    _fill(out / "filler")
    full = server.run(case, small_disk)
    assert full.code == 2, full.text
    *_, line = full.text.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in full.text
    got = contents(out, case)
    assert {name: content for name, content in got.items() if name in before} == before
    (out / "filler").unlink()
    again = server.run(case, small_disk)
    assert again.code == 0, again.text
    assert contents(out, case) == expected
    record_property("full disks", 1)
