from dataclasses import replace

import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import tar_at_far
from ida_jax.ops.cohort import csn_score
from ida_jax.rescoring import csn_fit
from ida_jax.rescoring.csn_fit import Csn, fit_csn, logistic_regression


def _people(identities, seed, *, width=16):
    """Faces of so many people, three each, in families: some families are alike, some are not."""
    rng = np.random.default_rng(seed)
    families = rng.normal(size=(6, width)) * np.linspace(0, 2.5, 6)[:, None]
    centres = families[rng.integers(6, size=identities)] + rng.normal(size=(identities, width))
    labels = np.repeat(np.arange(identities), 3)
    faces = centres[labels] + 0.7 * rng.normal(size=(len(labels), width))
    return (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32), labels


PEOPLE, LABELS = _people(120, 0)
# Anchors: the first image of each of the 120, and of nobody else.
COHORT = AnchorSet.from_embeddings(PEOPLE[::3], labels=LABELS[::3], fingerprint="abc")
SMALL = {"top_n": 20, "impostor_pairs": 5000, "prior": 0.1}


@pytest.fixture(scope="module")
def csn():
    return fit_csn(PEOPLE, LABELS, COHORT, **SMALL)


def _terms(csn, faces):
    return csn.face_term(support_sets(faces, COHORT, k=csn.top_n).similarities)


