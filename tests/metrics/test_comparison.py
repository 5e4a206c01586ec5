import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resamples import t_quantile

from ida_jax.metrics.bootstrap import bootstrap_means, bootstrap_tar
from ida_jax.metrics.comparison import among_best, compare, simultaneous_gains
from ida_jax.metrics.few_units import stretch, tail_share, units_behind
from ida_jax.metrics.interval_figures import mean_intervals, note_of_few_units

Z = 1.959963984540054


def quantile(values, share):
    """Interpolated between the two nearest."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def studentised(drawn, observed, m, n):
    """[R] errors of the difference of methods m and n, in its deviations, and that deviation."""
    differences = [float(row[m] - row[n]) for row in drawn]
    deviation = statistics.stdev(differences)
    gain = float(observed[m] - observed[n])
    return [(d - gain) / deviation if deviation else 0.0 for d in differences], deviation


def slow_gains(drawn, observed, units, baseline, level):
    """The single-step max-T intervals of all differences from the baseline, by loops."""
    others = [m for m in range(len(observed)) if m != baseline]
    parts = {m: studentised(drawn, observed, m, baseline) for m in others}
    largest = [max(abs(parts[m][0][r]) for m in others) for r in range(len(drawn))]
    critical, intervals = quantile(largest, level), {}
    for m in others:
        widened = t_quantile(max(units[m], units[baseline])) / Z
        gain, reach = observed[m] - observed[baseline], critical * parts[m][1] * widened
        intervals[m] = (max(gain - reach, -1.0), min(gain + reach, 1.0))
    return intervals


def slow_best(drawn, observed, units, level):
    """Each method tested as the best, by loops."""
    kept = []
    for m in range(len(observed)):
        others = [j for j in range(len(observed)) if j != m]
        parts = {j: studentised(drawn, observed, j, m) for j in others}
        largest = [max(0.0, *(parts[j][0][r] for j in others)) for r in range(len(drawn))]
        critical = quantile(largest, level)
        kept.append(
            all(
                observed[j] - observed[m]
                <= critical * parts[j][1] * t_quantile(max(units[j], units[m])) / Z
                for j in others
            )
        )
    return kept


def drawn_like(rng, resamples, observed, spread):
    """Resamples about the observed rates, methods correlated."""
    common = rng.normal(0, 0.05, (resamples, 1))
    return observed + common + rng.normal(0, spread, (resamples, len(observed)))


@pytest.mark.parametrize(("methods", "seed"), [(2, 0), (3, 1), (7, 2), (12, 3)])
def test_both_rules_match_loops(methods, seed):
    rng = np.random.default_rng(seed)
    observed = rng.uniform(0.6, 0.68, methods)
    units = rng.uniform(0, 60, methods)
    drawn = drawn_like(rng, 101, observed, rng.uniform(0.005, 0.04, methods))
    baseline = int(rng.integers(methods))
    expected = slow_gains(drawn, observed, units, baseline, 0.95)
    intervals = simultaneous_gains(drawn, observed, units, baseline=baseline)
    assert intervals[baseline] is None
    for m, interval in expected.items():
        np.testing.assert_allclose(intervals[m], interval, atol=1e-12)
    best = among_best(drawn, observed, units)
    assert best == slow_best(drawn, observed, units, 0.95)
    assert best[int(observed.argmax())]
    (of_first, *_) = compare(
        drawn[:, :, None], observed[:, None], units=units[:, None], baseline=baseline
    )
    assert of_first[0] == (best[0], intervals[0])


def test_the_rules_differ_in_what_they_keep():
    """The loops would agree with a rule that keeps all, so both answers must occur."""
    rng = np.random.default_rng(5)
    observed = np.array([0.5, 0.61, 0.62, 0.6, 0.3])
    drawn = drawn_like(rng, 500, observed, 0.02)
    units = np.full(5, 1000.0)
    assert among_best(drawn, observed, units) == [False, True, True, True, False]
    gains = simultaneous_gains(drawn, observed, units, baseline=0)
    assert [g.low > 0 for g in gains[1:4]] == [True] * 3
    assert gains[4].high < 0
    # With five methods an interval is wider than with two.
    (alone,) = simultaneous_gains(drawn[:, :2], observed[:2], units[:2], baseline=0)[1:]
    assert gains[1].low < alone.low < alone.high < gains[1].high


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=20)
def test_order_and_copies_change_nothing(seed, methods):
    rng = np.random.default_rng(seed)
    observed, units = rng.uniform(0.4, 0.5, methods), rng.uniform(1, 20, methods)
    drawn = drawn_like(rng, 40, observed, 0.03)
    order = rng.permutation(methods)
    best = among_best(drawn, observed, units)
    assert among_best(drawn[:, order], observed[order], units[order]) == [best[m] for m in order]
    # A copy of a method never varies from it: it shares its fate, and alters no interval.
    twice = [*range(methods), int(observed.argmax())]
    assert among_best(drawn[:, twice], observed[twice], units[twice])[-1]
    gains = simultaneous_gains(drawn, observed, units, baseline=0)
    again = simultaneous_gains(drawn[:, twice], observed[twice], units[twice], baseline=0)
    assert again[0] is None
    np.testing.assert_allclose(again[1:methods], gains[1:], atol=1e-12)


def test_equal_methods_have_no_gain_and_are_all_best():
    drawn = np.repeat(np.random.default_rng(0).random((30, 1)), 3, axis=1)
    observed, units = np.full(3, 0.5), np.full(3, 4.0)
    assert among_best(drawn, observed, units) == [True] * 3
    assert simultaneous_gains(drawn, observed, units, baseline=1) == [(0, 0), None, (0, 0)]


def test_units_behind_the_rarer_outcome():
    units = np.array([[0, 0]] * 15 + [[1, 1]] * 5 + [[2, 2]] * 4 + [[3, 3]] * 3 + [[4, 4]])
    errors = 28**2 / (15**2 + 25 + 16 + 9 + 1)
    others = np.arange(5, 45)[:, None].repeat(2, axis=1)
    right = np.arange(68) >= 28
    assert units_behind(right, np.concatenate([units, others])) == pytest.approx(errors)
    assert units_behind(~right, np.concatenate([units, others])) == pytest.approx(errors)
    # All right: no errors. One person's errors: one.
    assert units_behind(np.ones(28), units) == units_behind(np.zeros(28), units) == 0
    assert units_behind(np.arange(28) >= 15, units) == pytest.approx(1.0)
    assert units_behind(np.array([0, 1.0, 1.0]), np.array([[0, 1], [2, 3], [4, 5]])) == 2


def test_tails_grow_to_the_usual_share_with_the_units():
    shares = [tail_share(0.95, n) for n in (0, 2, 3, 10, 30, 1e3, np.inf)]
    assert shares == sorted(shares)
    assert shares[0] < 1e-20
    assert shares[-1] == pytest.approx(0.025)
    assert stretch(0.95, np.array([10.0])) == pytest.approx(t_quantile(10) / Z)


def test_figures_and_the_note_of_few_units():
    rng = np.random.default_rng(3)
    units = np.arange(40)[:, None]
    outcomes = {"cosine": rng.random(40) < 0.5, "a": rng.random(40) < 0.5, "b": units[:, 0] > 1}
    entries = mean_intervals(bootstrap_means(outcomes, units, count=40, resamples=50))
    assert set(entries["cosine"]) == {"interval", "units", "among_best"}
    gains = {"gain_interval", "gain_simultaneous_interval"}
    assert set(entries["b"]) == set(entries["cosine"]) | gains
    assert entries["b"]["among_best"]
    assert not entries["a"]["among_best"]
    assert entries["b"]["units"] == pytest.approx(2.0)
    figures = {name: {f"accuracy_{k}": v for k, v in of.items()} for name, of in entries.items()}
    (note,) = note_of_few_units(figures, "accuracy", over="identities")
    assert note.startswith("accuracy: the errors of a method are those of fewer than 5 identities")
    assert note_of_few_units({"a": figures["a"]}, "accuracy", over="identities") == ()
    by_far = {"tar_units@far": {"0.1": 7.0, "0.01": 4.9}}, {"tar_units@far": {"0.1": 1, "0.01": 9}}
    both = dict(zip("ab", by_far, strict=True))
    (note,) = note_of_few_units(both, "tar@far", over="people")
    assert note.startswith("TAR at FAR 0.1, 0.01: ")
    assert note_of_few_units({}, "tar@far", over="people") == ()


def test_one_method_is_compared_with_none():
    scores, same = np.array([2.0, 1.0, 0.5, 0.1]), np.array([True, True, False, False])
    alone = bootstrap_tar({"a": scores}, same, fars=[0.5], resamples=20)
    assert alone.compared == {}
    without = bootstrap_tar({"a": scores, "b": scores}, same, fars=[0.5], resamples=20)
    assert without.compared["b"] == ((True, None),)
