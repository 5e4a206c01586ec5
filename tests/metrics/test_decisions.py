import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.metrics.decisions import KINDS, changed_decisions
from ida_jax.metrics.roc import SplitScores

score = st.integers(-4, 4).map(lambda x: x / 2) | st.sampled_from([math.nan, -math.inf])


def oracle(base, other, same, base_threshold, other_threshold):
    """{kind: [(−margin, position)] of all}, a pair at a time."""

    def deviation(scores):
        finite = [s for s in scores if math.isfinite(s)]
        return (float(np.std(finite)) if finite else 0.0) or 1.0

    def margin(s, t, deviation):
        distance = abs(s - t)
        return math.inf if math.isnan(distance) else distance / deviation

    scales = deviation(base), deviation(other)
    found = {name: [] for name in KINDS}
    for place, (b, o, genuine) in enumerate(zip(base, other, same, strict=True)):
        at_base, at_other = b > base_threshold, o > other_threshold
        if at_base == at_other:
            continue
        way = "corrected" if at_other == genuine else "broken"
        far = margin(b, base_threshold, scales[0]) + margin(o, other_threshold, scales[1])
        found[way, genuine].append((-far, place))
    return found


@given(
    st.lists(st.tuples(score, score, st.booleans()), min_size=1, max_size=30),
    st.sampled_from([-math.inf, -0.75, 0.0, 0.5]),
    st.integers(0, 4),
)
def test_matches_the_oracle(pairs, threshold, most):
    base, other, same = map(list, zip(*pairs, strict=True))
    expected = oracle(base, other, same, threshold, 0.25)
    places, (base, other) = split_places(same), split([base, other], same)
    # One threshold for all pairs, and the same one per pair.
    a_pair = tuple(np.full(kind.size, 0.25) for kind in other)
    for other_threshold in (0.25, a_pair):
        found = changed_decisions(
            base, other, base_threshold=threshold, other_threshold=other_threshold, most=most
        )
        for (way, genuine), entries in expected.items():
            listed = places[0 if genuine else 1][found[way, genuine].pairs].tolist()
            assert found[way, genuine].total == len(entries)
            assert len(listed) == min(most, len(entries))
            margins = {place: -far for far, place in entries}
            best = sorted(margins.values(), reverse=True)[:most]
            assert [margins[place] for place in listed] == pytest.approx(best)


def split_places(same):
    same = np.array(same, bool)
    return np.flatnonzero(same), np.flatnonzero(~same)


def split(scores, same):
    places = split_places(same)
    return [SplitScores(*(np.asarray(of, float)[at] for at in places)) for of in scores]


def test_the_scale_of_a_method_does_not_matter():
    rng = np.random.default_rng(0)
    base, other, same = rng.normal(size=99), rng.normal(size=99), rng.random(99) < 0.5
    plain, scaled = (
        changed_decisions(*split(pair, same), base_threshold=at[0], other_threshold=at[1])
        for pair, at in (
            ((base, other), (0.1, 0.2)),
            ((64 * base, other / 8 - 2), (6.4, 0.025 - 2)),
        )
    )
    for kind in KINDS:
        np.testing.assert_array_equal(plain[kind].pairs, scaled[kind].pairs)
        assert plain[kind].total == scaled[kind].total > 0


def test_lengths_must_agree():
    scores = SplitScores(np.ones(1), np.ones(2))
    with pytest.raises(UserError, match="one of each for each pair"):
        changed_decisions(
            scores, SplitScores(np.ones(2), np.ones(1)), base_threshold=0, other_threshold=0
        )
