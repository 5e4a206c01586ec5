"""One rule for hidden entries in every command that reads images."""

import cv2
import numpy as np
import pytest

from ida_jax.anchors.sources import find_images
from ida_jax.data.sources.face_folder import read_face_folder
from ida_jax.data.sources.image_files import open_images
from ida_jax.data.sources.image_names import hidden_note

HIDDEN = (
    ".ipynb_checkpoints/1-checkpoint.jpg",
    "__MACOSX/._a.jpg",
    "a/._1.jpg",
    "a/.DS_Store",
    "a/Thumbs.db",
    "desktop.ini",
)
# Of a hidden folder, the folder alone.
TOLD = {name if name.startswith("a/") else name.split("/")[0] for name in HIDDEN}
IMAGE = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    for name in (*HIDDEN, "a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE)
    return tmp_path


def test_every_reader_passes_over_the_same(folder):
    found = find_images(folder)
    assert [file.name for file in found.files] == ["1.jpg", "2.jpg"]
    assert found.people == ("a", "b")
    assert set(found.hidden) == TOLD
    files = open_images(folder)
    assert files.names == ("a/1.jpg", "b/2.jpg")
    assert set(files.hidden) == TOLD
    faces = read_face_folder(folder)
    assert faces.identities == ("a", "b")
    assert len(faces.images) == 2
    (note,) = faces.notes
    assert note.startswith("skipped 6 hidden entries: .ipynb_checkpoints, __MACOSX, desktop.ini, ")
    flat = find_images(folder / "a")
    assert [file.name for file in flat.files] == ["1.jpg"]
    assert flat.hidden == (".DS_Store", "._1.jpg", "Thumbs.db")


def test_the_note_is_plain():
    assert hidden_note(["a/._x.jpg"]) == "skipped 1 hidden entry: a/._x.jpg"
    many = hidden_note([f".{i}" for i in range(1234)])
    assert many == "skipped 1,234 hidden entries: .0, .1, .2, .3, .4, …"
    assert hidden_note([".a\nb\udcff"]).isprintable()
