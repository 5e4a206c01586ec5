"""A trial's rotations: fits and anchors of some people, scores of others, and a choice between.

N faces, P pairs, D embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import embedding_anchors
from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS
from ida_jax.metrics.resampling import genuine_rows, impostor_rows
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.rescoring.csn_fit import fit_csn
from ida_jax.rescoring.dao_fit import fit_dao
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.method_table import BASELINE, methods_with
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.pairs import all_pair_scores
from ida_jax.rescoring.quality_fit import fit_quality
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.trials.split import Rotation

# Of the SSR module's training: a few seconds, for the few thousand faces of a trial.
_SSR = {
    "input": "scaled", "copies": 10, "steps": 2000, "decay_steps": (1000, 1500),
    "learning_rate": 1e-2, "weight_decay": 2e-3,
}  # fmt: skip


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
      scores: {method: float32 [P]}.
      same: bool [P].
      units: int [P, 2], the identities of both sides.
    """

    scores: dict[str, np.ndarray]
    same: np.ndarray
    units: np.ndarray

    def split(self, method: str) -> SplitScores:
        """The method's scores by kind."""
        return SplitScores(self.scores[method][self.same], self.scores[method][~self.same])


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
    for name, make in _FITS.items():
        if name == "quality_fit" and data.norms is None:
            continue
        try:
            artefacts[name] = make(fit, data.at(rotation.anchors), anchors, far, seed)
        except UserError as error:
            missing[name] = str(error)
    scorers = make_scorers(
        methods_with(artefacts, usual=True), expected_faces=len(rotation.test), **artefacts
    )
    return Trained(scorers, artefacts, missing)


def _csn(fit: Labelled, _: Labelled, anchors: AnchorSet, far: float, seed: int) -> Any:
    return fit_csn(fit.faces, fit.people, anchors, exclude_own=False, seed=seed)


def _dao(fit: Labelled, _: Labelled, anchors: AnchorSet, far: float, seed: int) -> Any:
    impostors = len(fit.people) ** 2 // 2
    # A fit at a lower FAR than its pairs have would follow single ones.
    far = max(far, 10 * FEWEST_FALSE_ACCEPTS / max(impostors, 1))
    return fit_dao(fit.faces, fit.people, anchors, far=min(far, 0.1), exclude_own=False)


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
    _, labels = np.unique(faces.people, return_inverse=True)
    terms = {name: scorer.terms(faces.faces, norms=faces.norms) for name, scorer in scorers.items()}
    splits = all_pair_scores(faces.faces, labels, terms)
    genuine, impostors = (kind.size for kind in next(iter(splits.values())))
    rows_of = [
        np.stack(find(labels, np.arange(count)), axis=1)
        for find, count in ((genuine_rows, genuine), (impostor_rows, impostors))
    ]
    same = np.repeat([True, False], [genuine, impostors])
    units = faces.people[np.concatenate(rows_of)].astype(np.int32)
    return Scored({name: np.concatenate(split) for name, split in splits.items()}, same, units)


def pooled(parts: Sequence[Scored]) -> Scored:
    """The pairs of several rotations, by the methods that all of them have."""
    common = [name for name in parts[0].scores if all(name in part.scores for part in parts)]
    return Scored(
        {name: np.concatenate([part.scores[name] for part in parts]) for name in common},
        np.concatenate([part.same for part in parts]),
        np.concatenate([part.units for part in parts]),
    )


def usable_far(parts: Sequence[Scored], far: float) -> float:
    """The lowest FAR, not below `far`, that leaves ten false accepts in the smallest part."""
    impostors = min(int(np.count_nonzero(~part.same)) for part in parts)
    return min(max(far, FEWEST_FALSE_ACCEPTS / impostors), 0.5)


def choose(part: Scored, far: float) -> str:
    """The method of the highest TAR at the FAR; the cosine where none is above it."""
    rates = {name: tar_at_far(*part.split(name), [far])[0].tar for name in part.scores}
    best = max(rates, key=lambda name: rates[name])
    return best if rates[best] > rates[BASELINE] else BASELINE


def standardised(part: Scored, reference: Scored, far: float) -> Scored:
    """(s − t) / (t − t₁₀), with t and t₁₀ the thresholds at `far` and 10 `far` on other people.

    So the scores of several rotations, and of several methods, have one threshold: 0.
    """
    scores = {}
    for name, own in part.scores.items():
        points = tar_at_far(*reference.split(name), [far, min(10 * far, 0.5)])
        at, above = points[0].threshold, points[1].threshold
        scale = at - above if at > above else 1.0
        scores[name] = (own - np.float32(at)) / np.float32(scale)
    return part._replace(scores=scores)
