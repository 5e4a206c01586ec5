import itertools

import numpy as np
import pytest
from resamples import behind, summarised

from ida_jax.common.errors import UserError
from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.bootstrap import bootstrap_tar
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.roc import tar_at_far
from ida_jax.protocols import scored_pairs
from ida_jax.protocols.scored_pairs import band_fars, notes_of_few
from ida_jax.protocols.verification import (
    evaluate_all_pairs,
    evaluate_kfold,
    evaluate_labelled_pairs,
)
from ida_jax.rescoring.pairs import score_all_pairs, score_pairs
from ida_jax.rescoring.terms import FaceTerms, cosine_terms

FARS = (0.2, 0.02)


def some_faces(rng, labels, width=6):
    """Faces around their identity's centre, and two methods: cosine and one with made-up terms."""
    centres = rng.normal(size=(max(labels) + 1, width))
    faces = centres[labels] + 0.7 * rng.normal(size=(len(labels), width))
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    log_density = rng.normal(size=len(labels)).astype(np.float32)
    # A face that must not match anybody.
    log_density[1] = np.nan
    made_up = FaceTerms("dao", log_density[:, None], np.float32([4.0]))
    return faces, {"cosine": cosine_terms(len(faces)), "ida_r": made_up}


def listed_scores(faces, labels, methods, ignored=()):
    """All pairs (i, j), i < j, written out: their rows, answers, and scores by method.

    Those between ignored identities are simply deleted.
    """
    rows = np.array(list(itertools.combinations(range(len(faces)), 2)))
    same = labels[rows[:, 0]] == labels[rows[:, 1]]
    scores = {}
    for name, terms in methods.items():
        # The same last bits as in the tiles of all pairs.
        split = score_all_pairs(faces, labels, terms)
        scores[name] = np.empty(len(rows), np.float32)
        scores[name][same], scores[name][~same] = split
        expected = score_pairs(faces, rows, terms)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-5, atol=1e-5)
    apart = {frozenset(pair) for pair in ignored}
    kept = np.array([frozenset(pair) not in apart for pair in labels[rows].tolist()])
    return rows[kept], same[kept], {name: of[kept] for name, of in scores.items()}


# Twice the same pair, in either order; one person under three names; a single image.
@pytest.fixture(scope="module", params=[(), ((3, 0), (2, 1), (0, 3)), ((3, 1), (1, 2), (4, 2))])
def everything(request):
    rng = np.random.default_rng(0)
    labels = np.array([3, 0, 1, 1, 2, 3, 3, 0, 4, 1, 2, 3, 0, 4, 1, 0, 2])
    faces, methods = some_faces(rng, labels)
    ignored = np.array(request.param, np.int64).reshape(-1, 2)
    found = evaluate_all_pairs(
        faces, labels * 10 - 7, methods, fars=FARS, ignored=ignored * 10 - 7, resamples=40, seed=1
    )
    listed = listed_scores(faces, labels, methods, request.param)
    assert found.ignored == len(labels) * (len(labels) - 1) // 2 - len(listed[0])
    assert (found.ignored > 0) == (len(request.param) > 0)
    return labels, found, listed


def test_all_pairs_have_the_figures_of_the_list(everything):
    labels, found, (rows, same, scores) = everything
    expected = bootstrap_tar(
        scores, same, fars=FARS, identities=labels[rows], baseline="cosine", resamples=40, seed=1
    )
    for name, figures in found.evaluated.figures.items():
        points = tar_at_far(scores[name][same], scores[name][~same], FARS)
        assert figures["genuine"] + figures["impostor"] == len(rows)
        assert list(figures["tar@far"].values()) == [point.tar for point in points]
        assert list(figures["threshold@far"].values()) == [point.threshold for point in points]
        intervals = [list(point.tar) for point in expected.methods[name]]
        assert list(figures["tar_interval@far"].values()) == intervals
        for kind, sorted_scores in zip((same, ~same), found.scores[name], strict=True):
            np.testing.assert_array_equal(sorted_scores, np.sort(scores[name][kind]))
    gains = expected.differences["ida_r"]
    figures = found.evaluated.figures["ida_r"]
    assert list(figures["tar_gain@far"].values()) == [gain.gain for gain in gains]
    assert list(figures["tar_gain_interval@far"].values()) == [list(gain.tar) for gain in gains]
    assert "tar_gain@far" not in found.evaluated.figures["cosine"]


