import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resamples import behind, drawn_counts, summarised, times

from ida_jax.common.errors import UserError
from ida_jax.metrics import resampling as depths
from ida_jax.metrics.bootstrap import (
    bootstrap_deepening,
    bootstrap_means,
    bootstrap_tails,
    bootstrap_tar,
)
from ida_jax.metrics.interval_figures import tar_intervals
from ida_jax.metrics.resampling import ShortTail, pair_list_total, tail
from ida_jax.metrics.roc import tar_at_far, threshold_interval

FARS = (1.0, 0.5, 0.1, 0.011)


def pairs_of(rng, people, count):
    """Identities of random pairs of both kinds; two methods' scores with ties and NaN."""
    identities = rng.integers(people, size=(count, 2))
    identities[0] = (0, 1)
    identities[1] = (0, 0)
    same = identities[:, 0] == identities[:, 1]
    methods = {}
    for name, gain in (("cosine", 1.0), ("ida_r", 1.5)):
        scores = np.round(rng.normal(gain * same, 1), 1)
        scores[rng.random(count) < 0.05] = np.nan
        methods[name] = scores.astype(np.float32)
    return identities, same, methods


def written_out(scores, same, identities, counts):
    """The resampled scores of both kinds as plain lists."""
    genuine, impostor = [], []
    for score, is_same, (a, b) in zip(scores, same, identities, strict=True):
        if is_same:
            genuine += [score] * counts[a]
        else:
            impostor += [score] * (counts[a] * counts[b])
    return genuine, impostor


def check(found, points, methods, same, pairs):
    """Compares with the oracle's points: {method: [R][F] operating points}.

    Args:
      methods, same, pairs: the scores, labels and units of the pairs as they are.
    """
    units = {
        name: [
            behind(np.nan_to_num(s[same], nan=-np.inf) > point.threshold, np.array(pairs)[same])
            for point in tar_at_far(s[same], s[~same], FARS)
        ]
        for name, s in methods.items()
    }
    tars = {name: [[p.tar for p in row] for row in rows] for name, rows in points.items()}
    for name, rows in points.items():
        thresholds = summarised([[p.threshold for p in row] for row in rows])
        for k, point in enumerate(found.methods[name]):
            assert point.far == FARS[k]
            assert point.units == pytest.approx(units[name][k])
            expected = summarised(tars[name], units[name])[k]
            assert point.tar == pytest.approx(expected, abs=1e-12)
            assert point.threshold == thresholds[k]
    gains = np.array(tars["ida_r"]) - np.array(tars["cosine"])
    assert list(found.differences) == ["ida_r"]
    for k, difference in enumerate(found.differences["ida_r"]):
        expected = summarised(gains, np.maximum(units["cosine"], units["ida_r"]))[k]
        assert difference.tar == pytest.approx(expected, abs=1e-12)
        assert difference.share_above_0 == pytest.approx(np.mean(gains[:, k] > 0))


@pytest.mark.parametrize("block", [1, 3, 4096])
@pytest.mark.parametrize(("people", "count", "seed"), [(2, 9, 0), (5, 80, 1), (12, 300, 2)])
def test_over_identities_matches_written_out_resamples(people, count, seed, block, monkeypatch):
    monkeypatch.setattr("ida_jax.metrics.resampling._FIRST_BLOCK", block)
    identities, same, methods = pairs_of(np.random.default_rng(seed), people, count)
    present = np.unique(identities)
    resamples = 70  # more than a batch of draws
    found = bootstrap_tar(
        methods,
        same,
        fars=FARS,
        # Any integers, with gaps.
        identities=identities * 1000 - 7,
        baseline="cosine",
        resamples=resamples,
        seed=seed,
    )
    rng = np.random.default_rng(seed)
    points = {name: [] for name in methods}
    for _ in range(resamples):
        drawn = present[rng.integers(present.size, size=present.size)]
        counts = np.bincount(drawn, minlength=people)
        lists = {n: written_out(s, same, identities, counts) for n, s in methods.items()}
        if all(lists["cosine"]):
            for name, split in lists.items():
                points[name].append(tar_at_far(*split, FARS))
    assert found.resamples == len(points["cosine"]) > 0
    assert (found.over, found.units) == ("identities", present.size)
    check(found, points, methods, same, identities)


@pytest.mark.parametrize(("people", "count"), [(2, 7), (4, 120)])
def test_over_pairs_matches_written_out_resamples(people, count):
    _, same, methods = pairs_of(np.random.default_rng(3), people, count)
    found = bootstrap_tar(methods, same, fars=FARS, baseline="cosine", resamples=30, seed=4)
    rng = np.random.default_rng(4)
    n, genuine = np.count_nonzero(~same), np.count_nonzero(same)
    points = {name: [] for name in methods}
    for _ in range(30):
        rng.binomial(n, 1.0)
        others, own = rng.integers(n, size=n), rng.integers(genuine, size=genuine)
        for name, scores in methods.items():
            points[name].append(tar_at_far(scores[same][own], scores[~same][others], FARS))
    assert (found.over, found.units, found.resamples) == ("pairs", count, 30)
    check(found, points, methods, same, np.arange(count)[:, None])


