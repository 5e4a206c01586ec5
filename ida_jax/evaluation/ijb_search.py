"""IJB-B and IJB-C, 1:N: each probe is searched in both galleries.

T templates, G templates of a gallery, M mated and Q non-mated searches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ida_jax.data.ijb import Enrolled, Galleries
from ida_jax.errors import UserError
from ida_jax.evaluation.evaluated import Evaluated
from ida_jax.evaluation.scored_pairs import band_fars, roc_bands
from ida_jax.protocols.bootstrap import bootstrap_means, deep_enough, tar_intervals
from ida_jax.protocols.identification import FPIRS, RANKS, Searches, mate_ranks, search_figures
from ida_jax.protocols.roc import SplitScores
from ida_jax.protocols.score_figures import FEWEST_FALSE_ACCEPTS
from ida_jax.protocols.tails import pair_list_total, tail
from ida_jax.rescoring.identification import Gallery, identify
from ida_jax.rescoring.pairs import score_pairs
from ida_jax.rescoring.terms import FaceTerms

_BASELINE = "cosine"
_INTERVALS_OF_MEANS = (
    "figures are the means of the two galleries'; the intervals' half-lengths are added in "
    "quadrature, as if the galleries were independent: they have no subject in common"
)


def evaluate_searches(
    faces: np.ndarray,
    terms: Mapping[str, FaceTerms],
    galleries: Galleries,
    *,
    fpirs: Sequence[float] = FPIRS,
    ranks: Sequence[int] = RANKS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Evaluated]:
    """{"1toN_g1", "1toN_g2": each gallery's figures and TPIR curve, "1toN": their means}.

    The galleries' numbers (DAO's densities among them) are those in `terms`, computed once; the
    gallery's template is the first, enrolled face of the rule.

    Args:
      faces: float32 [T, D], unit rows.
      terms: {method: its numbers of the T templates}.
      galleries: the lists.
      fpirs: in (0, 1].
      ranks: from 1.
      resamples: of the bootstrap over the probes' subjects; 0 leaves the intervals out.
      seed: of the bootstrap.

    Raises:
      UserError: a gallery without mated or without non-mated probes.
    """
    each = {
        f"1toN_{name}": _evaluate_gallery(
            faces, terms, gallery, galleries.probes, name, fpirs, ranks, resamples, seed
        )
        for name, gallery in galleries.galleries.items()
    }
    first, second = (evaluated.figures for evaluated in each.values())
    means = {name: _mean(first[name], second[name]) for name in first}
    return {"1toN": Evaluated(means, {}, (_INTERVALS_OF_MEANS,)), **each}


def _evaluate_gallery(
    faces: np.ndarray,
    terms: Mapping[str, FaceTerms],
    gallery: Enrolled,
    probes: Enrolled,
    name: str,
    fpirs: Sequence[float],
    ranks: Sequence[int],
    resamples: int,
    seed: int,
) -> Evaluated:
    order = np.argsort(gallery.subjects)
    place = np.searchsorted(gallery.subjects[order], probes.subjects)
    mates = order[np.minimum(place, order.size - 1)]
    mated = gallery.subjects[mates] == probes.subjects
    for kind, count in (("mated", mated.sum()), ("non-mated", (~mated).sum())):
        if not count:
            raise UserError(f"gallery {name} has no {kind} probes: check the 1:N lists")
    mates = mates[mated]
    searches = {
        method: _search(faces, each, gallery, probes, mated, mates, top=max(ranks))
        for method, each in terms.items()
    }
    _, units = np.unique(probes.subjects, return_inverse=True)
    options = {"baseline": _BASELINE, "resamples": resamples, "seed": seed}
    same = np.repeat([True, False], [mates.size, np.count_nonzero(~mated)])
    ordered = np.concatenate([units[mated], units[~mated]])[:, None]
    wanted = sorted({*map(float, fpirs), *band_fars(same.size - mates.size)})
    bootstrap = deep_enough(
        lambda far: {
            method: tail(np.concatenate([s.mate, s.highest]), same, ordered, highest_far=far)
            for method, s in searches.items()
        },
        fars=wanted,
        units=int(units.max()) + 1,
        total=pair_list_total(ordered[~same], count=int(units.max()) + 1),
        **options,
    )
    sure = tar_intervals(bootstrap, fars=fpirs)
    figures = {}
    for method, found in searches.items():
        figures[method] = search_figures(found, fpirs=fpirs, ranks=ranks)
        figures[method]["gallery"] = int(gallery.rows.size)
        for key, entries in sure.get(method, {}).items():
            figures[method][key.replace("tar_", "tpir_").replace("@far", "@fpir")] = entries
    for k in ranks:
        hits = {method: found.rank <= k for method, found in searches.items()}
        means = bootstrap_means(hits, units[mated][:, None], count=int(units.max()) + 1, **options)
        for method, interval in means.methods.items():
            figures[method].setdefault("rank_interval", {})[str(k)] = list(interval)
        for method, interval in means.differences.items():
            gain = figures[method]["rank"][str(k)] - figures[_BASELINE]["rank"][str(k)]
            figures[method].setdefault("rank_gain", {})[str(k)] = gain
            figures[method].setdefault("rank_gain_interval", {})[str(k)] = list(interval)
    splits = {
        method: SplitScores(np.sort(found.mate), np.sort(found.highest))
        for method, found in searches.items()
    }
    return Evaluated(figures, roc_bands(splits, bootstrap), _few_alarms(figures))


def _search(
    faces: np.ndarray,
    terms: FaceTerms,
    gallery: Enrolled,
    probes: Enrolled,
    mated: np.ndarray,
    mates: np.ndarray,
    *,
    top: int,
) -> Searches:
    enrolled = Gallery(
        jax.device_put(faces[gallery.rows]), terms._replace(values=terms.values[gallery.rows])
    )
    own = terms._replace(values=terms.values[probes.rows])
    found = identify(faces[probes.rows], own, enrolled, top=min(top, len(enrolled)))
    pairs = np.stack([gallery.rows[mates], probes.rows[mated]], axis=1)
    return Searches(
        score_pairs(faces, pairs, terms),
        mate_ranks(found.rows[mated], mates),
        found.scores[~mated, 0],
    )


def _few_alarms(figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    notes = []
    for fpir in next(iter(figures.values()))["false_alarms"]:
        fewest = min(of["false_alarms"][fpir] for of in figures.values())
        if fewest < FEWEST_FALSE_ACCEPTS:
            notes.append(
                f"at FPIR {fpir} the TPIR rests on {fewest} false alarms: fewer than "
                f"{FEWEST_FALSE_ACCEPTS} say little"
            )
    return tuple(notes)


def _mean(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The galleries' mean of each rate, with the interval of the mean."""
    means: dict[str, Any] = {
        key: first[key] + second[key] for key in ("mated_probes", "nonmated_probes", "gallery")
    }
    means["false_alarms"] = {
        fpir: min(count, second["false_alarms"][fpir])
        for fpir, count in first["false_alarms"].items()
    }
    for key in ("tpir@fpir", "tpir_gain@fpir", "rank", "rank_gain"):
        if key not in first:
            continue
        means[key] = {at: (rate + second[key][at]) / 2 for at, rate in first[key].items()}
        interval = key.replace("@", "_interval@") if "@" in key else f"{key}_interval"
        if interval in first:
            means[interval] = {
                at: _interval_of_mean(
                    mean, [(of[key][at], of[interval][at]) for of in (first, second)]
                )
                for at, mean in means[key].items()
            }
    return means


def _interval_of_mean(mean: float, each: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    below, above = (
        float(np.sqrt(sum((rate - ends[end]) ** 2 for rate, ends in each))) / 2 for end in (0, 1)
    )
    return [mean - below, mean + above]
