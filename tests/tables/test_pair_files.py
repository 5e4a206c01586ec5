import contextlib
import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ida_jax.common.errors import UserError
from ida_jax.tables import pair_lists
from ida_jax.tables import text as lists
from ida_jax.tables.pair_lists import PairFile, convert_pairs

NAMES = ["ann", "bob, jr", 'c "x"', "dé", "e f"]


def _pairs(count=23, rows=5):
    return np.random.default_rng(count).integers(rows, size=(count, 2))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(pair_lists, "_BLOCK", 4)
    monkeypatch.setattr(lists, "_TEXT_BLOCK", 16)


def _converted(source, *, rows=5, names=None):
    output = source.parent / "out.npy"
    convert_pairs(source, output, rows=rows, names=names)
    found = np.load(output)
    assert found.dtype == np.int32
    listed = PairFile(output)
    listed.check(rows)
    assert listed.count == len(found)
    return found


def _refused(source, message, *, rows=5, names=None):
    output = source.parent / "out.npy"
    output.write_text("before")
    with pytest.raises(UserError, match=message) as caught:
        convert_pairs(source, output, rows=rows, names=names)
    assert "\n" not in str(caught.value)
    assert output.read_text() == "before"
    assert not list(source.parent.glob(".*"))


@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<i8", ">i8", "u1", "<u8", "i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 23])
def test_pair_file(tmp_path, small_blocks, dtype, order, count):
    pairs = np.asarray(_pairs(count), dtype, order=order)
    np.save(tmp_path / "p.npy", pairs)
    listed = PairFile(tmp_path / "p.npy")
    assert listed.count == count
    listed.check(5)
    for start in range(count + 1):
        for stop in (start, min(start + 3, count), count):
            read = listed.read(start, stop)
            assert read.dtype == np.int32
            np.testing.assert_array_equal(read, pairs[start:stop])
    last = pairs.max()
    first = np.flatnonzero((pairs == last).any(axis=1))[0]
    with pytest.raises(UserError, match=rf"p.npy, pair {first}: .* outside the {last} faces"):
        listed.check(int(last))


def test_large_and_negative_rows_do_not_wrap(tmp_path):
    path = tmp_path / "p.npy"
    for value, dtype in (
        (2**32, np.int64),
        (2**63 + 1, np.uint64),
        (-1, np.int64),
        (-(2**32), "i8"),
    ):
        np.save(path, np.array([[0, 1], [1, value]], dtype))
        listed = PairFile(path)
        message = rf"pair 1: \(1, {value}\) is outside the 3 faces \(0 … 2\)"
        with pytest.raises(UserError, match=message):
            listed.check(3)
        with pytest.raises(UserError, match="pair 1"):
            listed.read(0, 2)
        assert listed.read(0, 1).tolist() == [[0, 1]]


def test_files_that_hold_no_pairs(tmp_path):
    path = tmp_path / "p.npy"
    for array, message in (
        (np.ones((3, 2)), "holds float64: expected integers"),
        (np.ones((3, 2), bool), "holds bool"),
        (np.ones((3, 3), int), r"int64 \[3, 3\]: expected \[P, 2\], one pair a row$"),
        (np.ones((2, 7), int), r"\[2, 7\]: .*; save its transpose"),
        (np.ones(3, int), r"int64 \[3\]"),
        (np.zeros((0, 2), int), "holds no pairs"),
        (np.array([["a", "b"]]), "holds <U1: expected integers, rows; names are looked up where"),
        (np.array([[None, 1]]), "not a whole .npy file"),
    ):
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            PairFile(path)
    with pytest.raises(UserError, match="no pairs at"):
        PairFile(tmp_path / "absent.npy")
    np.save(path, _pairs())
    listed = PairFile(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="not a whole"):
        PairFile(path)
    with pytest.raises(UserError, match="was truncated while it was read"):
        listed.read(0, 23)


