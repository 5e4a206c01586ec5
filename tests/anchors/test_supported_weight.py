"""The weight of log F that impostor pairs support; on real faces where they are at hand."""

import math

import numpy as np
import pytest
import reference

from ida_jax.anchors import supported_weight as module
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import coverage
from ida_jax.anchors.supported_weight import probe_gain, supported_weight
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings
from ida_jax.rescoring.density import searched_log_density

WIDTH = 24


def _crowd(count, seed, *, where=0, reach=(0.3, 2.5)):
    """Faces around a centre, some near to it and some far, as good and bad images lie."""
    rng = np.random.default_rng(seed)
    centre = np.eye(WIDTH)[where]
    far = rng.uniform(*reach, size=(count, 1))
    return unit_embeddings(centre + far * rng.normal(size=(count, WIDTH)) / math.sqrt(WIDTH))


def test_the_weight_is_its_formula(monkeypatch):
    monkeypatch.setattr(module, "_RESAMPLES", 4)
    monkeypatch.setattr(module, "_SPARE", 60)
    monkeypatch.setattr(module, "FEWEST_PROBES", 60)
    monkeypatch.setattr(module, "_MARGIN", 0.8)
    k, tau = 3, 2.0
    anchors = AnchorSet.from_embeddings(_crowd(200, 1), k=k, tau=tau)
    people = _crowd(70, 2)
    again = people[:9] + 0.02 * np.random.default_rng(3).normal(size=(9, WIDTH))
    faces = np.concatenate([people, again])
    x = unit_embeddings(faces)
    x = x[reference.one_face_each(x, 0.8)]
    count = len(x)
    assert 60 <= count < len(faces)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=4)
    crowding = -np.asarray(searched_log_density(x, anchors), np.float64) / tau
    got = supported_weight(3 * faces, anchors)
    assert got.probes == count
    for q, share in enumerate((1e-2, 3e-3, 1e-3)):
        omega, *others = [
            reference.supported_weight(x, crowding, share, copies=copies)
            for copies in ([1] * count, *drawn.tolist())
        ]
        assert got.supported[q] == pytest.approx(omega, abs=2e-3)
        assert got.error[q] == pytest.approx(np.std(others), abs=2e-3)
    safe = 0.85 * np.min(np.array(got.supported) - 1.645 * np.array(got.error))
    lowering = [
        reference.lowering_weight(x, -tau * crowding, tau, share) for share in (1e-2, 3e-3, 1e-3)
    ]
    assert got.weight == np.floor(100 * min(max(safe, 0), *lowering)) / 100


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
    probes = _crowd(600, 1)
    random = supported_weight(probes, AnchorSet.from_embeddings(reference.unit((600, WIDTH), 0)))
    assert random.weight < 0.1
    domain = supported_weight(probes, AnchorSet.from_embeddings(_crowd(600, 0)))
    assert domain.weight > 0.5
    # A crowd where no anchor is supports less, though half of the probes are of the domain.
    crowd = np.concatenate([probes[:300], _crowd(300, 4, where=1, reach=(0.1, 0.6))])
    assert supported_weight(crowd, AnchorSet.from_embeddings(_crowd(600, 0))).weight == 0


def test_who_is_left_out_of_a_weight():
    faces = _crowd(600, 1)
    labels = np.arange(600)
    own = AnchorSet.from_embeddings(faces, labels=labels)
    others = supported_weight(faces, own, labels=labels)
    assert others != supported_weight(faces, own)
    bad = np.concatenate([faces, np.zeros((3, WIDTH)), np.full((2, WIDTH), np.nan)])
    anchors = AnchorSet.from_embeddings(_crowd(100, 0))
    some = supported_weight(bad, anchors)
    assert 500 < some.probes <= 600
    assert some == supported_weight(faces, anchors)


def test_other_images_of_one_person_are_found():
    people = reference.unit((600, 64), 0)
    again = people[:200] + 0.05 * reference.unit((200, 64), 1)
    anchors = AnchorSet.from_embeddings(reference.unit((100, 64), 2))
    found = supported_weight(np.concatenate([people, again]), anchors)
    assert found.probes == supported_weight(people, anchors).probes == 600


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
    anchors = AnchorSet.from_embeddings(_crowd(300, 0))
    few = supported_weight(_crowd(499, 1), anchors)
    assert (few.weight, few.error, few.probes) == (0, (math.inf,) * 3, 499)
    nowhere = AnchorSet.from_embeddings(np.eye(1, 2 * WIDTH, dtype=np.float32).repeat(30, axis=0))
    faces = np.concatenate([np.zeros((600, WIDTH)), _crowd(600, 0)], axis=1)
    assert supported_weight(faces, nowhere).weight == 0


def test_nothing_to_look_at():
    anchors = AnchorSet.from_embeddings(_crowd(30, 0), k=4)
    with pytest.raises(UserError, match="0 probes"):
        probe_gain(_crowd(30, 1)[:0], anchors)
    assert supported_weight(_crowd(500, 1), anchors, k=7).error[0] == math.inf
    assert supported_weight(_crowd(500, 1), anchors, k=6).error[0] < 1


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
    faces, probes, people = lfw
    probes = probes[np.unique(people, return_index=True)[1]]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))[0]
    weights = {
        name: supported_weight(probes, AnchorSet.from_embeddings(given)).weight
        for name, given in {
            "right": faces,
            "another space": faces @ rotation.astype(np.float32),
            "random": reference.unit((2870, 128), 0),
        }.items()
    }
    assert 0.5 < weights["right"] < 1
    assert weights["another space"] < 0.1
    assert weights["random"] < 0.1
