import os
import sys

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.data.sources.face_folder import read_face_folder


def make(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())


def test_identities_and_files_are_sorted(tmp_path):
    make(
        tmp_path, "Bo/2.jpg", "Bo/10.JPEG", "Åsa/x.png", "al/1.jpg", "al/.hidden.jpg", ".git/x.jpg"
    )
    faces = read_face_folder(tmp_path)
    assert faces.identities == ("Bo", "al", "Åsa")
    assert list(faces.images) == [b"Bo/10.JPEG", b"Bo/2.jpg", b"al/1.jpg", "Åsa/x.png".encode()]
    assert faces.labels.dtype == np.int32
    assert faces.labels.tolist() == [0, 0, 1, 2]
    assert faces.where(2) == str(tmp_path / "al" / "1.jpg")
    assert faces.notes == ("skipped 2 hidden entries: .git, al/.hidden.jpg",)


def test_what_is_left_out_is_told(tmp_path):
    make(tmp_path, "a/1.jpg", "a/notes.txt", "a/deeper/2.jpg", "top.jpg")
    (tmp_path / "none").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    faces = read_face_folder(tmp_path)
    assert list(faces.images) == [b"a/1.jpg"]
    assert faces.identities == ("a",)
    empty, others = faces.notes
    assert empty == "2 identity folders hold no image: folder.jpg, none"
    assert others.startswith("3 entries that are not FOLDER/IDENTITY/IMAGE are left out: ")
    for path in ("top.jpg", "a/deeper", "a/notes.txt"):
        assert str(tmp_path / path) in others


@pytest.mark.parametrize(
    ("first", "second"), [("Ann", "ann"), ("STRASSE", "straße"), ("\u00e9va", "e\u0301va")]
)
def test_identities_that_differ_by_case_are_refused(tmp_path, first, second):
    make(tmp_path, f"{first}/1.jpg", f"{second}/1.jpg", "other/1.jpg")
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("this file system does not tell the names apart")
    with pytest.raises(UserError, match="one name but for its case") as raised:
        read_face_folder(tmp_path)
    assert first in str(raised.value)
    assert second in str(raised.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="no folder at"):
        read_face_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no image at .* 0 folders"):
        read_face_folder(tmp_path)
    make(tmp_path, "a/b/1.jpg", "2.jpg")
    with pytest.raises(UserError, match=r"no image at .* 1 folders"):
        read_face_folder(tmp_path)
    with pytest.raises(UserError, match="no folder at"):
        read_face_folder(tmp_path / "2.jpg")


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb"])
def test_names_that_cannot_be_printed_are_refused(tmp_path, name):
    make(tmp_path, f"{name}/1.jpg")
    with pytest.raises(UserError, match="rename it") as raised:
        read_face_folder(tmp_path)
    assert str(raised.value).isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_utf8_are_refused(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    with pytest.raises(UserError, match="rename it"):
        read_face_folder(tmp_path)


def test_a_file_that_vanishes(tmp_path):
    make(tmp_path, "a/1.jpg", "a/2.jpg")
    faces = read_face_folder(tmp_path)
    (tmp_path / "a" / "2.jpg").unlink()
    assert faces.images[0] == b"a/1.jpg"
    with pytest.raises(UserError, match=r"image .*2\.jpg cannot be read"):
        faces.images[1]