def test_over_many_pairs_agrees_with_the_order_statistics():
    """Only the highest impostors are drawn here; the threshold's interval is known without them."""
    n = 40_000
    scores = np.arange(n + 1, dtype=np.float64)
    same = np.zeros(n + 1, bool)
    same[-1] = True
    found = bootstrap_tar({"a": scores}, same, fars=[1e-2, 1e-3], resamples=2000)
    for point in found.methods["a"]:
        expected = threshold_interval(scores[:-1], point.far)
        deviation = math.sqrt(point.far * n)
        np.testing.assert_allclose(point.threshold, expected, rtol=0, atol=0.25 * deviation)


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_an_increasing_map_changes_no_tar(seed):
    identities, same, methods = pairs_of(np.random.default_rng(seed), 6, 60)
    methods["mapped"] = np.exp(methods["cosine"].astype(np.float64))
    for known in (identities, None):
        found = bootstrap_tar(
            methods, same, fars=FARS, identities=known, baseline="cosine", resamples=20
        )
        for difference in found.differences["mapped"]:
            assert difference == (difference.far, (0, 0), 0, 0)


def test_the_seed_decides():
    identities, same, methods = pairs_of(np.random.default_rng(5), 9, 200)
    runs = [
        bootstrap_tar(methods, same, fars=[0.05], identities=identities, resamples=50, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0].differences == {}


def test_pairs_that_share_people_are_not_independent():
    """Every pair of a person has that person's score: people, not pairs, are the evidence."""
    rng = np.random.default_rng(6)
    first = np.repeat(np.arange(20), 50)
    identities = np.concatenate(
        [np.stack([first, first], axis=1), np.stack([first, (first + 1) % 20], axis=1)]
    )
    same = identities[:, 0] == identities[:, 1]
    scores = rng.normal(0, 1, 20)[identities[:, 0]] + same
    widths = []
    for known in (identities, None):
        (point,) = bootstrap_tar(
            {"a": scores}, same, fars=[0.3], identities=known, resamples=200
        ).methods["a"]
        widths.append(point.tar.high - point.tar.low)
    assert widths[0] > 3 * widths[1]


def test_progress_sees_every_resample():
    seen = []

    def progress(resamples):
        for resample in resamples:
            seen.append(resample)
            yield resample

    _, same, methods = pairs_of(np.random.default_rng(7), 4, 30)
    bootstrap_tar(methods, same, fars=[0.5], resamples=11, progress=progress)
    assert seen == list(range(11))


def template_pairs(rng, units, count, sides):
    """Pairs of both kinds between and within any units, with two methods' scores."""
    listed = rng.integers(units, size=(count, sides))
    same = rng.random(count) < 0.3
    same[:2] = True, False
    methods = {}
    for name, gain in (("cosine", 1.0), ("ida_r", 1.5)):
        scores = np.round(rng.normal(gain * same, 1), 1).astype(np.float32)
        scores[rng.random(count) < 0.05] = np.nan
        methods[name] = scores
    return listed, same, methods


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("units", "count"), [(2, 9), (5, 80), (31, 200)])
def test_over_templates_matches_written_out_resamples(sides, units, count):
    listed, same, methods = template_pairs(np.random.default_rng(units), units, count, sides)
    found = bootstrap_tails(
        {name: tail(each, same, listed, highest_far=1.0) for name, each in methods.items()},
        units=units,
        total=pair_list_total(listed[~same], count=units),
        fars=FARS,
        over="templates",
        resamples=65,
        seed=units,
    )
    points = {name: [] for name in methods}
    for counts in drawn_counts(units, units, 65):
        often = np.array([times(counts, pair) for pair in listed])
        if often[same].any() and often[~same].any():
            for name, scores in methods.items():
                split = (np.repeat(scores[kind], often[kind]) for kind in (same, ~same))
                points[name].append(tar_at_far(*split, FARS))
    assert (found.over, found.units) == ("templates", units)
    assert found.resamples == len(points["cosine"]) > 0
    check(found, points, methods, same, listed)
    for k, gain in enumerate(found.differences["ida_r"]):
        tars = [tar_at_far(s[same], s[~same], FARS)[k].tar for s in methods.values()]
        assert gain.gain == pytest.approx(tars[1] - tars[0], abs=1e-12)


