"""Does IDA help on this data? Cross-fitted figures of every method, and a choice between them.

The choice falls on the folds that choose; its gain is that of the chosen methods on the folds that
are tested, where neither choice nor fit has seen anybody (`ida_jax.trials.split`).

N faces, P pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import identity_leaks, same_person_threshold
from ida_jax.anchors.coverage import coverage
from ida_jax.artefacts.calibration import Calibration, fit_calibration
from ida_jax.common.errors import UserError
from ida_jax.metrics.bootstrap import Bootstrap
from ida_jax.metrics.evaluation import Evaluation, far_key, measurable_far
from ida_jax.metrics.groups import FaceGroups
from ida_jax.metrics.roc import Interval, OperatingPoint, SplitScores, tar_at_far
from ida_jax.metrics.threshold_curve import ThresholdCurve, threshold_curve
from ida_jax.protocols.failures import (
    Kind,
    Listed,
    decided_at,
    described,
    firm_thresholds,
    listed_pairs,
)
from ida_jax.protocols.scored_pairs import bootstrap_split_pairs, evaluate_split_pairs
from ida_jax.rescoring.method_table import (
    ARTEFACTS,
    BASELINE,
    METHODS,
    REGRESSED,
    methods_with,
)
from ida_jax.rescoring.tiles import pair_counts
from ida_jax.trials.rotate import (
    MOST_LEARNT,
    Labelled,
    Scored,
    Trained,
    choose,
    groups_of,
    joined,
    operating_points,
    pooled,
    pooled_log_density,
    rows_of,
    score,
    sides_of,
    standardise,
    train,
    unstandardised,
)
from ida_jax.trials.split import Rotation, rotations
from ida_jax.trials.verdict import Finding, verdict

_CHOSEN = "chosen"


class Trial(NamedTuple):
    """What a trial found.

    Attributes:
      finding: what the verdict rests on.
      text: the verdict.
      evaluated: every method's figures on the tested folds, pooled.
      deployed: the rotation whose anchors and fits are kept; none of those in `held` is in it.
      held: the pairs, of the method to use and the cosine, that give thresholds and calibration.
      thresholds: {FAR: the threshold and its interval} of the method to use.
      calibration: of the method to use, fitted on them.
      curves: {method: what its thresholds do on the pairs in `held`}.
      identities: the people with known labels.
    """

    finding: Finding
    text: str
    evaluated: Evaluation
    deployed: Trained
    held: Scored
    thresholds: dict[str, dict[str, Any]]
    calibration: Calibration
    curves: dict[str, ThresholdCurve]
    identities: int

    @property
    def method(self) -> str:
        """The method to use: the cosine where no gain is shown."""
        return self.finding.method if self.finding.shown else BASELINE


def run_trial(
    data: Labelled,
    given: AnchorSet | None = None,
    *,
    names: Sequence[str] | None = None,
    groups: FaceGroups | None = None,
    far: float = 1e-4,
    resamples: int = 1000,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Trial:
    """Runs the five rotations.

    Args:
      data: identities from 0, negative where unknown.
      given: anchors in place of the data's own; nobody of the data may be among them.
      names: of the N faces, for the pairs to look at; their rows if None.
      groups: those of the N faces, for the tested pairs' figures by group.
      far: the FAR that the method is chosen for, in (0, 0.1].
      say: is told how far the trial is, in lines.

    Raises:
      UserError: too few people (`rotations`), an embedding that is there twice.
    """
    require_distinct(data)
    planned = rotations(data.people, own_anchors=given is None, seed=seed)
    rotated = _rotate(data, planned, given, far=far, seed=seed, say=say)
    gain = evaluate_split_pairs(
        _by_choice(rotated),
        sides_of(rotated.tested),
        fars=(rotated.tested_far,),
        resamples=resamples,
        seed=seed,
    )
    figures, key = gain.figures[_CHOSEN], far_key(rotated.tested_far)
    interval = Interval(*figures["tar_gain_interval@far"][key])
    shown = rotated.favourite != BASELINE and interval.low > 0
    method = rotated.favourite if shown else BASELINE
    impostors = sum(part.scores[BASELINE].impostor.size for part in rotated.tested)
    genuine = sum(part.scores[BASELINE].genuine.size for part in rotated.tested)
    say(f"intervals of {len(rotated.methods)} methods over {impostors + genuine:,} pairs")
    fars = [rate for rate in (10 * far, far, far / 10) if rate * impostors >= 1 and rate <= 0.5]
    tested = _evaluated(rotated, fars or [rotated.tested_far], groups, resamples, seed)
    held = score(
        data,
        np.union1d(planned[0].test, planned[0].choose),
        {name: rotated.first.scorers[name] for name in {method, BASELINE}},
    )
    calibration = fit_calibration(
        *held.scores[method], kind="logistic", origin=rotated.first.scorers[method].origin()
    )

    def probability(name: str, scores: np.ndarray) -> np.ndarray | None:
        if name != method:
            return None
        return calibration.percent(unstandardised(scores, rotated.first_points[method])) / 100

    failures = described(
        tested.listed,
        data.faces,
        names or [f"row {row}" for row in range(len(data.faces))],
        decided=_reading(tested.firm_far, rotated.measured, method),
        densities=pooled_log_density(rotated.tested, len(data.faces)),
        groups=groups,
        probability=probability,
    )
    # The pooled scores' common scale is not that of the deployed files.
    evaluated = tested.evaluation._replace(
        notes=(*rotated.notes, *tested.evaluation.notes), thresholds={}, failures=failures
    )
    tested_people = sum(len(part.people) for part in rotated.tested)
    rotated.tested.clear()
    wanted = sorted({*fars, rotated.tested_far})
    bootstrap = _held_bootstrap(held, wanted, resamples=resamples, seed=seed)
    thresholds = _thresholds(held, method, wanted, bootstrap)
    at = thresholds[key]
    finding = Finding(
        rotated.favourite,
        rotated.chosen,
        far,
        rotated.tested_far,
        rotated.measured,
        figures["tar_gain@far"][key],
        interval,
        tested_people,
        tested.tars[rotated.favourite],
        tested.tars[BASELINE],
        at["threshold"],
        Interval(*at["interval"]),
    )
    people = len(np.unique(data.people[data.people >= 0]))
    curves = {
        name: threshold_curve(held.scores[name], fars=wanted, intervals=bootstrap.methods[name])
        for name in held.scores
    }
    return Trial(
        finding,
        verdict(finding),
        evaluated,
        rotated.first,
        held,
        thresholds,
        calibration,
        curves,
        people,
    )


class _Rotated(NamedTuple):
    """The five rotations' scores, and what was chosen in each.

    Attributes:
      tested: of each rotation's tested fold, on the common scale.
      methods: those that every rotation could fit.
      chosen: the best method of each rotation's fold that chooses; favourite: of all these folds.
      first, first_points: what the first rotation fitted, and the points that set its scale.
      measured, tested_far: the least FAR from `far` up that the folds that choose, and all tested
        folds together, can measure.
      notes: what the user should know of anchors and fits.
    """

    tested: list[Scored]
    methods: list[str]
    chosen: list[str]
    favourite: str
    first: Trained
    first_points: dict[str, tuple[OperatingPoint, OperatingPoint]]
    measured: float
    tested_far: float
    notes: list[str]


def _rotate(
    data: Labelled,
    planned: Sequence[Rotation],
    given: AnchorSet | None,
    *,
    far: float,
    seed: int,
    say: Callable[[str], None],
) -> _Rotated:
    """Fits, chooses and tests once in each rotation."""
    measured = measurable_far(far, min(_impostors(data, part.choose) for part in planned))
    tested_far = measurable_far(far, sum(_impostors(data, part.test) for part in planned))
    tested: list[Scored] = []
    rates: list[dict[str, float]] = []
    failed: dict[str, list[str]] = {}
    notes: list[str] = []
    for number, rotation in enumerate(planned, 1):
        trained = train(data, rotation, given, far=far, seed=seed)
        # Every rotation has fits and anchors of its own: scores are pooled on a common scale.
        points = operating_points(score(data, rotation.choose, trained.scorers), measured)
        if number == 1:
            first, first_points = trained, points
            notes += _checks(data, rotation.test, trained)
        rates.append({name: at.tar for name, (at, _) in points.items()})
        tested.append(standardise(score(data, rotation.test, trained.scorers), points))
        say(
            f"rotation {number} of {len(planned)}: {len(rotation.test):,} faces tested, "
            f"{len(trained.artefacts['anchors']):,} anchors, {len(trained.scorers)} methods"
        )
        for what, why in trained.missing.items():
            failed.setdefault(what, []).append(why)
    methods = [name for name in rates[0] if all(name in of for of in rates)]
    notes += _left_out(failed, len(planned), norms=data.norms is not None)
    learnt = max(len(part.fit) + len(part.anchors) for part in planned)
    if learnt > MOST_LEARNT and REGRESSED in methods:
        notes.append(f"the SSR module learns from {MOST_LEARNT:,} of a rotation's {learnt:,} faces")
    chosen = [choose({name: of[name] for name in methods}) for of in rates]
    favourite = choose({name: float(np.mean([of[name] for of in rates])) for name in methods})
    return _Rotated(
        tested, methods, chosen, favourite, first, first_points, measured, tested_far, notes
    )


def _by_choice(rotated: _Rotated) -> dict[str, SplitScores]:
    """The cosine's scores, and those of the methods chosen, of all tested folds."""
    tested = rotated.tested
    parts = {
        BASELINE: [part.scores[BASELINE] for part in tested],
        _CHOSEN: [part.scores[name] for part, name in zip(tested, rotated.chosen, strict=True)],
    }
    return {name: joined(scores) for name, scores in parts.items()}


