"""The fake-db: which faces are kept, by a slow transcription of the rules; and what is told."""

import itertools
import re
import types
from dataclasses import replace

import numpy as np
import pytest
import reference

from ida_jax.anchors import candidates as candidates_module
from ida_jax.anchors import fake_rules
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.candidates import CandidateFaces, generated_candidates
from ida_jax.anchors.check import same_person_threshold
from ida_jax.anchors.fake import fake_anchors, provenance_line
from ida_jax.anchors.fake_rules import (
    DUPLICATE,
    IMPLAUSIBLE,
    KEPT,
    NEAR_TRAINING,
    UNREADABLE,
    TrainingFaces,
)
from ida_jax.artefacts.face_model import Preprocessing
from ida_jax.common.errors import UserError

WIDTH, SIZE, PEOPLE, K = 24, 8, 70, 4
# The embedding is written into an image's first pixels, and read by the stand-in for a model.
MODEL = types.SimpleNamespace(
    width=WIDTH,
    fingerprint="0123456789abcdef",
    preprocessing=Preprocessing(SIZE),
    raw_embeddings=lambda images, flip=False: np.stack(
        [np.ravel(image)[:WIDTH].astype(np.float32) - 127 for image in images]
    ),
)


def _image(embedding):
    image = np.zeros(SIZE * SIZE * 3, np.uint8)
    image[:WIDTH] = np.clip(np.round(embedding * 120), -127, 127) + 127
    return image.reshape(SIZE, SIZE, 3)


def _candidates(embeddings, *, endless=False):
    """Some faces; endless ones begin again after the last, as a bad generator's may."""
    images = np.stack([_image(embedding) for embedding in embeddings])

    def draw(first, count):
        return images[np.arange(first, first + count) % len(images)]

    made = {"generator": "fedcba9876543210", "trained": {}, "seed": 3, "truncation": 0.7}
    return CandidateFaces(draw, None if endless else len(images), SIZE, made)


def _mixture():
    """Strangers, and among them no faces, training people, repetitions and broken ones."""
    rng = np.random.default_rng(5)
    domain = reference.unit((1, WIDTH), 1)
    people = reference.unit((PEOPLE, WIDTH), 2) + 0.6 * domain
    labels = np.arange(3 * PEOPLE) % PEOPLE
    images = people[labels] + 0.08 * rng.normal(size=(3 * PEOPLE, WIDTH))
    strangers = reference.unit((120, WIDTH), 3) + 0.6 * domain
    none = reference.unit((9, WIDTH), 4) - 2 * domain
    copied = images[5:14] + 0.02 * rng.normal(size=(9, WIDTH))
    again = strangers[20:31] + 0.02 * rng.normal(size=(11, WIDTH))
    drawn = np.concatenate([strangers, none, copied, again])
    drawn /= np.linalg.norm(drawn, axis=1)[:, None]
    drawn = drawn[rng.permutation(len(drawn))]
    drawn[[4, 33]] = 0  # an embedding of zero
    return TrainingFaces(images.astype(np.float32), labels, "the set"), _candidates(drawn)


def _people_twice():
    """Half of the people under two labels."""
    twice = _mixture()[0].embeddings[: PEOPLE + 35]
    return TrainingFaces(twice, np.arange(len(twice)), "the set")


def _all(candidates):
    """float64 [N, D] of all candidates, NaN where there is none."""
    found = MODEL.raw_embeddings(candidates.draw(0, candidates.available)).astype(np.float64)
    found[~found.any(axis=1)] = np.nan
    return found / np.linalg.norm(found, axis=1)[:, None]


