import itertools

import numpy as np
import pytest
import reference

from ida_jax.common.errors import UserError
from ida_jax.rescoring import likelihood as module
from ida_jax.rescoring import tiles
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.likelihood import (
    likelihood_scale,
    nearest_by_likelihood,
    score_all_pairs_mls,
    score_pairs_mls,
)
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs, scores_of_cosines
from ida_jax.rescoring.terms import dao_terms


def _oracle(faces, i, others, j, scale=1.0):
    return scale * reference.mutual_likelihood(faces[0][i], others[0][j], faces[1][i], others[1][j])


def test_scale_is_the_harmonic_mean():
    for shape in ((1, 1), (3, 7), (2000, 5)):
        log_variances = reference.gaussians(shape, 0)[1]
        expected = 1 / np.mean(1 / np.exp(log_variances.astype(np.float64)))
        np.testing.assert_allclose(likelihood_scale(log_variances), expected, rtol=1e-6)
    np.testing.assert_allclose(likelihood_scale(np.full((3, 4), np.log(0.25))), 0.25, rtol=1e-6)


def test_scale_gives_the_slope_of_the_cosine():
    faces = reference.unit((40, 16), 0)
    log_variances = np.full((40, 16), -6.0, np.float32)
    pairs = np.random.default_rng(0).integers(40, size=(200, 2))
    scale = likelihood_scale(log_variances)
    offset = score_pairs_mls(faces, log_variances, pairs, scale=scale) - score_pairs(faces, pairs)
    np.testing.assert_allclose(offset, offset[0], atol=2e-6)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_score_pairs(count, on_cpu, monkeypatch):
    monkeypatch.setattr(module, "on_cpu", lambda _: on_cpu)
    monkeypatch.setattr(module, "_PAIR_BLOCKS" if on_cpu else "DEVICE_GATHER_BLOCKS", (4, 8))
    faces = reference.gaussians((20, 9), 0, clusters=3)
    pairs = np.random.default_rng(1).integers(20, size=(count, 2))
    got = score_pairs_mls(*faces, pairs, scale=0.5)
    assert got.dtype == np.float32
    expected = [_oracle(faces, i, faces, j, 0.5) for i, j in pairs]
    np.testing.assert_allclose(got, np.array(expected).reshape(count), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got, score_pairs_mls(*faces, pairs[:, ::-1], scale=0.5))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 24, 25])
@pytest.mark.parametrize("with_terms", [False, True])
def test_all_pairs_in_the_order_of_the_cosines(n, with_terms, monkeypatch):
    monkeypatch.setattr(module, "_tile", lambda _: (8, 10))
    monkeypatch.setattr(tiles, "_ROWS", 8)
    faces = tuple(x[:n] for x in reference.gaussians((max(n, 1), 6), 0))
    labels = np.arange(n) % 4
    log_f = np.linspace(-3, -2, n).astype(np.float32)
    terms = dao_terms(log_f, tau=2.0) if with_terms else None
    got = score_all_pairs_mls(*faces, labels, scale=0.01, terms=terms)
    expected = {True: [], False: []}
    for i, j in itertools.combinations(range(n), 2):
        score = _oracle(faces, i, faces, j, 0.01)
        if with_terms:
            score = 2 * score + np.log(np.exp(float(log_f[i])) + np.exp(float(log_f[j])))
        expected[bool(labels[i] == labels[j])].append(score)
    np.testing.assert_allclose(got.genuine, expected[True], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.impostor, expected[False], rtol=1e-5, atol=1e-6)
    cosines = score_all_pairs(faces[0], labels)
    equal = score_all_pairs_mls(faces[0], np.full((n, 6), -7.0), labels, scale=np.exp(-7.0))
    for of_mls, of_cosine in zip(equal, cosines, strict=True):
        assert of_mls.shape == of_cosine.shape
        difference = of_mls - of_cosine
        np.testing.assert_allclose(difference, difference[:1].repeat(len(difference)), atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 17])
@pytest.mark.parametrize("with_labels", [False, True])
def test_nearest(n, with_labels, monkeypatch):
    rng = np.random.default_rng(0)
    faces = tuple(x[:n] for x in reference.gaussians((20, 6), 0))
    anchors = reference.gaussians((23, 6), 1)
    labels, anchor_labels = rng.integers(-1, 3, n), rng.integers(-1, 3, 23)
    expected = np.empty((n, 20))
    for i in range(n):
        scores = [
            _oracle(faces, i, anchors, j, 0.01)
            for j in range(23)
            if not (with_labels and labels[i] == anchor_labels[j] >= 0)
        ]
        scores = sorted(scores, reverse=True)[:20]
        expected[i] = scores + [-np.inf] * (20 - len(scores))
    options = {"labels": labels, "anchor_labels": anchor_labels} if with_labels else {}
    for columns in (4, 22, 23, 100):
        monkeypatch.setattr(module, "_tile", lambda _, columns=columns: (4, columns))
        for k in (1, 5, 20):
            got = nearest_by_likelihood(*faces, *anchors, k=k, scale=0.01, **options)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, expected[:, :k], rtol=1e-5, atol=1e-6)


