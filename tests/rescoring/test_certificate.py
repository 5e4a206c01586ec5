"""Certified results against brute force in float64."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.rescoring import certificate
from ida_jax.rescoring.certificate import (
    certified_above,
    certified_search,
    certified_top_k,
)
from ida_jax.rescoring.gallery import Gallery
from ida_jax.rescoring.gallery_segments import Joined
from ida_jax.rescoring.index_vectors import index_space, index_vectors, query_vectors
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms

D, G, M = 6, 60, 5


def _made(tau, k=10, *, seed=0, equal_lengths=False, faces=G):
    """A gallery of varied density, probes, and their log-DAO scores in float64."""
    rng = np.random.default_rng(seed)
    gallery, probes = reference.unit((faces, D), seed, clusters=7), reference.unit((M, D), seed + 1)
    b, a = (np.float32(-np.log(k) - tau * rng.uniform(-0.1, 0.9, n)) for n in (faces, M))
    terms = FaceTerms("dao", b[:, None], np.float32([tau]))
    space = index_space(terms, D, equal_lengths=equal_lengths)
    vectors = index_vectors(gallery, terms, space)
    queries = query_vectors(probes, terms._replace(values=a[:, None]), space)
    exact = np.float64(np.float32(tau)) * (np.float64(probes) @ np.float64(gallery).T)
    exact += np.logaddexp(np.float64(a)[:, None], np.float64(b)[None])
    return Gallery(gallery, terms), vectors, queries, exact


def _flat(vectors, calls=None, *, distance=False):
    def search(queries, count):
        if calls is not None:
            calls.append((len(queries), count))
        order = queries @ vectors.T
        if distance:
            order = -np.sum((queries[:, None] - vectors[None]) ** 2, axis=2)
        return np.argsort(-order, axis=1, kind="stable")[:, :count]

    return search


@settings(max_examples=60)
@given(
    tau=st.floats(0.1, 50),
    k=st.integers(1, 100),
    seed=st.integers(0, 1000),
    top=st.integers(1, 12),
    fetch=st.integers(1, 30),
    equal_lengths=st.booleans(),
)
def test_certified_is_brute_force(tau, k, seed, top, fetch, equal_lengths):
    gallery, vectors, queries, exact = _made(tau, k, seed=seed, equal_lengths=equal_lengths)
    search = _flat(vectors, distance=equal_lengths)
    fetch = max(top, fetch)
    best = -np.sort(-exact, axis=1)[:, :top]
    once = certified_top_k(search(queries.vectors, fetch), queries, gallery, top=top)
    sure = once.certified
    np.testing.assert_allclose(once.scores[sure], best[sure], rtol=1e-13, atol=1e-12)
    np.testing.assert_array_equal(once.more[sure], 0)
    np.testing.assert_array_equal(once.more[~sure], min(fetch, G - fetch))
    found = certified_search(search, queries, gallery, top=top, fetch=fetch)
    assert found.claim == "exact"
    assert found.require_exact() is found
    np.testing.assert_allclose(found.scores, best, rtol=1e-13, atol=1e-12)
    own = np.take_along_axis(exact, found.rows, axis=1)
    np.testing.assert_allclose(own, best, rtol=1e-13, atol=1e-12)
    assert all(len(set(rows)) == top for rows in found.rows.tolist())


def test_only_the_uncertified_are_searched_again():
    gallery, vectors, queries, exact = _made(50.0, faces=200)
    calls = []
    first = certified_top_k(_flat(vectors)(queries.vectors, 6), queries, gallery, top=5)
    assert 0 < np.count_nonzero(first.certified) < M
    assert first.claim == f"not certified for {np.count_nonzero(~first.certified)} of 5 probes"
    found = certified_search(_flat(vectors, calls), queries, gallery, top=5, fetch=6)
    assert calls[:2] == [(M, 6), (np.count_nonzero(~first.certified), 12)]
    np.testing.assert_allclose(found.scores, -np.sort(-exact, axis=1)[:, :5])
    with pytest.raises(UserError, match="the results are not certified for"):
        first.require_exact()


def test_without_the_bound_a_better_face_would_be_missed():
    """By the cosine alone the same K′ misses faces; here its order is refused."""
    gallery, _, queries, exact = _made(10.0, faces=200)
    by_cosine = np.argsort(-queries.faces @ gallery.embeddings.T, axis=1)[:, :20]
    best = np.argsort(-exact, axis=1)[:, :5]
    assert any(set(b) - set(c) for b, c in zip(best.tolist(), by_cosine.tolist(), strict=True))
    with pytest.raises(UserError, match="not in the order of the index vectors"):
        certified_top_k(by_cosine, queries, gallery, top=5)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_all_faces_above_a_threshold(share):
    gallery, vectors, queries, exact = _made(4.0)
    threshold = np.quantile(exact, share)
    asked = []

    def search(vector, radius):
        rows = np.flatnonzero(vectors @ vector[0] > radius)
        asked.append(len(rows))
        return rows

    found = certified_above(search, queries, gallery, threshold=threshold)
    probes, rows = np.nonzero(exact >= threshold)
    assert set(zip(found.probes, found.rows, strict=True)) == set(zip(probes, rows, strict=True))
    np.testing.assert_allclose(found.scores, exact[found.probes, found.rows], rtol=1e-13)
    order = np.lexsort((-found.scores, found.probes))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    assert len(rows) <= sum(asked) < G * M
    nothing = certified_above(search, queries, gallery, threshold=1e3)
    assert nothing.scores.shape == (0,)


def test_an_approximate_index():
    gallery, vectors, queries, exact = _made(1.0)
    seen = np.arange(0, G, 2)

    def search(queries, count):
        rows = seen[np.argsort(-queries @ vectors[seen].T, axis=1)][:, :count]
        return np.pad(rows, ((0, 0), (0, count - rows.shape[1])), constant_values=-1)

    found = certified_search(search, queries, gallery, top=5, fetch=8, approximate=True)
    assert found.claim == "exact given the index's recall"
    np.testing.assert_allclose(found.scores, -np.sort(-exact[:, seen], axis=1)[:, :5])
    with pytest.raises(UserError, match="exact given the index's recall: expected exact ones"):
        found.require_exact()
    with pytest.raises(UserError, match="found 30 of 40 candidates for probe 0 among 60 faces"):
        certified_top_k(search(queries.vectors, 40), queries, gallery, top=5)
    # All that it can find is fewer than were asked for.
    few = certified_search(search, queries, gallery, top=40, fetch=40, approximate=True)
    assert not few.certified.any()
    assert np.all(few.rows[:, 30:] == -1)
    assert np.all(few.scores[:, 30:] == -np.inf)


def test_vectors_in_fewer_bits():
    gallery, vectors, queries, exact = _made(20.0, faces=400)
    coarse = np.round(vectors * 40) / 40
    error = np.max(np.abs((coarse - vectors) @ queries.vectors.T))
    with pytest.raises(UserError, match="state its quantisation as error"):
        certified_search(_flat(coarse), queries, gallery, top=5)
    found = certified_search(_flat(coarse), queries, gallery, top=5, error=error)
    np.testing.assert_allclose(found.scores, -np.sort(-exact, axis=1)[:, :5])
    threshold = np.quantile(exact, 0.99)
    found = certified_above(
        lambda vector, radius: np.flatnonzero(coarse @ vector[0] > radius),
        queries, gallery, threshold=threshold, error=error,
    )  # fmt: skip
    assert len(found.rows) == np.count_nonzero(exact >= threshold)


def test_a_store_that_normalises():
    gallery, vectors, queries, _ = _made(50.0, faces=400)
    cosine = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with pytest.raises(UserError, match="let the store not normalise"):
        certified_search(_flat(cosine), queries, gallery, top=5)


def test_mistakes():
    gallery, vectors, queries, _ = _made(1.0)
    rows = _flat(vectors)(queries.vectors, 8)
    for bad, said in (
        (rows[:2], r"the candidates are int64 \[2, 8\] for 5 probes"),
        (rows.astype(float), r"float64 \[5, 8\]"),
        (rows + G, "probe 0 hold rows outside the gallery's 60"),
        (np.repeat(rows, 2, axis=1), "probe 0 hold a row twice"),
    ):
        with pytest.raises(UserError, match=said):
            certified_top_k(bad, queries, gallery, top=3)
    for top in (0, 9):
        with pytest.raises(UserError, match=f"the best {top} were asked for of 8 candidates"):
            certified_top_k(rows, queries, gallery, top=top)


def test_deleted_faces_are_in_no_result():
    gallery, vectors, queries, exact = _made(1.0)
    enrolled = np.arange(G) % 2 == 1
    enrolled[np.argmax(exact, axis=1)] = False  # the best of each probe among them
    gallery = Gallery(gallery.embeddings, gallery.terms, enrolled)
    exact[:, ~enrolled] = -np.inf
    found = certified_search(_flat(vectors), queries, gallery, top=4)
    assert found.claim == "exact"
    np.testing.assert_array_equal(found.rows, np.argsort(-exact, axis=1)[:, :4])
    threshold = float(np.sort(exact[exact > -np.inf])[-9])
    above = certified_above(
        lambda q, radius: np.flatnonzero(q[0] @ vectors.T > radius),
        queries, gallery, threshold=threshold,
    )  # fmt: skip
    assert set(zip(above.probes.tolist(), above.rows.tolist(), strict=True)) == set(
        zip(*(x.tolist() for x in np.nonzero(exact >= threshold)), strict=True)
    )
    every = certified_top_k(np.argsort(-(queries.vectors @ vectors.T), axis=1), queries, gallery,
                            top=int(enrolled.sum()) + 3)  # fmt: skip
    assert np.all(every.rows[:, -3:] == -1)
    assert np.all(every.scores[:, -3:] == -np.inf)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_of_a_stored_gallery_only_the_candidates_are_read(dtype, monkeypatch):
    gallery, vectors, queries, _ = _made(4.0)
    stored = gallery.embeddings.astype(dtype)
    joined = Joined([stored[:25], stored[25:26], stored[26:]])
    monkeypatch.setattr(certificate, "_BLOCK", 2 * D)  # two candidates at once
    search = _flat(vectors)
    found, expected = (
        certified_search(search, queries, Gallery(each, gallery.terms), top=3, error=0.05)
        for each in (_Rows(joined), stored)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    scores = 4.0 * np.einsum(
        "md,mkd->mk", np.float64(queries.faces), np.float64(stored)[found.rows]
    )
    a, b = np.float64(queries.terms.values), np.float64(gallery.terms.values)[found.rows, 0]
    np.testing.assert_allclose(found.scores, scores + np.logaddexp(a, b), rtol=0, atol=1e-12)
    made = [index_vectors(each, gallery.terms, queries.space) for each in (_Rows(joined), stored)]
    np.testing.assert_array_equal(*made)


class _Rows(Joined):
    """Refuses to be read as a whole."""

    def __init__(self, joined):
        super().__init__(joined._arrays)

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("all faces were read")


def test_deleted_faces_enter_no_index():
    scorer = Rescorer(reference.unit((40, D), 3), k=10)
    gallery = scorer.gallery(reference.unit((7, D), 4))
    some = Gallery(gallery.embeddings, gallery.terms, np.arange(7) != 2)
    with pytest.raises(UserError, match=r"still holds 1 of its deleted faces.*--compact first"):
        scorer.index_vectors(some)
    whole = Gallery(gallery.embeddings, gallery.terms, np.ones(7, bool))
    assert len(scorer.index_vectors(whole).vectors) == 7
