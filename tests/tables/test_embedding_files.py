import json
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet

from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings, unit_rows
from ida_jax.tables import embeddings as module
from ida_jax.tables.embedding_output import write_embeddings
from ida_jax.tables.embeddings import read_embeddings


def _faces(n=7, d=5, dtype=np.float32):
    return np.random.default_rng(n).standard_normal((n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n", [1, 7])
def test_npy_is_mapped(tmp_path, dtype, order, n):
    faces = np.asarray(_faces(n), dtype, order=order)
    np.save(tmp_path / "e.npy", faces)
    read = read_embeddings(tmp_path / "e.npy")
    assert isinstance(read.embeddings, np.memmap)
    assert read.names is None
    np.testing.assert_array_equal(read.embeddings, faces)
    np.testing.assert_array_equal(unit_rows(read.embeddings).embeddings, unit_embeddings(faces))


def test_npz(tmp_path):
    faces, path = _faces(), tmp_path / "e.npz"
    names = np.array([f"n{i}" for i in range(7)])
    np.savez(path, embeddings=faces, other=faces[:2], names=names)
    read = read_embeddings(path)
    np.testing.assert_array_equal(read.embeddings, faces)
    assert read.names == names.tolist()
    np.savez(path, anything=faces, labels=np.arange(7), mean=faces[0])
    np.testing.assert_array_equal(read_embeddings(path).embeddings, faces)
    for arrays, message in (
        ({"a": faces, "b": faces}, "holds a, b: expected one named embeddings"),
        ({"a": np.arange(3)}, "holds a: expected"),
        ({}, "no arrays"),
        ({"embeddings": np.arange(3)}, r"int64 \[3\]: expected floating point"),
        ({"embeddings": faces, "names": names[:3]}, "3 names for 7 embeddings"),
        ({"embeddings": faces, "names": names[[0, 1, 2, 3, 1, 5, 6]]}, "row 4 repeats 'n1' of row"),
        ({"embeddings": faces, "names": np.arange(7)}, "names is int64"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message):
            read_embeddings(path)


@pytest.fixture
def known(tmp_path):
    """E.npy, large enough for its middle to lie outside both ends, by the model abc."""
    faces, path = _faces(20_000), tmp_path / "E.npy"
    write_embeddings(path, [faces], list(map(str, range(20_000))), width=5, fingerprint="abc")
    assert read_embeddings(path).fingerprint == "abc"
    return path, faces


def test_a_fingerprint_beside_a_later_npy_is_not_its(known):
    path, faces = known
    for row in (0, -1):
        other = faces.copy()
        other[row, -1] += 1
        np.save(path, other)
        assert read_embeddings(path).fingerprint == ""
    for other in (faces[1:], faces[:1], faces.astype(np.float64), faces.reshape(-1, 10)):
        np.save(path, other)
        assert read_embeddings(path).fingerprint == ""
    np.save(path, faces)  # the same embeddings again are still the model's
    assert read_embeddings(path).fingerprint == "abc"


def test_a_fingerprint_goes_with_its_npy(known, tmp_path):
    path, _ = known
    (tmp_path / "elsewhere").mkdir()
    for file in (path, path.with_suffix(".fingerprint.json")):
        shutil.copy(file, tmp_path / "elsewhere")  # at another time of change
    assert read_embeddings(tmp_path / "elsewhere" / "E.npy").fingerprint == "abc"


def test_a_file_in_the_fingerprints_place_that_says_nothing(known):
    path, faces = known
    beside = path.with_suffix(".fingerprint.json")
    told = json.loads(beside.read_text())
    for content in ("", "{", "[]", "{}", "3", json.dumps(told | {"fingerprint": 3}),
                    json.dumps({"fingerprint": "abc"})):  # fmt: skip
        beside.write_text(content)
        read = read_embeddings(path)
        assert read.fingerprint == ""
        np.testing.assert_array_equal(read.embeddings, faces)
    beside.write_bytes(b"\xff\xfe{")
    assert read_embeddings(path).fingerprint == ""
    beside.unlink()
    beside.mkdir()
    assert read_embeddings(path).fingerprint == ""


def test_arrays_that_are_called_fingerprint(tmp_path):
    path, faces = tmp_path / "e.npz", _faces()
    np.savez(path, faces=faces, fingerprint="abc")
    read = read_embeddings(path)
    assert read.fingerprint == "abc"
    np.testing.assert_array_equal(read.embeddings, faces)
    for other in (np.arange(3), np.array(["abc", "xyz"]), np.array(b"abc")):
        np.savez(path, faces=faces, fingerprint=other)
        assert read_embeddings(path).fingerprint == ""
    np.savez(path, fingerprint=faces)
    read = read_embeddings(path)
    assert read.fingerprint == ""
    np.testing.assert_array_equal(read.embeddings, faces)


@pytest.mark.parametrize("columns", [["embedding"], ["embedding", "name"], ["d0", "d1"]])
def test_parquet_keeps_the_fingerprint_in_its_metadata(tmp_path, columns):
    rows = {"embedding": [[1.0, 2.0]], "name": ["a"], "d0": [1.0], "d1": [2.0]}
    table = pa.table({name: rows[name] for name in columns})
    for metadata, fingerprint in (({"fingerprint": "abc"}, "abc"), ({"other": "x"}, ""), ({}, "")):
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "e.parquet")
        read = read_embeddings(tmp_path / "e.parquet")
        assert read.fingerprint == fingerprint
        np.testing.assert_array_equal(read.embeddings, [[1, 2]])


def _lists(faces, kind):
    values = pa.array(faces.ravel())
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, faces.shape[1])
    offsets = np.arange(0, faces.size + 1, faces.shape[1])
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets), values)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["list", "large", "fixed", "columns"])
@pytest.mark.parametrize("n", [1, 11])
def test_parquet(tmp_path, monkeypatch, dtype, kind, n):
    monkeypatch.setattr(module, "_BLOCK", 4 * 5)  # four rows a batch
    monkeypatch.setattr(module, "_OPEN_COLUMNS", 2)
    faces, path = _faces(n, dtype=dtype), tmp_path / "e.parquet"
    names = pa.array([f"n{i}" for i in range(n)])
    if kind == "columns":
        columns = {"name": names} | {f"d{i}": pa.array(faces[:, i]) for i in range(5)}
    else:
        columns = {"embedding": _lists(faces, kind), "name": names.dictionary_encode(), "x": names}
    parquet.write_table(pa.table(columns), path, row_group_size=3)
    read = read_embeddings(path)
    assert read.embeddings.dtype == np.float32
    np.testing.assert_array_equal(read.embeddings, faces.astype(np.float32))
    assert read.names == names.to_pylist()
    del columns["name"]
    columns.pop("x", None)
    parquet.write_table(pa.table(columns), path)
    assert read_embeddings(path).names is None


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_what_parquet_lacks_is_nan(tmp_path, kind):
    rows = [None, [1.0, 2.0], [None, 3.0], None]
    parquet.write_table(pa.table({"embedding": pa.array(rows, kind)}), tmp_path / "e.parquet")
    read = read_embeddings(tmp_path / "e.parquet").embeddings
    np.testing.assert_array_equal(read[1], [1, 2])
    np.testing.assert_array_equal(np.isnan(read), [[1, 1], [0, 0], [1, 0], [1, 1]])
    columns = {"a": pa.array([1.0, None]), "b": pa.array([1.0, 1e300])}
    parquet.write_table(pa.table(columns), tmp_path / "e.parquet")
    read = read_embeddings(tmp_path / "e.parquet").embeddings
    np.testing.assert_array_equal(unit_rows(read, skip_bad=True).bad, [False, True])


