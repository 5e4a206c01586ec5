"""What weight of log F impostor pairs support, and whether it helps, with standard errors.

Ours, not the paper's. DAO (Eq. 4) takes log F with one weight, whatever the anchors. Whether that
helps is a matter of the impostor pairs' upper tail: with

    h = −log F / τ                                  a face's soft mean cosine to its support set
    log P(c > t | h₁, h₂) = const − T·t + θ·(h₁ + h₂)            impostors, t in the upper tail

the impostors of equal DAO score are equally rare where θ/T is DAO's own ½ (log DAO / τ is about
c − (h₁ + h₂)/2). The supported weight is therefore

    ω = 2θ/T        1: all of DAO's weight; 0: log F says nothing of impostors

    T = ln 10 / (q(10⁻³) − q(10⁻²))                 q(p): the cosine that a share p of them exceeds
    mean of (h₁ + h₂)/2 over pairs above q(10⁻²)  =  Σ h e^{θh} / Σ e^{θh}  over the faces

To second order a score with w times DAO's weight gains in proportion to w·(2ω − w): it loses to
the cosine where ω < w/2. IDA-R (w = 1) needs ω > ½; half of ω still has three quarters of the best
gain, and loses only where among the probes ω is below a quarter of what it was estimated at.

The standard error is a bootstrap's over people: the pairs are not independent, the people are.

`own_weight` takes the anchors as faces, for `ida_r_fallback`. `probe_gain` takes probes, for
`anchors check`, and measures what the model above only approximates: where the thresholds go
(experiments/results/safe_anchors.md). At FAR 1e-4 as well as at 1e-3, because bad images that crowd
where no anchor is show at the lower FAR first.

N faces, A anchors, D embedding, K support, P pairs, F FARs, R resamples (0 is the sample itself).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import own_neighbours, sampled_rows
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.ops.dao import log_density

_TAIL, _FAR_TAIL = 1e-2, 1e-3
_SPARE = 3  # pairs kept, in the tail's number: a resample's tail is another one
_RESAMPLES = 50
_FEWEST = 20  # people: 190 pairs, of which two are the tail
_STEPS = 40
_STEEPEST = 400.0  # nats per unit of cosine: θ is between −this and this


_DEPTH = 4  # neighbours searched for an anchor, in k
_MOST_PROBES = 3000
_GAIN_FARS = (1e-3, 1e-4)
_FEWEST_ABOVE = 5  # impostor pairs above a threshold; with fewer nothing is said of it
_FEWEST_ANCHORS = 20  # people, in k: of fewer a support set is a sample rather than a neighbourhood
_ONE_SIDED = 1.645  # standard errors: 95 % on one side


class SupportedWeight(NamedTuple):
    """The weight that impostor pairs support, as a multiple of DAO's.

    Attributes:
      weight: ω.
      error: its standard error; infinite where there are too few people for any statement.
      people: how many people's faces it comes from.
    """

    weight: float
    error: float
    people: int


class ProbeGain(NamedTuple):
    """What IDA-R does to the thresholds among probes.

    Attributes:
      gain: [F], by how much the cosine that a pair of average faces must reach falls at a FAR of
        1/1000 and of 1/10,000.
      error: [F], its standard error; infinite where there are too few people for any statement.
      people: how many people's faces it comes from.
      share_sparser: the share of the probes that are less similar to their nearest anchors than
        the median anchor is to its; about 0.5 in the right domain.
      few_anchors: the anchors are of fewer than 20·k people.
      harmful: IDA-R is likely to rank worse than the cosine: a threshold rises, by a one-sided 95 %
        interval.
      helpful: it is likely to rank better at these FARs: both thresholds fall by such an interval,
        and the anchors are not few: with few of them the genuine pairs can lose more than that.
        Where it is neither, there are too few faces, or it makes little difference to the probes.
    """

    gain: tuple[float, ...]
    error: tuple[float, ...]
    people: int
    share_sparser: float
    few_anchors: bool
    harmful: bool
    helpful: bool

    def described(self) -> str:
        """In a line: how sparse the probes are, and what happens to the thresholds."""
        parts = [
            f"domain: {self.share_sparser:.0%} of the probes are sparser than the median anchor "
            "(50 % is usual)"
        ]
        for far, gain, error in zip(_GAIN_FARS, self.gain, self.error, strict=True):
            if math.isinf(error):
                needed = _people_for(far)
                parts.append(f"{self.people:,} people are too few for FAR {far:.0e}, for which "
                             f"{needed:,} are needed")  # fmt: skip
            else:
                way = "lowers" if gain >= 0 else "raises"
                parts.append(f"IDA-R {way} the threshold at FAR {far:.0e} by {abs(gain):.4f} ± "
                             f"{error:.4f} of cosine ({self.people:,} people)")  # fmt: skip
        if self.few_anchors:
            parts.append(f"the anchors are of fewer than {_FEWEST_ANCHORS} k people")
        return "; ".join(parts).replace("e-0", "e-")


def _people_for(far: float) -> int:
    """How many people have pairs enough for a FAR: n(n − 1)/2 · FAR ≥ 5."""
    return math.ceil((1 + math.sqrt(1 + 8 * _FEWEST_ABOVE / far)) / 2)


def own_weight(
    anchors: AnchorSet, *, k: int, tau: float, searcher: str = "auto"
) -> SupportedWeight:
    """ω of the anchors' own impostor pairs: of at most 1,000 anchors of different identities.

    An anchor without a known identity counts as a person of its own. Either anchor's identity is
    left out of the other's support set, since their own cosine would enter both sides.

    Args:
      k: the support set's size.
      tau: τ of log F.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: as `own_neighbours`.
    """
    rows, people = sampled_rows(anchors), anchors.people()
    others = len(anchors) - int(np.unique(people, return_counts=True)[1].max())
    near = own_neighbours(anchors, k=max(k, min(_DEPTH * k, others)), searcher=searcher)
    similarities = np.asarray(near.similarities, np.float64)
    whose = people[np.asarray(near.indices)]
    people = people[rows]

    def crowding(members: np.ndarray, faces: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(np.where(members, tau * similarities[faces], -np.inf), 1) / tau

    every = np.arange(rows.size)
    own = crowding(np.broadcast_to(np.arange(similarities.shape[1]) < k, similarities.shape), every)

    def without(faces: np.ndarray, left_out: np.ndarray) -> np.ndarray:
        members = whose[faces] != people[left_out][:, None]
        members &= np.cumsum(members, axis=1) <= k
        enough = members.sum(axis=1) == k
        return np.where(enough, crowding(members | ~enough[:, None], faces), own[faces])

    return _supported_weight(
        np.asarray(anchors.embeddings[rows], np.float32),
        own,
        people,
        lambda first, second: (without(first, second) + without(second, first)) / 2,
    )


def probe_gain(
    probes: np.ndarray,
    anchors: AnchorSet,
    *,
    people: np.ndarray | None = None,
    threshold: float = 1.0,
    k: int | None = None,
    tau: float | None = None,
) -> ProbeGain:
    """What IDA-R does to the thresholds among the probes' impostor pairs, of at most 3,000 people.

        gain = q(c) − (q(log DAO / τ) − mean (log F + ln 2)/τ)

    with q the value that a share of the impostor pairs exceeds, 1/1000 and 1/10,000. The mean is
    what the density term of a genuine pair is on average. It needs no genuine pairs, and takes
    log F as independent of how alike two images of a person are.

    Args:
      probes: float32 [N, D], unit rows.
      people: [N], who is on each probe: names, or integers, negative where unknown. One face a
        person is taken.
      threshold: without `people`, a probe with this cosine to one taken before counts as the same
        person: `ida_jax.anchors.check.same_person_threshold`. Genuine pairs that are left look
        like impostors.
      k: the support set's size; the anchor set's own default if None.
      tau: τ; the anchor set's own default if None.

    Raises:
      UserError: as `support_sets`; fewer than k anchors of other identities; no probes.
    """
    if len(probes) < 1:
        raise UserError("0 probes were given: expected at least 1")
    k, tau = anchors.k if k is None else k, anchors.tau if tau is None else tau
    rows = np.random.default_rng(0).permutation(len(probes))
    if people is not None:
        _, codes = np.unique(np.asarray(people)[rows], return_inverse=True)
        unknown = people.dtype.kind in "iu" and people[rows] < 0
        codes = np.where(unknown, codes.max() + 1 + np.arange(rows.size), codes)
        rows = rows[np.sort(np.unique(codes, return_index=True)[1])]
    rows = rows[:_MOST_PROBES]
    faces = probes[rows]
    if people is None:
        faces = faces[~np.any(np.triu(faces @ faces.T >= np.float32(threshold), 1), axis=0)]

    def log_f(similarities: np.ndarray) -> np.ndarray:
        return np.asarray(log_density(similarities, tau=tau), np.float64) / tau

    own = log_f(own_neighbours(anchors, k=k).similarities)
    probed = log_f(support_sets(faces, anchors, k=k).similarities)
    sparser = float(np.mean(probed > np.median(own)))
    gain, error = _threshold_gains(faces, probed, tau)
    margin = _ONE_SIDED * error
    few = np.unique(anchors.people()).size < _FEWEST_ANCHORS * k
    return ProbeGain(
        tuple(gain.tolist()),
        tuple(error.tolist()),
        len(faces),
        sparser,
        few_anchors=few,
        harmful=bool(np.any(gain < -margin)),
        helpful=not few and bool(np.all(gain > margin)),
    )


def _threshold_gains(
    faces: np.ndarray, log_f: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gains [F] of `probe_gain` and errors, of N people's unit rows [N, D] and log F/τ [N]."""
    count = len(faces)
    gains, errors = np.zeros(len(_GAIN_FARS)), np.full(len(_GAIN_FARS), np.inf)
    if count < _people_for(max(_GAIN_FARS)):
        return gains, errors
    first, second = np.triu_indices(count, 1)
    cosines = (faces @ faces.T)[first, second].astype(np.float64)
    aligned = cosines + np.logaddexp(tau * log_f[first], tau * log_f[second]) / tau
    weights = _resampled(count)
    total = (weights.sum(axis=1) ** 2 - np.sum(weights**2, axis=1)) / 2
    usual = (weights @ log_f) / weights.sum(axis=1) + math.log(2) / tau
    for f, far in enumerate(_GAIN_FARS):
        if count < _people_for(far):
            continue
        falls = []
        for scores in (cosines, aligned):
            top = _highest(scores, far)
            number = np.cumsum(weights[:, first[top]] * weights[:, second[top]], axis=1)
            falls.append(scores[top[_ranks(number, far * total)]])
        gain = falls[0] - falls[1] + usual
        gains[f], errors[f] = gain[0], np.std(gain[1:])
    return gains, errors


