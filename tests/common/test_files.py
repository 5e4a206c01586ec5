import json
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ida_jax.common import files
from ida_jax.common.errors import Damaged, UserError, exit_code
from ida_jax.common.files import (
    load_tensors,
    read_json,
    require_file,
    save_tensors,
    written_whole,
)
from ida_jax.common.validation import unit_embeddings


def test_written_whole_replaces_or_keeps(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("before")

    def fail():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    with written_whole(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    for path in (pipe, tmp_path):
        with pytest.raises(UserError, match="it is there, and is not a file"), written_whole(path):
            raise AssertionError("something was written")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_an_absent_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write"), written_whole(tmp_path / "no" / "x"):
        pass


def test_tensors_round_trip(tmp_path):
    tensors = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.array([True, False]),
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 4), np.int32),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    save_tensors(tmp_path / "t", tensors, kind="test", metadata={"k": 10, "name": "né", "x": [1]})
    loaded, metadata = load_tensors(tmp_path / "t", kind="test")
    assert metadata == {"k": 10, "name": "né", "x": [1]}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded[name], value)


def test_the_header_is_readable_without_ida_jax(tmp_path):
    save_tensors(tmp_path / "t", {"a": np.ones(2)}, kind="test", metadata={"k": 10})
    raw = (tmp_path / "t").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert len(header["__metadata__"].pop("checksum")) == 32
    assert header["__metadata__"] == {"kind": "test", "k": "10"}


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        load_tensors(tmp_path / "absent", kind="anchor_set")
    save_tensors(tmp_path / "t", {"a": np.ones(200)}, kind="other", metadata={})
    with pytest.raises(UserError, match="of kind 'other', expected 'anchor_set'"):
        load_tensors(tmp_path / "t", kind="anchor_set")


@given(cut=st.integers(0, 400), noise=st.binary(max_size=40))
def test_torn_files_are_named(tmp_path_factory, cut, noise):
    folder = tmp_path_factory.mktemp("torn")
    save_tensors(folder / "t", {"a": np.ones(100, np.float32)}, kind="test", metadata={})
    whole = (folder / "t").read_bytes()
    (folder / "torn").write_bytes(whole[:cut])
    with pytest.raises(UserError, match="torn"):
        load_tensors(folder / "torn", kind="test")
    (folder / "noise").write_bytes(noise)
    with pytest.raises(UserError, match="noise"):
        load_tensors(folder / "noise", kind="test")


def test_unit_embeddings_of_any_norm():
    x = np.array([[3, 4], [1e-30, 0], [1e30, 1e30], [-5, 0]], np.float32)
    expected = [[0.6, 0.8], [1, 0], [0.5**0.5, 0.5**0.5], [-1, 0]]
    np.testing.assert_allclose(unit_embeddings(x), expected, rtol=1e-6)
    assert unit_embeddings(x.astype(np.float64)).dtype == np.float32


def test_bad_embeddings_are_named_by_row():
    x = np.ones((9, 3), np.float32)
    x[1:8, 0] = np.nan
    with pytest.raises(UserError, match="probes: rows 1, 2, 3, 4, 5 and 2 more are zero, NaN"):
        unit_embeddings(x, what="probes")
    with pytest.raises(UserError, match=r"float32 \[3\]: expected floating point \[N, D\]"):
        unit_embeddings(x[0])
    with pytest.raises(UserError, match="int64"):
        unit_embeddings(np.ones((2, 3), np.int64))


def test_a_mistake_is_one_line_and_exit_code_2(capsys):
    def mistaken():
        raise UserError("k = 0: expected 1 or more")

    assert exit_code(mistaken) == 2
    assert capsys.readouterr().err == "error: k = 0: expected 1 or more\n"
    assert exit_code(lambda: None) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no results at"),
        (b"", "not a whole JSON file"),
        (b'{"a": 1', "not a whole JSON file"),
        (b"\xff", "not a whole JSON file"),
        (b"[" * 100_000, "not a whole JSON file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a whole JSON file"),
        (b"[1]", "a JSON list, expected an object"),
        (b"null", "a JSON NoneType, expected an object"),
    ],
)
def test_json_that_is_not_whole_is_one_line(tmp_path, content, said):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"results\.json.*{said}|{said}.*results\.json") as caught:
        read_json(path, what="results")
    assert str(caught.value).isprintable()


def test_json_of_an_editor_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n')
    assert read_json(tmp_path / "a.json", what="a") == {"a": "é"}


def test_a_name_that_no_file_can_have(tmp_path, capsys):
    path = tmp_path / ("x" * 300)
    with pytest.raises(UserError, match="no list at"):
        require_file(path, what="list")
    assert exit_code(path.is_file) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith("give a shorter path\n")
    assert said.count("\n") == 1


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = {"b": np.arange(3, dtype=np.int32), "a": np.ones((2, 3), np.float32),
               "d": np.float64(2), "c": np.zeros((0, 4), bool)}  # fmt: skip
    metadata = {"tau": 1.0, "k": 10, "name": "né", "empty": {}}
    save_tensors(tmp_path / "one", tensors, kind="test", metadata=metadata)
    turned = [dict(reversed(each.items())) for each in (tensors, metadata)]
    save_tensors(tmp_path / "two", turned[0], kind="test", metadata=turned[1])
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    keys = list(json.loads(content[8 : 8 + length])["__metadata__"])
    assert keys == sorted(keys) == ["checksum", "empty", "k", "kind", "name", "tau"]
    # safetensors' own reader takes it.
    for name, expected in load_file(tmp_path / "one").items():
        np.testing.assert_array_equal(expected, tensors[name])
        assert expected.dtype == np.asarray(tensors[name]).dtype


