"""What weight of log F impostor pairs support, and whether it helps, with standard errors.

Ours, not the paper's. DAO (Eq. 4) takes log F with one weight, whatever the anchors. Whether that
helps is a matter of the impostor pairs' upper tail: with

    h = −log F / τ                                  a face's soft mean cosine to its support set
    log P(c > t | h₁, h₂) = const − T·t + θ·(h₁ + h₂)            impostors, t in the upper tail

the impostors of equal DAO score are equally rare where θ/T is DAO's own ½ (log DAO / τ is about
c − (h₁ + h₂)/2). The supported weight is therefore

    ω = 2θ/T        1: all of DAO's weight; 0: log F says nothing of impostors

    T = ln 10 / (q(10⁻³) − q(10⁻²))                 q(p): the cosine that a share p of them exceeds
    mean of (h₁ + h₂)/2 over pairs above q(p)  =  Σ h e^{θh} / Σ e^{θh}  over the faces

To second order a score with w times DAO's weight gains in proportion to w·(2ω − w): it loses to
the cosine where ω < w/2. Bad images that crowd where no anchor is show in the far tail first, so
ω is taken at p = 10⁻², 3·10⁻³ and 10⁻³, and the least counts. The standard error is a bootstrap's
over faces: the pairs are not independent.

`supported_weight` finds the weight for `ida_r_fallback`, of unlabelled probes. `probe_gain`, for
`anchors check`, also measures what the model above only approximates: where the thresholds go
(experiments/results/safe_anchors.md).

N faces, A anchors, D embedding, K support, P pairs, F FARs, Q tails, R resamples (0 is the sample
itself).
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.coverage import own_neighbours
from ida_jax.anchors.search import support_sets
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_rows
from ida_jax.ops.dao import log_density

_TAILS = (1e-2, 3e-3, 1e-3)
_MARGIN = 1.3  # the impostors' end, in that of a normal distribution: their tail is longer
_SPARE = 3  # pairs kept, in the tail's number: a resample's tail is another one
_RESAMPLES = 50
_STEPS = 40
_STEEPEST = 400.0  # nats per unit of cosine: θ is between −this and this

PROBES, FEWEST_PROBES = 1500, 500
# Chosen on LFW's anchor half (experiments/safe_anchors.py).
_CAUTION = 0.85
_FEWEST_WEIGHED = 5  # people, in k

_MOST_PROBES = 3000
_GAIN_FARS = (1e-3, 1e-4)
_FEWEST_ABOVE = 5  # impostor pairs above a threshold; with fewer nothing is said of it
_FEWEST_ANCHORS = 20  # people, in k: of fewer a support set is a sample rather than a neighbourhood
_MISFIT = 0.25  # of the weight
_ONE_SIDED = 1.645  # standard errors: 95 % on one side


class SupportedWeight(NamedTuple):
    """The weight that unlabelled probes support, as a multiple of DAO's.

    Attributes:
      weight: w, from 0 (the cosine) to 1 (DAO), in hundredths.
      supported: [Q], ω by the pairs of each tail.
      error: [Q], their standard errors; infinite where there are too few probes.
      probes: how many it comes from, one of each likely person.
    """

    weight: float
    supported: tuple[float, ...]
    error: tuple[float, ...]
    probes: int


class ProbeGain(NamedTuple):
    """What IDA-R does to the thresholds among probes.

    Attributes:
      gain: [F], by how much the cosine that a pair of average faces must reach falls at a FAR of
        1/1000 and of 1/10,000.
      error: [F], its standard error; infinite where there are too few people for any statement.
      people: how many people's faces it comes from.
      share_sparser: the share of the probes that are less similar to their nearest anchors than
        the median anchor is to its; about 0.5 in the right domain.
      supported: the least of ω − 1.645 σ over the tails; −inf where there are too few people.
      lowering: v of `supported_weight`.
      few_anchors: the anchors are of fewer than 20·k people.
      harmful: IDA-R is likely to rank worse than the cosine: a threshold rises, by a one-sided 95 %
        interval.
      helpful: it is likely to rank better at these FARs: both thresholds fall by such an interval,
        and v is not far below the supported weight: else log F tells who the faces are rather than
        how crowded. And the anchors are not few, with which the genuine pairs can lose more.
        Where it is neither, there are too few faces, or it makes little difference to the probes.
    """

    gain: tuple[float, ...]
    error: tuple[float, ...]
    people: int
    share_sparser: float
    supported: float
    lowering: float
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
        if not math.isinf(self.supported):
            parts.append(f"they support {self.supported:.2f} of IDA-R's weight of log F, and "
                         f"{self.lowering:g} lowers the thresholds most")  # fmt: skip
        if self.few_anchors:
            parts.append(f"the anchors are of fewer than {_FEWEST_ANCHORS} k people")
        return "; ".join(parts).replace("e-0", "e-")


def _people_for(far: float) -> int:
    """How many people have pairs enough for a FAR: n(n − 1)/2 · FAR ≥ 5."""
    return math.ceil((1 + math.sqrt(1 + 8 * _FEWEST_ABOVE / far)) / 2)


def supported_weight(
    probes: np.ndarray,
    anchors: AnchorSet,
    *,
    k: int | None = None,
    tau: float | None = None,
    labels: np.ndarray | None = None,
    searcher: str = "auto",
) -> SupportedWeight:
    """The weight of log F that is safe for faces of the probes' kind, by 1,500 of them at random.

        w = clip(min(0.85 · (ω − 1.645 σ), v), 0, 1)            the least over the three tails
        v = the weight, in tenths, with which τc + logaddexp(v log F₁, v log F₂), log F less its
            mean, has the lowest q(p): where the anchors are near to some of the faces alone, log F
            tells who they are rather than how crowded, which the model of ω does not see

    Who is on the probes is not known. Nearly all of their P pairs are impostors, of which about
    one would reach

        q(0.5) + 1.3 · Φ⁻¹(1 − 1/P) / Φ⁻¹(0.9) · (q(0.1) − q(0.5))

    The second face of each pair above is taken for another image of the first one's person and left
    out. Images of one person that stay do no harm where they are few among the pairs: give probes
    of many people.

    Args:
      probes: [N, D], of any norm; rows that are zero, NaN or infinite are left out. With fewer than
        500 people's the weight is 0, as with anchors of fewer than 5·k people.
      k: the support set's size; the anchor set's own default if None.
      tau: τ; the anchor set's own default if None.
      labels: int [N], identities in the anchors' numbering, each left out of its own support set.
      searcher: see `ida_jax.anchors.search.support_sets`.

    Raises:
      UserError: as `support_sets`.
    """
    k, tau = anchors.k if k is None else k, anchors.tau if tau is None else tau
    rows = np.sort(np.random.default_rng(0).permutation(len(probes))[:PROBES])
    unit = unit_rows(probes, rows=rows, skip_bad=True)
    faces, rows = unit.embeddings[~unit.bad], rows[~unit.bad]
    if len(faces) >= FEWEST_PROBES:
        kept = _one_each(faces)
        faces, rows = faces[kept], rows[kept]
    few = np.unique(anchors.people()).size < _FEWEST_WEIGHED * k
    if few or len(faces) < FEWEST_PROBES:
        nothing = (0.0,) * len(_TAILS)
        return SupportedWeight(0.0, nothing, (math.inf,) * len(_TAILS), len(faces))
    labels = None if labels is None else labels[rows]
    near = support_sets(faces, anchors, k=k, labels=labels, searcher=searcher)
    crowding = -np.asarray(log_density(near.similarities, tau=tau), np.float64) / tau
    supported, error = _supported(faces, crowding)
    safe = _CAUTION * float(np.min(supported - _ONE_SIDED * error))
    safe = min(max(safe, 0.0), _lowering(faces, crowding, tau))
    return SupportedWeight(
        math.floor(100 * safe) / 100, tuple(supported.tolist()), tuple(error.tolist()), len(faces)
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
    supported, lowering = -math.inf, 0.0
    if np.all(np.isfinite(error)):
        weight, deviation = _supported(faces, -probed)
        supported = float(np.min(weight - _ONE_SIDED * deviation))
        lowering = _lowering(faces, -probed, tau)
    few = np.unique(anchors.people()).size < _FEWEST_ANCHORS * k
    return ProbeGain(
        tuple(gain.tolist()),
        tuple(error.tolist()),
        len(faces),
        sparser,
        supported,
        lowering,
        few_anchors=few,
        harmful=bool(np.any(gain < -margin)),
        helpful=not few and bool(np.all(gain > margin)) and lowering > min(supported, 1) - _MISFIT,
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


def _one_each(faces: np.ndarray) -> np.ndarray:
    """bool [N]: of unit faces [N, D] one of each likely person, as in `supported_weight`."""
    cosines = faces @ faces.T
    pairs = cosines[np.triu_indices(len(faces), 1)]
    middle, upper = np.quantile(pairs, (0.5, 0.9))
    normal = NormalDist()
    reach = normal.inv_cdf(1 - 1 / pairs.size) / normal.inv_cdf(0.9)
    return ~np.any(np.triu(cosines > middle + _MARGIN * reach * (upper - middle), 1), axis=0)


def _supported(faces: np.ndarray, crowding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ω and its standard error by each tail, [Q].

    Args:
      faces: float32 [N, D], unit rows of N people.
      crowding: float64 [N], h.
    """
    if np.ptp(crowding) == 0:
        return np.zeros(len(_TAILS)), np.full(len(_TAILS), np.inf)
    first, second = np.triu_indices(len(faces), 1)
    cosines = (faces @ faces.T)[first, second].astype(np.float64)
    top = _highest(cosines, _TAILS[0])
    first, second, cosines = first[top], second[top], cosines[top]
    weights = _resampled(len(faces))
    total = (weights.sum(axis=1) ** 2 - np.sum(weights**2, axis=1)) / 2
    pairs = weights[:, first] * weights[:, second]
    number = np.cumsum(pairs, axis=1)
    crowded = np.cumsum(pairs * (crowding[first] + crowding[second]) / 2, axis=1)
    every = np.arange(len(weights))
    ends = [_ranks(number, share * total) for share in _TAILS]
    rise = np.maximum(cosines[ends[-1]] - cosines[ends[0]], 1e-6)
    steepness = math.log(_TAILS[0] / _TAILS[-1]) / rise
    tilts = [
        _tilt(crowding, weights, crowded[every, end] / np.maximum(number[every, end], 1))
        for end in ends
    ]
    found = 2 * np.stack(tilts) / steepness
    return found[:, 0], np.std(found[:, 1:], axis=1)


def _lowering(faces: np.ndarray, crowding: np.ndarray, tau: float) -> float:
    """v of `supported_weight`, in tenths: the least over the tails; arguments as `_supported`."""
    first, second = np.triu_indices(len(faces), 1)
    cosines = (faces @ faces.T)[first, second]
    top = _highest(cosines, 2 * _TAILS[0])
    cosines, log_f = cosines[top].astype(np.float64), -tau * (crowding - crowding.mean())
    tried = np.arange(11) / 10
    ranks = [int(share * first.size) for share in _TAILS]
    first, second = first[top], second[top]
    thresholds = [
        np.sort(tau * cosines + np.logaddexp(w * log_f[first], w * log_f[second]))[::-1][ranks]
        for w in tried
    ]
    return float(tried[np.argmin(thresholds, axis=0)].min())


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