@pytest.mark.filterwarnings("ignore")  # a header that still parses may be worth a warning
@given(edits=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=3))
def test_damaged_headers_are_one_line(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("damaged") / "p.npy"
    np.save(path, np.ones((5, 2), int))
    content = bytearray(path.read_bytes())
    for place, value in edits:
        content[place] = value
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert 1 <= PairFile(path).count <= 5 * 8  # one byte an entry at the least


def _text(fields, *, delimiter=",", header=(), newline="\n", last=True, mark=False):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=newline)
    writer.writerows([header, *fields] if header else fields)
    text = out.getvalue()
    return ("\ufeff" * mark + (text if last else text.removesuffix(newline))).encode()


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20),
    named=st.booleans(),
    suffix=st.sampled_from(["csv", "tsv", "parquet", "npy"]),
    header=st.sampled_from([(), ("face_1", "face_2"), ("né", '"q"')]),
    newline=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
    blank=st.integers(0, 3),
    block=st.integers(1, 40),
    arrow_names=st.sampled_from([0, 100]),
)
def test_lists_of_every_kind(
    tmp_path_factory, pairs, named, suffix, header, newline, last, mark, blank, block, arrow_names
):
    source = tmp_path_factory.mktemp("pairs") / f"p.{suffix}"
    fields = [(NAMES[i], NAMES[j]) for i, j in pairs] if named else pairs
    if suffix == "parquet":
        parquet.write_table(pa.table(list(zip(*fields, strict=True)), ["a", "b"]), source)
    elif suffix == "npy":
        np.save(source, np.array(fields))
    else:
        delimiter = "\t" if suffix == "tsv" else ","
        text = _text(
            fields, delimiter=delimiter, header=header, newline=newline, last=last, mark=mark
        )
        source.write_bytes(text + newline.encode() * blank)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "_TEXT_BLOCK", block)
        patch.setattr(pair_lists, "_BLOCK", block)
        patch.setattr(pair_lists, "_ARROW_NAMES", arrow_names)
        output = source.parent / "out.npy"
        convert_pairs(source, output, rows=5, names=NAMES if named else None, progress=told.append)
    np.testing.assert_array_equal(np.load(output), pairs)
    assert source.stat().st_size - 10 <= sum(told) <= source.stat().st_size
    assert min(told) >= 0


@given(
    good=st.integers(0, 12),
    bad=st.sampled_from([
        ("x,1", "'x' is not an integer"),
        ("1,2.5", "'2.5' is not an integer, expected a row of the embeddings$"),
        ("1,5", r"\(1, 5\) is outside the 5 faces \(0 … 4\)"),
        ("-1,5", r"\(-1, 5\) is outside"),
        ("4294967297,1", r"\(4294967297, 1\) is outside"),
        (f"1,{'9' * 5000}", r"\(1, 9{20}\) is outside"),
        ("1", "found '1'; expected the two fields"),
        ("1,2,3", "found '1', '2', '3'; expected the two fields"),
        ("1,2,3,4,5,6,7", "found '1', '2', '3', '4', '5', …;"),
        ("1,", "one field is empty, expected two"),
        ("", "empty, expected the two fields"),
        ("1;2", "found '1;2'; expected"),
        ('"1,2', "(found '1,2'; expected|a quote in '\"1,2' has no end)"),
        ("1,2\r1,2", r"found '1', '2\\\\r1', '2'; expected"),
        ("1\r2,3", r"'1\\\\r2' is not an integer"),
    ]),
    header=st.booleans(),
    after=st.integers(1, 5),
    block=st.integers(1, 40),
)  # fmt: skip
def test_the_first_bad_line_is_named(tmp_path_factory, good, bad, header, after, block):
    source = tmp_path_factory.mktemp("pairs") / "p.csv"
    line, message = bad
    lines = ["one,two"] * header + ["1,2"] * good + [line] + ["1,2"] * after + ["9,9"]
    source.write_text("\n".join(lines), newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "_TEXT_BLOCK", block)
        _refused(source, f"p.csv, line {header + good + 1}: {message}")


def test_blank_lines_within_are_counted(tmp_path, monkeypatch):
    source = tmp_path / "p.csv"
    source.write_text("1,2\n3,4\n\n\n1,2\n\n")
    for block in range(1, 30):
        monkeypatch.setattr(lists, "_TEXT_BLOCK", block)
        _refused(source, "line 3: empty, expected the two fields")


def test_unknown_names(tmp_path, small_blocks):
    source = tmp_path / "p.csv"
    good = _text([("ann", "dé")] * 5)
    for line, message in (
        (b"ann,zoe\n", "line 6: no face is named 'zoe'$"),
        (b"ann,d\xe9\n", r"line 6: 'ann,d\\\\xe9' is not UTF-8 text"),
        (b"ann, ann\n", "line 6: no face is named ' ann'"),
        (b"ann,3\n", "line 6: no face is named '3'; rows come as .npy or .parquet"),
        (b"ann,bob, jr\n", "line 6: found 'ann', 'bob', ' jr'; expected"),
        (b"ann,\n", "line 6: one field is empty"),
        (b"ann," + b"y" * 200_000 + b"\n", f"named '{'y' * 60}…'"),
    ):
        source.write_bytes(good + line + good)
        _refused(source, message, names=NAMES)
    source.write_bytes(good)
    _refused(source, "line 2: 'ann' is not an integer, .*; names are looked up where")
    _refused(source, "5 names for 4 faces", rows=4, names=NAMES)


