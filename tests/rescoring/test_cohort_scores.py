import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.ops.cohort import s_norm
from ida_jax.rescoring import cohort_scores
from ida_jax.rescoring.cohort_scores import (
    cohort_moments,
    cohort_statistics,
    nearest_statistics,
)

ANCHORS = AnchorSet.from_embeddings(reference.unit((60, 8), 1, clusters=5), fingerprint="abc")
FACES = reference.unit((7, 8), 2, clusters=3)


def _whole(anchors, **options):
    return cohort_statistics(FACES, cohort_moments(anchors), **options)


def _nearest(anchors, top_n, **options):
    return nearest_statistics(support_sets(FACES, anchors, k=top_n).similarities, **options)


def _expected(faces, anchors, n, ddof):
    rows = [
        reference.mean_and_std(reference.cohort_scores(f, anchors.embeddings, n), ddof)
        for f in faces
    ]
    return np.array(rows).T


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("size", [2, 6, 7, 8, 60])
def test_whole_cohort(monkeypatch, size, ddof):
    monkeypatch.setattr(cohort_scores, "_BLOCK", 7)
    anchors = AnchorSet.from_embeddings(ANCHORS.embeddings[:size])
    got = _whole(anchors, ddof=ddof)
    assert (got.mean.dtype, got.std.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(got, _expected(FACES, anchors, None, ddof), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("top_n", [2, 10, 59, 60])
def test_each_face_s_own_top_n(monkeypatch, top_n, ddof):
    monkeypatch.setattr(cohort_scores, "_BLOCK", 3)
    got = _nearest(ANCHORS, top_n, ddof=ddof)
    np.testing.assert_allclose(got, _expected(FACES, ANCHORS, top_n, ddof), rtol=1e-4, atol=1e-6)


def test_the_closed_form_and_the_search_agree_on_the_whole_cohort():
    np.testing.assert_allclose(_nearest(ANCHORS, len(ANCHORS)), _whole(ANCHORS), atol=1e-6)


def test_anchors_close_to_each_other_keep_their_digits():
    rng = np.random.default_rng(0)
    near = ANCHORS.embeddings[:1] + 1e-4 * rng.normal(size=(500, 8))
    anchors = AnchorSet.from_embeddings(near.astype(np.float32))
    got = _whole(anchors)
    np.testing.assert_allclose(got.std, _expected(FACES, anchors, None, 0)[1], rtol=1e-5)


def test_a_memory_mapped_cohort(tmp_path):
    ANCHORS.save(tmp_path / "a.safetensors")
    loaded = AnchorSet.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(_whole(loaded), _whole(ANCHORS))


def test_ddof_changes_no_ranking():
    scores = []
    for ddof in (0, 1):
        mean, std = _nearest(ANCHORS, 20, ddof=ddof)
        c = np.sum(FACES[:6] * FACES[1:], axis=1)
        scores.append(np.asarray(s_norm(c, mean[:6], std[:6], mean[1:], std[1:])))
    np.testing.assert_allclose(scores[1], scores[0] * np.sqrt(19 / 20), rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "ddof", "message"),
    [(1, 0, "cohort of 1 anchors"), (5, 5, "5 anchors with ddof = 5"), (5, -1, "ddof = -1")],
)
def test_statistics_that_do_not_exist(n, ddof, message):
    anchors = AnchorSet.from_embeddings(ANCHORS.embeddings[:n])
    with pytest.raises(UserError, match=message):
        _whole(anchors, ddof=ddof)
    with pytest.raises(UserError, match=message):
        _nearest(ANCHORS, n, ddof=ddof)


def test_a_cohort_without_spread():
    anchors = AnchorSet.from_embeddings(np.repeat(ANCHORS.embeddings[:1], 9, axis=0))
    with pytest.raises(UserError, match="the 9 cohort scores of face 0 have no spread"):
        _whole(anchors)
    # One face among seven: the error names it.
    similarities = support_sets(FACES, ANCHORS, k=4).similarities
    similarities = np.where(np.arange(7)[:, None] == 5, similarities[5, 0], similarities)
    with pytest.raises(UserError, match="the 4 cohort scores of face 5 have no spread"):
        nearest_statistics(similarities)


def test_faces_that_do_not_fit():
    moments = cohort_moments(ANCHORS)
    with pytest.raises(UserError, match="9 wide, the anchors' 8"):
        cohort_statistics(reference.unit((2, 9), 0), moments)
    with pytest.raises(UserError, match="row 0 has norm 2"):
        cohort_statistics(2 * FACES, moments)
    assert cohort_statistics(FACES[:0], moments).mean.shape == (0,)
    assert nearest_statistics(np.empty((0, 4), np.float32)).std.shape == (0,)