def test_curves_have_the_bootstraps_band(everything):
    labels, found, (rows, same, scores) = everything
    for name, curve in found.evaluated.curves.items():
        assert set(FARS) <= set(curve.far)
        assert np.all(np.diff(curve.far) > 0)
        assert curve.far[-1] == 1
        (of,) = bootstrap_tar(
            {name: scores[name]},
            same,
            fars=curve.far,
            identities=labels[rows],
            resamples=40,
            seed=1,
        ).methods.values()
        points = tar_at_far(scores[name][same], scores[name][~same], curve.far)
        np.testing.assert_array_equal(curve.tar, [point.tar for point in points])
        np.testing.assert_array_equal(curve.low, [point.tar.low for point in of])
        np.testing.assert_array_equal(curve.high, [point.tar.high for point in of])


def test_changed_pairs_are_rows_of_faces(everything):
    _, found, (rows, same, scores) = everything
    assert found.changed_far == 0.2
    thresholds = {
        name: tar_at_far(each[same], each[~same], [0.2])[0].threshold
        for name, each in scores.items()
    }
    right = {name: (scores[name] > thresholds[name]) == same for name in scores}
    corrected, broken = right["ida_r"] & ~right["cosine"], right["cosine"] & ~right["ida_r"]
    for kind, wanted in (
        (("corrected", True), corrected & same),
        (("corrected", False), corrected & ~same),
        (("broken", True), broken & same),
        (("broken", False), broken & ~same),
    ):
        listed, total = found.changed[kind]
        expected = sorted(map(tuple, rows[wanted].tolist()))
        assert total == len(expected)
        assert len(listed) == min(40, len(expected))
        assert set(map(tuple, listed.tolist())) <= set(expected)
    assert found.changed["corrected", False].total > 0


def test_ignored_labels_must_be_faces_and_two():
    labels = np.array([0, 0, 1, 1, 2])
    faces, methods = some_faces(np.random.default_rng(1), labels)
    for ignored, message in (([[0, 3]], "0 and 3"), ([[-1, 1]], "-1 and 1"), ([[2, 2]], "twice")):
        with pytest.raises(UserError, match=message):
            evaluate_all_pairs(faces, labels, methods, fars=[0.5], ignored=ignored)
    with pytest.raises(UserError, match="0 impostor scores"):
        evaluate_all_pairs(
            faces, labels, methods, fars=[0.5], ignored=[[0, 1], [1, 2], [0, 2]], resamples=0
        )


def test_no_decisions_change_without_a_second_method_or_ten_false_accepts():
    labels = np.array([0, 0, 1, 1, 2])
    faces, methods = some_faces(np.random.default_rng(1), labels)
    for chosen in (methods, {"cosine": methods["cosine"]}):
        found = evaluate_all_pairs(faces, labels, chosen, fars=[0.5], resamples=0)
        assert found.changed is None
        assert found.changed_far is None


def test_no_resamples_leave_the_intervals_out():
    labels = np.array([0, 0, 1, 1, 2])
    faces, methods = some_faces(np.random.default_rng(1), labels)
    evaluated = evaluate_all_pairs(faces, labels, methods, fars=[0.5], resamples=0).evaluated
    for name, figures in evaluated.figures.items():
        assert not any("interval" in key for key in figures)
        assert np.isnan(evaluated.curves[name].low).all()
        assert evaluated.curves[name].far.tolist() == list(band_fars(8))


def test_band_ends_where_it_would_cost_too_much(monkeypatch):
    monkeypatch.setattr(scored_pairs, "_BAND_FALSE_ACCEPTS", 5)
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    faces, methods = some_faces(np.random.default_rng(2), labels)
    evaluated = evaluate_all_pairs(faces, labels, methods, fars=[1 / 24], resamples=9).evaluated
    curve = evaluated.curves["cosine"]
    np.testing.assert_allclose(curve.far[:5], np.arange(1, 6) / 24)
    assert np.isfinite(curve.low[:5]).all()
    assert np.isnan(curve.low[5:]).all()
    assert curve.far[-1] == 1


def test_labelled_pairs_over_identities_and_over_pairs(everything):
    labels, found, (rows, same, scores) = everything
    over_identities = evaluate_labelled_pairs(
        scores, same, labels[rows], fars=FARS, resamples=40, seed=1
    )
    assert over_identities.figures == found.evaluated.figures
    assert over_identities.notes == found.evaluated.notes
    over_pairs = evaluate_labelled_pairs(scores, same, None, fars=FARS, resamples=40, seed=1)
    assert "independent" in over_pairs.notes[-1]
    expected = bootstrap_tar(
        scores, same, fars=over_pairs.curves["cosine"].far, baseline="cosine", resamples=40, seed=1
    )
    for name, points in expected.methods.items():
        np.testing.assert_array_equal(over_pairs.curves[name].low, [p.tar.low for p in points])


