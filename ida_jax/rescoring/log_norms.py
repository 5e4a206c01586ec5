"""l = ln ‖x‖ of raw embeddings: what IDA-Q takes beside the unit rows, and when it says nothing.

N faces.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.validation import rows_are
from ida_jax.rescoring.method_table import HEADLINE

if TYPE_CHECKING:
    from ida_jax.rescoring.quality_fit import QualityFit
    from ida_jax.rescoring.rescorer import Rescorer

# Rounding to bfloat16 moves the norm of a unit row of 128 numbers by less.
_ROUNDING = 1e-3
# This many equal norms are not a coincidence, whatever their value.
_MANY = 10
# A shift of a twentieth of the faces, beyond what a sample's own distribution differs by in 99 of
# 100. The halves of LFW's people differ by 0.013, and with half of one degraded by 0.16
# (experiments/ida_q.py); images of one person are alike, hence the twentieth.
_SHIFT, _KOLMOGOROV = 0.05, 1.63


def log_norms(
    norms: np.ndarray | None, faces: int, *, method: str, absent: bool = False
) -> np.ndarray:
    """ln of the norms, float32 [N]; NaN of NaN.

    Args:
      norms: [N], those of the embeddings as the model gave them.
      faces: N.
      method: how an error names what needs them.
      absent: NaN stands for no face, instead of being refused.

    Raises:
      UserError: no norms, or a different number of them; a norm that is zero, negative, infinite or
        NaN, named by row; embeddings that were normalised: all norms 1, or 10 and more of one
        value, within 0.1 %.
    """
    if norms is None:
        raise UserError(
            f"{method} needs the norms of the embeddings as the model gave them: pass them as norms"
        )
    norms = np.asarray(norms, np.float64)
    if norms.shape != (faces,):
        raise UserError(f"{method}: norms are {list(norms.shape)} for {faces} faces")
    known = np.isfinite(norms) & (norms > 0)
    bad = ~known & ~(np.isnan(norms) & absent)
    if bad.any():
        raise UserError(
            f"{method}: {rows_are(np.flatnonzero(bad))} given a norm that is zero, negative, NaN "
            "or infinite; such a face cannot match: leave it out or embed it again"
        )
    known = norms[known]
    if known.size:
        low, high = known.min(), known.max()
        one = max(abs(low - 1), abs(high - 1)) <= _ROUNDING
        if one or (known.size >= _MANY and high - low <= _ROUNDING * high):
            raise UserError(
                f"{method} has nothing to gain: the norms of {known.size:,} embeddings are all "
                f"{high:.4g}, so that they were normalised; give them as the model makes them "
                f"(ida-jax embed keeps the norms), or take {HEADLINE}"
            )
    return np.log(norms).astype(np.float32)


def norm_notes(scorers: "Iterable[Rescorer]", norms: np.ndarray) -> tuple[str, ...]:
    """What a reader must know of the probes' norms where a method has a quality fit.

    How many lie outside the development faces' range (they count as its end), and whether the
    probes are of another quality: whether the two distributions of l differ by more than
    0.05 + 1.63/√N (`norm_distance`).

    Args:
      norms: [N], of the embeddings as the model gave them; NaN where a face has none.
    """
    scorer = next((s for s in scorers if s.quality_fit is not None), None)
    known = norms[np.isfinite(norms)]
    if scorer is None or not known.size:
        return ()
    fit = scorer.quality_fit
    found = np.log(known)
    outside = int(np.count_nonzero(fit.clipped(found) != found))
    notes = ()
    if outside:
        low, high = np.exp([fit.lowest, fit.highest])
        notes += (
            f"{scorer.method}: {outside:,} of {known.size:,} norms are outside {low:.3g} … "
            f"{high:.3g}, where 99.8 % of the development faces' are, and count as its nearer end",
        )
    shift = norm_distance(fit, found)
    if shift.distance > _SHIFT + _KOLMOGOROV / np.sqrt(found.size):
        notes += (
            f"{scorer.method}: the faces are of another quality than those that it was fitted on: "
            f"{100 * shift.below:.0f} % of their norms are below {np.exp(shift.log_norm):.3g}, "
            f"{100 * shift.expected:.0f} % of the development faces'; fit on faces like these, or "
            f"take {HEADLINE}",
        )
    return notes


class Shift(NamedTuple):
    """Where two distributions of l differ most.

    Attributes:
      distance: by how much, a share of the faces.
      log_norm: there, l.
      below: the share of the faces with a lower one.
      expected: that of the development faces.
    """

    distance: float
    log_norm: float
    below: float
    expected: float


def norm_distance(fit: "QualityFit", log_norms: np.ndarray) -> Shift:
    """The Kolmogorov-Smirnov distance of faces' l to the development faces', at its percentiles.

    Args:
      log_norms: [N], all finite.
    """
    expected = np.arange(1, len(fit.percentiles) + 1) / (len(fit.percentiles) + 1)
    below = np.searchsorted(np.sort(log_norms), fit.percentiles, side="right") / log_norms.size
    at = int(np.argmax(np.abs(below - expected)))
    return Shift(
        *map(float, (abs(below - expected)[at], fit.percentiles[at], below[at], expected[at]))
    )
