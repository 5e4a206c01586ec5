"""Whether probes are nearer to one another than to the anchors, as degraded faces are.

Ours, not the paper's. An anchor stands for a stranger: the cosines of probes to anchors should be
distributed as those of probes to probes of other people. Degraded faces (blurred, small, noisy)
crowd together, away from clean ones; among clean anchors they look as sparse as any face, their
pairs keep their high cosines, and IDA can rank worse than the cosine. Degraded copies among the
anchors (`anchors build --degrade`) show the crowd (experiments/results/degraded_anchors.md).

N probes, A anchors, D embedding, S sampled rows.
"""

from typing import Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.tables.identities import numbered

_SAMPLE = 1000
_LEAST_PROBES = 100
_TAIL, _FEWEST = 1e-3, 30  # the share of pairs above the bound, and the fewest pairs
# On LFW, 1,000 probes of the eval half and 100 to 1,000 anchors of the other, 60 draws: at most
# 1.42 among clean faces, from 1.88 on where half of the probes are degraded, 7 where all are; with
# 200 probes or 30 anchors at most 1.9 among clean faces.
_CROWDED = 1.75
# There, degraded faces in the pairs above the bound are 0.3 to 0.4 deviations below all probes, and
# clean ones 0.1 above.
_LOW_NORM = -0.15


class Crowding(NamedTuple):
    """How much more often two probes are alike than a probe and an anchor.

    Attributes:
      probes: the number of probes examined.
      bound: the cosine that the most similar pairs of a probe and an anchor of other identities
        reach: 0.1 % of them, or more where that would be fewer than 30 pairs of probes.
      ratio: the share of the pairs of probes of different identities that reach it, over that
        share; about 1 with anchors like the probes.
      norm_shift: how much lower the raw embeddings' norms are in those pairs than among all probes:
        the difference of the means of ln‖x‖ in standard deviations, negative where lower; NaN where
        the embeddings are unit or no pair reaches the bound.
      crowded: whether the ratio is above 1.75.
      low_quality: whether it is, and the shift is below -0.15: the crowd is of poor images.
    """

    probes: int
    bound: float
    ratio: float
    norm_shift: float
    crowded: bool
    low_quality: bool

    def json(self) -> dict[str, Any]:
        """For a JSON file, which has no NaN."""
        shift = None if np.isnan(self.norm_shift) else self.norm_shift
        return {**self._asdict(), "norm_shift": shift}


def crowding(
    probes: np.ndarray,
    people: np.ndarray,
    anchors: AnchorSet,
    *,
    own: np.ndarray | None = None,
    norms: np.ndarray | None = None,
) -> Crowding | None:
    """The cosines of probes to one another beside theirs to the anchors.

    At most 1,000 of either are examined, drawn at random.

    Args:
      probes: float32 [N, D], unit rows.
      people: int [N], the probes' identities in any numbering; rows of unknown identity, negative,
        are left out.
      own: int [N], the same in the numbering of the anchors' labels, negative where not among them.
      norms: [N], the raw embeddings' norms, where they are known.

    Returns:
      None where fewer than 100 probes are of known identity, or where these are of one.
    """
    rng = np.random.default_rng(0)
    known = np.flatnonzero(people >= 0)
    if len(known) < _LEAST_PROBES:
        return None
    rows = rng.choice(known, min(_SAMPLE, len(known)), replace=False)
    columns = rng.choice(len(anchors), min(_SAMPLE, len(anchors)), replace=False)
    first, second = np.triu_indices(len(rows), 1)
    strangers = people[rows[first]] != people[rows[second]]
    first, second = first[strangers], second[strangers]
    if not first.size:
        return None
    others = np.ones((len(rows), len(columns)), bool)
    if own is not None and anchors.labels is not None:
        mine = own[rows][:, None]
        others = (mine != anchors.labels[columns][None]) | (mine < 0)
    faces = probes[rows]
    to_anchors = (faces @ np.asarray(anchors.embeddings[columns]).T)[others]
    among = (faces @ faces.T)[first, second]
    tail = min(max(_TAIL, _FEWEST / first.size), 0.5)
    bound = float(np.quantile(to_anchors, 1 - tail))
    above = among > bound
    ratio = float(np.mean(above)) / tail
    shift = _norm_shift(norms, rows, np.concatenate([first[above], second[above]]))
    crowded = ratio > _CROWDED
    return Crowding(len(rows), bound, ratio, shift, crowded, crowded and shift < _LOW_NORM)


def _norm_shift(norms: np.ndarray | None, rows: np.ndarray, crowd: np.ndarray) -> float:
    """`Crowding.norm_shift` of the rows of the pairs' two faces, in the sample."""
    if norms is None or not crowd.size:
        return float("nan")
    logs = np.log(np.asarray(norms, np.float64)[rows])
    # Embeddings that come normalised differ by rounding alone.
    return (
        float("nan")
        if logs.std() < 1e-3
        else float((logs[crowd].mean() - logs.mean()) / logs.std())
    )


class CrowdingReport(NamedTuple):
    """`crowding` in words: a line, warnings; and for a JSON file, None where not examined."""

    line: str
    warnings: list[str]
    json: dict[str, Any] | None


def reported_crowding(
    probes: np.ndarray, people: np.ndarray | None, anchors: AnchorSet, *, norms: np.ndarray
) -> CrowdingReport:
    """What `anchors check` says of it.

    Args:
      probes: float32 [N, D], unit rows.
      people: N identities, names or integers in the numbering of the anchors' labels; None where
        they are not known.
      norms: [N], of the raw embeddings.
    """
    if people is None:
        return CrowdingReport(
            "crowding: not examined, which takes --labels: who is on the probes", [], None
        )
    people = np.asarray(people)
    comparable = anchors.labels is not None and (anchors.names or people.dtype.kind in "iu")
    own = anchors.labels_of(people) if comparable else None
    found = crowding(probes, numbered(people), anchors, own=own, norms=norms)
    if found is None:
        return CrowdingReport(
            "crowding: not examined, with so few probes of known people", [], None
        )
    line = (
        f"crowding: pairs of probes of two people reach a cosine of {found.bound:.3f} "
        f"{found.ratio:.2f} times as often as a probe and an anchor (about 1 is usual)"
    )
    warnings = []
    if found.crowded:
        cause = (
            "their norms say that these are poor images"
            if found.low_quality
            else "as poor images do, or faces of another domain"
        )
        warnings.append(
            f"probes crowd together where there are no anchors ({cause}), and IDA can then be "
            "worse than the cosine: make the anchors as varied as the probes (build --images "
            "--degrade)"
        )
    return CrowdingReport(line, warnings, found.json())