def test_notes_of_few_are_noted(everything):
    _, found, _ = everything
    few, *others = found.evaluated.notes
    count = found.evaluated.figures["cosine"]["false_accepts"]["0.02"]
    assert 1 <= count <= 2
    assert few.startswith(f"at FAR 0.02 the TAR rests on {count} false accepts")
    units = [of["tar_units@far"].items() for of in found.evaluated.figures.values()]
    wanted = sorted({far for of in units for far, number in of if number < 5}, key=float)
    assert len(others) == bool(wanted)
    for note in others:
        assert note.startswith(f"TAR at FAR {', '.join(reversed(wanted))}: the errors of a method")
    counts = {"a": {"false_accepts": {"0.1": 10}}, "b": {"false_accepts": {"0.1": 9}}}
    assert "9 to 10 false accepts" in notes_of_few(counts)[0]
    assert notes_of_few({"a": counts["a"]}) == ()


@pytest.mark.parametrize("pairs", [59, 60, 61])
def test_kfold_accuracy_and_its_intervals(pairs):
    rng = np.random.default_rng(pairs)
    labels = rng.integers(9, size=40)
    faces, methods = some_faces(rng, labels)
    rows = rng.integers(40, size=(pairs, 2))
    rows[:, 1] += rows[:, 0] == rows[:, 1]
    rows %= 40
    same = labels[rows[:, 0]] == labels[rows[:, 1]]
    fold = np.arange(pairs) % 3
    listed = PairList(rows, same, fold)
    found = evaluate_kfold(faces, listed, methods, labels=labels + 5, resamples=50, seed=2)

    present, units = np.unique(labels[rows], return_inverse=True)
    units = units.reshape(-1, 2)
    draw = np.random.default_rng(2)
    means = {name: [] for name in methods}
    accuracies = {
        name: kfold_accuracy(score_pairs(faces, rows, terms), same, folds=fold)
        for name, terms in methods.items()
    }
    for _ in range(50):
        counts = np.bincount(draw.integers(present.size, size=present.size), minlength=99)
        often = np.where(units[:, 0] == units[:, 1], 1, counts[units[:, 1]]) * counts[units[:, 0]]
        for name, accuracy in accuracies.items():
            means[name].append([np.mean(np.repeat(accuracy.correct, often))])
    number = {name: behind(of.correct, units) for name, of in accuracies.items()}
    for name, accuracy in accuracies.items():
        figures = found.figures[name]
        assert figures["accuracy"] == accuracy.mean
        assert figures["accuracy_deviation"] == accuracy.deviation
        assert figures["pairs"] == pairs
        (expected,) = summarised(means[name], [number[name]])
        np.testing.assert_allclose(figures["accuracy_interval"], expected)
        assert figures["accuracy_units"] == pytest.approx(number[name])
        curve = found.curves[name]
        assert np.all(curve.low <= curve.high)
    gain = found.figures["ida_r"]
    expected = accuracies["ida_r"].mean - accuracies["cosine"].mean
    assert gain["accuracy_gain"] == pytest.approx(expected)
    differences = np.array(means["ida_r"]) - np.array(means["cosine"])
    (expected,) = summarised(differences, [max(number.values())])
    np.testing.assert_allclose(gain["accuracy_gain_interval"], expected)
    assert "accuracy_gain" not in found.figures["cosine"]


def test_labels_of_another_number_are_the_users_mistake():
    labels = np.array([0, 0, 1, 1])
    faces, methods = some_faces(np.random.default_rng(3), labels)
    listed = PairList(np.array([[0, 1], [1, 2]]), np.array([True, False]), np.array([0, 1]))
    with pytest.raises(UserError, match="3 labels for 4 faces"):
        evaluate_kfold(faces, listed, methods, labels=labels[:3])
    with pytest.raises(UserError, match="3 labels for 4 faces"):
        evaluate_all_pairs(faces, labels[:3], methods, fars=FARS)
    with pytest.raises(UserError, match="0 impostor scores"):
        evaluate_all_pairs(faces, np.zeros(4, int), methods, fars=FARS)
