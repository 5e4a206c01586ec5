"""l = ln ‖x‖ of raw embeddings: what IDA-Q takes beside the unit rows, and when it says nothing.

N faces.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ida_jax.common.errors import UserError

if TYPE_CHECKING:
    from ida_jax.rescoring.rescorer import Rescorer

# Rounding to bfloat16 moves the norm of a unit row of 128 numbers by less.
_ROUNDING = 1e-3
# So many equal norms are no coincidence, whatever their value.
_MANY = 10
# A shift of a tenth of the faces, beyond what a sample's own distribution differs by in 95 of 100.
_SHIFT, _KOLMOGOROV = 0.10, 1.36


def log_norms(norms: np.ndarray | None, *, method: str) -> np.ndarray:
    """ln of the norms, float32 [N]; NaN of NaN.

    Args:
      norms: [N], those of the embeddings as the model gave them; NaN where a face has none.
      method: how an error names what needs them.

    Raises:
      UserError: no norms, or embeddings that were normalised: all norms 1, or 10 and more of one
        value, within 0.1 %.
    """
    if norms is None:
        raise UserError(
            f"{method} needs the norms of the embeddings as the model gave them: pass them as norms"
        )
    norms = np.asarray(norms, np.float64)
    known = norms[np.isfinite(norms)]
    if known.size:
        low, high = known.min(), known.max()
        one = max(abs(low - 1), abs(high - 1)) <= _ROUNDING
        if one or (known.size >= _MANY and high - low <= _ROUNDING * high):
            raise UserError(
                f"{method} has nothing to gain: the norms of all {known.size:,} embeddings are "
                f"{high:.4g}, so that they were normalised; give them as the model makes them "
                "(python -m ida_jax.embed keeps the norms), or take ida_r"
            )
    return np.log(norms).astype(np.float32)


def norm_notes(scorers: "Iterable[Rescorer]", norms: np.ndarray) -> tuple[str, ...]:
    """What a reader must know of the probes' norms where a method has a quality fit.

    How many lie outside the development faces' range (they count as its end), and whether the
    probes are of another quality: whether the two distributions of l differ by more than
    0.10 + 1.36/√N at any of the development faces' percentiles.

    Args:
      norms: [N], of the embeddings as the model gave them; NaN where a face has none.
    """
    fit = next((s.quality_fit for s in scorers if s.quality_fit is not None), None)
    known = norms[np.isfinite(norms)]
    if fit is None or not known.size:
        return ()
    found = np.log(known)
    outside = int(np.count_nonzero(fit.clipped(found) != found))
    notes = ()
    if outside:
        low, high = np.exp([fit.lowest, fit.highest])
        notes += (
            f"ida_q: {outside:,} of {known.size:,} norms are outside {low:.3g} … {high:.3g}, where "
            "99.8 % of the development faces' are, and count as its nearer end",
        )
    percentiles = np.arange(1, len(fit.percentiles) + 1) / (len(fit.percentiles) + 1)
    below = np.searchsorted(np.sort(found), fit.percentiles, side="right") / found.size
    difference = below - percentiles
    at = int(np.argmax(np.abs(difference)))
    if abs(difference[at]) > _SHIFT + _KOLMOGOROV / np.sqrt(found.size):
        notes += (
            "ida_q: the faces are of another quality than those that it was fitted on: "
            f"{100 * below[at]:.0f} % of their norms are below {np.exp(fit.percentiles[at]):.3g}, "
            f"{100 * percentiles[at]:.0f} % of the development faces'; fit on faces like these, or "
            "take ida_r",
        )
    return notes
