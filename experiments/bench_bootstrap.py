"""The bootstrap on a list of IJB-C's size, beside a plain NumPy loop.

Command: python experiments/bench_bootstrap.py [--templates=23124] [--pairs=15658489] [--methods=7]
Prints JSON: seconds of 1,000 resamples over templates with one method and with `--methods`, the
tails and the weights' total apart; the plain loop (all impostors' weights and their running sum in
each resample, one method) on a tenth of the resamples, and its time for all of them divided by
ours; the largest difference of an interval's end between the two on that tenth; peak memory.
"""

import argparse
import json
import resource
import time

import numpy as np

from ida_jax.common.provenance import provenance
from ida_jax.metrics.bootstrap import bootstrap_tails
from ida_jax.metrics.comparison import percentile_intervals
from ida_jax.metrics.few_units import tail_share
from ida_jax.metrics.resampling import Tail, pair_list_total, tail
from ida_jax.metrics.roc import accepted_impostors

_GENUINE = 19_557


def main() -> None:
    """Times all, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=int, default=23_124)
    parser.add_argument("--pairs", type=int, default=15_658_489)
    parser.add_argument("--methods", type=int, default=7)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    units, same, quality = _pairs(rng, options.templates, options.pairs)
    fars = tuple(np.geomspace(1e-6, 1e-2, 25))

    times, tails = {}, {}
    start = time.perf_counter()
    for method in range(options.methods):
        scores = _scores(rng, units, same, quality)
        start = start if method else time.perf_counter()
        tails[f"method {method}"] = tail(scores, same, units, highest_far=max(fars))
        if not method:
            times["tail"], first = time.perf_counter() - start, scores
    start = time.perf_counter()
    total = pair_list_total(units[~same], count=options.templates)
    times["counting"] = time.perf_counter() - start

    def bootstrap(methods: int, resamples: int):
        chosen = dict(list(tails.items())[:methods])
        begin = time.perf_counter()
        found = bootstrap_tails(
            chosen, units=options.templates, total=total, fars=fars, over="templates",
            baseline="method 0", resamples=resamples,
        )  # fmt: skip
        return time.perf_counter() - begin, found

    times["one method"], _ = bootstrap(1, options.resamples)
    times[f"{options.methods} methods"], _ = bootstrap(options.methods, options.resamples)
    tenth = max(2, options.resamples // 10)
    _, ours = bootstrap(1, tenth)
    whole = tail(first, same, units, highest_far=1.0)
    begin = time.perf_counter()
    tars = _plain(whole, options.templates, fars, tenth)
    times["plain loop, a tenth"] = time.perf_counter() - begin
    points = ours.methods["method 0"]
    shares = np.array([tail_share(0.95, point.units) for point in points])
    ends = np.array(percentile_intervals(tars, shares))
    mine = np.array([point.tar for point in points])
    result = {
        "pairs": options.pairs,
        "templates": options.templates,
        "resamples": options.resamples,
        "seconds": {name: round(seconds, 2) for name, seconds in times.items()},
        "plain loop / one method": round(
            times["plain loop, a tenth"] * options.resamples / tenth / times["one method"], 1
        ),
        "largest difference": float(np.abs(ends - mine).max()),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "provenance": provenance(),
    }
    print(json.dumps(result, indent=1))


def _pairs(rng: np.random.Generator, templates: int, pairs: int):
    units = rng.integers(templates, size=(pairs, 2), dtype=np.int32)
    units[:, 1] += units[:, 0] == units[:, 1]
    units %= templates
    same = np.zeros(pairs, bool)
    same[rng.choice(pairs, _GENUINE, replace=False)] = True
    return units, same, rng.normal(size=templates).astype(np.float32)


def _scores(rng: np.random.Generator, units: np.ndarray, same: np.ndarray, quality: np.ndarray):
    """Scores that poor templates share: their impostors lie higher."""
    scores = rng.normal(size=same.size).astype(np.float32)
    for side in (0, 1):
        scores += np.float32(0.3) * quality[units[:, side]]
    scores[same] += 6
    return scores


def _plain(whole: Tail, units: int, fars: tuple[float, ...], resamples: int) -> np.ndarray:
    """[R, F]: TARs by the weights of all pairs."""
    rng = np.random.default_rng(0)
    order = np.argsort(whole.genuine)
    genuine, own = whole.genuine[order], whole.genuine_units[order]
    found = np.empty((resamples, len(fars)))
    for row in range(resamples):
        weights = np.bincount(rng.integers(units, size=units), minlength=units)
        first, second = whole.impostor_units.T
        running = np.cumsum(weights[first] * weights[second])
        ranks = [accepted_impostors(far, int(running[-1])) for far in fars]
        thresholds = whole.impostor[np.searchsorted(running, ranks, side="right")]
        of_genuine = np.append(0, np.cumsum(weights[own[:, 0]] * weights[own[:, 1]]))
        rejected = of_genuine[np.searchsorted(genuine, thresholds, side="right")]
        found[row] = 1 - rejected / of_genuine[-1]
    return found


if __name__ == "__main__":
    main()
