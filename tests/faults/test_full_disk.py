"""A full disk: one line, exit code 2, what was there stays; with room, the command goes on."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from faults.cases import CASES, contents


@pytest.fixture
def small_disk(fresh):
    """The inputs, and out/ on a file system of its own: (folder, resize)."""
    folder = fresh()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder / "out")]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")

    def resize(size: str) -> None:
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(folder / "out")], check=True)

    yield folder, resize
    subprocess.run(["umount", str(folder / "out")], check=True)


def _fill(path: Path) -> None:
    """Writes until nothing more fits."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk(name, server, small_disk):
    case, (folder, resize) = CASES[name], small_disk
    resize("64m")
    whole = server.run(case, folder)
    assert whole.code == 0, whole.text
    expected = contents(folder / "out", case.volatile)
    # Filled to the last page, the outputs of before in their places.
    if name == "prepare":  # a data set that is there is not written again
        shutil.rmtree(folder / "out" / "faces")
    before = contents(folder / "out", case.volatile)
    _fill(folder / "out" / "filler")
    full = server.run(case, folder)
    assert full.code == 2, full.text
    *_, line = full.text.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in full.text
    got = contents(folder / "out", case.volatile)
    assert {name: content for name, content in got.items() if name in before} == before
    (folder / "out" / "filler").unlink()
    again = server.run(case, folder)
    assert again.code == 0, again.text
    assert contents(folder / "out", case.volatile) == expected
