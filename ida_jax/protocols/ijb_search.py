"""IJB-B and IJB-C, 1:N: each probe is searched in both galleries.

T templates, G templates of a gallery, M mated and Q non-mated searches.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.metrics.bootstrap import bootstrap_deepening, bootstrap_means
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.identification import (
    FPIRS,
    RANKS,
    Searches,
    joined_figures,
    mate_ranks,
    search_figures,
)
from ida_jax.metrics.interval_figures import mean_intervals, note_of_few_units, tar_intervals
from ida_jax.metrics.resampling import pair_list_total, tail
from ida_jax.metrics.roc import SplitScores
from ida_jax.protocols.ijb_files import Enrolled, Galleries
from ida_jax.protocols.scored_pairs import band_fars, notes_of_few, roc_bands
from ida_jax.protocols.table import noted
from ida_jax.rescoring.gallery import Candidates, Gallery, identify
from ida_jax.rescoring.method_table import BASELINE
from ida_jax.rescoring.pairs import pair_scores
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.identity_pairs import IdentityPairs, pairs_among

_INTERVALS_OF_MEANS = (
    "figures are the means of the two galleries', and so are their intervals' ends: no shorter "
    "than the means' own intervals, the same probes being searched in both"
)

_JOINED = (
    "the galleries are searched as one, as InsightFace does it: every probe has a mate, and the "
    "threshold is the ⌈f·M⌉-th highest score of all M probes with others, not a FPIR"
)
# Probes whose scores with the whole gallery are held at once.
_SLAB = 1024


def evaluate_searches(
    faces: np.ndarray,
    terms: Mapping[str, FaceTerms],
    galleries: Galleries,
    *,
    one_person: IdentityPairs | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """{"1toN_g1", "1toN_g2": each gallery's figures and TPIR curve, "1toN": their means}.

    The galleries' numbers (DAO's densities among them) are those in `terms`, computed once; the
    gallery's template is the first, enrolled face of the rule.

    Args:
      faces: float32 [T, D], unit rows.
      terms: {method: its numbers of the T templates}.
      one_person: subjects that show one person: the one's entry is hidden from the other's probes,
        for whom it would be neither right nor wrong.
      resamples: of the bootstrap over the probes' subjects; 0 leaves the intervals out.

    Raises:
      UserError: a gallery without mated or without non-mated probes.
    """
    enrolled = [*galleries.galleries.values(), galleries.probes]
    subjects = np.unique(np.concatenate([gallery.subjects for gallery in enrolled]))
    known = None if one_person is None else pairs_among(one_person, subjects)
    apart = np.empty((0, 2), np.int64) if known is None else subjects[known.codes]
    hidden = {
        name: _hidden(gallery, galleries.probes, apart)
        for name, gallery in galleries.galleries.items()
    }
    halves = {
        f"1toN_{name}": noted(
            _evaluate_gallery(
                faces, terms, gallery, galleries.probes, hidden[name], name, resamples, seed
            ),
            known,
            len(hidden[name]),
        )
        for name, gallery in galleries.galleries.items()
    }
    first, second = (evaluated.figures for evaluated in halves.values())
    means = {name: _mean(first[name], second[name]) for name in first}
    both = Evaluation(means, {}, (_INTERVALS_OF_MEANS,))
    return {"1toN": noted(both, known, sum(map(len, hidden.values()))), **halves}


def evaluate_joined(
    faces: np.ndarray,
    terms: Mapping[str, FaceTerms],
    galleries: Galleries,
    *,
    one_person: IdentityPairs | None = None,
) -> dict[str, Evaluation]:
    """{"1toN_joined": every method's figures with the two galleries as one, as InsightFace has it}.

    The figures are `joined_figures`; they have no intervals.

    Args:
      faces, terms, one_person: as `evaluate_searches`.
    """
    parts, probes = galleries.galleries.values(), galleries.probes
    gallery = Enrolled(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(gallery.subjects)
    first, last = (
        np.searchsorted(gallery.subjects[order], probes.subjects, side)
        for side in ("left", "right")
    )
    for probe in np.flatnonzero(last - first != 1)[:1]:
        where = "in both galleries" if last[probe] > first[probe] else "in neither gallery"
        raise UserError(
            f"--galleries=joined: subject {probes.subjects[probe]} of the probes is {where}, "
            "expected one template in one of them: check the 1:N lists, or leave it apart"
        )
    mates, known = order[first], None
    hidden = np.empty((0, 2), np.int64)
    if one_person is not None:
        subjects = np.unique(gallery.subjects)
        known = pairs_among(one_person, subjects)
        hidden = _hidden(gallery, probes, subjects[known.codes])
    mate_scores = pair_scores(faces, np.stack([gallery.rows[mates], probes.rows], axis=1), terms)
    wanted = math.ceil(max(FPIRS) * mates.size)
    enrolled, figures = faces[gallery.rows], {}
    for method, own in terms.items():
        of_gallery = Gallery(enrolled, own._replace(values=own.values[gallery.rows]))
        ranks, others = [], np.empty(0, np.float32)
        for start in range(0, mates.size, _SLAB):
            rows, mate = probes.rows[start : start + _SLAB], mates[start : start + _SLAB]
            of_probes = own._replace(values=own.values[rows])
            found = identify(faces[rows], of_probes, of_gallery, top=gallery.rows.size)
            inside = (hidden[:, 0] >= start) & (hidden[:, 0] < start + rows.size)
            found = without_hidden(found, hidden[inside] - (start, 0), top=gallery.rows.size)
            ranks.append(mate_ranks(found.rows, mate))
            others = np.concatenate([others, found.scores[found.rows != mate[:, None]]])
            others = np.partition(others, max(others.size - wanted, 0))[-wanted:]
        figures[method] = joined_figures(
            mate_scores[method], np.concatenate(ranks), others, gallery=gallery.rows.size
        )
    joined = Evaluation(figures, {}, (_JOINED,))
    return {"1toN_joined": noted(joined, known, len(hidden))}


def _hidden(gallery: Enrolled, probes: Enrolled, apart: np.ndarray) -> np.ndarray:
    """Places of probes and of the gallery's templates of subjects that are one person, [h, 2]."""
    places = [
        np.stack(np.meshgrid(*map(np.flatnonzero, of), indexing="ij"), axis=-1).reshape(-1, 2)
        for pair in apart
        for one, other in (pair, pair[::-1])
        for of in [(probes.subjects == one, gallery.subjects == other)]
    ]
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *places]), axis=0)


