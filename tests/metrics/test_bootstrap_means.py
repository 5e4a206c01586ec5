import numpy as np
import pytest
from resamples import behind, drawn_counts, summarised, times

from ida_jax.common.errors import UserError
from ida_jax.metrics.bootstrap import bootstrap_means


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(
    ("units", "count", "resamples"), [(1, 1, 2), (4, 30, 65), (9, 100, 64), (300, 400, 200)]
)
def test_means_match_written_out_resamples(sides, units, count, resamples):
    rng = np.random.default_rng(count)
    listed = rng.integers(units, size=(count, sides))
    outcomes = {"cosine": rng.random(count) < 0.6, "a": rng.random(count), "b": rng.random(count)}
    found = bootstrap_means(outcomes, listed, count=units, resamples=resamples, seed=3)
    means = {name: [] for name in outcomes}
    for counts in drawn_counts(3, units, resamples):
        often = [times(counts, pair) for pair in listed]
        if any(often):
            for name, each in outcomes.items():
                means[name].append([np.mean(np.repeat(each, often))])
    assert (found.over, found.units, found.resamples) == ("identities", units, len(means["a"]))
    number = {}
    for name, samples in means.items():
        number[name] = behind(outcomes[name], listed)
        assert found.behind[name] == pytest.approx(number[name])
        assert found.methods[name] == pytest.approx(summarised(samples, [number[name]])[0])
    assert set(found.differences) == {"a", "b"}
    for name, interval in found.differences.items():
        gains = np.array(means[name]) - np.array(means["cosine"])
        either = max(number[name], number["cosine"])
        assert interval == pytest.approx(summarised(gains, [either])[0])


def test_means_are_paired_and_seeded():
    rng = np.random.default_rng(8)
    listed = rng.integers(20, size=(300, 2))
    hits = rng.random(300)
    runs = [
        bootstrap_means({"cosine": hits, "same": hits}, listed, count=20, resamples=50, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0].differences == {"same": (0, 0)}
    alone = bootstrap_means({"same": hits}, listed, count=20, resamples=50, seed=1)
    assert alone.differences == {}
    assert alone.methods["same"] == runs[0].methods["same"]


@pytest.mark.parametrize(
    ("outcomes", "units", "options", "message"),
    [
        ([1.0, 0.0], [[0], [1], [0]], {}, "outcomes of shape"),
        ([1.0, 0.0], [[0], [2]], {}, "from 0 to 1"),
        ([1.0, 0.0], [[0], [1]], {"resamples": 1}, "1 resamples"),
        ([1.0, 0.0], [[0], [1]], {"resamples": -1}, "-1 resamples"),
        (np.empty(0), np.empty((0, 2), int), {}, "none of 1000 resamples"),
    ],
)
def test_mistakes_with_means(outcomes, units, options, message):
    with pytest.raises(UserError, match=message):
        bootstrap_means({"a": outcomes}, units, count=2, **options)