def _resampled(count: int) -> np.ndarray:
    """float64 [R, count]: how often each person comes; once in the sample itself, the first row."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])


def _highest(scores: np.ndarray, share: float) -> np.ndarray:
    """The rows of the highest scores, descending: more than that share of them."""
    kept = min(int(_SPARE * share * scores.size) + 50, scores.size)
    top = np.argpartition(-scores, kept - 1)[:kept]
    return top[np.argsort(-scores[top], kind="stable")]


def _ranks(number: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int [R]: where the cumulative numbers [R, P] reach those wanted [R]."""
    found = [np.searchsorted(row, rank) for row, rank in zip(number, wanted, strict=True)]
    return np.minimum(found, number.shape[1] - 1)


def _supported_weight(
    faces: np.ndarray,
    crowding: np.ndarray,
    people: np.ndarray,
    pair_crowding: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> SupportedWeight:
    """ω and its error.

    Args:
      faces: float32 [N, D], unit rows.
      crowding: float64 [N], h.
      people: int [N].
      pair_crowding: (rows [P], rows [P]) to the mean h of each pair [P].
    """
    _, people = np.unique(people, return_inverse=True)
    count = int(people.max(initial=-1)) + 1
    if count < _FEWEST or np.ptp(crowding) == 0:
        return SupportedWeight(0.0, math.inf, count)
    first, second = np.triu_indices(len(faces), 1)
    cosines = (faces @ faces.T)[first, second]
    differ = people[first] != people[second]
    first, second, cosines = first[differ], second[differ], cosines[differ]
    top = _highest(cosines, _TAIL)
    first, second, cosines = first[top], second[top], cosines[top].astype(np.float64)
    weights = _resampled(count)[:, people]
    of_people = np.stack([np.bincount(people, w, minlength=count) for w in weights])
    total = (weights.sum(axis=1) ** 2 - np.sum(of_people**2, axis=1)) / 2
    pairs = weights[:, first] * weights[:, second]
    number = np.cumsum(pairs, axis=1)
    crowded = np.cumsum(pairs * pair_crowding(first, second), axis=1)
    every = np.arange(len(weights))
    ends = [_ranks(number, share * total) for share in (_TAIL, _FAR_TAIL)]
    rise = np.maximum(cosines[ends[1]] - cosines[ends[0]], 1e-6)
    steepness = math.log(_TAIL / _FAR_TAIL) / rise
    mean = crowded[every, ends[0]] / np.maximum(number[every, ends[0]], 1)
    weight = 2 * _tilt(crowding, weights, mean) / steepness
    return SupportedWeight(float(weight[0]), float(np.std(weight[1:])), count)


def _tilt(values: np.ndarray, weights: np.ndarray, means: np.ndarray) -> np.ndarray:
    """θ [R] at which the mean of values [N], with weights [R, N] times e^{θ·value}, is `means`."""
    centre = values.mean()
    values, means = values - centre, means - centre
    reach = np.abs(values).max()
    low, high = np.full(means.size, -_STEEPEST), np.full(means.size, _STEEPEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tilted = weights * np.exp(middle[:, None] * values - np.abs(middle)[:, None] * reach)
        below = tilted @ values < means * tilted.sum(axis=1)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
