"""TPIR at a FPIR and rank-k against their definitions, one search after the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ida_jax.common.errors import UserError
from ida_jax.metrics.identification import Searches, mate_ranks, search_figures

# Few levels, so that scores tie; NaN and the infinities are among them.
SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 0.5, 1.0, np.nan])


def _scores(least, most):
    return hnp.arrays(np.float64, st.integers(least, most), elements=SCORES)


def _brute(mate, highest, fpir):
    """The best TPIR over all thresholds whose FPIR is no more than asked for."""
    thresholds = [*(x for x in highest if not np.isnan(x)), -np.inf]
    allowed = [t for t in thresholds if sum(x > t for x in highest) <= fpir * len(highest)]
    return max(sum(x > t for x in mate) / len(mate) for t in allowed)


@given(mate=_scores(1, 9), highest=_scores(1, 12), fpir=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_tpir_is_the_best_within_the_fpir(mate, highest, fpir):
    searches = Searches(mate, np.ones(mate.size, int), highest)
    found = search_figures(searches, fpirs=(fpir,))
    key = f"{fpir:g}"
    assert found["tpir@fpir"][key] == _brute(mate, highest, fpir)
    assert found["false_alarms"][key] <= fpir * highest.size
    threshold = found["threshold@fpir"][key]
    assert found["false_alarms"][key] == np.count_nonzero(highest > threshold)
    assert (found["mated_probes"], found["nonmated_probes"]) == (mate.size, highest.size)


@given(data=st.data())
def test_ranks_are_places_in_the_whole_order(data):
    searches, gallery = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    top = data.draw(st.integers(1, gallery))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    orders = np.array([rng.permutation(gallery) for _ in range(searches)])
    mates = rng.integers(gallery, size=searches)
    rank = mate_ranks(orders[:, :top], mates)
    for order, mate, found in zip(orders, mates, rank, strict=True):
        place = 1 + order.tolist().index(mate)
        assert found == (place if place <= top else top + 1)
    rates = search_figures(Searches(mates.astype(float), rank, np.zeros(1)), ranks=(1, top))["rank"]
    assert rates[str(top)] == np.mean([m in o[:top] for o, m in zip(orders, mates, strict=True)])


def test_searches_of_one_kind_alone():
    none, some = np.empty(0), np.ones(3)
    for searches in (Searches(none, none, some), Searches(some, some, none)):
        with pytest.raises(UserError, match=r"0 .* scores were given"):
            search_figures(searches)
