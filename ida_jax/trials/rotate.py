"""A trial's rotations: fits and anchors of some people, scores of others, and a choice between.

What several rotations scored is pooled: all pairs within each as one list, without their rows in
memory.

N faces, P pairs, D embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import embedding_anchors
from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, measurable_far
from ida_jax.metrics.group_rates import Sides
from ida_jax.metrics.groups import FaceGroups, PairGroups, groups_of_all_pairs
from ida_jax.metrics.resampling import Rows, all_pairs_total, genuine_rows, impostor_rows
from ida_jax.metrics.roc import OperatingPoint, SplitScores, tar_at_far
from ida_jax.protocols.failures import RowsOf, log_densities
from ida_jax.rescoring.csn_fit import fit_csn
from ida_jax.rescoring.dao_fit import fit_dao
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.method_table import BASELINE, METHODS, methods_with
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.pairs import all_pair_scores
from ida_jax.rescoring.quality_fit import fit_quality
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.tiles import pair_counts
from ida_jax.trials.split import Rotation

# Of the SSR module's training: a few seconds, for the few thousand faces of a trial.
_SSR = {
    "input": "scaled", "copies": 10, "steps": 2000, "decay_steps": (1000, 1500),
    "learning_rate": 1e-2, "weight_decay": 2e-3,
}  # fmt: skip

# Faces that it learns from: ten copies of each are searched among all anchors.
MOST_LEARNT = 10_000
# False accepts of the FAR that a fit is made at.
_ACCEPTS_OF_A_FIT = 10 * FEWEST_FALSE_ACCEPTS


class Labelled(NamedTuple):
    """Unit rows float32 [N, D], identities int [N], and the model's fingerprint.

    And the norms [N] of the embeddings as the model gave them; None where they were normalised.
    """

    faces: np.ndarray
    people: np.ndarray
    fingerprint: str = ""
    norms: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> "Labelled":
        norms = None if self.norms is None else self.norms[rows]
        return self._replace(faces=self.faces[rows], people=self.people[rows], norms=norms)


class Trained(NamedTuple):
    """A rotation's scorers, by method, what was fitted for them, and why a fit is missing."""

    scorers: dict[str, Rescorer]
    artefacts: dict[str, Any]
    missing: dict[str, str]


class Scored(NamedTuple):
    """All pairs of some faces.

    Attributes:
      scores: {method: its scores in `score_all_pairs`' order}.
      rows: int [N], the faces' rows in the trial's data.
      people: int [I], their identities, ascending.
      labels: int [N], each face's place in them.
      log_density: {method: float32 [N], the faces' log F}, of the methods that have it.
    """

    scores: dict[str, SplitScores]
    rows: np.ndarray
    people: np.ndarray
    labels: np.ndarray
    log_density: Mapping[str, np.ndarray] = MappingProxyType({})