def test_equal_variances_rank_as_ida_r():
    faces, anchors = reference.unit((30, 16), 0, clusters=4), reference.unit((60, 16), 1)
    tau, k = 3.0, 5
    log_variances, anchor_log_variances = (np.full(x.shape, -6.5) for x in (faces, anchors))
    scale = likelihood_scale(anchor_log_variances)
    pairs = np.array(list(itertools.combinations(range(30), 2)))
    found = nearest_by_likelihood(
        faces, log_variances, anchors, anchor_log_variances, k=k, scale=scale
    )
    scores = score_pairs_mls(faces, log_variances, pairs, scale=scale)
    got = scores_of_cosines(scores, pairs, dao_terms(log_density_of(found, tau=tau), tau=tau))
    log_f = np.log([reference.density(s, tau) for s in reference.top_k(faces, anchors, k)])
    cosines = np.einsum("pd,pd->p", *faces[pairs.T].astype(np.float64))
    expected = tau * cosines + np.logaddexp(*log_f[pairs.T])
    # The constant beside the cosine cancels, so that the scores themselves agree.
    np.testing.assert_allclose(got, expected, atol=1e-5)
    order = np.argsort(expected)
    apart = np.diff(expected[order]) > 2e-5
    assert np.mean(apart) > 0.9
    assert np.all(np.diff(got[order])[apart] > 0)


def test_mistakes(monkeypatch):
    means, log_variances = reference.gaussians((9, 4), 0)
    pairs, labels = np.array([[0, 1], [2, 3]]), np.arange(9) % 3

    def spoilt(value):
        return np.where(np.arange(9)[:, None] == 3, np.float32(value), log_variances)

    for wrong, message in (
        ({"log_variances": spoilt(np.nan)}, "log-variances: row 3 holds nan, expected"),
        ({"log_variances": spoilt(np.inf)}, "row 3 holds inf"),
        ({"log_variances": spoilt(21.0)}, "row 3 holds 21, .*within ±20"),
        ({"log_variances": log_variances[:8]}, r"are \[8, 4\], the means \[9, 4\]"),
        ({"log_variances": np.zeros((9, 4), int)}, r"are int64 \[9, 4\]: expected floating"),
        ({"means": 2 * means}, "means: row 0 has norm 2, expected 1"),
        ({"pairs": np.array([[0, 9]])}, r"pair 0 is \(0, 9\), outside the 9 faces"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": np.nan}, "scale is nan"),
    ):
        arguments = {"means": means, "log_variances": log_variances, "pairs": pairs} | wrong
        with pytest.raises(UserError, match=message):
            score_pairs_mls(**arguments)
    with pytest.raises(UserError, match="row 3 holds nan"):
        likelihood_scale(spoilt(np.nan))
    with pytest.raises(UserError, match=r"are \[0, 4\]: expected one row"):
        likelihood_scale(log_variances[:0])
    with pytest.raises(UserError, match="2 labels for 9 faces"):
        score_all_pairs_mls(means, log_variances, labels[:2])
    with pytest.raises(UserError, match=r"are \[8, 1\]"):
        score_all_pairs_mls(means, log_variances, labels, terms=dao_terms(np.zeros(8), tau=1.0))
    good = (means, log_variances, means, log_variances)
    for wrong, message in (
        ({"k": 0}, r"k is 0 and there are 9 anchors: expected 1 … 9"),
        ({"k": 10}, "k is 10"),
        ({"labels": labels}, "labels are of one side alone"),
        ({"labels": labels, "anchor_labels": labels[:3]}, "9 and 3 labels for 9 faces"),
    ):
        with pytest.raises(UserError, match=message):
            nearest_by_likelihood(*good, **({"k": 2, "scale": 1.0} | wrong))
    with pytest.raises(UserError, match="anchors' log-variances: row 3"):
        nearest_by_likelihood(*good[:3], spoilt(np.nan), k=2, scale=1.0)
    with pytest.raises(UserError, match="the faces are 4 wide, the anchors 5"):
        nearest_by_likelihood(*good[:2], *reference.gaussians((9, 5), 1), k=2, scale=1.0)
    monkeypatch.setattr(tiles, "_MOST_PAIRS", 35)
    with pytest.raises(UserError, match="9 faces make 36 pairs, more than the 35"):
        score_all_pairs_mls(means, log_variances, labels)
