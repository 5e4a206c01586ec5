"""The simulation's truth, and that its coverage can be told from a wrong one."""

import bootstrap_coverage
import known_population as population
import numpy as np
import pytest
from coverage_tables import markdown

HUBS = (population.HUB, population.BETTER_HUB)


@pytest.mark.parametrize("sizes", population.SIZES)
@pytest.mark.parametrize("mean", population.MEANS.values())
def test_simulated_scores_have_the_rates_of_the_formulas(sizes, mean):
    rng = np.random.default_rng(0)
    far, rates = 1e-2, []
    for _ in range(40):
        people = population.some_people(rng, sizes, 60)
        rates.append(
            [
                (
                    np.sum(genuine > population.true_threshold(far, hub)),
                    genuine.size,
                    np.mean(impostor > population.true_threshold(far, hub)),
                )
                for hub, (genuine, impostor) in zip(
                    HUBS, population.scores(rng, people, mean, HUBS), strict=True
                )
            ]
        )
    accepted, genuine, fars = np.moveaxis(np.array(rates), 2, 0)
    tars = accepted.sum(axis=0) / genuine.sum(axis=0)
    expected = [population.true_tar(far, mean, hub) for hub in HUBS]
    np.testing.assert_allclose(tars, expected, atol=0.05)
    np.testing.assert_allclose(fars.mean(axis=0), far, rtol=0.25)
    assert expected[1] > expected[0]


def test_accuracy_is_best_at_some_threshold():
    assert population.true_accuracy(6.5, population.HUB) == pytest.approx(0.9954, abs=2e-4)
    assert population.true_accuracy(60, population.HUB) == pytest.approx(1.0)


def test_a_part_counts_and_is_shown(monkeypatch):
    monkeypatch.setattr(bootstrap_coverage, "RESAMPLES", 20)
    runs = bootstrap_coverage.Runs(3, 1.0, (0, 0))
    part = bootstrap_coverage.tar_coverage(runs, 20) | {"resamples": 20}
    again = bootstrap_coverage.tar_coverage(runs, 20) | {"resamples": 20}
    assert part == again
    first = part["settings"][0]
    assert first["replicates"] == 3
    assert first["tar"]["plain"]["width"] <= first["tar"]["now"]["width"]
    text = markdown({"tar_20": part})
    assert "| 20 | as on LFW | few errors | 0.01 | 99.73 |" in text
    count = bootstrap_coverage.Count()
    for ends in ((0.1, 0.2), (0.3, 0.5), (0.2, 0.3)):
        count.add(ends, 0.3)
    assert count.entry() == {"coverage": 66.7, "deviation": 27.2, "width": 13.33}
