"""The weight of log F that impostor pairs support; on real faces where they are at hand."""

import math

import numpy as np
import pytest
import reference

from ida_jax.anchors import supported_weight as module
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import coverage, own_neighbourhood
from ida_jax.anchors.supported_weight import own_weight, probe_gain
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings
from ida_jax.ops.dao import fall_back
from ida_jax.rescoring.density import searched_log_density

WIDTH = 24


def _crowd(count, seed, *, where=0, reach=(0.3, 2.5)):
    """Faces around a centre, some near to it and some far, as good and bad images lie."""
    rng = np.random.default_rng(seed)
    centre = np.eye(WIDTH)[where]
    far = rng.uniform(*reach, size=(count, 1))
    return unit_embeddings(centre + far * rng.normal(size=(count, WIDTH)) / math.sqrt(WIDTH))


def _crowding(x, i, allowed, k, tau):
    similarities = np.sort(np.asarray(x, np.float64)[allowed] @ x[i].astype(np.float64))[::-1][:k]
    return -np.log(reference.density(similarities, tau)) / tau


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kind", ["none", "labels", "some unknown"])
def test_the_anchors_weight_is_its_formula(kind, k):
    tau, count = 2.0, 71
    x = _crowd(count, 3)
    labels = {
        "none": None,
        "labels": np.arange(count) // 2,
        "some unknown": np.where(np.arange(count) < 20, -1, np.arange(count) // 2),
    }[kind]
    own = (
        np.arange(count) if labels is None else np.where(labels < 0, 100 + np.arange(count), labels)
    )
    crowding = [_crowding(x, i, own != own[i], k, tau) for i in range(count)]

    def of_pair(i, j):
        allowed = (own != own[i]) & (own != own[j])
        return (_crowding(x, i, allowed, k, tau) + _crowding(x, j, allowed, k, tau)) / 2

    expected = reference.supported_weight(x, crowding, own, of_pair)
    got = own_weight(AnchorSet.from_embeddings(x, labels=labels), k=k, tau=tau)
    assert got.weight == pytest.approx(expected, abs=2e-3)
    assert got.people == np.unique(own).size
    assert 0.01 < got.error < 10


@pytest.mark.parametrize("tau", [1.0, 20.0])
def test_the_threshold_gains_and_their_errors_are_their_formula(tau, monkeypatch):
    monkeypatch.setattr(module, "_RESAMPLES", 5)
    monkeypatch.setattr(module, "_SPARE", 400)
    monkeypatch.setattr(module, "_FEWEST_ABOVE", 0.1)
    monkeypatch.setattr(module, "_GAIN_FARS", (1e-2, 1e-3))
    count, k = 53, 3
    anchors = AnchorSet.from_embeddings(_crowd(200, 1), k=k, tau=tau)
    x = _crowd(count, 2)
    log_f = np.asarray(searched_log_density(x, anchors), np.float64)
    # The faces are taken in an order of their own, which the resamples follow.
    order = np.random.default_rng(0).permutation(count)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=5)
    got = probe_gain(x, anchors, people=np.arange(count))
    for f, far in enumerate((1e-2, 1e-3)):
        gains = [
            reference.threshold_gain(x[order], log_f[order], tau, copies, far)
            for copies in ([1] * count, *drawn.tolist())
        ]
        assert got.gain[f] == pytest.approx(gains[0], abs=1e-5)
        assert got.error[f] == pytest.approx(np.std(gains[1:]), abs=1e-5)


def test_chance_supports_nothing_and_a_domain_does():
    random = own_weight(AnchorSet.from_embeddings(reference.unit((800, 64), 0)), k=10, tau=1.0)
    assert abs(random.weight) < 3 * random.error < 0.6
    domain = own_weight(AnchorSet.from_embeddings(_crowd(800, 0)), k=10, tau=1.0)
    assert domain.weight - 3 * domain.error > 0.5


def test_probes_of_the_domain_gain_and_others_do_not():
    anchors = AnchorSet.from_embeddings(_crowd(600, 0))
    same = probe_gain(_crowd(500, 1), anchors, people=np.arange(500))
    assert (same.harmful, same.helpful) == (False, True)
    assert same.gain[0] > 2 * same.error[0]
    assert same.share_sparser == pytest.approx(0.5, abs=0.1)
    # Faces that crowd elsewhere: how near they are to the anchors says nothing of them.
    other = _crowd(500, 1, where=1)
    outside = probe_gain(other, anchors, people=np.arange(500))
    assert (outside.harmful, outside.helpful) == (False, False)
    assert outside.share_sparser > 0.8
    # Beside faces of the anchors' kind it is the crowd that gains.
    mixed = np.concatenate([_crowd(250, 1), _crowd(250, 4, where=1, reach=(0.1, 0.6))])
    partly = probe_gain(mixed, anchors, people=np.arange(500))
    assert (partly.harmful, partly.helpful) == (True, False)
    assert "raises the threshold at FAR 1e-4 by 0." in partly.described()