def test_parquet_mistakes(tmp_path):
    path = tmp_path / "e.parquet"
    for columns, message in (
        ({"embedding": [[1.0, 2.0], [1.0]]}, "row 1 has 1 dimensions, expected the first row's 2"),
        ({"embedding": [1.0, 2.0]}, "expected lists of floats"),
        ({"embedding": [[1, 2]]}, "'embedding' is list<.*int64>, expected floating point"),
        ({"a": [1.0], "label": [1]}, "column 'label' is int64, expected floating point"),
        ({"embedding": [[1.0]], "name": [3]}, "column 'name' is int64, expected strings"),
        ({"embedding": [[1.0]], "name": pa.array([None], pa.string())}, "row 0 is empty"),
        ({"embedding": pa.array([], pa.list_(pa.float32()))}, "holds no embeddings"),
        ({"name": ["a"]}, "holds no embeddings"),
    ):
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=message):
            read_embeddings(path)


def test_names_file(tmp_path):
    np.save(tmp_path / "e.npy", _faces(3))
    names = tmp_path / "names.txt"
    for text in ("a\nb c\né\n", "a\nb c\né", "\ufeffa\r\nb c\r\né\r\n"):
        names.write_bytes(text.encode())
        assert read_embeddings(tmp_path / "e.npy", names=names).names == ["a", "b c", "é"]
    for content, message in (
        (b"a\nb\n", "2 names for 3 embeddings"),
        (b"", "0 names for 3"),
        (b"a\n\nc\n", "line 2 is empty"),
        (b"a\nb\na\n", "names.txt: line 3 repeats 'a' of line 1"),
        (b"a\n\xff\nb", "line 2: .* is not UTF-8 text"),
    ):
        names.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_embeddings(tmp_path / "e.npy", names=names)
    with pytest.raises(UserError, match="no names at"):
        read_embeddings(tmp_path / "e.npy", names=tmp_path / "absent")