def _transcribed(candidates, training, thresholds, *, count):
    """Verdicts, one candidate after the other."""
    faces = _all(candidates)
    real = training.embeddings.astype(np.float64)
    real /= np.linalg.norm(real, axis=1)[:, None]
    first = np.array([np.flatnonzero(training.labels == person)[0] for person in range(PEOPLE)])
    verdicts, kept = [], []
    for face in faces:
        if np.isnan(face).any():
            verdicts.append(UNREADABLE)
        elif np.sort(real[first] @ face)[-K:].mean() < thresholds["plausible_similarity"]:
            verdicts.append(IMPLAUSIBLE)
        elif (real @ face).max() >= thresholds["privacy_cosine"]:
            verdicts.append(NEAR_TRAINING)
        elif any(face @ other >= thresholds["duplicate_cosine"] for other in kept):
            verdicts.append(DUPLICATE)
        else:
            verdicts.append(KEPT)
            kept.append(face)
        if len(kept) == count:
            break
    return np.array(verdicts), np.array(kept)


OPTIONS = {"k": K, "flip": True, "tau": 2.0}


def test_the_rules_as_transcribed():
    training, candidates = _mixture()
    anchors, report = fake_anchors(candidates, MODEL, count=80, training=training, **OPTIONS)
    thresholds = report.provenance["thresholds"]
    verdicts, kept = _transcribed(candidates, training, thresholds, count=80)
    np.testing.assert_array_equal(report.verdicts, verdicts)
    assert set(verdicts) == {UNREADABLE, IMPLAUSIBLE, NEAR_TRAINING, DUPLICATE, KEPT}
    np.testing.assert_allclose(anchors.embeddings, kept, atol=1e-6)
    assert (anchors.source, anchors.k, anchors.tau) == ("fake_db", K, 2.0)
    assert anchors.fingerprint == MODEL.fingerprint
    faces = _all(candidates)[: len(verdicts)]
    unit = training.embeddings / np.linalg.norm(training.embeddings, axis=1)[:, None]
    np.testing.assert_allclose(report.nearest, (faces @ unit.T).max(axis=1), atol=1e-6)