def test_too_few_probes_for_the_lower_rate_are_never_enough_to_say_that_it_helps():
    anchors = AnchorSet.from_embeddings(_crowd(600, 0))
    few = probe_gain(_crowd(316, 1), anchors, people=np.arange(316))
    assert few.gain[0] > 2 * few.error[0]
    assert (few.error[1], few.harmful, few.helpful) == (math.inf, False, False)
    assert "316 people are too few for FAR 1e-4, for which 317 are needed" in few.described()
    assert probe_gain(_crowd(317, 1), anchors, people=np.arange(317)).error[1] < 1


@pytest.mark.parametrize("people", [199, 200])
def test_few_people_among_the_anchors_are_never_enough_to_say_that_it_helps(people):
    faces = _crowd(600, 0)
    anchors = AnchorSet.from_embeddings(faces, labels=np.arange(600) % people, k=10)
    gain = probe_gain(_crowd(400, 1), anchors, people=np.arange(400))
    assert min(gain.gain) > 2 * max(gain.error)
    assert gain.few_anchors == (people < 200)
    assert gain.helpful == (people >= 200)
    assert ("fewer than 20 k people" in gain.described()) == (people < 200)


def test_one_face_a_person_by_name_by_number_and_by_likeness():
    anchors = AnchorSet.from_embeddings(_crowd(300, 0))
    rng = np.random.default_rng(0)
    people = np.repeat(_crowd(90, 1), 4, axis=0)
    faces = unit_embeddings(people + 1e-3 * rng.normal(size=(360, WIDTH)))
    numbers = np.repeat(np.arange(90), 4)
    named = probe_gain(faces, anchors, people=np.array([f"p{n}" for n in numbers]))
    numbered = probe_gain(faces, anchors, people=numbers)
    alike = probe_gain(faces, anchors, threshold=0.99)
    assert named.people == numbered.people == alike.people == 90
    assert named.share_sparser == pytest.approx(alike.share_sparser, abs=0.03)
    # Whoever is unknown counts as a person.
    unknown = np.where(numbers < 80, numbers, -1)
    assert probe_gain(faces, anchors, people=unknown).people == 80 + 40


@pytest.mark.parametrize("count", [1, 100])
def test_few_people_support_no_statement(count):
    found = probe_gain(_crowd(count, 5, where=1), AnchorSet.from_embeddings(_crowd(300, 0)))
    assert (found.gain, found.error, found.people) == ((0, 0), (math.inf, math.inf), count)
    assert not found.harmful
    assert not found.helpful
    few = own_weight(AnchorSet.from_embeddings(_crowd(19, 0)), k=1, tau=1.0)
    assert few.error == math.inf
    same = own_weight(AnchorSet.from_embeddings(np.eye(30, dtype=np.float32)), k=3, tau=1.0)
    assert same.error == math.inf


def test_nothing_to_look_at():
    anchors = AnchorSet.from_embeddings(_crowd(30, 0), k=4)
    with pytest.raises(UserError, match="0 probes"):
        probe_gain(_crowd(30, 1)[:0], anchors)
    with pytest.raises(UserError, match=r"k = 30 neighbours"):
        own_weight(anchors, k=30, tau=1.0)


@pytest.fixture(scope="module")
def lfw(shared_data):
    """First images: embeddings of the anchor half, all of the eval half and who is on them."""
    root = shared_data / "lfw"
    embeddings = unit_embeddings(np.load(root / "mobilefacenet_embeddings.npy"))
    people = np.array([name.split("/")[0] for name in (root / "names.txt").read_text().split()])
    split = np.loadtxt(root / "split.csv", delimiter=",", dtype=str, skiprows=1)
    tested = np.isin(people, split[split[:, 1] == "eval", 0])
    first = np.zeros(len(people), bool)
    first[np.unique(people, return_index=True)[1]] = True
    return embeddings[first & ~tested], embeddings[tested], people[tested]


def _half_of(x):
    """Half of the faces, by their first principal direction: covered, and another domain."""
    centred = x - x.mean(axis=0)
    side = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return x[np.argsort(side)[: len(x) // 2]]


def test_a_shift_of_the_bulk_is_seen_on_real_faces(lfw):
    faces, probes, people = lfw
    right = probe_gain(probes, AnchorSet.from_embeddings(faces), people=people)
    assert right.helpful
    assert right.gain[0] > 2 * right.error[0]
    half = AnchorSet.from_embeddings(_half_of(faces))
    wrong = probe_gain(probes, half, people=people)
    assert not wrong.helpful
    assert wrong.share_sparser > right.share_sparser + 0.05
    # The tail does not show it.
    assert coverage(probes, half).share_uncovered < 0.2


def test_falling_back_on_real_faces(lfw):
    faces, probes, _ = lfw
    anchors = AnchorSet.from_embeddings(faces)
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(128, 128)))[0].astype(np.float32)
    left = {}
    for name, given in {
        "right": anchors,
        "another space": AnchorSet.from_embeddings(faces @ rotation),
        "random": AnchorSet.from_embeddings(reference.unit((2870, 128), 0)),
    }.items():
        searched = searched_log_density(probes, given)
        own, weight = own_neighbourhood(given, k=10, tau=1.0), own_weight(given, k=10, tau=1.0)
        fallen = fall_back(searched, own.log_density, weight=weight.weight, error=weight.error)
        left[name] = np.std(fallen) / np.std(searched)
    assert 0.1 < left["right"] < 0.4
    assert left["another space"] < 0.05
    assert left["random"] < 0.05