def test_face_term_and_score_row_by_row(csn):
    faces = reference.unit((9, 16), 5)
    terms = _terms(csn, faces)
    expected = []
    for face in faces:
        fit = reference.legendre_fit(reference.cohort_scores(face, COHORT.embeddings, 20), 3)
        expected.append(sum(csn.coefficient_weights * fit))
    np.testing.assert_allclose(terms, expected, rtol=1e-5, atol=1e-5)
    cosine = np.sum(faces[:8] * faces[1:], axis=1)
    got = np.asarray(csn_score(cosine, terms[:8], terms[1:], weight=csn.weight, bias=csn.bias))
    assert got.dtype == np.float32
    for p in range(8):
        score = csn.weight * cosine[p] + expected[p] + expected[p + 1] + csn.bias
        assert got[p] == pytest.approx(score, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_the_regression_is_the_minimum_of_its_objective(prior):
    rng = np.random.default_rng(4)
    same = np.arange(90) < 30
    features = rng.normal(size=(90, 3)) * [1, 10, 0.1] + same[:, None] * [1, 5, 0.02] + 3
    got = logistic_regression(features, same, prior=prior, ridge=1e-4)
    _, mean, deviation = reference.csn_objective(np.zeros(4), features, same, prior, 1e-4)
    bias = got.bias + got.weights @ mean + np.log(prior / (1 - prior))
    theta = np.append(got.weights * deviation, bias)
    # The objective is strictly convex: a zero gradient is the one minimum.
    for direction in np.eye(4) * 1e-4:
        up, down = (
            reference.csn_objective(theta + step, features, same, prior, 1e-4)[0]
            for step in (direction, -direction)
        )
        assert abs(up - down) / 2e-4 < 1e-7
    assert np.linalg.norm(theta[:-1]) > 0.5


@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_the_regression_is_a_log_likelihood_ratio_whatever_the_prior(prior):
    rng = np.random.default_rng(6)
    same = rng.random(200_000) < 0.3
    # Two normal densities of deviation 1, 2 apart: the ratio's logarithm is 2x − 2.
    x = rng.normal(size=(200_000, 1)) + 2.0 * same[:, None]
    got = logistic_regression(x, same, prior=prior, ridge=1e-8)
    np.testing.assert_allclose([*got.weights, got.bias], [2, -2], atol=0.05)


def test_a_constant_feature_gets_no_weight():
    rng = np.random.default_rng(4)
    same = np.arange(90) < 30
    features = np.column_stack([rng.normal(size=90) + same, np.full(90, 0.5)])
    got = logistic_regression(features, same, prior=0.5, ridge=1e-4)
    assert got.weights[1] == 0
    assert np.isfinite(got.bias)


@pytest.mark.parametrize("impostors", [20, 21, 1001])
def test_pairs_are_all_genuine_ones_and_only_impostors_beside_them(impostors):
    labels = np.array([0, 1, 1, 4, 4, 4, 4, 9])
    got = csn_fit._pairs(labels, impostors, np.random.default_rng(0))
    every = {(i, j) for i in range(8) for j in range(i + 1, 8)}
    expected = {(i, j) for i, j in every if labels[i] == labels[j]}
    assert {tuple(sorted(pair)) for pair in got.rows[got.same].tolist()} == expected
    assert np.sum(got.same) == len(expected)
    impostor = got.rows[~got.same]
    assert np.all(labels[impostor[:, 0]] != labels[impostor[:, 1]])
    if impostors < len(every - expected):  # drawn
        assert impostor.shape == (impostors, 2)
    else:
        assert len(impostor) == len(every - expected)
        assert set(map(tuple, impostor.tolist())) == every - expected


def test_at_most_so_many_faces_of_an_identity_and_none_unknown():
    labels = np.array([3, -1, 3, 3, 0, 3, -1, 3, 5])
    rows = csn_fit._kept_rows(labels, 2, np.random.default_rng(0))
    assert labels[rows].tolist() == [0, 3, 3, 5]
    assert len(set(rows.tolist())) == 4


@pytest.mark.parametrize("block", [5, 40, 16384])
def test_neither_person_of_a_pair_is_in_its_cohorts(monkeypatch, block):
    monkeypatch.setattr(csn_fit, "_PAIR_BLOCK", block)
    seen = {}
    monkeypatch.setattr(
        csn_fit,
        "logistic_regression",
        lambda features, same, **_: (
            seen.update(features=features) or csn_fit.Logistic(np.zeros(5), 0.0)
        ),
    )
    monkeypatch.setattr(csn_fit, "_kept_rows", lambda labels, *_: np.flatnonzero(labels >= 0))
    pairs = np.array([[0, 1], [4, 3], [0, 5], [7, 2], [359, 8]] * 8)
    same = LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]]
    monkeypatch.setattr(csn_fit, "_pairs", lambda *_: csn_fit._Pairs(pairs, same))
    # Two anchors an identity, one of them unknown to be of identity 0.
    cohort_labels = np.array([LABELS[i] for i in range(360) if i % 3])
    cohort_labels[0] = -1
    anchors = AnchorSet.from_embeddings(PEOPLE[np.arange(360) % 3 > 0], labels=cohort_labels)
    fit_csn(PEOPLE, LABELS, anchors, top_n=100)
    for row, pair in zip(seen["features"], pairs, strict=True):
        others = anchors.embeddings[~np.isin(anchors.labels, LABELS[pair])]
        fits = [
            reference.legendre_fit(reference.cohort_scores(PEOPLE[i], others, 100), 3) for i in pair
        ]
        np.testing.assert_allclose(row[1:], sum(fits), atol=1e-5)
        assert row[0] == pytest.approx(PEOPLE[pair[0]] @ PEOPLE[pair[1]], abs=1e-6)


def test_the_fit_is_a_function_of_its_seed(csn):
    again = fit_csn(PEOPLE, LABELS, COHORT, **SMALL)
    np.testing.assert_array_equal(again.coefficient_weights, csn.coefficient_weights)
    other = fit_csn(PEOPLE, LABELS, COHORT, **SMALL, seed=1)
    assert other.weight != csn.weight
    assert (csn.genuine, csn.impostor, csn.identities, csn.degree) == (360, 5000, 120, 3)


def test_the_own_identity_is_left_out_of_the_cohort(csn):
    """Labels or not, the terms see a cohort of other people: as if the own row were not there."""
    unlabelled = AnchorSet.from_embeddings(PEOPLE[::3])
    with pytest.raises(UserError, match="120 of 360 faces are themselves among their anchors"):
        fit_csn(PEOPLE, LABELS, unlabelled, **SMALL)
    with pytest.raises(UserError, match="themselves among their anchors"):
        fit_csn(PEOPLE, LABELS, COHORT, **SMALL, exclude_own=False)
    # Strangers' anchors have nothing to leave out, whatever their numbering.
    strangers = AnchorSet.from_embeddings(_people(60, 9)[0], labels=np.arange(180) + 1000)
    kept = fit_csn(PEOPLE, LABELS, strangers, **SMALL, exclude_own=False)
    assert kept.weight == fit_csn(PEOPLE, LABELS, strangers, **SMALL).weight


