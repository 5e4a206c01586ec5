"""What a trial says in the end: which method, its gain, the threshold, or that nothing is shown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS
from ida_jax.metrics.roc import Interval
from ida_jax.rescoring.method_table import BASELINE, METHODS

# Of a two-sided test at 5 % with a power of 80 %, over the half-width of a 95 % interval.
_POWER = (1.96 + 0.84) / 1.96


class Finding(NamedTuple):
    """The figures that the verdict rests on.

    Attributes:
      method: what the choice fell on.
      chosen: the method that each rotation chose.
      asked_far: the FAR that was asked for.
      far: the lowest FAR, not below it, with ten false accepts among the tested pairs; all figures
        are at it.
      measured_far: likewise of the pairs of a fold that chooses, where the choice was made.
      gain: TAR of the chosen method less the cosine's, on people neither choice nor fit has seen.
      interval: its 95 % interval over identities.
      identities: how many people were tested.
      tar: of the method to use.
      baseline_tar: the cosine's.
      threshold: of the method to use, with its interval.
    """

    method: str
    chosen: Sequence[str]
    asked_far: float
    far: float
    measured_far: float
    gain: float
    interval: Interval
    identities: int
    tar: float
    baseline_tar: float
    threshold: float
    threshold_interval: Interval

    @property
    def shown(self) -> bool:
        """Whether the gain's interval lies above 0."""
        return self.method != BASELINE and self.interval.low > 0


def people_needed(finding: Finding) -> int | None:
    """The people with whom a gain of the size seen would show in four of five trials.

    An interval's width falls with the square root of the people: n (h / g)² (1.96 + .84)² / 1.96²
    for a half-width h of n people and a gain g. None where no gain was seen.
    """
    if finding.gain <= 0:
        return None
    half = (finding.interval.high - finding.interval.low) / 2
    return max(1, round(finding.identities * (_POWER * half / finding.gain) ** 2))


def verdict(finding: Finding) -> str:
    """One paragraph."""
    far = f"FAR {finding.far:.2g}"
    gain = f"{_points(finding.gain)} [{', '.join(map(_points, finding.interval))}]"
    title = METHODS[finding.method].title
    tested = f"{finding.identities:,} people whom neither the choice nor any fit has seen"
    if finding.shown:
        said = (
            f"Use {title} (--method={finding.method}). At {far} it accepts "
            f"{100 * finding.tar:.2f} % of genuine pairs where the cosine accepts "
            f"{100 * finding.baseline_tar:.2f} %; choosing a method as here gained {gain} points "
            f"of TAR on {tested} (95 % interval)."
        )
    else:
        said = f"No difference is shown: stay with the cosine. At {far} "
        if finding.method == BASELINE:
            said += "no method was better than it where one was to be chosen."
        else:
            needed = people_needed(finding)
            said += (
                f"choosing a method as here gained {gain} points of TAR on {tested}; {title} was "
                "the best where one was to be chosen."
            )
            if needed is not None:
                said += f" To show a gain of that size about {needed:,} people would be needed."
    used = "its" if finding.shown else "the cosine's"
    low, high = finding.threshold_interval
    said += f" For {far} {used} threshold is {finding.threshold:.4f} [{low:.4f}, {high:.4f}]."
    if finding.far > finding.asked_far:
        said += (
            f" So few people cannot measure FAR {finding.asked_far:g}, which was asked for: the "
            f"lowest with {FEWEST_FALSE_ACCEPTS} false accepts stands here."
        )
    if finding.measured_far > finding.far:
        said += (
            f" The choice was made at FAR {finding.measured_far:.2g}, the lowest with "
            f"{FEWEST_FALSE_ACCEPTS} false accepts in a fold."
        )
    if len(set(finding.chosen)) > 1:
        names = ", ".join(METHODS[name].title for name in finding.chosen)
        said += f" The rotations did not all choose the same: {names}."
    return said


def json_of(finding: Finding) -> dict[str, Any]:
    """The finding as results.json holds it."""
    plain = finding._asdict()
    for key in ("interval", "threshold_interval"):
        plain[key] = list(plain[key])
    return {**plain, "chosen": list(finding.chosen), "people_needed": people_needed(finding)}


def _points(rate: float) -> str:
    return f"{100 * rate:+.2f}"
