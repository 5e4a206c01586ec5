import math

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ida_jax.common.errors import UserError
from ida_jax.tables.labelled_scores import (
    read_groups,
    read_labels,
    read_named_identities,
    read_scores,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score\n0.5\n-1\n", [0.5, -1]),
        ("0.5\n-1\n", [0.5, -1]),
        ("pair,score\n0,0.5\n1,nan\n", [0.5, math.nan]),
        ("score\n0.5\n\n2\n", [0.5, math.nan, 2]),
        ("score\nnan\n", [math.nan]),
        ("nan\n", [math.nan]),
        ('"score"\n1\n', [1]),
        ("\ufeffscore\n1\n", [1]),
    ],
)
def test_scores_of_a_csv(tmp_path, text, expected):
    path = tmp_path / "s.csv"
    path.write_text(text, encoding="utf-8")
    scores = read_scores(path)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("text", ["label\n1\n0\n", "1\n0\n", "true\nfalse\n", "x\n1.0\n0.0\n"])
def test_labels_of_a_csv(tmp_path, text):
    path = tmp_path / "l.csv"
    path.write_text(text)
    assert read_labels(path).tolist() == [True, False]


def test_groups_are_in_order(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("group\nnorth\neast\nnorth\n")
    codes, names = read_groups(path)
    assert (codes.tolist(), names) == ([1, 0, 1], ("east", "north"))
    np.save(tmp_path / "g.npy", np.array([10, 9, 10, -1]))
    codes, names = read_groups(tmp_path / "g.npy")
    assert (codes.tolist(), names) == ([2, 1, 2, 0], ("-1", "9", "10"))


def test_names_in_parquet_that_are_not_text(tmp_path):
    first = pa.array([b"a", b"b", b"\xff\xfe"], pa.binary())
    first = pa.Array.from_buffers(pa.string(), 3, first.buffers())
    path = tmp_path / "i.parquet"
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), first)
    for column, fault in (
        (first, r"'first' of pair 2 \(from 0\) is not UTF-8 text"),
        (coded, "Invalid UTF8"),  # Arrow's own words
    ):
        parquet.write_table(pa.table({"first": column, "second": ["a", "b", "c"]}), path)
        with pytest.raises(UserError, match=fault):
            read_named_identities(path)


@pytest.mark.parametrize("side", ["a,1\n1,1\nb,a\n", "x,y\na,c\nc,c\nb,a\n"])
def test_identities_share_their_names_across_columns(tmp_path, side):
    path = tmp_path / "i.csv"
    path.write_text("identity_1,identity_2\n" + side if side.startswith("a") else side)
    codes = read_named_identities(path).codes
    assert codes[0, 0] == codes[2, 1] != codes[0, 1]
    assert codes[0, 1] == codes[1, 0] == codes[1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"a,b\n1,2\n", "expected one named score"),
        ("s.csv", b"score\n1\nx\n", "holds text: expected numbers"),
        ("s.csv", b"score\n1\n2,3\n", "not a whole .csv file"),
        ("s.csv", b"", "not a whole .csv file"),
        ("s.npy", b"\x93NUMPY", "not a whole .npy file"),
        ("s.parquet", b"PAR1", "not a whole Parquet file"),
    ],
)
def test_files_that_hold_no_scores(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_scores(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", [pa.int8(), pa.int32()])
def test_dictionary_columns_of_parquet(tmp_path, index):
    text = pa.array(["b", "a", "b"]).cast(pa.dictionary(index, pa.string()))
    parquet.write_table(pa.table({"x": text, "y": ["a", "b", "b"]}), tmp_path / "i.parquet")
    codes = read_named_identities(tmp_path / "i.parquet").codes
    assert codes[0, 0] == codes[2, 0] == codes[1, 1] == codes[2, 1] != codes[0, 1] == codes[1, 0]
    parquet.write_table(pa.table({"x": text}), tmp_path / "g.parquet")
    codes, names = read_groups(tmp_path / "g.parquet")
    assert (codes.tolist(), names) == ([1, 0, 1], ("a", "b"))


def test_names_in_an_npy_and_numbers_beside_names(tmp_path):
    np.save(tmp_path / "i.npy", np.array([["a", "b"], ["b", "b"]]))
    codes = read_named_identities(tmp_path / "i.npy").codes
    assert codes[0, 1] == codes[1, 0] == codes[1, 1] != codes[0, 0]
    (tmp_path / "i.csv").write_text("x,y\n1,a\n2,1\n")
    codes = read_named_identities(tmp_path / "i.csv").codes
    assert codes[0, 0] == codes[1, 1]
    assert len(np.unique(codes)) == 3


def test_a_missing_label_is_named(tmp_path):
    parquet.write_table(pa.table({"label": [1, None, 0]}), tmp_path / "l.parquet")
    with pytest.raises(UserError, match=r"pair 1 \(from 0\) is empty"):
        read_labels(tmp_path / "l.parquet")