def test_a_tail_gives_the_whole_lists_figures_or_none(monkeypatch):
    monkeypatch.setattr(depths, "_WHOLE", 0)
    listed, same, methods = template_pairs(np.random.default_rng(0), 40, 3000, 2)
    options = {"units": 40, "total": pair_list_total(listed[~same], count=40), "resamples": 64}
    whole = {name: tail(each, same, listed, highest_far=1.0) for name, each in methods.items()}
    expected = bootstrap_tails(whole, fars=[0.02, 1.0], **options)
    for spare, suffices in ((-20, False), (100, True), (400, True)):
        monkeypatch.setattr(depths, "_SPARE", spare)
        short = {name: tail(each, same, listed, highest_far=0.02) for name, each in methods.items()}
        assert short["cosine"].impostor.size < whole["cosine"].impostor.size
        if suffices:
            assert bootstrap_tails(short, fars=[0.02, 1.0], **options) == expected
        else:
            with pytest.raises(ShortTail, match="highest_far"):
                bootstrap_tails(short, fars=[0.02, 1.0], **options)
        with pytest.raises(ShortTail):
            bootstrap_tails(short, fars=[0.9], **options)


def test_the_front_door_keeps_more_impostors_where_few_do_not_do(monkeypatch):
    monkeypatch.setattr(depths, "_WHOLE", 0)
    identities, same, methods = pairs_of(np.random.default_rng(1), 6, 400)
    found = []
    for spare in (-13, 1000):
        monkeypatch.setattr(depths, "_SPARE", spare)
        depth = []

        def tails(highest_far, depth=depth):
            kept = {
                n: tail(s, same, identities, highest_far=highest_far) for n, s in methods.items()
            }
            depth.append(kept["cosine"].impostor.size)
            return kept

        total = pair_list_total(identities[~same], count=6)
        found.append(bootstrap_deepening(tails, fars=[0.05], units=6, total=total, resamples=64))
        assert len(depth) == (2 if spare < 0 else 1)
    assert found[0] == found[1]


def test_no_resamples_give_no_intervals():
    _, same, methods = pairs_of(np.random.default_rng(2), 4, 30)
    found = bootstrap_tar(methods, same, fars=[0.5], baseline="cosine", resamples=0)
    assert (found.methods, found.differences, found.resamples) == ({}, {}, 0)
    assert tar_intervals(found) == {}
    means = bootstrap_means({"a": [1.0]}, [[0]], count=1, resamples=0)
    assert (means.methods, means.differences) == ({}, {})


def test_intervals_as_figures():
    identities, same, methods = pairs_of(np.random.default_rng(9), 9, 200)
    found = bootstrap_tar(
        methods, same, fars=[0.1, 1e-5], identities=identities, baseline="cosine", resamples=20
    )
    figures = tar_intervals(found)
    assert set(figures) == {"cosine", "ida_r"}
    common = {"tar_interval@far", "tar_units@far", "tar_among_best@far"}
    gains = {"tar_gain@far", "tar_gain_interval@far", "tar_gain_simultaneous_interval@far"}
    assert set(figures["cosine"]) == common
    assert set(figures["ida_r"]) == common | gains
    for entries in figures["ida_r"].values():
        assert list(entries) == ["0.1", "1e-05"]
    low, high = figures["ida_r"]["tar_gain_interval@far"]["0.1"]
    assert (low, high) == found.differences["ida_r"][0].tar
    some = tar_intervals(found, fars=[1e-5, 0.1])["ida_r"]
    gains = [difference.gain for difference in found.differences["ida_r"]]
    assert list(some["tar_gain@far"].items()) == [("1e-05", gains[1]), ("0.1", gains[0])]


SCORES = np.array([1.0, 0.0, 0.5])
SAME = np.array([True, False, False])


@pytest.mark.parametrize(
    ("scores", "same", "options", "message"),
    [
        (SCORES[:2], SAME, {}, r"shape \(2,\) \(a\)"),
        (SCORES, ~SAME & False, {}, "0 genuine pairs"),
        (SCORES, SAME | True, {}, "0 impostor pairs"),
        (SCORES, SAME, {"fars": [0.0]}, "FAR"),
        (SCORES, SAME, {"baseline": "b"}, "baseline 'b'"),
        (SCORES, SAME, {"resamples": 1}, "1 resamples"),
        (SCORES, SAME, {"identities": [[0, 0], [1, 0]]}, r"expected integers \[3, 2\]"),
        (SCORES, SAME, {"identities": [["a", "a"]] * 3}, r"expected integers \[3, 2\]"),
        (
            SCORES,
            SAME,
            {"identities": [[5, 5], [5, 6], [6, 6]]},
            r"pair 2 \(from 0\) is labelled 0",
        ),
        (
            SCORES,
            SAME,
            {"identities": [[5, 6], [5, 6], [6, 5]]},
            r"pair 0 \(from 0\) is labelled 1",
        ),
    ],
)
def test_mistakes(scores, same, options, message):
    with pytest.raises(UserError, match=message):
        bootstrap_tar({"a": scores}, same, **{"fars": [0.5], **options})
