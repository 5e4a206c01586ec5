import json

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.tables.embedding_output import check_output, write_embeddings
from ida_jax.tables.embeddings import read_embeddings

SUFFIXES = (".npy", ".npz", ".parquet")


def _faces(n, d=3):
    faces = np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
    faces[n // 2] = np.nan
    return faces


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("block", [1, 3, 7])
def test_what_is_written_is_read(tmp_path, suffix, n, block):
    faces, path = _faces(n), tmp_path / f"E.x{suffix}"
    names = [f"Zoë {i}/a b.jpg" for i in range(n)]
    blocks = (faces[i : i + block] for i in range(0, n, block))
    fingerprint = "0123456789abcdef" if n == 7 else ""
    write_embeddings(path, blocks, names, width=3, fingerprint=fingerprint)
    listed = tmp_path / "E.x.names.txt"
    read = read_embeddings(path, names=listed if suffix == ".npy" else None)
    np.testing.assert_array_equal(read.embeddings, faces)
    assert read.embeddings.dtype == np.float32
    assert read.names == names
    assert read.fingerprint == fingerprint
    beside = [] if suffix != ".npy" else ["E.x.names.txt"]
    beside += ["E.x.fingerprint.json"] if suffix == ".npy" and fingerprint else []
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *beside}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_later_file_has_its_own_fingerprint_or_none(tmp_path, suffix):
    path = tmp_path / f"E{suffix}"
    for fingerprint in ("abc", "xyz", ""):
        write_embeddings(path, [_faces(2)], ["a", "b"], width=3, fingerprint=fingerprint)
        assert read_embeddings(path).fingerprint == fingerprint
    assert not (tmp_path / "E.fingerprint.json").exists()


def test_the_fingerprint_beside_says_which_file_it_is_of(tmp_path):
    write_embeddings(tmp_path / "E.npy", [_faces(2)], ["a", "b"], width=3, fingerprint="abc")
    told = json.loads((tmp_path / "E.fingerprint.json").read_text())
    assert told["size"] == (tmp_path / "E.npy").stat().st_size
    assert set(told) == {"fingerprint", "size", "ends"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_numbers_of_rows_leave_what_was_there(tmp_path, suffix):
    path = tmp_path / f"E{suffix}"
    write_embeddings(path, [_faces(2)], ["a", "b"], width=3, fingerprint="abc")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for blocks, message in (
        ([_faces(3)], "3 embeddings or more for 4 names"),
        ([_faces(3), _faces(2)], "5 embeddings or more for 4 names"),
        ([_faces(4, d=2)], r"shape \[4, 2\], expected \[n, 3\]"),
        ([_faces(4)[0]], r"shape \[3\], expected"),
    ):
        with pytest.raises(ValueError, match=message):
            write_embeddings(path, blocks, list("abcd"), width=3, fingerprint="xyz")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for name, message in (
        ("E.txt", r"ends in '.txt': embeddings are one of .npy, .npz, .parquet"),
        ("folder.npz", "it is a folder; name a file"),
        ("absent/E.npy", "no folder .*absent; make it first"),
    ):
        with pytest.raises(UserError, match=message):
            check_output(tmp_path / name)
    for suffix in SUFFIXES:
        check_output(tmp_path / f"E{suffix}")
