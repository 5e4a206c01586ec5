"""PFE with IDA in both modes, against a float64 transcription pair by pair."""

import itertools

import numpy as np
import pytest
import reference

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.artefacts.uncertainty_model import ProbabilisticEmbeddings
from ida_jax.data.labelled_pairs import PairList
from ida_jax.protocols.pfe_methods import (
    likelihood_methods,
    likelihood_of_all_pairs,
    likelihood_of_pairs,
)
from ida_jax.protocols.verification import evaluate_all_pairs, evaluate_kfold
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.terms import cosine_terms, dao_terms

K, TAU, WIDTH = 3, 2.0, 6
LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5])
ANCHOR_LABELS = np.array([9, 8, 7, 0, 1, 11, 12, 13])


@pytest.fixture(scope="module")
def faces():
    return ProbabilisticEmbeddings(*reference.gaussians((len(LABELS), WIDTH), 0, clusters=4))


@pytest.fixture(scope="module")
def anchors():
    return ProbabilisticEmbeddings(*reference.gaussians((len(ANCHOR_LABELS), WIDTH), 1))


@pytest.fixture(scope="module")
def ssr():
    rng = np.random.default_rng(3)
    params = {
        "hidden_fc": {"kernel": rng.standard_normal((WIDTH, 5)), "bias": rng.standard_normal(5)},
        "output_fc": {"kernel": rng.standard_normal((5, 1)), "bias": np.zeros(1)},
    }
    params = {k: {n: v.astype(np.float32) for n, v in leaf.items()} for k, leaf in params.items()}
    return SSRModule(params, "log", -2.0, 0.1, 0.0, K, TAU)


def _mls(one, i, other, j):
    return reference.mutual_likelihood(
        *(np.asarray(x, np.float64) for x in (one[0][i], other[0][j], one[1][i], other[1][j]))
    )


def _oracle(faces, anchors, ssr):
    """{method: {(i, j): score}}, and σ̄²."""
    scale = 1 / np.mean(np.exp(-anchors.log_variances.astype(np.float64)))
    log_f = []
    for i, label in enumerate(LABELS):
        found = [scale * _mls(faces, i, anchors, a)
                 for a in range(len(ANCHOR_LABELS)) if ANCHOR_LABELS[a] != label]  # fmt: skip
        log_f.append(-np.log(np.sum(np.exp(TAU * np.sort(found)[-K:]))))
    regressed = ssr.log_density(faces.means)
    scores = {"pfe": {}, "pfe_mls_ida_r": {}, "pfe_mls_ida_l": {}}
    for i, j in itertools.combinations(range(len(LABELS)), 2):
        s = scale * _mls(faces, i, faces, j)
        scores["pfe"][i, j] = s
        scores["pfe_mls_ida_r"][i, j] = TAU * s + np.logaddexp(log_f[i], log_f[j])
        scores["pfe_mls_ida_l"][i, j] = TAU * s + np.logaddexp(regressed[i], regressed[j])
    return scores


@pytest.fixture(scope="module")
def methods(faces, anchors, ssr):
    return likelihood_methods(
        faces, anchors, k=K, tau=TAU, labels=LABELS, anchor_labels=ANCHOR_LABELS, ssr=ssr
    )


def test_both_modes_are_the_transcription_pair_by_pair(faces, anchors, ssr, methods):
    expected = _oracle(faces, anchors, ssr)
    rows = np.array(list(itertools.combinations(range(len(LABELS)), 2)))
    same = LABELS[rows[:, 0]] == LABELS[rows[:, 1]]
    listed = likelihood_of_pairs(faces, rows, methods)
    every = likelihood_of_all_pairs(faces, LABELS, methods)
    assert set(listed) == set(every) == set(expected)
    for name, scores in expected.items():
        wanted = np.array([scores[i, j] for i, j in rows.tolist()])
        np.testing.assert_allclose(listed[name], wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(every[name].genuine, wanted[same], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(every[name].impostor, wanted[~same], rtol=1e-4, atol=1e-4)


def test_equal_variances_make_both_modes_ida_r(faces, anchors):
    """With one σ² everywhere the MLS is the cosine but for a constant, which cancels in DAO."""
    level = np.float32(-4.0)
    faces, anchors = (
        x._replace(log_variances=np.full_like(x.means, level)) for x in (faces, anchors)
    )
    found = likelihood_of_all_pairs(faces, LABELS, likelihood_methods(faces, anchors, k=K, tau=TAU))
    anchor_set = AnchorSet.from_embeddings(anchors.means)
    log_f = searched_log_density(faces.means, anchor_set, k=K, tau=TAU)
    for name, terms in {
        "pfe": cosine_terms(len(LABELS)),
        "pfe_mls_ida_r": dao_terms(log_f, tau=TAU),
    }.items():
        plain = np.concatenate(score_all_pairs(faces.means, LABELS, terms))
        difference = np.concatenate(found[name]) - plain
        np.testing.assert_allclose(difference, difference[0], atol=1e-5)
        if name != "pfe":
            np.testing.assert_allclose(difference, 0, atol=1e-5)


def test_anchors_without_images_leave_the_likelihood_alone(faces, ssr):
    methods = likelihood_methods(faces, None, k=K, tau=TAU, ssr=ssr)
    assert methods.scale == 1
    assert set(methods.terms) == {"pfe"}


def test_their_scores_enter_the_protocols(faces, methods):
    plain = {"cosine": cosine_terms(len(LABELS))}
    every = likelihood_of_all_pairs(faces, LABELS, methods)
    found = evaluate_all_pairs(
        faces.means, LABELS, plain, fars=(0.1,), scored=every, resamples=10
    ).evaluated.figures
    assert set(found) == {"cosine", *methods.terms}
    assert all("tar_gain@far" in found[name] for name in methods.terms)
    rows = np.array(list(itertools.combinations(range(len(LABELS)), 2)))
    same = LABELS[rows[:, 0]] == LABELS[rows[:, 1]]
    pair_list = PairList(rows, same, np.arange(len(rows)) % 5)
    listed = likelihood_of_pairs(faces, rows, methods)
    kfold = evaluate_kfold(
        faces.means, pair_list, plain, labels=LABELS, scored=listed, resamples=10
    ).figures
    assert set(kfold) == {"cosine", *methods.terms}