class _Tested(NamedTuple):
    """Every method on the tested folds, pooled.

    Attributes:
      evaluation: its figures.
      tars: TAR of the cosine and of the favourite.
      listed: the pairs to look at; firm_far: the FAR of the thresholds that say so.
    """

    evaluation: Evaluation
    tars: dict[str, float]
    listed: dict[str, dict[Kind, Listed]]
    firm_far: float | None


def _evaluated(
    rotated: _Rotated,
    fars: Sequence[float],
    groups: FaceGroups | None,
    resamples: int,
    seed: int,
) -> _Tested:
    tested = rotated.tested
    whole = pooled(tested)
    # Before the evaluation sorts the scores.
    firm_far, at_firm = firm_thresholds(whole, (rotated.tested_far,))
    listed = listed_pairs(whole, at_firm, *rows_of(tested))
    evaluation = evaluate_split_pairs(
        whole,
        sides_of(tested),
        fars=fars,
        groups=None if groups is None else groups_of(tested, groups),
        group_notes=() if groups is None else groups.notes,
        resamples=resamples,
        seed=seed,
    )
    tars = {
        name: tar_at_far(*whole[name], [rotated.tested_far])[0].tar
        for name in (rotated.favourite, BASELINE)
    }
    return _Tested(evaluation, tars, listed, firm_far)