def without_hidden(found: Candidates, hidden: np.ndarray, *, top: int) -> Candidates:
    """Each probe's `top` best candidates that are not hidden from it; row −1 where there are none.

    Args:
      found: of M probes, as many more as are hidden from any of them, or all.
      hidden: int [h, 2], places of probes and of the gallery's faces.
    """
    rows, scores = np.array(found.rows), np.array(found.scores)
    for probe in np.unique(hidden[:, 0]):
        away = np.isin(rows[probe], hidden[hidden[:, 0] == probe, 1])
        order = np.argsort(away, kind="stable")
        rows[probe] = np.where(away, -1, rows[probe])[order]
        scores[probe] = np.where(away, -np.inf, scores[probe])[order]
    return Candidates(scores[:, :top], rows[:, :top])


def _evaluate_gallery(
    faces: np.ndarray,
    terms: Mapping[str, FaceTerms],
    gallery: Enrolled,
    probes: Enrolled,
    hidden: np.ndarray,
    name: str,
    resamples: int,
    seed: int,
) -> Evaluation:
    order = np.argsort(gallery.subjects)
    place = np.searchsorted(gallery.subjects[order], probes.subjects)
    mates = order[np.minimum(place, order.size - 1)]
    mated = gallery.subjects[mates] == probes.subjects
    for kind, count in (("mated", mated.sum()), ("non-mated", (~mated).sum())):
        if not count:
            raise UserError(f"gallery {name} has no {kind} probes: check the 1:N lists")
    mates = mates[mated]
    pairs = np.stack([gallery.rows[mates], probes.rows[mated]], axis=1)
    enrolled, top = faces[gallery.rows], min(max(RANKS), gallery.rows.size)
    most = int(np.bincount(hidden[:, 0]).max(initial=0))
    searches = {}
    for method, scores in pair_scores(faces, pairs, terms).items():
        sides = (gallery.rows, probes.rows)
        of_gallery, own = (
            terms[method]._replace(values=terms[method].values[rows]) for rows in sides
        )
        deep = min(top + most, gallery.rows.size)
        found = identify(faces[probes.rows], own, Gallery(enrolled, of_gallery), top=deep)
        found = without_hidden(found, hidden, top=top)
        ranks = mate_ranks(found.rows[mated], mates)
        searches[method] = Searches(scores, ranks, found.scores[~mated, 0])
    _, units = np.unique(probes.subjects, return_inverse=True)
    options = {"baseline": BASELINE, "resamples": resamples, "seed": seed}
    same = np.repeat([True, False], [mates.size, np.count_nonzero(~mated)])
    ordered = np.concatenate([units[mated], units[~mated]])[:, None]
    wanted = sorted({*map(float, FPIRS), *band_fars(same.size - mates.size)})
    bootstrap = bootstrap_deepening(
        lambda far: {
            method: tail(np.concatenate([s.mate, s.highest]), same, ordered, highest_far=far)
            for method, s in searches.items()
        },
        fars=wanted,
        units=int(units.max()) + 1,
        total=pair_list_total(ordered[~same], count=int(units.max()) + 1),
        **options,
    )
    sure = tar_intervals(bootstrap, fars=FPIRS)
    figures = {}
    for method, found in searches.items():
        figures[method] = search_figures(found)
        figures[method]["gallery"] = int(gallery.rows.size)
        for key, entries in sure.get(method, {}).items():
            figures[method][key.replace("tar_", "tpir_").replace("@far", "@fpir")] = entries
    for k in RANKS:
        hits = {method: found.rank <= k for method, found in searches.items()}
        means = bootstrap_means(hits, units[mated][:, None], count=int(units.max()) + 1, **options)
        for method in means.differences:
            gain = figures[method]["rank"][str(k)] - figures[BASELINE]["rank"][str(k)]
            figures[method].setdefault("rank_gain", {})[str(k)] = gain
        for method, entries in mean_intervals(means).items():
            for kind, entry in entries.items():
                figures[method].setdefault(f"rank_{kind}", {})[str(k)] = entry
    splits = {
        method: SplitScores(np.sort(found.mate), np.sort(found.highest))
        for method, found in searches.items()
    }
    few = notes_of_few(figures, counts="false_alarms", rate="FPIR", decided="TPIR")
    few += note_of_few_units(figures, "tpir@fpir", over=bootstrap.over)
    return Evaluation(figures, roc_bands(splits, bootstrap), few)


def _mean(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The galleries' mean of each rate, and of the ends of its interval."""

    def mean(one: Any, other: Any) -> Any:
        if isinstance(one, Mapping):
            return {key: mean(figure, other[key]) for key, figure in one.items()}
        if isinstance(one, list):
            return [mean(*ends) for ends in zip(one, other, strict=True)]
        return (one + other) / 2

    kinds = ("tpir", "rank")
    return {
        key: mean(entry, second[key])
        for key, entry in first.items()
        if key.startswith(kinds) and "_among_best" not in key and "_units" not in key
    }
