import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import HIGHEST_THRESHOLD
from ida_jax.common.errors import UserError
from ida_jax.rescoring.shared_people import (
    known_people,
    own_labels,
    shared_people,
    shared_warning,
)

STRANGERS = reference.unit((400, 32), 0)
NAMES = tuple(f"person {i}" for i in range(300))
ANCHORS = AnchorSet.from_embeddings(STRANGERS[:300], labels=np.arange(300), names=NAMES)
NOBODY = np.zeros(0, bool)


def _nearest(faces, anchors, labels=None):
    of_anchors = None if labels is None else anchors.labels
    return np.float32(reference.top_k(faces, anchors.embeddings, 1, labels, of_anchors)[:, 0])


def test_strangers_are_not_taken_for_the_anchors_people():
    shared = shared_people(_nearest(STRANGERS[300:], ANCHORS), ANCHORS, labels=None, known=NOBODY)
    assert (shared.faces, shared.left_out, shared.known) == (100, 0, 0)
    assert shared.share == 0
    assert shared_warning(shared, ANCHORS) == ""


@pytest.mark.parametrize("leaking", [1, 2, 3, 40])
def test_the_anchors_people_are_counted_by_cosine(leaking):
    faces = STRANGERS[300:].copy()
    near = STRANGERS[:leaking] + 0.02 * reference.unit((leaking, 32), 5)
    faces[:leaking] = near / np.linalg.norm(near, axis=1, keepdims=True)
    nearest = _nearest(faces, ANCHORS)
    shared = shared_people(nearest, ANCHORS, labels=None, known=NOBODY)
    assert shared.likely == leaking == np.count_nonzero(nearest >= shared.threshold)
    assert shared.share == (leaking / 100 if leaking >= 3 else 0)
    warning = shared_warning(shared, ANCHORS)
    assert ("--labels" in warning) == (leaking >= 3)
    if warning:
        assert warning.startswith(f"the people of {leaking} of 100 faces are likely among")
    # With labels they are left out, and nothing is left to warn of.
    labels = np.where(np.arange(100) < leaking, np.arange(100), -1)
    nearest = _nearest(faces, ANCHORS, labels)
    shared = shared_people(nearest, ANCHORS, labels=labels, known=NOBODY)
    assert (shared.left_out, shared.likely, shared.share) == (leaking, 0, 0)
    # Rows that are bad are nobody's.
    nearest[:1] = np.nan
    shared = shared_people(nearest, ANCHORS, labels=labels, known=np.ones(100, bool))
    assert (shared.faces, shared.left_out, shared.known) == (99, leaking - 1, 100 - leaking)


def test_a_set_that_gives_no_threshold():
    twice = AnchorSet.from_embeddings(np.concatenate([STRANGERS[:300]] * 2))
    shared = shared_people(_nearest(STRANGERS[300:], twice), twice, labels=None, known=NOBODY)
    assert shared.threshold == HIGHEST_THRESHOLD
    assert "is unknown, since" in shared_warning(shared, twice)
    single = AnchorSet.from_embeddings(STRANGERS[:1])
    shared = shared_people(_nearest(STRANGERS[300:], single), single, labels=None, known=NOBODY)
    assert shared.threshold == HIGHEST_THRESHOLD


def test_people_known_by_the_faces_names(tmp_path):
    path = tmp_path / "faces.npy"
    names = ["person 3/1", "person 300/1", "person 299/2"]
    expected = [True, False, True]
    assert known_people(path, names, ANCHORS).tolist() == expected
    (tmp_path / "faces.names.txt").write_text("\n".join(names))
    assert known_people(path, None, ANCHORS).tolist() == expected
    unnamed = AnchorSet.from_embeddings(STRANGERS[:300])
    assert known_people(path, names, unnamed).size == 0
    assert known_people(path, ["person 3"], ANCHORS).size == 0
    (tmp_path / "faces.names.txt").write_bytes(b"\xff\xff")
    assert known_people(path, None, ANCHORS).size == 0


def test_own_labels(tmp_path):
    path = tmp_path / "labels.txt"
    for text in ("person 7\nperson 300\nperson 8\n", "person 7/1\nx/1\nperson 8/x\n", "7\n-4\n8\n"):
        path.write_text(text)
        assert own_labels(path, ANCHORS, 3).tolist() == [7, -1, 8]
    path.write_text("300\n-1\n301\n")
    assert own_labels(path, ANCHORS, 3) is None
    with pytest.raises(UserError, match="3 labels for 4 embeddings"):
        own_labels(path, ANCHORS, 4)
    with pytest.raises(UserError, match="the anchors have no labels"):
        own_labels(path, AnchorSet.from_embeddings(STRANGERS[:9]), 3)
    path.write_text("person 7\nx\ny\n")
    unnamed = AnchorSet.from_embeddings(STRANGERS[:9], labels=np.arange(9))
    with pytest.raises(UserError, match=r"names .* but the anchors have none"):
        own_labels(path, unnamed, 3)
