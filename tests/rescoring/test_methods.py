import numpy as np
import pytest

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.supported_weight import supported_weight
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


@pytest.mark.parametrize("named", [True, False])
def test_probes_are_left_out_of_their_own_support_sets_for_the_weight(named):
    """An anchor that is the face itself would be its own nearest neighbour."""
    centred = np.random.default_rng(0).normal(size=(900, 16))
    rows = unit_embeddings((centred + 0.5).astype(np.float32))
    names = [f"P{i}" for i in range(900)]
    labels = np.arange(900, dtype=np.int32)
    anchors = AnchorSet.from_embeddings(rows[300:], labels=labels[300:], names=names[300:], k=5)
    rows, labels = rows[:600], labels[:600]  # half of them are anchors
    people = names[:600] if named else labels
    weights = [supported_weight(rows, anchors, labels=own).weight for own in (None, labels)]
    assert weights[0] != weights[1]
    made = make_scorers(("ida_r_fallback",), anchors, probes=rows, people=people)
    assert made["ida_r_fallback"].weight == weights[1]


def test_more_neighbours_than_anchors_is_a_mistake(anchors):
    with pytest.raises(UserError, match="top_n = 92"):
        make_scorers(("ida_r", "as_norm"), anchors, k=7, top_n=92)
