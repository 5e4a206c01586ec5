"""A sweep against rescoring and counting at one setting after the other."""

import numpy as np
import pytest

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.metrics.roc import tar_at_far
from ida_jax.protocols.sweeps import sweep
from ida_jax.rescoring import tiles
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.rescorer import Rescorer

FARS = (0.2, 0.01)


def _people(rng, people, images, width=12, spread=0.9):
    centres = rng.standard_normal((people, width))
    faces = np.repeat(centres, images, axis=0)
    faces = faces + spread * rng.standard_normal(faces.shape)
    faces = np.float32(faces / np.linalg.norm(faces, axis=1, keepdims=True))
    return faces, np.repeat(np.arange(people), images)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize("rows", [7, 60, 512])
def test_equals_rescoring_one_by_one(rng, monkeypatch, rows):
    monkeypatch.setattr(tiles, "_ROWS", rows)
    faces, labels = _people(rng, 20, 3)
    anchors = AnchorSet.from_embeddings(_people(rng, 47, 1)[0], k=3, tau=2.0)
    found = sweep(
        faces, labels, anchors, fars=FARS, ks=(1, 3, 47), taus=(0.5, 16), sizes=(3, 10, 46), seed=5
    )
    assert list(found) == ["k", "tau", "anchors"]

    def tars(anchors, **options):
        terms = Rescorer(anchors, searcher="exact", **options).terms(faces)
        return [point.tar for point in tar_at_far(*score_all_pairs(faces, labels, terms), FARS)]

    expected = {"k": [tars(anchors, k=k) for k in (1, 3, 47)]}
    expected["tau"] = [tars(anchors, tau=tau) for tau in (0.5, 16)]
    order = np.random.default_rng(5).permutation(47)
    subsets = [AnchorSet(anchors.embeddings[order[:size]]) for size in (3, 10, 46)]
    expected["anchors"] = [tars(subset, k=3, tau=2.0) for subset in subsets]
    cosine = tars(None, method="cosine")
    for name, values in (("k", [1, 3, 47]), ("tau", [0.5, 16]), ("anchors", [3, 10, 46])):
        assert found[name]["values"] == values
        for i, key in enumerate(("0.2", "0.01")):
            assert found[name]["tar@far"][key] == [each[i] for each in expected[name]]
            assert found[name]["cosine"][key] == cosine[i]
    # The settings do tell: were they all one, the rest would prove nothing.
    assert len({tuple(each) for each in expected["tau"] + expected["anchors"]}) > 2


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_ignored_pairs_are_deleted(rng, monkeypatch, rows):
    monkeypatch.setattr(tiles, "_ROWS", rows)
    faces, labels = _people(rng, 20, 3)
    # The first ten people are the other ten: only their pairs are accepted at the low FAR.
    faces[30:], order = faces[:30], rng.permutation(60)
    faces, labels = faces[order], labels[order]
    ignored = np.stack([np.arange(10), np.arange(10, 20)], axis=1)
    anchors = AnchorSet.from_embeddings(_people(rng, 47, 1)[0], k=3)
    found, dirty = (
        sweep(faces, labels, anchors, fars=FARS, ks=(3,), taus=(), sizes=(), ignored=pairs)
        for pairs in (ignored, None)
    )
    scores = faces.astype(np.float64) @ faces.T
    apart = labels[:, None] != labels[None, :]
    kept = apart & ((labels[:, None] - labels[None, :]) % 10 != 0)
    upper = np.triu(np.ones((60, 60), bool), 1)
    for got, impostors in ((found, kept), (dirty, apart)):
        points = tar_at_far(scores[upper & ~apart], scores[upper & impostors], FARS)
        assert list(got["k"]["cosine"].values()) == [point.tar for point in points]
    assert found["k"]["cosine"]["0.01"] > dirty["k"]["cosine"]["0.01"]


def test_the_highest_impostors_are_kept_over_many_tiles(rng, monkeypatch):
    monkeypatch.setattr(tiles, "_ROWS", 5)
    faces, labels = _people(rng, 150, 2)
    anchors = AnchorSet.from_embeddings(_people(rng, 40, 1)[0])
    fars = (1e-3, 1e-5, 1.0)
    for some in (fars[:2], fars[2:]):
        found = sweep(faces, labels, anchors, fars=some, ks=(10,), taus=(1,), sizes=(40,))
        terms = Rescorer(anchors, searcher="exact").terms(faces)
        expected = tar_at_far(*score_all_pairs(faces, labels, terms), some)
        for name in found:
            assert [v for (v,) in found[name]["tar@far"].values()] == [p.tar for p in expected]


def test_values_that_cannot_be_are_left_out(rng):
    faces, labels = _people(rng, 5, 2)
    anchors = AnchorSet.from_embeddings(_people(rng, 25, 1)[0], k=12)
    found = sweep(faces, labels, anchors, fars=FARS, ks=(1, 25, 26))
    assert found["k"]["values"] == [1, 25]
    assert found["anchors"]["values"] == [20, 25]
    assert "anchors" not in sweep(faces, labels, anchors, fars=FARS, sizes=(11, 26))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ks": (0,)}, "k is 0"),
        ({"taus": (1, -1)}, "tau"),
        ({"sizes": (0, 5)}, "the number of anchors is 0"),
        ({"fars": (0.0,)}, "FAR"),
        ({"labels": np.zeros(9, int)}, "9 labels for 10 faces"),
        ({"labels": np.arange(10)}, "0 genuine"),
        ({"labels": np.zeros(10, int)}, "0 impostor"),
        ({"anchors": 3}, "there are 3 anchors"),
    ],
)
def test_mistakes_are_told(rng, options, told):
    faces, labels = _people(rng, 5, 2)
    given = {"labels": labels, "fars": FARS, "anchors": 25} | options
    anchors = AnchorSet.from_embeddings(_people(rng, given.pop("anchors"), 1)[0])
    with pytest.raises(UserError, match=told):
        sweep(faces, given.pop("labels"), anchors, **given)