def test_a_header_among_names_is_told(tmp_path, capsys):
    source = tmp_path / "p.csv"
    for first, told in (("zoe,bob", "line 1 ('zoe', 'bob') is taken for a header"), ("", "")):
        source.write_text(f"{first}\nann,dé\n".lstrip("\n"))
        convert_pairs(source, tmp_path / "out.npy", rows=len(NAMES), names=NAMES)
        assert np.load(tmp_path / "out.npy").shape == (1, 2)
        error = capsys.readouterr().err
        assert told in error
        assert bool(error) == bool(told)


def test_the_first_line_is_a_header_if_nothing_in_it_is_known(tmp_path):
    source = tmp_path / "p.csv"
    for first, names in (("ann,zoe", NAMES), ("zoe,4", NAMES), ("1,b", None), ("", NAMES)):
        for mark in ("", "\ufeff"):
            source.write_text(f"{mark}{first}\nann,ann\n" if names else f"{mark}{first}\n1,2\n")
            _refused(source, "line 1: ", names=names)


def test_text_without_pairs(tmp_path):
    for content in (b"", b"\n\n", b"\xef\xbb\xbf", b"one,two", b"one,two\r\n"):
        (tmp_path / "p.csv").write_bytes(content)
        _refused(tmp_path / "p.csv", "p.csv holds no pairs")
    (tmp_path / "p.csv").write_bytes(b"1" * (3 << 20))
    _refused(tmp_path / "p.csv", "line 1: longer than 1 MiB")
    (tmp_path / "p.csv").unlink()
    (tmp_path / "p.csv").mkdir()
    _refused(tmp_path / "p.csv", "no pairs at .*p.csv")
    _refused(tmp_path / "p.txt", r"ends in '.txt': pairs are one of .npy, .csv, .tsv, .parquet")


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "int64", "uint64"])
def test_parquet_rows(tmp_path, small_blocks, kind):
    source = tmp_path / "p.parquet"
    pairs = _pairs(9)
    columns = {"a": pa.array(pairs[:, 0], kind), "b": pa.array(pairs[:, 1], pa.int32())}
    parquet.write_table(pa.table(columns), source, row_group_size=5)
    np.testing.assert_array_equal(_converted(source), pairs)
    np.testing.assert_array_equal(_converted(source, names=NAMES), pairs)
    first = np.flatnonzero((pairs == 4).any(axis=1))[0]
    _refused(source, rf"p.parquet, pair {first}: \(.*\) is outside the 4 faces", rows=4)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_names(tmp_path, small_blocks, kind):
    source = tmp_path / "p.parquet"
    pairs = _pairs(9)
    columns = [pa.array([NAMES[i] for i in side]).cast(kind) for side in pairs.T]
    parquet.write_table(pa.table(columns, ["a", "b"]), source)
    np.testing.assert_array_equal(_converted(source, names=NAMES), pairs)
    _refused(source, "holds names: names are looked up where the faces' names are given")
    _refused(source, "pair 0: no face is named", names=list("vwxyz"))


def _not_text():
    column = pa.array([b"ann", b"\xff", None], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, column.buffers())


def test_parquet_mistakes(tmp_path, small_blocks):
    source = tmp_path / "p.parquet"
    ints = pa.array([1] * 6 + [None])
    for columns, message in (
        ({"a": [1], "b": [2], "label": [1]}, "has the columns a, b, label: expected two"),
        ({"a": [1]}, "has the columns a: expected two"),
        ({"a": [1.0], "b": [2]}, "columns of double and int64: expected integers or names"),
        ({"a": ["ann"], "b": [2]}, "columns of string and int64: expected integers or names"),
        ({"a": [1] * 7, "b": ints}, "pair 6: one field is empty"),
        ({"a": pa.array([2**63 + 1], pa.uint64()), "b": [1]}, rf"\({2**63 + 1}, 1\) is outside"),
        ({"a": _not_text(), "b": ["ann"] * 3}, "pair 1: its name is not UTF-8 text"),
        ({"a": pa.array([], pa.int64()), "b": pa.array([], pa.int64())}, "holds no pairs"),
    ):
        parquet.write_table(pa.table(columns), source)
        _refused(source, message, names=NAMES)
    source.write_bytes(source.read_bytes()[:-3])
    _refused(source, "not a whole Parquet file")


def test_npy_names(tmp_path, small_blocks):
    source = tmp_path / "p.npy"
    names = np.array(NAMES)
    for order in "CF":
        np.save(source, np.asarray(names[_pairs()], order=order))
        np.testing.assert_array_equal(_converted(source, names=NAMES), _pairs())
    np.save(source, np.array([["ann", "dé"]] * 6 + [["ann", "zoe"]]))
    _refused(source, "p.npy, pair 6: no face is named 'zoe'", names=NAMES)
    np.save(source, np.array([[1, 2]] * 6 + [[5, 0]]))
    _refused(source, r"p.npy, pair 6: \(5, 0\) is outside", names=NAMES)
