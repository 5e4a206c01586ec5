"""The fuzzer: its readers take their seeds, and it finds readers that are bad."""

import os
import signal
import time
from pathlib import Path

import pytest
from fuzz.__main__ import run
from fuzz.readers import READERS as ALL
from fuzz.seeds import Reader, Seeds

from ida_jax.common.errors import UserError

_WHOLE = b"1 2 3\n"


@pytest.mark.parametrize("name", ALL)
def test_seeds_are_taken_and_parts_of_files_refused(name, tmp_path, capsys):
    seeds = Seeds(ALL)
    whole = len(seeds.of(name)) - ALL[name].refused
    assert whole > 0
    for number, content in enumerate(seeds.of(name)):
        path = seeds.write(name, content, tmp_path)
        if number < whole:
            ALL[name].read(path)
        else:
            with pytest.raises(UserError):
                ALL[name].read(path)


def _raises(path: Path) -> None:
    raise KeyError(path.name)


def _takes_long(path: Path) -> None:
    time.sleep(30)


def _fills_memory(path: Path) -> None:
    bytearray(2 << 30)


def _says_two_lines(path: Path) -> None:
    error = UserError("")
    error.args = ("one\ntwo",)
    raise error


def _says_too_much(path: Path) -> None:
    error = UserError("")
    error.args = ("x" * 3000,)
    raise error


def _crashes(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuses(path: Path) -> None:
    raise UserError(f"{path} is damaged: copy it again")


_BAD = {
    _raises: "KeyError in test_fuzz.py:_raises",
    _takes_long: "takes more than 0.5 s",
    _fills_memory: "MemoryError in test_fuzz.py:_fills_memory",
    _says_two_lines: "a message with line breaks or control characters",
    _says_too_much: "a message of more than 2,000 characters",
    _crashes: "hangs or crashes",
}


def _planted(bad) -> Reader:
    def read(path: Path) -> None:
        if path.read_bytes() != _WHOLE:
            bad(path)

    return Reader("x.txt", lambda: [_WHOLE], read)


# The fuzzer's second process takes them from here.
READERS = {read.__name__: _planted(read) for read in (*_BAD, _refuses)}


def test_each_kind_of_bad_reader_is_found(tmp_path):
    report = run(
        list(READERS), seconds=120, seed=1, findings=tmp_path / "found", module=__name__,
        inputs=2 * len(READERS), seconds_each=0.5,
    )  # fmt: skip
    found = {(finding["reader"], finding["what"]) for finding in report["findings"]}
    assert found == {(read.__name__, what) for read, what in _BAD.items()}
    assert report["readers"]["_refuses"] == {"inputs": 2, "refused": 2}
    assert report["readers"]["_raises"] == {"inputs": 2, "finding": 2}
    for finding in report["findings"]:
        assert Path(finding["input"]).read_bytes() != _WHOLE
        said = Path(finding["input"] + ".txt").read_text()
        assert said.startswith(finding["what"])


def test_a_seed_gives_the_same_inputs(tmp_path):
    inputs = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        report = run(
            ["_raises"], seconds=60, seed=3, findings=folder, module=__name__, inputs=2,
            seconds_each=5,
        )  # fmt: skip
        assert report["inputs"] == 2
        inputs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert inputs[0].keys() == inputs[1].keys()
    assert len(inputs[0]) == 4
