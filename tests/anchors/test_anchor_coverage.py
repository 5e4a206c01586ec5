"""Coverage, near-duplicates and leaks; on real faces where they are at hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import reference

from ida_jax.anchors import check
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import coverage, own_neighbourhood
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings


def _set(count=60, width=16, **options):
    return AnchorSet.from_embeddings(reference.unit((count, width), 1, clusters=7), **options)


def _own_top_k(anchors, labels, rows, k):
    """Similarities [rows, K] to the anchors of other labels, in float64."""
    x = anchors.embeddings.astype(np.float64)
    return reference.top_k(x[rows], x, k, labels[rows], labels)


@pytest.mark.parametrize("kind", ["none", "labels", "some unknown"])
def test_own_neighbourhood_leaves_out_the_anchor_and_its_identity(kind):
    labels = {
        "none": None,
        "labels": np.arange(60) // 2,
        "some unknown": np.where(np.arange(60) < 20, -1, np.arange(60) // 2),
    }[kind]
    anchors = _set(labels=labels)
    # The oracle's labels: an anchor without one is a person of its own.
    own = np.arange(60) if labels is None else np.where(labels < 0, 100 + np.arange(60), labels)
    expected = _own_top_k(anchors, own, np.arange(60), 4)
    found = own_neighbourhood(anchors, k=4, tau=2.0)
    np.testing.assert_allclose(found.similarity, expected.mean(1), atol=1e-6)
    oracle = [np.log(reference.density(row, 2.0)) for row in expected]
    np.testing.assert_allclose(found.log_density, oracle, atol=1e-5)
    assert found.similarity.dtype == found.log_density.dtype == np.float32


def test_a_sample_is_part_of_the_whole_and_of_the_seed():
    anchors = _set()
    whole = own_neighbourhood(anchors, k=3, tau=1.0).similarity
    parts = [own_neighbourhood(anchors, k=3, tau=1.0, sample=9, seed=s) for s in (0, 0, 1)]
    assert all(np.isin(np.round(p.similarity, 5), np.round(whole, 5)).all() for p in parts)
    np.testing.assert_array_equal(parts[0].similarity, parts[1].similarity)
    assert not np.array_equal(parts[0].similarity, parts[2].similarity)


def test_too_few_other_anchors():
    with pytest.raises(UserError, match=r"k = 5 neighbours of an anchor .* in a set of 5"):
        own_neighbourhood(_set(5), k=5, tau=1.0)
    with pytest.raises(UserError, match="anchors are left"):
        own_neighbourhood(_set(5, labels=np.zeros(5, int)), k=2, tau=1.0)


def test_synthetic_domains():
    """Probes of the anchors' clusters are covered, those around another centre are not."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(2, 32))

    def faces(which, count):
        return unit_embeddings(centre[which] + rng.normal(size=(count, 32)))

    anchors = AnchorSet.from_embeddings(faces(0, 500))
    inside, outside = coverage(faces(0, 400), anchors), coverage(faces(1, 400), anchors)
    assert not inside.wrong_domain
    assert inside.share_uncovered < 0.05
    assert inside.faces == 400
    assert outside.wrong_domain
    assert outside.share_uncovered > 0.9
    assert outside.similarity < outside.own_similarity
    assert inside.own_similarity == outside.own_similarity
    # Two faces are no evidence, three are.
    assert not coverage(faces(1, 2), anchors).wrong_domain
    assert coverage(faces(1, 3), anchors).wrong_domain
    with pytest.raises(UserError, match="0 probes"):
        coverage(faces(0, 0), anchors)
    with pytest.raises(UserError, match="16 wide"):
        coverage(reference.unit((3, 16), 0), anchors)


def test_coverage_leaves_out_a_probes_own_identity():
    anchors = _set(200, labels=np.arange(200))
    probes = np.asarray(anchors.embeddings)
    told = coverage(probes, anchors, k=3, labels=np.arange(200))
    assert told.similarity == pytest.approx(told.own_similarity, abs=1e-6)
    assert coverage(probes, anchors, k=3).similarity > told.similarity + 0.05


@pytest.mark.parametrize("block", [1, 7, 59, 60, 61])
@pytest.mark.parametrize("labelled", [False, True])
def test_near_duplicates_by_the_oracle(block, labelled, monkeypatch):
    monkeypatch.setattr(check, "_BLOCK", block)
    labels = np.array([-1, 0, 1, 2])[np.arange(60) % 4] if labelled else None
    anchors = _set(labels=labels)
    x = anchors.embeddings.astype(np.float64)
    threshold = 0.75
    expected = {}
    for i in range(60):
        for j in range(i + 1, 60):
            same = labelled and labels[i] == labels[j] >= 0
            if x[i] @ x[j] >= threshold and not same:
                expected[i, j] = x[i] @ x[j]
    found = check.near_duplicates(anchors, threshold)
    assert found.total == len(expected) > 20
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert set(pairs) == set(expected)
    np.testing.assert_allclose(found.similarity, [expected[pair] for pair in pairs], atol=1e-6)
    assert np.all(np.diff(found.similarity) <= 0)
    few = check.near_duplicates(anchors, threshold, limit=3)
    assert few.total == len(expected)
    np.testing.assert_array_equal(few.similarity, found.similarity[:3])


def test_near_duplicates_of_few_anchors():
    assert check.near_duplicates(_set(1), -1.0).total == 0
    assert check.near_duplicates(_set(2), -1.0).total == 1
    same = AnchorSet.from_embeddings(np.ones((40, 3)))
    assert check.near_duplicates(same, 0.999, limit=5).total == 40 * 39 // 2
    assert len(check.near_duplicates(same, 0.999, limit=5).first) == 5


