import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.data.labelled_pairs import read_lfw_pairs
from ida_jax.data.landmarks import read_landmarks
from ida_jax.data.lfw_crops import read_split
from ida_jax.data.sources.image_files import open_images
from ida_jax.tables import text as lists
from ida_jax.tables.embeddings import read_embeddings
from ida_jax.tables.identities import read_people
from ida_jax.tables.labelled_scores import (
    read_groups,
    read_labels,
    read_named_identities,
    read_scores,
)
from ida_jax.tables.pair_lists import convert_pairs
from ida_jax.tables.text import text_blocks, text_lines, whole_number

# How editors, spreadsheets and other systems write the same lines.
EDITORS = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "no end": lambda text: text.removesuffix("\n").encode(),
    "blank lines": lambda text: (text + "\n \n\t\r\n\n").encode(),
    "trailing blanks": lambda text: text.replace("\n", " \t\n").encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.replace("\n", "\r\n").encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "nfd": lambda text: unicodedata.normalize("NFD", text).encode(),
    "joined": lambda text: text.replace("\n", "\n\ufeff", 1).encode(),
}


@pytest.fixture(params=EDITORS)
def written(request, tmp_path):
    """Writes a text as one of the editors does."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(EDITORS[request.param](content))
        return path

    return write


def test_people_of_any_editor(written):
    assert read_people(written("l.txt", "3\n-1\n20\n")).tolist() == [3, -1, 20]
    assert read_people(written("l.txt", "Zoë Ä\nB o\nc\n")).tolist() == ["Zoë Ä", "B o", "c"]


def test_names_of_any_editor(written, tmp_path):
    np.save(tmp_path / "e.npy", np.eye(3))
    names = written("names.txt", "Zoë/1 a.jpg\nb\nc d\n")
    assert read_embeddings(tmp_path / "e.npy", names=names).names == ["Zoë/1 a.jpg", "b", "c d"]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_pairs_of_any_editor(written, tmp_path, delimiter, suffix):
    for text, names in (
        ("Zoë A;b c\nb c;d\n", ["d", "b c", unicodedata.normalize("NFD", "Zoë A")]),
        ("2;1\n1;0\n", None),
        ("one;two\n2;1\n1;0\n", None),
        ("2.000e+00;1.0e+00\n1.000e+00;0.0e+00\n", None),
    ):
        source = written(f"p.{suffix}", text.replace(";", delimiter))
        convert_pairs(source, tmp_path / "o.npy", rows=3, names=names)
        assert np.load(tmp_path / "o.npy").tolist() == [[2, 1], [1, 0]]


def test_tables_of_any_editor(written):
    assert read_scores(written("s.csv", "score\n0.5\n-1\n")).tolist() == [0.5, -1]
    assert read_scores(written("s.tsv", "pair\tscore\n0\t0.5\n1\t-1\n")).tolist() == [0.5, -1]
    assert read_labels(written("l.csv", "1\n0\n")).tolist() == [True, False]
    codes, names = read_groups(written("g.csv", "group\nZoë a\nb\nZoë a\n"))
    assert (codes.tolist(), names) == ([0, 1, 0], ("Zoë a", "b"))
    codes = read_named_identities(written("i.csv", "x,y\nZoë a,b\nb,Zoë a\n")).codes
    assert codes[0, 0] == codes[1, 1] != codes[0, 1] == codes[1, 0]


def test_lists_of_images_of_any_editor(written, tmp_path):
    numbers = "\t".join(map(str, range(10)))
    found = read_landmarks(written("p.txt", f"Zoë a.jpg\t{numbers}\nb.jpg\t{numbers}\n"))
    assert found.names == ("Zoë a.jpg", "b.jpg")
    pairs = written("pairs.txt", "2\t1\nZoë A\t1\t2\nZoë A\t1\tb\t1\nb\t1\t2\nb\t2\tZoë A\t2\n")
    names = ["Zoë A/Zoë A_0001", "Zoë A/Zoë A_0002", "b/b_0001", "b/b_0002"]
    for listed in (names, [unicodedata.normalize("NFD", name) for name in names]):
        found = read_lfw_pairs(pairs, listed)
        assert found.pairs.tolist() == [[0, 1], [0, 2], [2, 3], [3, 1]]
    assert read_split(written("s.csv", "identity,role\nZoë A,eval\nb,anchor\n")) == {
        "Zoë A": "eval",
        "b": "anchor",
    }
    # The disk decides on the form of an accent.
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folder.mkdir()
        (folder / unicodedata.normalize(form, "Zoë 1.jpg")).write_bytes(b"x")
        (folder / "b.jpg").write_bytes(b"x")
        files = open_images(written("list.txt", "Zoë 1.jpg\nb.jpg\n"), root=folder)
        assert files.names == (unicodedata.normalize(form, "Zoë 1.jpg"), "b.jpg")
        assert files.encoded(0) == b"x"


def test_names_within_files_are_as_those_in_lists(tmp_path):
    other = unicodedata.normalize("NFD", "Zoë") + " "
    np.savez(tmp_path / "e.npz", embeddings=np.eye(2), names=np.array([other, "b"]))
    assert read_embeddings(tmp_path / "e.npz").names == ["Zoë", "b"]
    np.save(tmp_path / "l.npy", np.array([other, "b"]))
    assert read_people(tmp_path / "l.npy").tolist() == ["Zoë", "b"]
    parquet.write_table(pa.table({"a": [other, "Zoë"], "b": ["b", "b "]}), tmp_path / "i.parquet")
    assert len(np.unique(read_named_identities(tmp_path / "i.parquet").codes)) == 2
    convert_pairs(tmp_path / "i.parquet", tmp_path / "o.npy", rows=2, names=["b", "Zoë"])
    assert np.load(tmp_path / "o.npy").tolist() == [[1, 0], [1, 0]]
    np.savez(tmp_path / "e.npz", embeddings=np.eye(2), names=np.array([other, "Zoë"]))
    with pytest.raises(UserError, match="row 1 repeats 'Zoë' of row 0"):
        read_embeddings(tmp_path / "e.npz")


def test_numbers_as_numpy_saves_them(tmp_path):
    path = tmp_path / "l.csv"
    np.savetxt(path, np.array([1, 0, 12]))
    assert read_people(path).tolist() == [1, 0, 12]
    codes, names = read_groups(path)
    assert (codes.tolist(), names) == ([1, 0, 2], ("0", "1", "12"))
    np.savetxt(path, np.array([1, 0]))
    assert read_labels(path).tolist() == [True, False]
    for delimiter in (" ", ",", "\t"):
        np.savetxt(path, np.array([[1, 0], [2, 1]]), delimiter=delimiter)
        convert_pairs(path, tmp_path / "o.npy", rows=3)
        assert np.load(tmp_path / "o.npy").tolist() == [[1, 0], [2, 1]]
    np.savetxt(path, np.array([[1, 0], [2, 7]]), delimiter=",")
    assert read_named_identities(path).codes.tolist() == [[1, 0], [2, 7]]
    with pytest.raises(UserError, match=r"l.csv, line 2: .* is outside the 3 faces"):
        convert_pairs(path, tmp_path / "o.npy", rows=3)
    path.write_text("1\n2.5\n")
    with pytest.raises(UserError, match=r"l.csv, line 2: '2.5' is not a whole number"):
        read_people(path)


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("1", 1),
        (" -12 ", -12),
        ("007", 7),
        ("1.000000000000000000e+00", 1),
        ("-2.5e1", -25),
        ("1e3", 1000),
        ("1.5", None),
        ("1e300", None),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("1 2", None),
        ("٣", None),
        ("0x1", None),
        ("0" * 5000 + "3", 3),
    ],
)
def test_whole_numbers(field, number):
    assert whole_number(field) == number


def test_numbers_of_thousands_of_digits(tmp_path):
    digits = "9" * 5000
    path = tmp_path / "x.csv"
    path.write_text(f"{digits}\t1\n")
    with pytest.raises(UserError, match="found 0 pairs"):
        read_lfw_pairs(path, ["a/a_0001"])
    path.write_text(f"1\t1\na\t1\t{digits}\na\t1\tb\t1\n")
    with pytest.raises(UserError, match=r"x.csv:2: .* is not among"):
        read_lfw_pairs(path, ["a/a_0001", "b/b_0001"])
    # A hash is a name, but a negative number is an unknown identity and must stay one.
    path.write_text(f"{digits}\n1\n")
    assert read_people(path).tolist() == [digits, "1"]
    path.write_text(f"1\n-{digits}\n")
    with pytest.raises(UserError, match=r"line 2: '-9.* is beyond 64 bits"):
        read_people(path)
    path.write_text("-9223372036854775808\n9223372036854775807\n")
    assert read_people(path).tolist() == [-(2**63), 2**63 - 1]


def test_what_is_no_text_is_refused_by_its_line(tmp_path):
    path = tmp_path / "l.txt"
    for content, message in (
        (b"a\nb\0c\n", r"l.txt, line 2: 'b\\x00c' holds a NUL"),
        ("a\nb\n".encode("utf-16-le"), r"line 1: .* holds a NUL"),
        (b"a\nb\nc\xffd\ne", r"line 3: 'c\\\\xffd' is not UTF-8 text"),
        (b"a\nb\n\xed\xa0\x80\n", r"line 3: .* is not UTF-8 text"),
        (b"\xff\xfea\0\n\0\x00\xd8b\0", "line 2: not UTF-16 text"),
        (b"\xff\xfea\0b", "line 1: not UTF-16 text"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a" * (3 << 20), "line 1: longer than 1 MiB"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read_people(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_an_open_quote_makes_no_header(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('"0,1\n0,1\n1,2\n')
    with pytest.raises(UserError, match="line 1: a quote in '\"0,1' has no end"):
        convert_pairs(path, tmp_path / "o.npy", rows=3)
    for read in (read_named_identities, read_labels, read_scores, read_groups):
        with pytest.raises(UserError, match="line 1: a quote"):
            read(path)
    path.write_text('0,1\n"1,2\n0,2\n')
    with pytest.raises(UserError, match="line 2: a quote"):
        read_named_identities(path)
    # An inch mark within a name opens nothing.
    path.write_text('x,y\n5" nail,b\nb,5" nail\n')
    assert len(np.unique(read_named_identities(path).codes)) == 2


def test_names_that_no_list_could_hold(tmp_path):
    for name, message in (
        ("a\0b", "with a NUL"),
        ("a\nb", "line break"),
        ("\ud800", "not Unicode"),
    ):
        np.savez(tmp_path / "e.npz", embeddings=np.eye(2), names=np.array([name, "c"]))
        with pytest.raises(UserError, match=f"row 0 is .*{message}") as caught:
            read_embeddings(tmp_path / "e.npz")
        assert str(caught.value).isprintable()
        np.save(tmp_path / "l.npy", np.array([name, "c"]))
        with pytest.raises(UserError, match=f"row 0 is .*{message}"):
            read_people(tmp_path / "l.npy")
        with pytest.raises(UserError, match=f"the name of anchor 1 is .*{message}"):
            AnchorSet.from_embeddings(np.eye(2), k=1, labels=np.arange(2), names=["c", name])
    column = pa.array([b"\xff", b"c"]).view(pa.string())
    vectors = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    parquet.write_table(pa.table({"name": column, "embedding": vectors}), tmp_path / "e.parquet")
    with pytest.raises(UserError, match="'name' is not UTF-8"):
        read_embeddings(tmp_path / "e.parquet")


def test_the_least_label_is_unknown_and_no_identity():
    for kind, least in ((np.int64, -(2**63)), (np.int32, -(2**31)), (np.int8, -1)):
        anchors = AnchorSet.from_embeddings(np.eye(2), k=1, labels=np.array([least, 0], kind))
        assert anchors.labels[0] < 0 == anchors.labels[1]
    with pytest.raises(UserError, match="beyond 32 bits"):
        AnchorSet.from_embeddings(np.eye(2), k=1, labels=np.array([2**31, 0]))


_LINE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(lines=st.lists(_LINE, max_size=9), editor=st.sampled_from(sorted(EDITORS)), data=st.data())
def test_blocks_of_any_size_hold_the_same_lines(tmp_path_factory, lines, editor, data):
    text = "".join(f"{line}\n" for line in lines)
    expected = [unicodedata.normalize("NFC", line).rstrip(" \t") for line in text.split("\n")]
    expected = [line.replace("\ufeff", "") for line in expected]
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(EDITORS[editor](text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "_TEXT_BLOCK", data.draw(st.integers(1, 40)))
        found = text_lines(path, what="x")
        numbers = [number for block in text_blocks(path) for number, _ in block.lines()]
    while expected and not expected[-1].strip(" \t"):
        expected.pop()
    assert [line.rstrip(" \t") for line in found] == expected
    assert numbers == list(range(1, len(expected) + 1))


def test_a_header_without_rows_and_letters_that_do_not_exist(tmp_path):
    (tmp_path / "i.csv").write_text("identity_1,identity_2\n")
    assert read_named_identities(tmp_path / "i.csv").codes.shape == (0, 2)
    content = np.array(["a", "b"]).view(np.uint32) + np.uint32(0x110000)
    np.save(tmp_path / "l.npy", content.view("<U1"))
    with pytest.raises(UserError, match="holds no text"):
        read_people(tmp_path / "l.npy")
