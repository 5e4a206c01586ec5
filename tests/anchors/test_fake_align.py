"""The fake-db of a generator whose faces lie apart from real ones: told, and brought to them."""

import numpy as np
import pytest
import reference
from test_fake_anchors import MODEL, WIDTH, K, _candidates

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import coverage
from ida_jax.anchors.fake import fake_anchors, provenance_line
from ida_jax.anchors.fake_rules import TrainingFaces
from ida_jax.anchors.moments import matched, moments
from ida_jax.common.errors import UserError

OPTIONS = {"count": 80, "k": K, "privacy_cosine": 1.0, "duplicate_cosine": 1.0}


def people():
    """Each once, spread around a direction."""
    faces = reference.unit((300, WIDTH), 2) + 0.3 * reference.unit((1, WIDTH), 1)
    return TrainingFaces(faces.astype(np.float32), np.arange(300), "the set")


def apart(count=200):
    """Faces on one side of the real ones, which are plausible: near to what is usual there."""
    faces = reference.unit((count, WIDTH), 3) + 1.5 * reference.unit((1, WIDTH), 1)
    return faces / np.linalg.norm(faces, axis=1)[:, None]


def test_faces_apart_are_told():
    anchors, report = fake_anchors(_candidates(apart()), MODEL, training=people(), **OPTIONS)
    (warning,) = report.warnings
    assert warning.startswith("domain: ")
    assert "take --align, train the generator for longer" in warning
    unit = AnchorSet.from_embeddings(people().embeddings).embeddings
    told = coverage(unit, anchors, k=K)
    assert told.wrong_domain
    assert report.provenance["coverage_of_training_people"] == told._asdict()
    assert report.provenance["aligned"] is False


def test_alignment_is_not_advised_where_it_cannot_be():
    few = people()._replace(embeddings=people().embeddings[: 2 * WIDTH - 1])
    few = few._replace(labels=few.labels[: 2 * WIDTH - 1])
    _, report = fake_anchors(_candidates(apart()), MODEL, training=few, **OPTIONS)
    (warning,) = report.warnings
    assert "the cosine: train the generator for longer" in warning


def test_aligned_faces_have_the_moments_of_people_and_are_judged_with_them():
    candidates = _candidates(apart())
    anchors, report = fake_anchors(candidates, MODEL, training=people(), align=True, **OPTIONS)
    assert report.warnings == ()
    assert report.provenance["aligned"] is True
    assert "seed 3, aligned to the training people; " in provenance_line(report.provenance)
    raw = MODEL.raw_embeddings(candidates.draw(0, 200))
    raw /= np.linalg.norm(raw, axis=1)[:, None]
    unit = AnchorSet.from_embeddings(people().embeddings).embeddings
    expected = matched(raw, own=moments(raw), target=moments(unit))
    kept = report.numbers(4)
    np.testing.assert_allclose(anchors.embeddings, expected[kept], atol=1e-5)
    # The nearest training face is that of the aligned embedding.
    np.testing.assert_allclose(
        report.nearest, (expected @ unit.T).max(axis=1)[: len(report.nearest)], atol=1e-5
    )


def test_moments_are_told_from_the_first_candidates_alone(monkeypatch):
    monkeypatch.setattr("ida_jax.anchors.fake._PILOT", 100)
    few, all_ = (
        fake_anchors(
            _candidates(apart()[:n]), MODEL, training=people(), align=True, **OPTIONS
        )[0].embeddings
        for n in (150, 200)
    )  # fmt: skip
    np.testing.assert_array_equal(few, all_)


def test_a_set_that_is_one_support_set_has_no_coverage():
    options = {**OPTIONS, "count": K}
    _, report = fake_anchors(_candidates(apart()), MODEL, training=people(), **options)
    assert report.provenance["coverage_of_training_people"] is None
    assert report.warnings == ()


def test_faces_that_the_generator_did_not_learn_from_are_no_privacy_check():
    others = people()._replace(learned_from=False)
    _, report = fake_anchors(_candidates(apart()), MODEL, training=others, **OPTIONS)
    assert report.provenance["privacy"] == "not checked"
    assert report.warnings[0].endswith("the generator learned from other faces than the set")


def test_there_is_nothing_to_align_to_without_training_faces():
    with pytest.raises(UserError, match="name those faces"):
        fake_anchors(_candidates(apart()), MODEL, align=True, **OPTIONS)


def test_too_few_faces_to_align_are_told():
    options = {**OPTIONS, "count": 20}
    with pytest.raises(UserError, match="cannot be estimated from 40 faces: expected at least 48"):
        fake_anchors(_candidates(apart(40)), MODEL, training=people(), align=True, **options)
