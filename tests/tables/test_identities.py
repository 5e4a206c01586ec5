"""Whose face is on each row: the reader, the numbering, and the place among other people."""

import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.tables.identities import labels_among, numbered, read_people


def test_integers_and_names_are_read(tmp_path):
    (tmp_path / "l.txt").write_text("7\n-1\n7\n")
    (tmp_path / "n.txt").write_text("Zoë\n12\nAnn\n", encoding="utf-8")
    np.save(tmp_path / "l.npy", np.array([3, 3, 9], np.uint8))
    assert read_people(tmp_path / "l.txt", 3).tolist() == [7, -1, 7]
    assert read_people(tmp_path / "n.txt").tolist() == ["Zoë", "12", "Ann"]
    assert read_people(tmp_path / "l.npy").tolist() == [3, 3, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([1.0, 2.0, 3.0]), "is float64 [3]: expected integers or names [N]"),
        (np.ones((3, 1), int), "is int64 [3, 1]: expected integers or names [N]"),
        (np.arange(2), "2 labels for 3 embeddings, expected one each"),
    ],
)
def test_other_files_are_the_users_mistake(content, message, tmp_path):
    np.save(tmp_path / "l.npy", content)
    with pytest.raises(UserError) as raised:
        read_people(tmp_path / "l.npy", 3)
    assert message in str(raised.value)


def test_numbers_of_names_and_of_unknown_people():
    assert numbered(np.array(["b", "a", "b", "c"])).tolist() == [1, 0, 1, 2]
    assert numbered(np.array([5, -7, 0, 2**40])).tolist() == [5, -1, 0, 2**40]


def test_a_faces_own_identity_among_others():
    own = labels_among(["b", "x", "a", "b"], ("a", "b"), np.array([4, 9]))
    assert (own.dtype, own.tolist()) == (np.int32, [9, -1, 4, 9])
    assert labels_among(["x", "y"], ("a", "b"), np.array([4, 9])) is None


def test_a_faces_own_identity_among_anchors():
    faces = reference.unit((3, 5), 0).astype(np.float32)
    named = AnchorSet.from_embeddings(faces, labels=np.array([4, 9, -1]), names=("a", "b", "c"))
    assert named.labels_of(["b", "x"]).tolist() == [9, -1]
    own = named.labels_of(np.array([9, 3, -1, 4, 2**40 + 4]))
    assert (own.dtype, own.tolist()) == (np.int32, [9, -1, -1, 4, -1])
    assert named.labels_of(np.array([-1, 3])) is None
    nameless = AnchorSet.from_embeddings(faces, labels=np.array([4, 9, -1]))
    with pytest.raises(UserError, match=r"are names .row 0 is 'b'., but the anchors have none"):
        nameless.labels_of(["b"])
