"""Lists of identities that show one person."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.tables.identity_pairs import (
    IdentityPairs,
    ignored_rows,
    pairs_among,
    read_identity_pairs,
)
from ida_jax.tables.labelled_scores import read_named_identities


@pytest.fixture
def written(tmp_path):
    def write(text, name="list.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "A B\nC D\n",
        "# by hand\nA\tB\r\n\r\n  # more\r\nC\tD",
        "A,B\nB,A\nC, D\n",
        '"A","B"\nC,D\n',
        "\ufeffidentity_1,identity_2\nA,B\nC,D\n",
        "cosine\tIdentity_2\tidentity_1\n.9\tB\tA\n.8\tD\tC\n",
        "A B\nC D\n".encode("utf-16"),
    ],
)
def test_forms(written, text):
    found = read_identity_pairs(written(text))
    assert found.pairs == (("A", "B"), ("C", "D"))
    assert found.kept == 0


def test_decisions(written):
    lines = ["identity_1,identity_2,decision,how", "A,B,same,x", "C,D,Mislabelled,", "E,F,,",
             "G,H,different,", "I,J,unsure,"]  # fmt: skip
    found = read_identity_pairs(written("\n".join(lines), "judged.csv"))
    assert found.pairs == (("A", "B"), ("C", "D"))
    assert found.kept == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A B\nC\n", r"line 2: 'C' are 1 fields, expected 2 identities, or a first line of"),
        ("A,B\nC,D,E\n", r"line 2: 'C', 'D', 'E' are 3 fields, expected 2 identities"),
        ("# x\n\nA,\n", "line 3: an identity is empty"),
        ("A A\n", "line 1: 'A' is named twice"),
        ("identity_1,identity_2,decision\nA,B,maybe\n", "the decision is 'maybe', expected same, "),
        ("identity_1,identity_2\nA,B,C\n", "3 fields, expected 2 as in the first line"),
        (
            "identity_1,identity_2,decision\nA,B,different\n",
            "no pair of identities to leave out, 1",
        ),
        ("", "no pair of identities to leave out"),
        ("# nothing\n", "no pair of identities to leave out"),
        ('"A,B\n', "has no end"),
        (b"A\0 B\n", "NUL"),
    ],
)
def test_mistakes_are_one_line(written, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_identity_pairs(written(text))
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no identity pairs at"):
        read_identity_pairs(tmp_path / "none.csv")


def _listed(*pairs):
    return IdentityPairs(Path("list.txt"), pairs, 0)


def test_known_pairs_by_name_and_number():
    listed = _listed(("B", "A"), ("A", "X"), ("Zoe\u0301", "C"))
    known = pairs_among(listed, ["A", "B", "C", "Zoé"])
    assert known.codes.tolist() == [[1, 0], [3, 2]]
    assert known.unknown == 1
    assert "3 impostor pairs between 2 pairs of identities" in known.note(3)
    assert "1 pairs of the list have an identity that is not here" in known.note(3)
    numbers = pairs_among(_listed(("7", "-3"), ("9", "A")), np.array([-3, 0, 7]))
    assert numbers.codes.tolist() == [[2, 0]]
    # One known name is enough not to be a list of other data; no pair is left out then.
    assert pairs_among(_listed(("A", "X")), ["A", "B"]).codes.shape == (0, 2)
    for identities in (["a", "b"], np.array([1, 2])):
        with pytest.raises(UserError, match="names none of the 2 people"):
            pairs_among(_listed(("A", "B")), identities, what="people")


@pytest.mark.parametrize("numbers", [True, False])
def test_rows_of_a_file_of_identities(tmp_path, written, numbers):
    codes = np.array([[1, 2], [2, 1], [1, 3], [3, 3], [2, 3]]) * 5 - 9
    if numbers:
        np.save(tmp_path / "i.npy", codes)
        path = tmp_path / "i.npy"
    else:
        rows = "\n".join(f"p{a},p{b}" for a, b in codes)
        path = written(f"identity_1,identity_2\n{rows}\n", "i.csv")
    names = ("1", "-4") if numbers else ("p1", "p-4")
    known, out = ignored_rows(_listed(names), read_named_identities(path))
    assert out.tolist() == [True, True, False, False, False]
    assert (len(known.codes), known.unknown) == (1, 0)


names_of_lists = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(st.tuples(names_of_lists, names_of_lists), min_size=1, max_size=5))
def test_what_check_labels_writes_is_read(tmp_path_factory, pairs):
    import csv
    import unicodedata

    normal = [tuple(unicodedata.normalize("NFC", name) for name in pair) for pair in pairs]
    normal = [pair for pair in normal if pair[0] != pair[1] and "\ufeff" not in "".join(pair)]
    if not normal:
        return
    path = tmp_path_factory.mktemp("list") / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerows([("identity_1", "identity_2"), *normal])
    distinct = list(dict.fromkeys(normal))
    kept = [p for place, p in enumerate(distinct) if p[::-1] not in distinct[:place]]
    assert read_identity_pairs(path).pairs == tuple(kept)