def test_leaks_by_likeness():
    anchors = _set(50)
    rng = np.random.default_rng(3)
    strangers = reference.unit((10, 16), 9)
    own = unit_embeddings(anchors.embeddings[[7, 3]] + 0.02 * rng.normal(size=(2, 16)))
    found = check.identity_leaks(np.concatenate([strangers, own]), anchors, 0.95)
    assert found.total == 2
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == {(10, 7), (11, 3)}
    assert np.all(np.diff(found.similarity) <= 0)
    assert check.identity_leaks(strangers, anchors, 0.95).total == 0


def test_leaks_by_name_and_by_label():
    labels = np.array([4, 9, 4, -1])
    anchors = _set(4, labels=labels, names=("ann", "bob", "ann", "cy"))
    probes = np.asarray(anchors.embeddings[[2, 0, 1]])
    by_name = check.known_leaks(probes, ["ann", "dan", "bob"], anchors)
    by_label = check.known_leaks(probes, np.array([4, -1, 9]), anchors)
    for found in (by_name, by_label):
        assert found.total == 2
        # Of ann's two anchors the one that the probe is.
        assert dict(zip(found.first.tolist(), found.second.tolist(), strict=True)) == {0: 2, 2: 1}
        np.testing.assert_allclose(found.similarity, 1, atol=1e-6)
    bare = replace(anchors, labels=None, names=())
    with pytest.raises(UserError, match=r"names \(row 0 is 'ann'\), but the anchors have none"):
        check.known_leaks(probes, ["ann", "dan", "bob"], bare)
    with pytest.raises(UserError, match="labels are integers, but the anchors have none"):
        check.known_leaks(probes, np.arange(3), bare)
    with pytest.raises(UserError, match=r"\[2\] for 3 probes"):
        check.known_leaks(probes, ["ann", "bob"], anchors)
    with pytest.raises(UserError, match="8 wide, the anchors 16"):
        check.known_leaks(reference.unit((3, 8), 0), ["a", "b", "c"], anchors)


def test_the_threshold_is_reached_as_often_as_it_says():
    anchors = AnchorSet.from_embeddings(reference.unit((2000, 64), 0))
    strangers = reference.unit((5000, 64), 1)
    nearest = support_sets(strangers, anchors, k=1).similarities[:, 0]
    shares = {
        faces: np.mean(nearest >= check.same_person_threshold(anchors, faces=faces))
        for faces in (4, 10, 100, 1000)
    }
    # Random directions have a lighter tail than the Gumbel distribution, and than faces have.
    assert all(share <= 1.5 / faces for faces, share in shares.items())
    assert shares[4] >= 0.2
    assert shares[10] >= 0.06
    assert shares[100] > 0
    thresholds = [check.same_person_threshold(anchors, faces=n) for n in (1, 2, 10, 10**6)]
    assert thresholds == sorted(thresholds)
    # Some anchors twice do not move it.
    twice = np.concatenate([anchors.embeddings, anchors.embeddings[:30]])
    doubled = check.same_person_threshold(AnchorSet.from_embeddings(twice), faces=100)
    assert doubled == pytest.approx(check.same_person_threshold(anchors, faces=100), abs=0.02)
    # However alike a model's faces are, the same image is found.
    alike = AnchorSet.from_embeddings(100 + np.random.default_rng(0).normal(size=(50, 8)))
    assert check.same_person_threshold(alike, faces=10**9) <= 0.999


@pytest.fixture(scope="module")
def lfw(shared_data):
    """Unit embeddings of the anchor half's first images, of its others, and of the eval half."""
    root = shared_data / "lfw"
    embeddings = unit_embeddings(np.load(root / "mobilefacenet_embeddings.npy"))
    with (root / "split.csv").open(encoding="utf-8") as opened:
        role = {row["identity"]: row["role"] for row in csv.DictReader(opened)}
    people = [name.split("/")[0] for name in (root / "names.txt").read_text().split()]
    roles = np.array([role[person] for person in people])
    first = np.zeros(len(people), bool)
    first[np.unique(people, return_index=True)[1]] = True
    anchors = AnchorSet.from_embeddings(
        embeddings[(roles == "anchor") & first],
        names=np.array(people)[(roles == "anchor") & first].tolist(),
    )
    others = (roles == "anchor") & ~first
    return anchors, embeddings[others], np.array(people)[others], embeddings[roles == "eval"]


def test_real_faces_are_covered_by_their_own_domain_alone(lfw):
    anchors, _, _, probes = lfw
    told = coverage(probes, anchors)
    assert not told.wrong_domain
    assert told.share_uncovered < 0.03
    assert told.similarity == pytest.approx(told.own_similarity, abs=0.01)
    # Another model's space, as a rotation makes it; and a corner of the domain.
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(128, 128)))[0].astype(np.float32)
    rotated = AnchorSet.from_embeddings(anchors.embeddings @ rotation)
    centred = anchors.embeddings - anchors.embeddings.mean(0)
    side = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    corner = AnchorSet.from_embeddings(anchors.embeddings[side > np.quantile(side, 0.9)])
    assert coverage(probes, rotated).wrong_domain
    assert coverage(probes, corner).wrong_domain


def test_real_people_among_the_anchors_are_found(lfw):
    anchors, others, people, probes = lfw
    threshold = check.same_person_threshold(anchors, faces=len(others))
    assert 0.55 < threshold < 0.7
    # Strangers reach it as seldom as said: those that do are people under two names, and twins.
    assert check.identity_leaks(probes, anchors, threshold).total <= 0.004 * len(probes)
    found = check.identity_leaks(others, anchors, threshold)
    assert found.total >= 0.6 * len(others)
    right = np.array(anchors.names)[found.second] == people[found.first]
    assert right.mean() > 0.98
    assert check.known_leaks(others, people.tolist(), anchors).total == len(others)
