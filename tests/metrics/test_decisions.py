import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ida_jax.common.errors import UserError
from ida_jax.metrics.decisions import KINDS, changed_decisions

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
    found = changed_decisions(
        base, other, same, base_threshold=threshold, other_threshold=0.25, most=most
    )
    for kind, entries in expected.items():
        places = found[kind].pairs.tolist()
        assert found[kind].total == len(entries)
        assert len(places) == min(most, len(entries))
        margins = {place: -far for far, place in entries}
        best = sorted(margins.values(), reverse=True)[:most]
        assert [margins[place] for place in places] == pytest.approx(best)


def test_the_scale_of_a_method_does_not_matter():
    rng = np.random.default_rng(0)
    base, other, same = rng.normal(size=99), rng.normal(size=99), rng.random(99) < 0.5
    plain = changed_decisions(base, other, same, base_threshold=0.1, other_threshold=0.2)
    scaled = changed_decisions(
        64 * base, other / 8 - 2, same, base_threshold=6.4, other_threshold=0.025 - 2
    )
    for kind in KINDS:
        np.testing.assert_array_equal(plain[kind].pairs, scaled[kind].pairs)
        assert plain[kind].total == scaled[kind].total > 0


def test_lengths_must_agree():
    with pytest.raises(UserError, match="one of each for each pair"):
        changed_decisions([1.0], [1.0, 2.0], [True], base_threshold=0, other_threshold=0)