def train(
    data: Labelled, rotation: Rotation, given: AnchorSet | None, *, far: float, seed: int
) -> Trained:
    """Anchors, fits and scorers of one rotation.

    Args:
      given: anchors to use in place of those of the rotation.

    Raises:
      UserError: too few anchors for a support set.
    """
    anchors = given
    if anchors is None:
        own = data.at(rotation.anchors)
        people = len(np.unique(own.people))
        anchors = embedding_anchors(
            own.faces,
            people=own.people,
            size=50_000,
            k=max(1, min(10, people // 4)),
            fingerprint=data.fingerprint,
        )
    fit = data.at(rotation.fit)
    artefacts: dict[str, Any] = {"anchors": anchors}
    missing: dict[str, str] = {}
    options = {"usual": True, "norms": data.norms is not None}
    tried = methods_with({*_FITS, "anchors"}, **options)
    needed = {need for method in tried for need in METHODS[method].needs}
    for name in (name for name in _FITS if name in needed):
        try:
            artefacts[name] = _FITS[name](fit, data.at(rotation.anchors), anchors, far, seed)
        except UserError as error:
            missing[name] = str(error)
    scorers = make_scorers(
        methods_with(artefacts, **options),
        probes=fit.faces,
        expected_faces=len(rotation.test),
        **artefacts,
    )
    return Trained(scorers, artefacts, missing)


def _csn(fit: Labelled, _: Labelled, anchors: AnchorSet, far: float, seed: int) -> Any:
    return fit_csn(fit.faces, fit.people, anchors, exclude_own=False, seed=seed)


def _dao(fit: Labelled, _: Labelled, anchors: AnchorSet, far: float, seed: int) -> Any:
    impostors = len(fit.people) ** 2 // 2
    # A fit at a lower FAR than its pairs have would follow single ones.
    far = min(measurable_far(far, impostors, accepts=_ACCEPTS_OF_A_FIT), 0.1)
    return fit_dao(fit.faces, fit.people, anchors, far=far, exclude_own=False)


def _quality(fit: Labelled, _: Labelled, anchors: AnchorSet, far: float, seed: int) -> Any:
    k = min(30, len(anchors))
    return fit_quality(fit.faces, fit.norms, fit.people, anchors, k=k, exclude_own=False)


def _ssr(fit: Labelled, others: Labelled, anchors: AnchorSet, far: float, seed: int) -> Any:
    from ida_jax.runs.config import ssr_section
    from ida_jax.training.ssr import train_ssr, with_copies

    config = ssr_section()
    config.update(_SSR)
    faces = np.concatenate([fit.faces, others.faces])
    # Only those whose images the anchors hold have a label among them.
    labels = np.concatenate([np.full(len(fit.people), -1), others.people])
    if anchors.labels is None or not len(others.people):
        labels = np.full(len(faces), -1)
    if len(faces) > MOST_LEARNT:
        kept = np.linspace(0, len(faces) - 1, MOST_LEARNT).astype(int)
        faces, labels = faces[kept], labels[kept]
    copied = with_copies(
        faces, labels, copies=config.copies, mix=config.mix, noise=config.noise, seed=seed
    )
    k, tau = anchors.k, anchors.tau
    target = searched_log_density(copied.embeddings, anchors, k=k, tau=tau, labels=copied.labels)
    ssr = train_ssr(
        copied.embeddings,
        target,
        config,
        k=k,
        tau=tau,
        fingerprint=anchors.fingerprint,
        workdir=None,
        seed=seed,
    )
    return dataclasses.replace(ssr, anchors_sketch=anchors.sketch)


# What a trial fits for methods that need it, by the entry of `method_table.ARTEFACTS`.
_FITS: dict[str, Callable[[Labelled, Labelled, AnchorSet, float, int], Any]] = {
    "csn": _csn,
    "dao_fit": _dao,
    "quality_fit": _quality,
    "ssr": _ssr,
}


def score(data: Labelled, rows: np.ndarray, scorers: Mapping[str, Rescorer]) -> Scored:
    """All pairs of the faces in `rows`, by every method."""
    faces = data.at(rows)
    people, labels = np.unique(faces.people, return_inverse=True)
    terms = {name: scorer.terms(faces.faces, norms=faces.norms) for name, scorer in scorers.items()}
    scores = all_pair_scores(faces.faces, labels, terms)
    return Scored(scores, rows, people, labels, log_densities(terms))


def operating_points(part: Scored, far: float) -> dict[str, tuple[OperatingPoint, OperatingPoint]]:
    """{method: what it does at `far` and at 10 `far`}: all that is kept of a part that chooses."""
    fars = (far, min(10 * far, 0.5))
    return {name: tar_at_far(*split, fars) for name, split in part.scores.items()}


def choose(rates: Mapping[str, float]) -> str:
    """The method of the highest TAR; the cosine where none is above it."""
    best = max(rates, key=lambda name: rates[name])
    return best if rates[best] > rates[BASELINE] else BASELINE


def standardise(
    part: Scored, points: Mapping[str, tuple[OperatingPoint, OperatingPoint]]
) -> Scored:
    """(s − t) / (t − t₁₀), in place, with t and t₁₀ the thresholds of two `points` of other people.

    So the scores of several rotations, and of several methods, have one threshold: 0.
    """
    for name, split in part.scores.items():
        threshold, unit = _scale(points[name])
        for kind in split:
            kind -= np.float32(threshold)
            kind /= np.float32(unit)
    return part


def unstandardised(scores: np.ndarray, points: tuple[OperatingPoint, OperatingPoint]) -> np.ndarray:
    """What a method's standardised scores are on the scale of the rotation of these points."""
    threshold, unit = _scale(points)
    return scores * unit + threshold


def _scale(points: tuple[OperatingPoint, OperatingPoint]) -> tuple[float, float]:
    at, above = (point.threshold for point in points)
    return at, at - above if at > above else 1.0


def pooled(parts: Sequence[Scored]) -> dict[str, SplitScores]:
    """{method: its scores of all parts}, of the methods that all have, which are taken out of them.

    Beside the scores it takes the memory of one method's.
    """
    common = [name for name in parts[0].scores if all(name in part.scores for part in parts)]
    scores = {}
    for name in common:
        scores[name] = joined([part.scores.pop(name) for part in parts])
    return scores


def joined(splits: Sequence[SplitScores]) -> SplitScores:
    """The scores of several lists as one, copied."""
    return SplitScores(*map(np.concatenate, zip(*splits, strict=True)))


def sides_of(parts: Sequence[Scored]) -> Sides:
    """The identities of the pairs of all parts, computed where they are asked for."""
    totals = [all_pairs_total(part.labels) for part in parts]

    def total(weights: np.ndarray) -> np.ndarray:
        return sum(
            of(weights[part.people]) for of, part in zip(totals, parts, strict=True)
        )  # the parts share nobody, so that no pair lies in two

    genuine, impostor = _pairs_of(parts, [part.people[part.labels] for part in parts])
    pairs = sum(pair_counts(part.labels)[0] for part in parts)
    people = max(int(part.people[-1]) for part in parts) + 1
    return Sides(genuine(np.arange(pairs)), impostor, people, total)


def rows_of(parts: Sequence[Scored]) -> tuple[RowsOf, RowsOf]:
    """The rows of the trial's data of the genuine, and of the impostor, pairs of all parts."""
    return _pairs_of(parts, [part.rows for part in parts])


def pooled_log_density(parts: Sequence[Scored], faces: int) -> dict[str, np.ndarray]:
    """{method: float32 [N], log F of the trial's N faces}; NaN of those in no part."""
    found: dict[str, np.ndarray] = {}
    for part in parts:
        for name, of_part in part.log_density.items():
            found.setdefault(name, np.full(faces, np.nan, np.float32))[part.rows] = of_part
    return found


def _pairs_of(parts: Sequence[Scored], faces: Sequence[np.ndarray]) -> tuple[RowsOf, RowsOf]:
    """What the two faces of the genuine, and of the impostor, pairs of all parts have, [P, 2].

    Args:
      faces: for each part, int [N], what its faces have.
    """
    counts = np.array([pair_counts(part.labels) for part in parts])

    def of_kind(kind: int, rows: Callable[[np.ndarray, np.ndarray], Rows]) -> RowsOf:
        ends = np.cumsum(counts[:, kind])

        def pairs(positions: np.ndarray) -> np.ndarray:
            found = np.empty((len(positions), 2), np.int32)
            owner = np.searchsorted(ends, positions, side="right")
            for number, part in enumerate(parts):
                own = owner == number
                start = ends[number] - counts[number, kind]
                found[own] = faces[number][np.stack(rows(part.labels, positions[own] - start), 1)]
            return found

        return pairs

    return of_kind(0, genuine_rows), of_kind(1, impostor_rows)


def groups_of(parts: Sequence[Scored], faces: FaceGroups) -> PairGroups:
    """The groups of the pairs of all parts, in the order of `pooled`.

    Args:
      faces: the groups of the trial's faces.
    """
    made = [
        groups_of_all_pairs(faces.rows(part.rows), part.labels, pair_counts(part.labels)[0])
        for part in parts
    ]

    def total(weights: np.ndarray) -> np.ndarray:
        return sum(of.total(weights[part.people]) for of, part in zip(made, parts, strict=True))

    return made[0]._replace(
        genuine=np.concatenate([of.genuine for of in made]),
        impostor=np.concatenate([of.impostor for of in made]),
        total=total,
    )
