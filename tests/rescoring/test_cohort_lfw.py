"""Cohort norms on real faces against the known right answers; skipped where they are absent."""

import json

import numpy as np
import pytest

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.metrics.roc import tar_at_far
from ida_jax.rescoring.cohort_scores import (
    cohort_moments,
    cohort_statistics,
    nearest_statistics,
)
from ida_jax.rescoring.csn_fit import fit_csn
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.terms import FaceTerms


@pytest.fixture(scope="module")
def lfw(shared_data):
    """Development faces and labels, their anchors, evaluation faces and labels, the answers."""
    root = shared_data / "lfw"
    embeddings = unit_embeddings(np.load(root / "mobilefacenet_embeddings.npy"))
    row = {name: i for i, name in enumerate((root / "names.txt").read_text().split())}
    half = load_lfw(root, role="anchor")
    development = embeddings[[row[name] for name in half.names]]
    rows = real_db_rows(half.labels, size=50_000)
    anchors = AnchorSet.from_embeddings(development[rows], labels=half.labels[rows])
    evaluated = load_lfw(root, role="eval", images_per_identity=10)
    faces = embeddings[[row[name] for name in evaluated.names]]
    expected = json.loads((root / "expected.json").read_text())["tar@far"]
    return development, half.labels, anchors, faces, evaluated.labels, expected


def _tars(faces, labels, terms=None):
    scores = score_all_pairs(faces, labels, terms)
    return {f"{p.far:g}": p.tar for p in tar_at_far(*scores, (1e-3, 1e-4, 1e-5))}


@pytest.mark.parametrize("top_n", [100, 300])
def test_as_norm_on_real_faces_is_the_expected_one(lfw, top_n):
    _, _, anchors, faces, labels, expected = lfw
    statistics = nearest_statistics(support_sets(faces, anchors, k=top_n).similarities)
    got = _tars(faces, labels, FaceTerms("s_norm", np.stack(statistics, axis=1)))
    answer = expected[f"as_norm k={top_n}"]
    assert got == pytest.approx({far: answer[far] for far in got}, abs=5e-4)


@pytest.mark.parametrize("method", ["s_norm", "csn"])
def test_a_gain_on_real_faces_at_every_far(lfw, method):
    development, identities, anchors, faces, labels, expected = lfw
    if method == "s_norm":
        statistics = cohort_statistics(faces, cohort_moments(anchors))
        terms = FaceTerms("s_norm", np.stack(statistics, axis=1))
    else:
        csn = fit_csn(development, identities, anchors)
        constants = np.float32([csn.weight, csn.bias])
        term = csn.face_term(support_sets(faces, anchors, k=csn.top_n).similarities)
        terms = FaceTerms("csn", term[:, None], constants)
    got = _tars(faces, labels, terms)
    assert all(got[far] > expected["cosine"][far] + 0.001 for far in got)
