import numpy as np
import pytest

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings
from ida_jax.rescoring import methods
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.rescorer import Rescorer

SEARCHED = ("ida_r", "ida_r_fallback", "as_norm")


@pytest.fixture
def faces():
    return unit_embeddings(np.random.default_rng(0).normal(size=(33, 16)).astype(np.float32))


@pytest.fixture
def anchors():
    embeddings = np.random.default_rng(1).normal(size=(91, 16)).astype(np.float32)
    return AnchorSet.from_embeddings(embeddings, labels=np.arange(91, dtype=np.int32))


def test_shared_search_gives_each_methods_own_terms(faces, anchors):
    scorers = make_scorers(
        ("cosine", *SEARCHED, "s_norm"), anchors, k=7, tau=2.0, weight=0.3, top_n=20
    )
    labels = np.where(np.arange(33) % 3 == 0, np.arange(33), -1).astype(np.int32)
    for given in (None, labels):
        for method, scorer in scorers.items():
            alone = Rescorer(anchors, method=method, k=7, tau=2.0, weight=0.3, top_n=20)
            expected = alone.terms(faces, labels=given)
            found = scorer.terms(faces, labels=given)
            assert found.rule == expected.rule
            np.testing.assert_array_equal(found.values, expected.values)


def test_methods_search_once(faces, anchors, monkeypatch):
    calls = []

    class Counted(methods.SupportSearch):
        def __call__(self, queries, labels=None):
            calls.append(len(queries))
            return super().__call__(queries, labels)

    monkeypatch.setattr(methods, "SupportSearch", Counted)
    scorers = make_scorers(SEARCHED, anchors, k=7, weight=0.3, top_n=20)
    for block in (faces[:20], faces[20:]):
        for scorer in scorers.values():
            scorer.terms(block)
    assert calls == [20, 13]


def test_more_neighbours_than_anchors_is_a_mistake(anchors):
    with pytest.raises(UserError, match="top_n = 92"):
        make_scorers(("ida_r", "as_norm"), anchors, k=7, top_n=92)
