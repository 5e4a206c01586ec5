"""How often the bootstrap's 95 % intervals hold the truth, by simulation where it is known.

    for part in tar_50 tar_200 tar_1000 accuracy family all_pairs; do
        PYTHONPATH=. python experiments/bootstrap_coverage.py --part=$part \
            --output=experiments/results/bootstrap_coverage
    done

Each part adds its entries to OUTPUT.json and writes OUTPUT.md anew; at most --minutes each (7).

Parts: `tar_N`, intervals of TAR, of its threshold and of gains, N people; `accuracy`, of a 10-fold
list; `family`, twelve methods at once; `all_pairs`, `evaluate_all_pairs` itself on embeddings of 50
people, the truth from 20,000. "Plain" is the middle 95 % of the resamples, the package's intervals
up to 0.1.0; "now" are its intervals. The widening by few units was chosen on other draws of the
population (known_population.py), of 17 to 101 replicates
for each setting.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from coverage_tables import markdown
from known_population import (
    BETTER_HUB,
    HUB,
    MEANS,
    SIZES,
    People,
    pair_list,
    scores,
    some_people,
    true_accuracy,
    true_tar,
    true_threshold,
)

from ida_jax.common.files import written_whole
from ida_jax.common.provenance import provenance
from ida_jax.metrics.bootstrap import Resampled, bootstrap_means, resample
from ida_jax.metrics.comparison import percentile_intervals, rate_intervals
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.metrics.resampling import (
    Draw,
    Tail,
    all_pairs_total,
    draws_of_units,
    split_tail,
)

FARS = (1e-2, 1e-3, 1e-4, 1e-5)
UNIT_BINS = (0, 2, 3, 5, 10, 20, math.inf)
ACCEPT_BINS = (1, 3, 10, 30, math.inf)
RESAMPLES = 500


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        **{f"tar_{people}": lambda s, n=people: tar_coverage(s, n) for people in (50, 200, 1000)},
        "accuracy": accuracy_coverage,
        "family": family_error,
        "all_pairs": all_pairs_coverage,
    }
    parser.add_argument("--part", choices=parts, required=True)
    parser.add_argument("--replicates", type=int, default=200, help="for each setting, at most")
    parser.add_argument("--minutes", type=float, default=7, help="shared by the settings")
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    seed = options.seed, list(parts).index(options.part)
    runs = Runs(options.replicates, options.minutes, seed)
    entry = {"resamples": RESAMPLES} | parts[options.part](runs)
    entry["provenance"] = provenance()
    path = options.output.with_suffix(".json")
    record = json.loads(path.read_text()) if path.exists() else {}
    record = {name: of for name, of in (record | {options.part: entry}).items() if name in parts}
    record = {name: record[name] for name in parts if name in record}
    for suffix, text in ((".json", json.dumps(record, indent=1)), (".md", markdown(record))):
        with written_whole(options.output.with_suffix(suffix)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(markdown({options.part: entry}))


class Runs(NamedTuple):
    """How often a setting is drawn, and for how long at most."""

    replicates: int
    minutes: float
    seed: tuple[int, ...]

    def draws(self, setting: int, settings: int) -> Iterator[np.random.Generator]:
        """Random numbers for each replicate of a setting, at least 20, within its share of time."""
        end = time.monotonic() + 60 * self.minutes / settings
        for replicate in range(self.replicates):
            if replicate >= 20 and time.monotonic() > end:
                return
            yield np.random.default_rng([*self.seed, setting, replicate])


def resampled(
    rng: np.random.Generator,
    people: People,
    mean: float,
    hubs: tuple[float, ...],
    fars: tuple[float, ...],
) -> Resampled:
    """The package's resamples of a replicate's methods, the first of which is the baseline."""
    labels, genuine, impostor = people
    units = int(labels.max()) + 1

    def tail_of(split: tuple[np.ndarray, np.ndarray]) -> Tail:
        return split_tail(
            *split,
            genuine_units=labels[genuine],
            impostor_units=lambda kept: labels[impostor[kept]],
            highest_far=max(fars),
        )

    tails = {f"{m}": tail_of(split) for m, split in enumerate(scores(rng, people, mean, hubs))}
    ones = np.ones(units, np.int32)
    return resample(
        tails,
        Draw(ones, ones, len(impostor)),
        draws_of_units(rng, units, all_pairs_total(labels)),
        fars=fars,
        over="identities",
        units=units,
        resamples=RESAMPLES,
    )


class Count:
    """How many intervals hold the truth, and how wide they are."""

    def __init__(self) -> None:
        """Starts with none."""
        self.held: list[bool] = []
        self.width: list[float] = []

    def add(self, ends: tuple[float, float], truth: float) -> None:
        """Adds an interval; an end that is the truth holds it."""
        self.held.append(bool(ends[0] - 1e-9 <= truth <= ends[1] + 1e-9))
        self.width.append(float(ends[1] - ends[0]))

    def entry(self) -> dict[str, float]:
        """In percent: coverage, its Monte-Carlo deviation, and the mean width in points."""
        share, number = np.mean(self.held), len(self.held)
        deviation = math.sqrt(share * (1 - share) / number)
        return {
            "coverage": round(100 * share, 1),
            "deviation": round(100 * deviation, 1),
            "width": round(100 * float(np.mean(self.width)), 2),
        }


def tar_coverage(runs: Runs, people: int) -> dict[str, Any]:
    """Coverage for each setting and FAR, and by the number of units and false accepts behind."""
    settings: list[dict[str, Any]] = []
    hubs = (HUB, HUB, BETTER_HUB)
    bins: dict[str, dict[str, list[int]]] = {}
    fars = FARS if people < 1000 else FARS[1:]
    for sizes in SIZES:
        for errors, mean in MEANS.items():
            counts: dict[tuple[float, str, str], Count] = {}
            behind: dict[float, list[float]] = {}
            accepts: dict[float, list[int]] = {}
            setting = len(MEANS) * SIZES.index(sizes) + list(MEANS).index(errors)
            for rng in runs.draws(setting, 4):
                drawn_people = some_people(rng, sizes, people)
                at = tuple(far for far in fars if far * len(drawn_people.impostor) >= 1)
                drawn = resampled(rng, drawn_people, mean, hubs, at)
                for k, far in enumerate(at):
                    number = int(far * len(drawn_people.impostor))
                    behind.setdefault(far, []).append(drawn.behind[0, k])
                    accepts.setdefault(far, []).append(number)
                    for what, kind, ends, truth, units in _intervals(drawn, k, far, mean, hubs):
                        counts.setdefault((far, what, kind), Count()).add(ends, truth)
                        if what != "threshold":
                            _to_bins(bins, f"{what}, {kind}", number, units, ends, truth)
            for far in behind:
                listed = {
                    what: {
                        kind: counts[far, what, kind].entry()
                        for kind in ("plain", "now")
                        if (far, what, kind) in counts
                    }
                    for what in ("tar", "equal", "better", "threshold")
                }
                settings.append(
                    {
                        "people": people,
                        "sizes": sizes,
                        "errors": errors,
                        "far": far,
                        "true_tar": round(100 * true_tar(far, mean, HUB), 2),
                        "true_gain": round(
                            100 * (true_tar(far, mean, BETTER_HUB) - true_tar(far, mean, HUB)), 2
                        ),
                        "false_accepts": int(np.median(accepts[far])),
                        "units": round(float(np.median(behind[far])), 1),
                        "replicates": len(behind[far]),
                        **listed,
                    }
                )
                print(json.dumps(settings[-1]), flush=True)
    return {"settings": settings, "bins": bins}


def _intervals(
    drawn: Resampled, k: int, far: float, mean: float, hubs: tuple[float, ...]
) -> Iterator[tuple[str, str, tuple[float, float], float, float]]:
    """(what, "plain" or "now", interval, truth, units behind) at the k-th FAR."""
    usual = np.array([0.025])
    tars, behind = drawn.tars[:, :, k], drawn.behind[:, k]
    truth = [true_tar(far, mean, hub) for hub in hubs]
    now, gains, _ = rate_intervals(
        drawn.names,
        tars[:, :, None],
        drawn.observed[:, k, None],
        behind[:, None],
        baseline="0",
        level=0.95,
    )
    (ends,) = percentile_intervals(tars[:, :1], usual)
    yield "tar", "plain", ends, truth[0], behind[0]
    yield "tar", "now", now["0"][0], truth[0], behind[0]
    (ends,) = percentile_intervals(drawn.thresholds[:, 0, k, None], usual)
    yield "threshold", "now", ends, true_threshold(far, hubs[0]), behind[0]
    for m, what in ((1, "equal"), (2, "better")):
        units, gain = max(behind[m], behind[0]), truth[m] - truth[0]
        (ends,) = percentile_intervals((tars[:, m] - tars[:, 0])[:, None], usual)
        yield what, "plain", ends, gain, units
        yield what, "now", gains[f"{m}"][0], gain, units


def _to_bins(
    bins: dict[str, dict[str, list[int]]],
    name: str,
    accepts: int,
    units: float,
    ends: tuple[float, float],
    truth: float,
) -> None:
    """Counts an interval by units where 10 false accepts decide, by these where 3 units do."""
    held = ends[0] - 1e-9 <= truth <= ends[1] + 1e-9
    keys = []
    if accepts >= 10:
        keys.append(f"units {_bin(UNIT_BINS, units)}")
    if units >= 3:
        keys.append(f"false accepts {_bin(ACCEPT_BINS, accepts)}")
    for key in keys:
        tally = bins.setdefault(key, {}).setdefault(name, [0, 0])
        tally[0] += int(held)
        tally[1] += 1


def _bin(edges: tuple[float, ...], value: float) -> str:
    k = int(np.searchsorted(edges, value, side="right")) - 1
    return (
        f"{edges[k]:g} and more"
        if edges[k + 1] == math.inf
        else f"{edges[k]:g} to {edges[k + 1]:g}"
    )


def accuracy_coverage(runs: Runs) -> dict[str, Any]:
    """Coverage of a 10-fold list's accuracy; N people give 3 N / 2 pairs, half of them genuine.

    A genuine pair is of a person with two images or more, a person drawn evenly, pairs of people
    for impostors. The truth is the accuracy at the population's best threshold.
    """
    settings, hubs = [], (HUB, HUB, BETTER_HUB)
    for people in (50, 200, 1000):
        for errors, mean in MEANS.items():
            truth = [true_accuracy(mean, hub) for hub in hubs]
            counts: dict[tuple[str, str], Count] = {}
            behind = []
            for rng in runs.draws(len(settings), 6):
                listed, same, fold = pair_list(rng, people)
                correct = {
                    f"{m}": kfold_accuracy(np.concatenate(split), same, folds=fold).correct
                    for m, split in enumerate(scores(rng, listed, mean, hubs))
                }
                pairs = np.concatenate([listed.genuine, listed.impostor])
                units = listed.labels[pairs]
                now = bootstrap_means(
                    correct, units, count=people, baseline="0", resamples=RESAMPLES,
                    seed=int(rng.integers(2**31)),
                )  # fmt: skip
                behind.append(now.behind["0"])
                for what, ends, at in (
                    ("accuracy", now.methods["0"], truth[0]),
                    ("equal", now.differences["1"], 0.0),
                    ("better", now.differences["2"], truth[2] - truth[0]),
                ):
                    counts.setdefault((what, "now"), Count()).add(ends, at)
            settings.append(
                {
                    "people": people, "errors": errors, "replicates": len(behind),
                    "accuracy": round(100 * truth[0], 2),
                    "gain": round(100 * (truth[2] - truth[0]), 2), "pairs": same.size,
                    "units": round(float(np.median(behind)), 1),
                    "intervals": {what: of.entry() for (what, _), of in counts.items()},
                }
            )  # fmt: skip
            print(json.dumps(settings[-1]), flush=True)
    return {"settings": settings}


def family_error(runs: Runs) -> dict[str, Any]:
    """Twelve methods, 100 people, FAR 1e-2: errors of the family, where all are equal and not.

    Where they are not, the last has a hubness between the other tables' equal and better ones.
    """
    settings, methods, far = [], 12, 1e-2
    mean = MEANS["many errors"]
    slightly = (HUB + BETTER_HUB) / 2
    for sizes in SIZES:
        for best in (HUB, slightly):
            hubs = (*[HUB] * (methods - 1), best)
            truth = np.array([true_tar(far, mean, hub) for hub in hubs])
            rows, behind = [], []
            for rng in runs.draws(len(settings), 4):
                drawn = resampled(rng, some_people(rng, sizes, 100), mean, hubs, (far,))
                _, gains, compared = rate_intervals(
                    drawn.names, drawn.tars, drawn.observed, drawn.behind, baseline="0",
                    level=0.95,
                )  # fmt: skip
                behind.append(drawn.behind[0, 0])
                wrong, wrong_at_once = (
                    any(
                        not of[0] - 1e-9 <= truth[m] - truth[0] <= of[1] + 1e-9
                        for m, of in enumerate(ends, 1)
                    )
                    for ends in (
                        [gains[name][0] for name in drawn.names[1:]],
                        [compared[name][0].gain for name in drawn.names[1:]],
                    )
                )
                in_set = [compared[name][0].among_best for name in drawn.names]
                highest = int(drawn.observed[:, 0].argmax())
                rows.append((wrong, wrong_at_once, in_set[-1], sum(in_set), highest == methods - 1))
            means = np.mean(rows, axis=0)
            settings.append(
                {
                    "sizes": sizes, "replicates": len(rows),
                    "gain": round(100 * float(truth[-1] - truth[0]), 2),
                    "units": round(float(np.median(behind)), 1),
                    "one_by_one": round(100 * means[0], 1), "at_once": round(100 * means[1], 1),
                    "set_holds_best": round(100 * means[2], 1),
                    "set_size": round(means[3], 1), "highest_is_best": round(100 * means[4], 1),
                }
            )  # fmt: skip
            print(json.dumps(settings[-1]), flush=True)
    return {"methods": methods, "far": far, "settings": settings}


def all_pairs_coverage(runs: Runs) -> dict[str, Any]:
    """`evaluate_all_pairs` of 50 people with 4 images each: the cosine and IDA-R, FAR 1e-2.

    Embeddings have 32 numbers: a person's, twice as many people near one direction as elsewhere,
    and an image's. IDA-R has 500 fixed anchors of that population. The truth is that of
    20,000 people: all their genuine pairs and 4 million random impostor pairs.
    """
    from ida_jax.ops.dao import log_density
    from ida_jax.protocols.verification import evaluate_all_pairs
    from ida_jax.rescoring.terms import cosine_terms, dao_terms

    rng, images, far = np.random.default_rng(runs.seed), 4, 1e-2
    direction = np.eye(32)[0] * 1.5

    def faces_of(people: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        centres = rng.normal(size=(people, 32))
        centres += direction * (rng.random((people, 1)) < 0.5)
        faces = np.repeat(centres, images, axis=0) + 0.9 * rng.normal(size=(people * images, 32))
        faces /= np.linalg.norm(faces, axis=1, keepdims=True)
        return faces.astype(np.float32), np.repeat(np.arange(people), images)

    anchors = faces_of(500, rng)[0][::images]

    def terms(faces: np.ndarray) -> dict[str, Any]:
        nearest = -np.partition(-(faces @ anchors.T), 10, axis=1)[:, :10]
        return {
            "cosine": cosine_terms(len(faces)),
            "ida_r": dao_terms(np.asarray(log_density(nearest, tau=1.0)), tau=1.0),
        }

    truth = _population_tars(rng, *faces_of(20_000, rng), terms, far)
    counts = {"tar": Count(), "gain": Count(), "at_once": Count()}
    for replicate, own in enumerate(runs.draws(0, 1)):
        faces, labels = faces_of(50, own)
        found = evaluate_all_pairs(
            faces, labels, terms(faces), fars=(far,), resamples=RESAMPLES, seed=replicate
        ).evaluated.figures
        key = "0.01"
        counts["tar"].add(found["cosine"]["tar_interval@far"][key], truth["cosine"])
        gain = truth["ida_r"] - truth["cosine"]
        counts["gain"].add(found["ida_r"]["tar_gain_interval@far"][key], gain)
        counts["at_once"].add(found["ida_r"]["tar_gain_simultaneous_interval@far"][key], gain)
    return {
        "replicates": replicate + 1,
        "tar": round(100 * truth["cosine"], 2),
        "gain": round(100 * gain, 2),
        "false_accepts": found["cosine"]["false_accepts"][key],
        "units": round(found["cosine"]["tar_units@far"][key], 1),
        "intervals": {name: count.entry() for name, count in counts.items()},
    }


def _population_tars(
    rng: np.random.Generator,
    faces: np.ndarray,
    labels: np.ndarray,
    terms: Callable[[np.ndarray], dict[str, Any]],
    far: float,
) -> dict[str, float]:
    """{method: TAR} of all genuine pairs and four million random impostor pairs."""
    from ida_jax.rescoring.pairs import pair_scores

    steps = np.arange(1, np.bincount(labels).max())
    genuine = np.concatenate(
        [np.stack([np.arange(len(faces) - s), np.arange(s, len(faces))], axis=1) for s in steps]
    )
    genuine = genuine[labels[genuine[:, 0]] == labels[genuine[:, 1]]]
    impostor = rng.integers(len(faces), size=(4_000_000, 2))
    impostor = impostor[labels[impostor[:, 0]] != labels[impostor[:, 1]]]
    of_method = terms(faces)
    right = pair_scores(faces, genuine, of_method)
    wrong = pair_scores(faces, impostor, of_method)
    return {
        name: float(np.mean(right[name] > np.quantile(wrong[name], 1 - far))) for name in of_method
    }


if __name__ == "__main__":
    main()