def _held_bootstrap(held: Scored, fars: list[float], *, resamples: int, seed: int) -> Bootstrap:
    """Intervals of the thresholds of the pairs that set them, at `fars` and between."""
    between = np.geomspace(fars[0], fars[-1], 9)[1:-1].tolist()
    return bootstrap_split_pairs(
        held.scores,
        # Their people numbered anew: the resamples are those of the file's scores alone.
        sides_of([held._replace(people=np.arange(len(held.people)))]),
        fars=sorted({*fars, *between}),
        baseline=None,
        resamples=resamples,
        seed=seed,
    )


def _reading(far: float | None, measured: float, method: str) -> str:
    return (
        f"{decided_at(far)} A score and log F are of the rotation that tested the pair; the score "
        f"is on the rotations’ common scale, on which 0 is the threshold at FAR {measured:.2g} of "
        "the fold that chooses. The probability, for as many genuine pairs as impostors, is that "
        f"of calibration.safetensors, for {METHODS[method].title}."
    )


def require_distinct(data: Labelled) -> None:
    """Refuses embeddings that are there twice, and a set of one embedding alone."""
    known = np.flatnonzero(data.people >= 0)
    rows = np.ascontiguousarray(data.faces[known])
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, codes, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    if counts.size == len(known):
        return
    if counts.size == 1:
        raise UserError("all embeddings are the same: they distinguish no one")
    twice = int(np.count_nonzero(counts > 1))
    code = int(np.flatnonzero(counts > 1)[np.argmin(first[counts > 1])])
    a, b = known[np.flatnonzero(codes == code)[:2]].tolist()
    whose = "one identity" if data.people[a] == data.people[b] else "two identities"
    raise UserError(
        f"rows {a} and {b} hold the same embedding, under {whose}, and {twice:,} embeddings are "
        "there more than once: an image counts once; leave the others out"
    )


def _left_out(failed: Mapping[str, Sequence[str]], rotations: int, *, norms: bool) -> list[str]:
    """A line for each fit that some rotations lack, and so for the methods that need it."""
    lines = []
    for what, reasons in failed.items():
        methods = (m for m in methods_with(ARTEFACTS, usual=True, norms=norms))
        names = ", ".join(m for m in methods if what in METHODS[m].needs)
        lines.append(
            f"{names} left out: the fit failed in {len(reasons)} of {rotations} rotations: "
            f"{reasons[0]}"
        )
    return lines


def _impostors(data: Labelled, rows: np.ndarray) -> int:
    return pair_counts(data.people[rows])[1]


def _thresholds(
    held: Scored, method: str, fars: list[float], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    split = held.scores[method]
    points = {point.far: point for point in bootstrap.methods[method]}
    return {
        far_key(at.far): {
            "threshold": float(at.threshold),
            "interval": list(points[at.far].threshold),
            "false_accepts": int(at.false_accepts),
            "impostor_pairs": split.impostor.size,
        }
        for at in tar_at_far(*split, sorted(fars, reverse=True))
    }


def _checks(data: Labelled, test: np.ndarray, trained: Trained) -> list[str]:
    """What is wrong with the anchors, in sentences."""
    anchors, faces = trained.artefacts["anchors"], data.faces[test]
    notes = []
    if anchors.k < 10:
        notes.append(
            f"only {len(anchors)} anchors: support sets have {anchors.k} of them instead of 10; "
            "some hundreds of people are needed for densities that mean something"
        )
    try:
        covered = coverage(faces, anchors)
        leaks = identity_leaks(faces, anchors, same_person_threshold(anchors, faces=len(faces)))
    except UserError as error:
        return [*notes, f"the anchors cannot be checked: {error}"]
    if covered.wrong_domain:
        notes.append(
            f"{100 * covered.share_uncovered:.0f} % of the faces are less similar to their nearest "
            "anchors than 99 % of the anchors are to theirs: the anchors are of another domain"
        )
    if leaks.total:
        a = int(test[leaks.first[0]])
        notes.append(
            f"{leaks.total} tested faces are as near to an anchor of another identity as images of "
            f"one person are (row {a}, cosine {leaks.similarity[0]:.2f}): wrong labels, or one "
            "person under two names?"
        )
    return notes