def test_csn_separates_unseen_people_better_than_the_cosine(csn):
    faces, labels = _people(150, 0)
    faces, labels = faces[360:], labels[360:]
    first, second = np.triu_indices(len(faces), 1)
    cosine = np.sum(faces[first] * faces[second], axis=1)
    terms = _terms(csn, faces)
    scores = csn_score(cosine, terms[first], terms[second], weight=csn.weight, bias=csn.bias)
    scores = np.asarray(scores)
    same = labels[first] == labels[second]
    (plain,) = tar_at_far(cosine[same], cosine[~same], [0.01])
    (normalised,) = tar_at_far(scores[same], scores[~same], [0.01])
    assert normalised.tar > plain.tar + 0.05


def test_csn_round_trip(csn, tmp_path):
    csn.save(tmp_path / "c.safetensors")
    loaded = Csn.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(loaded.coefficient_weights, csn.coefficient_weights)
    for name in ("weight", "bias", "top_n", "degree", "fingerprint", "genuine", "prior"):
        assert getattr(loaded, name) == getattr(csn, name)
    with pytest.raises(UserError, match="of kind 'csn', expected 'anchor_set'"):
        AnchorSet.load(tmp_path / "c.safetensors")


def test_csn_refuses_another_cohort(csn):
    fewer = AnchorSet.from_embeddings(PEOPLE[3::3], fingerprint="abc")
    with pytest.raises(UserError, match="fitted with 120 anchors, 119 were given"):
        csn.check_anchors(fewer)
    other = AnchorSet.from_embeddings(PEOPLE[::3], fingerprint="xyz")
    with pytest.raises(UserError, match="fingerprint is xyz"):
        csn.check_anchors(other)
    same_size = AnchorSet.from_embeddings(PEOPLE[1::3], fingerprint="abc")
    with pytest.raises(UserError, match="another set of 120 anchors than the one given"):
        csn.check_anchors(same_size)
    replace(csn, anchors_sketch="").check_anchors(same_size)  # of an older version
    csn.check_anchors(COHORT)
    with pytest.raises(UserError, match=r"are \[7, 19\]: expected \[N, 20\]"):
        csn.face_term(np.zeros((7, 19), np.float32))


def test_the_usual_cohort_follows_the_anchors():
    """Either person of a pair may hold an anchor."""
    few = AnchorSet(COHORT.embeddings[:50], COHORT.labels[:50])
    strangers = AnchorSet.from_embeddings(_people(20, 7)[0])
    options = {"impostor_pairs": 5000}
    assert fit_csn(PEOPLE, LABELS, few, **options).top_n == 48
    assert fit_csn(PEOPLE, LABELS, strangers, **options).top_n == 60
    assert fit_csn(PEOPLE, LABELS, COHORT, **options).top_n == 100
    with pytest.raises(UserError, match="top_n = 100 of 50 anchors"):
        fit_csn(PEOPLE, LABELS, few, top_n=100, **options)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS[1:], {}, r"labels are int64 \[359\]"),
        (LABELS.astype(np.float32), {}, "expected one integer for each face"),
        (np.zeros(360, int), {}, "1 identities"),
        (np.arange(360), {}, "no identity has two faces"),
        (LABELS, {"degree": 20}, "degree = 20 through top_n = 20"),
        (LABELS, {"prior": 1.0}, "prior = 1"),
        (LABELS, {"ridge": 0.0}, "ridge = 0"),
        (LABELS, {"images_per_identity": 1}, "images_per_identity = 1"),
        (LABELS, {"top_n": 119}, "top_n = 119 of 120 anchors was asked for, .* hold 2"),
    ],
)
def test_a_fit_that_cannot_be(labels, options, message):
    with pytest.raises(UserError, match=message):
        fit_csn(PEOPLE, labels, COHORT, **(SMALL | options))