def test_files_that_hold_no_embeddings(tmp_path):
    for array, message in (
        (np.ones(3), r"float64 \[3\]: expected floating point \[N, D\]"),
        (np.ones((3, 2, 2)), r"\[3, 2, 2\]"),
        (np.ones((3, 2), int), "int64"),
        (np.ones((0, 2)), r"\[0, 2\]: it holds no embeddings"),
        (np.ones((2, 0)), "holds no embeddings"),
        (np.array([[None]]), "not a whole .npy file: .*Python objects"),
    ):
        np.save(tmp_path / "e.npy", array)
        with pytest.raises(UserError, match=message):
            read_embeddings(tmp_path / "e.npy")
    with pytest.raises(UserError, match=r"ends in '.txt': embeddings are one of .npy, .npz"):
        read_embeddings(tmp_path / "e.txt")
    for suffix in ("npy", "npz", "parquet"):
        with pytest.raises(UserError, match="absent"):
            read_embeddings(tmp_path / f"absent.{suffix}")
        (tmp_path / f"folder.{suffix}").mkdir()
        with pytest.raises(UserError, match="folder"):
            read_embeddings(tmp_path / f"folder.{suffix}")


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "e.npy", _faces())
    np.savez(folder / "e.npz", embeddings=_faces())
    parquet.write_table(pa.table({"embedding": _lists(_faces(), "list")}), folder / "e.parquet")
    return folder


@given(suffix=st.sampled_from(["npy", "npz", "parquet"]), data=st.data())
def test_torn_files_are_one_line(whole_files, suffix, data):
    whole = (whole_files / f"e.{suffix}").read_bytes()
    torn = whole_files / f"torn.{suffix}"
    torn.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError, match="torn") as caught:
        read_embeddings(torn)
    assert "\n" not in str(caught.value)


def _npz_member(shape, content, *, descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def test_npz_files_that_promise_more_than_they_hold(tmp_path):
    path = tmp_path / "e.npz"
    for name, content, message in (
        ("embeddings.npy", _npz_member((1 << 33, 4), bytes(64)), "promises .* holds 64 bytes"),
        ("embeddings.npy", _npz_member((2, 4), bytes(64)), "promises .* holds 64 bytes"),
        ("embeddings.npy", _npz_member((-1, 4), bytes(64)), "promises .* holds 64 bytes"),
        ("embeddings.npy", b"no array", "not a whole .npz"),
        ("embeddings", b"hello", "'embeddings' in it is not an .npy"),
        ("../x.npy", b"hello", "not a whole .npz"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(UserError, match=message) as caught:
            read_embeddings(path)
        assert "\n" not in str(caught.value)
    # Four gibibytes of zeros in four megabytes would be refused as 100 MB of them are.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embeddings.npy", _npz_member((1 << 21, 12), bytes(12 << 23)))
    with pytest.raises(UserError, match=r"e.npz promises 0.1 GiB in .* more than 100 times"):
        read_embeddings(path)


@pytest.mark.parametrize("at", [6, 8])  # the flags (encrypted), the method
def test_npz_files_of_other_zips(tmp_path, at):
    np.savez(tmp_path / "e.npz", embeddings=_faces())
    content = bytearray((tmp_path / "e.npz").read_bytes())
    for signature, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        content[content.index(signature) + at + shift] |= 1 if at == 6 else 77
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"not a whole \.npz"):
        read_embeddings(tmp_path / "e.npz")


def test_a_small_parquet_that_promises_terabytes(tmp_path):
    path = tmp_path / "e.parquet"
    offsets = pa.array(np.r_[0, np.full(200_001, 2_000_000)].astype("i4"))
    missing = pa.array(np.r_[False, np.ones(200_000, bool)])
    values = pa.array(np.zeros(2_000_000, "f4"))
    column = pa.ListArray.from_arrays(offsets, values, mask=missing)
    parquet.write_table(pa.table({"embedding": column}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"promises 1,490.1 GiB in .* bytes"):
        read_embeddings(path)


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.tuples(st.integers(1, 20), st.integers(1, 4)),
        elements={"allow_subnormal": False},
    ),
    st.integers(1, 30),
)
def test_unit_rows(faces, block):
    from ida_jax.common import validation

    with np.errstate(over="ignore"):
        largest = np.abs(faces.astype(np.longdouble)).max(axis=1)
    bad = ~np.isfinite(largest) | (largest == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "_BLOCK", block)
        got = unit_rows(faces, skip_bad=True)
    assert got.embeddings.dtype == np.float32
    np.testing.assert_array_equal(got.bad, bad)
    assert np.isnan(got.embeddings[bad]).all()
    good = faces[~bad].astype(np.longdouble)
    good = good / np.abs(good).max(axis=1, keepdims=True)
    expected = good / np.sqrt((good**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got.embeddings[~bad], expected, atol=1e-6)
    if bad.any():
        with pytest.raises(UserError, match=f"rows? {np.argmax(bad)}"):
            unit_rows(faces)
