import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.tables.groups import (
    groups_of_names,
    norm_levels,
    read_face_groups,
    read_group_list,
    without_group,
)

NAMES = ["A/A_0001", "A/A_0002", "B/B_0001", "C/C_0001", "Zoë/Zoë_0001"]


@pytest.fixture
def written(tmp_path):
    def write(text, name="g.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("person,group\nA,x\nB,y\nZo\u0065\u0308,y\n", "g.csv"),
        ("A,x\r\nB,y\r\nZoë,y\r\n\r\n", "g.csv"),
        ("\ufeffNAME\tGroup\nA\tx\nB\ty\nZoë\ty", "g.tsv"),
        ("A x\nB   y\nZoë y\n", "g.txt"),
        ('"A", x\n"B",y\nZoë,y\n', "g.txt"),
    ],
)
def test_a_list_by_person(written, text, name):
    path = written(text, name)
    codes, groups = read_face_groups(path, NAMES, 5)
    assert codes.tolist() == [0, 0, 1, -1, 1]
    assert groups == ("x", "y")
    (note,) = without_group(read_face_groups(path, NAMES, 5), "faces")
    assert "1 of 5 faces" in note


def test_an_image_goes_before_its_person(written):
    path = written("A,x\nA/A_0002,y\nB_0001,z\n")
    codes, groups = groups_of_names(path, read_group_list(path), [*NAMES[:3], "A/A_0002.jpg"])
    assert [groups[code] for code in codes] == ["x", "y", "z", "y"]


def test_names_of_images_in_a_flat_folder(written):
    path = written("name,group\nGeorge_W_Bush,M\n")
    codes, _ = groups_of_names(path, read_group_list(path), ["George_W_Bush_0001.jpg", "Other"])
    assert codes.tolist() == [0, -1]


def test_one_group_a_row(written, tmp_path):
    path = written("group\nx y\nb\nx y\n")
    assert read_group_list(path) is None
    assert read_face_groups(path, None, 3).codes.tolist() == [1, 0, 1]
    np.save(tmp_path / "g.npy", np.array([3, 1, 3]))
    assert read_face_groups(tmp_path / "g.npy", None, 3).names == ("1", "3")
    with pytest.raises(UserError, match="3 rows for 4 faces"):
        read_face_groups(path, None, 4)
    # A table of rows with a column of another name beside the group's is as it was.
    assert read_face_groups(written("pair,group\n7,a\n8,b\n"), NAMES, 2).names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A,x\nB\n", "line 2: 'B' is not a name and a group"),
        ("A,x\nB,\n", "line 2"),
        ("person,group\n", "lists no names"),
        ("A,x\nB,y\nA,y\n", "line 3: 'A' is in group 'y', and was in 'x'"),
        ("A,x\n" + "B,y,z\n", "line 2"),
        ('A,x\n"B,y\n', "line 2: a quote"),
        (b"A,x\n\xff,y\n", "line 2.*UTF-8"),
        (b"A,x\nB\x00,y\n", "NUL"),
        ("Q,x\n", "none of the 5 names, such as 'A/A_0001'"),
    ],
)
def test_mistakes_are_named(written, text, said):
    with pytest.raises(UserError, match=said):
        read_face_groups(written(text), NAMES, 5)


def test_a_list_by_name_needs_names(written, tmp_path):
    with pytest.raises(UserError, match="the faces have no names"):
        read_face_groups(written("A,x\n"), None, 5)
    with pytest.raises(UserError, match="no groups at"):
        read_group_list(tmp_path / "absent.csv")


def test_levels_of_norms_are_spelled():
    assert norm_levels("norms:7") == 7
    assert norm_levels("norms") == 20
    assert norm_levels("groups.csv") is None
    for text in ("norms:", "norms:x", "norms:1", "norms:-3"):
        with pytest.raises(UserError, match="expected norms:N"):
            norm_levels(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("g") / "g.csv"
    path.write_bytes(content)
    try:
        groups = read_group_list(path)
    except UserError:
        return
    assert groups is None or all(name and group for name, group in groups.items())