def _changed(path, change):
    content = bytearray(path.read_bytes())
    change(content, 8 + int.from_bytes(content[:8], "little"))
    path.write_bytes(content)


@pytest.mark.parametrize("bit", [0, 1, 22, 30, 31])
def test_a_flipped_bit_is_found(tmp_path, bit):
    values = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    save_tensors(tmp_path / "t", {"x": values}, kind="test", metadata={"k": 10})

    def flip(content, start):
        content[start + 40 + bit // 8] ^= 1 << bit % 8

    _changed(tmp_path / "t", flip)
    with pytest.raises(Damaged, match=r"t is damaged: .*; copy it again, or make it again"):
        load_tensors(tmp_path / "t", kind="test")


def test_a_changed_header_is_found(tmp_path):
    save_tensors(tmp_path / "t", {"x": np.ones(3)}, kind="test", metadata={"k": 10})
    content = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(content.replace(b'"k":"10"', b'"k":"11"'))
    with pytest.raises(Damaged, match="t is damaged"):
        load_tensors(tmp_path / "t", kind="test")


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "holds NaN"), (np.inf, "holds NaN"), (-np.inf, "holds NaN"), (1e30, "holds NaN"),
     (0.5, "has norm 1.1"), (0, "")],
)  # fmt: skip
def test_bad_rows_are_named_without_a_checksum(tmp_path, value, said):
    rows = np.eye(7, 5, dtype=np.float32) + np.eye(7, 5, -5, dtype=np.float32)
    rows[4, 2] = value
    save_file({"x": rows}, tmp_path / "t", metadata={"kind": "test", "k": "10"})  # an older file
    if not said:
        loaded, metadata = load_tensors(tmp_path / "t", kind="test", unit_rows=("x",))
        np.testing.assert_array_equal(loaded["x"], rows)
        assert metadata == {"k": 10}
        return
    with pytest.raises(Damaged, match=rf"t is damaged: row 4 of its x {said}"):
        load_tensors(tmp_path / "t", kind="test", unit_rows=("x",))


def test_large_files_are_sampled_and_verified_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGE", 1000)
    rows = np.zeros((5000, 2), np.float32)
    rows[:, 1] = 1
    save_tensors(tmp_path / "t", {"x": rows}, kind="test", metadata={})
    _changed(tmp_path / "t", lambda content, start: content.__setitem__(start + 8 * 17 + 7, 0))
    load_tensors(tmp_path / "t", kind="test", unit_rows=("x",))
    with pytest.raises(Damaged, match="row 17 of its x has norm 0"):
        load_tensors(tmp_path / "t", kind="test", unit_rows=("x",), verify=True)

    def empty(content, start):
        content[start:] = bytes(len(content) - start)

    _changed(tmp_path / "t", empty)
    with pytest.raises(Damaged, match="row 0 of its x has norm 0"):
        load_tensors(tmp_path / "t", kind="test", unit_rows=("x",))


_TOGETHER = """
import os, signal, sys
from pathlib import Path
from ida_jax.common.files import written_together
calls, at = 0, int(sys.argv[2])
def counted(function):
    def call(*arguments, **more):
        global calls
        if str(arguments[0]).startswith(sys.argv[1]):
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return call
os.replace, os.unlink = counted(os.replace), counted(os.unlink)
Path.unlink = lambda self, missing_ok=False: os.path.exists(self) and os.unlink(self)
folder = Path(sys.argv[1])
names = [folder / name for name in ("E.npy", "E.txt", "E.json")]
with written_together(*names) as (e, text, gone):
    e.write_text("new"), text.write_text("new"), gone.unlink()
"""


def test_killed_anywhere_no_old_file_stands_beside_new_ones(tmp_path):
    seen = set()
    for at in range(1, 20):
        folder = tmp_path / str(at)
        folder.mkdir()
        for name in ("E.npy", "E.txt", "E.json"):
            (folder / name).write_text("old")
        command = [sys.executable, "-c", _TOGETHER, str(folder), str(at)]
        killed = subprocess.run(command, check=False).returncode
        found = {p.name: p.read_text() for p in folder.iterdir() if not p.name.startswith(".")}
        if "E.npy" in found:
            beside = {"E.txt": found.get("E.txt"), "E.json": found.get("E.json")}
            expected = {"old": {"E.txt": "old", "E.json": "old"},
                        "new": {"E.txt": "new", "E.json": None}}  # fmt: skip
            assert beside == expected[found["E.npy"]]
        seen.add(found.get("E.npy"))
        if killed == 0:
            break
        assert killed == -signal.SIGKILL
    assert killed == 0
    assert seen == {"old", None, "new"}