def test_an_implausible_face_is_below_what_one_in_a_hundred_real_people_has():
    training, candidates = _mixture()
    _, report = fake_anchors(candidates, MODEL, count=60, training=training, **OPTIONS)
    unit = training.embeddings[:PEOPLE].astype(np.float64)  # the first of each
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    cosines = unit @ unit.T - 3 * np.eye(PEOPLE)
    expected = np.quantile(np.sort(cosines, axis=1)[:, -K:].mean(axis=1), 0.01)
    found = report.provenance["thresholds"]["plausible_similarity"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("count", [40, 90])
def test_the_thresholds_are_what_strangers_reach_by_chance(count):
    training, candidates = _mixture()
    _, report = fake_anchors(candidates, MODEL, count=count, training=training, **OPTIONS)
    everyone = AnchorSet.from_embeddings(training.embeddings, labels=training.labels)
    found = report.provenance["thresholds"]
    assert found["privacy_cosine"] == pytest.approx(same_person_threshold(everyone, faces=count))
    # The Gumbel distribution of the nearest of P people; of `count`, where these are more.
    unit = training.embeddings[:PEOPLE].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    nearest = (unit @ unit.T - 3 * np.eye(PEOPLE)).max(axis=1)
    low, high = np.quantile(nearest, [0.25, 0.75])
    beta = (high - low) / (np.log(np.log(4)) - np.log(np.log(4 / 3)))
    mu = low + beta * np.log(np.log(4)) + beta * max(0, np.log(count / PEOPLE))
    gumbel = mu - beta * np.log(-np.log(1 - 1 / count))
    assert found["duplicate_cosine"] == pytest.approx(gumbel, abs=0.01 * beta)


def test_chunks_and_blocks_do_not_change_the_result(monkeypatch):
    training, candidates = _mixture()
    found = []
    for chunk, block in ((7, 3), (64, 11), (512, 8192)):
        monkeypatch.setattr(candidates_module, "_CHUNK", chunk)
        monkeypatch.setattr(fake_rules, "_KEPT_BLOCK", block)
        found.append(fake_anchors(candidates, MODEL, count=80, training=training, **OPTIONS))
    for anchors, report in found[1:]:
        np.testing.assert_array_equal(anchors.embeddings, found[0][0].embeddings)
        np.testing.assert_array_equal(report.verdicts, found[0][1].verdicts)


def test_given_cosines_are_taken():
    training, candidates = _mixture()
    _, report = fake_anchors(
        candidates, MODEL, count=50, training=training, duplicate_cosine=0.9, privacy_cosine=0.8,
        **OPTIONS,
    )  # fmt: skip
    thresholds = report.provenance["thresholds"]
    assert (thresholds["duplicate_cosine"], thresholds["privacy_cosine"]) == (0.9, 0.8)
    verdicts, _ = _transcribed(candidates, training, thresholds, count=50)
    np.testing.assert_array_equal(report.verdicts, verdicts)


def test_without_training_faces_privacy_is_said_to_be_unchecked():
    _, candidates = _mixture()
    anchors, report = fake_anchors(candidates, MODEL, count=60, **OPTIONS)
    assert report.warnings[0].startswith("privacy: not checked")
    assert anchors.provenance["privacy"] == "not checked"
    assert provenance_line(anchors.provenance).endswith("privacy: not checked")
    assert np.isnan(report.nearest).all()
    assert set(report.verdicts) == {UNREADABLE, DUPLICATE, KEPT}
    head = _all(candidates)[:60]
    own = AnchorSet(head[np.isfinite(head[:, 0])].astype(np.float32))
    expected = same_person_threshold(own, faces=len(own))
    assert anchors.provenance["thresholds"]["duplicate_cosine"] == pytest.approx(expected)


def test_a_count_out_of_reach_is_told_with_what_to_do():
    training, candidates = _mixture()
    with pytest.raises(UserError, match="found only") as raised:
        fake_anchors(candidates, MODEL, count=140, training=training, **OPTIONS)
    line = str(raised.value)
    kept = int(line.split(" ")[2])
    assert f"found only {kept} of 140 anchors in {candidates.available} faces" in line
    assert "2 unreadable" in line
    assert "9 implausible" in line
    assert "too near a training face" in line
    assert "raise --truncation" in line
    assert "\n" not in line
    same = dict(re.findall(r"--(count|duplicate_cosine|privacy_cosine)=([0-9.]+[0-9])", line))
    cosines = {name: float(same[name]) for name in ("duplicate_cosine", "privacy_cosine")}
    anchors, _ = fake_anchors(
        candidates, MODEL, count=int(same["count"]), training=training, **cosines, **OPTIONS
    )
    assert len(anchors) == kept


def test_an_endless_generator_is_given_up():
    rows = reference.unit((30, WIDTH), 3)
    with pytest.raises(UserError, match=r"found only 30 of 40 anchors in 160 faces.*another gen"):
        fake_anchors(_candidates(rows, endless=True), MODEL, count=40, **OPTIONS)
    with pytest.raises(UserError, match="found only 30 of 40 anchors in 77 faces"):
        fake_anchors(_candidates(rows, endless=True), MODEL, count=40, most_drawn=77, **OPTIONS)


def test_images_that_are_no_faces_are_told_as_such():
    training, _ = _mixture()
    elsewhere = reference.unit((50, WIDTH), 9) - 2 * reference.unit((1, WIDTH), 1)
    with pytest.raises(
        UserError, match="50 implausible; most do not look like faces to the model"
    ) as told:
        fake_anchors(_candidates(elsewhere), MODEL, count=20, training=training, **OPTIONS)
    assert str(told.value).startswith("found only 0 of 20 anchors in 50 faces")


def test_a_killed_call_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates_module, "_CHUNK", 16)
    training, candidates = _mixture()
    expected, report = fake_anchors(candidates, MODEL, count=80, training=training, **OPTIONS)
    drawn = []

    def draw(first, count):
        if first == 48 and 48 not in drawn:
            drawn.append(first)
            raise KeyboardInterrupt
        drawn.append(first)
        return candidates.draw(first, count)

    killed = replace(candidates, draw=draw)
    options = {"count": 80, "training": training, "parts": tmp_path / "p", **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        fake_anchors(killed, MODEL, **options)
    found, again = fake_anchors(killed, MODEL, **options)
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    np.testing.assert_array_equal(again.verdicts, report.verdicts)
    np.testing.assert_array_equal(again.nearest, report.nearest)
    assert drawn[:5] == [0, 16, 32, 48, 48]
    # Another seed's faces are not taken for these.
    other = replace(killed, provenance={**killed.provenance, "seed": 4})
    drawn.clear()
    drawn.append(48)
    fake_anchors(other, MODEL, **options)
    assert drawn[1:3] == [0, 16]


def test_training_people_who_are_told_apart_badly_are_warned_of():
    _, report = fake_anchors(_mixture()[1], MODEL, count=60, training=_people_twice(), **OPTIONS)
    assert len(report.warnings) == 1
    assert "hardly separates the training people" in report.warnings[0]


def test_training_faces_without_labels_are_warned_of():
    training, candidates = _mixture()
    training = TrainingFaces(training.embeddings[:PEOPLE], None, "the set")  # one of each
    _, report = fake_anchors(candidates, MODEL, count=60, training=training, **OPTIONS)
    assert len(report.warnings) == 1
    assert "the training faces have no labels" in report.warnings[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"count": 3}, "k = 4 of 3 anchors: expected k from 1 to the count"),
        ({"count": 90, "k": 70}, "the set: 70 people, expected more than k = 70"),
        ({"duplicate_cosine": 1.5}, "duplicate_cosine is 1.5: expected a cosine"),
        ({"privacy_cosine": float("nan")}, "privacy_cosine is nan: expected a cosine"),
        ({"count": 5000}, "5,000 anchors were asked for from 149 faces: lower the count"),
        ({"most_drawn": 30}, "60 anchors were asked for from 30 faces"),
        ({"width": 7}, "model's embeddings are 24 wide, the training faces' 7"),
        ({"unlabelled": True}, "several times without labels.*--training_labels"),
        ({"size": 16}, "the generator makes crops of 16×16 pixels, the model takes 8×8"),
    ],
)
def test_mistakes(options, match):
    training, candidates = _mixture()
    options = {"count": 60, "training": training, **OPTIONS, **options}
    if options.pop("unlabelled", False):
        options["training"] = _people_twice()._replace(labels=None)
    if width := options.pop("width", None):
        options["training"] = training._replace(embeddings=training.embeddings[:, :width])
    if size := options.pop("size", None):
        candidates = replace(candidates, image_size=size)
    with pytest.raises(UserError, match=match) as told:
        fake_anchors(candidates, MODEL, **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("truncation", [0, -0.5, 1.01, float("nan")])
def test_a_truncation_out_of_range(truncation):
    with pytest.raises(UserError, match="expected 0 < ψ ≤ 1"):
        generated_candidates(None, truncation=truncation)


def test_no_near_duplicates_are_left():
    """Of a small cloud the kept ones are below the threshold pairwise, and the dropped ones not."""
    faces = _all(_candidates(reference.unit((90, WIDTH), 7, clusters=9)))
    candidates = _candidates(faces)
    with pytest.raises(UserError) as raised:
        fake_anchors(candidates, MODEL, count=90, duplicate_cosine=0.8, **OPTIONS)
    count = int(str(raised.value).split(" ")[2])
    anchors, report = fake_anchors(
        candidates, MODEL, count=count, duplicate_cosine=0.8, **{**OPTIONS, "k": 1}
    )
    kept = anchors.embeddings.astype(np.float64)
    for one, other in itertools.combinations(kept, 2):
        assert one @ other < 0.8
    dropped = faces[report.numbers(DUPLICATE)]
    assert len(dropped)
    assert ((dropped @ kept.T).max(axis=1) >= 0.8).all()
