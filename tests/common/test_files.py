import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError, exit_code
from ida_jax.common.files import load_tensors, save_tensors, written_whole
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
