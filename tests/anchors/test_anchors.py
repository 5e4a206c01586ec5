import numpy as np
import pytest
import reference

from ida_jax.anchors import sources
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.rescoring.density import searched_log_density


def _has_scann():
    try:
        import scann  # noqa: F401
    except ImportError:
        return False
    return True


SEARCHERS = ["exact", "auto"] + (["scann"] if _has_scann() else [])


def _anchors(count=300, width=16, labels=True):
    rng = np.random.default_rng(5)
    return AnchorSet.from_embeddings(
        3.0 * reference.unit((count, width), 1, clusters=9),
        labels=rng.integers(40, size=count) if labels else None,
        source="real_db",
        fingerprint="abc",
        k=5,
        tau=2.0,
    )


def test_anchor_set_round_trip(tmp_path):
    anchors = _anchors()
    anchors.save(tmp_path / "a.safetensors")
    loaded = AnchorSet.load(tmp_path / "a.safetensors")
    assert isinstance(loaded.embeddings, np.memmap)
    np.testing.assert_array_equal(loaded.embeddings, anchors.embeddings)
    np.testing.assert_array_equal(loaded.labels, anchors.labels)
    assert (loaded.source, loaded.fingerprint, loaded.k, loaded.tau) == ("real_db", "abc", 5, 2.0)
    np.testing.assert_allclose(np.linalg.norm(loaded.embeddings, axis=1), 1, rtol=1e-6)


def test_unlabelled_set_round_trip(tmp_path):
    _anchors(labels=False).save(tmp_path / "a.safetensors")
    assert AnchorSet.load(tmp_path / "a.safetensors").labels is None


def test_another_model_is_refused():
    anchors = _anchors()
    anchors.check_model(fingerprint="abc", width=16)
    anchors.check_model(fingerprint="", width=16)
    with pytest.raises(UserError, match="fingerprint is xyz"):
        anchors.check_model(fingerprint="xyz", width=16)
    with pytest.raises(UserError, match="32 wide"):
        anchors.check_model(fingerprint="abc", width=32)


@pytest.mark.parametrize(("value", "row"), [(0.0, 2), (np.nan, 0), (np.inf, 4)])
def test_bad_rows_are_named(value, row):
    embeddings = reference.unit((5, 8), 0).copy()
    embeddings[row] = 0.0
    embeddings[row, 0] = value
    with pytest.raises(UserError, match=f"row {row} is zero, NaN or infinite"):
        AnchorSet.from_embeddings(embeddings)


def test_label_count_must_match():
    with pytest.raises(UserError, match="5 anchors"):
        AnchorSet.from_embeddings(reference.unit((5, 8), 0), labels=np.zeros(4, int))


def test_class_weights_keep_their_class_as_label():
    weights = 7 * reference.unit((20, 8), 3)
    anchors = sources.class_weights(weights, size=6, seed=1)
    assert len(anchors) == 6
    np.testing.assert_allclose(anchors.embeddings, weights[anchors.labels] / 7, rtol=1e-5)
    assert len(sources.class_weights(weights, size=99)) == 20
    with pytest.raises(UserError, match="at least 1"):
        sources.class_weights(weights, size=0)


def test_real_db_takes_one_image_an_identity():
    labels = np.array([3, 3, 0, 1, 1, 0, 3])
    np.testing.assert_array_equal(sources.real_db_rows(labels, size=9), [2, 3, 0])
    assert len(set(labels[sources.real_db_rows(labels, size=2)])) == 2


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("n", [1, 50])
def test_searchers_agree_with_the_oracle(searcher, with_labels, n):
    anchors = _anchors()
    queries = reference.unit((n, 16), 2, clusters=9)
    labels = np.random.default_rng(1).integers(40, size=n) if with_labels else None
    found = support_sets(queries, anchors, k=7, labels=labels, searcher=searcher)
    expected = reference.top_k(
        queries, anchors.embeddings, 7, labels, anchors.labels if with_labels else None
    )
    np.testing.assert_allclose(found.similarities, expected, atol=1e-5)
    log_f = searched_log_density(queries, anchors, k=7, tau=3.0, labels=labels, searcher=searcher)
    oracle = [np.log(reference.density(row, 3.0)) for row in expected]
    np.testing.assert_allclose(log_f, oracle, atol=1e-5)


def test_defaults_come_from_the_set():
    anchors = _anchors()
    queries = reference.unit((4, 16), 2)
    expected = [
        np.log(reference.density(row, 2.0))
        for row in reference.top_k(queries, anchors.embeddings, 5)
    ]
    np.testing.assert_allclose(searched_log_density(queries, anchors), expected, atol=1e-5)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2500])
def test_blocks_of_queries(n):
    anchors = _anchors(count=40)
    queries = reference.unit((n, 16), 2)
    found = support_sets(queries, anchors, k=3)
    expected = -np.sort(-(queries.astype(np.float64) @ anchors.embeddings.T), axis=1)[:, :3]
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_users_mistakes_in_a_search(searcher):
    anchors, queries = _anchors(count=6), reference.unit((2, 16), 0)
    with pytest.raises(UserError, match="k = 7 neighbours were asked for among 6"):
        support_sets(queries, anchors, k=7, searcher=searcher)
    with pytest.raises(UserError, match="8 wide"):
        support_sets(reference.unit((2, 8), 0), anchors, k=1, searcher=searcher)
    with pytest.raises(UserError, match="no labels"):
        support_sets(queries, _anchors(labels=False), k=1, labels=[0, 1], searcher=searcher)
    with pytest.raises(UserError, match="1 labels for 2 faces"):
        support_sets(queries, anchors, k=1, labels=np.zeros(1, int), searcher=searcher)
    same = AnchorSet.from_embeddings(anchors.embeddings, labels=np.full(6, 3))
    with pytest.raises(UserError, match="0 of k = 2 anchors are left for row 1"):
        support_sets(queries, same, k=2, labels=np.array([0, 3]), searcher=searcher)


def test_unknown_searcher():
    with pytest.raises(UserError, match="'faiss' is unknown"):
        support_sets(reference.unit((2, 16), 0), _anchors(), k=1, searcher="faiss")
