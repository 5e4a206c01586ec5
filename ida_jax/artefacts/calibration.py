"""A fitted map from scores to log-likelihood ratios, kept as one file.

P pairs, K knots.
"""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.metrics import likelihood_ratios as maps
from ida_jax.metrics.evaluation import wrong_way
from ida_jax.tables.score_origin import MOST_SHARED, ScoreOrigin, differences

KINDS = ("logistic", "isotonic")

_KIND = "calibration"
_METADATA = ("method", "scale", "genuine", "impostor")
_MAPS = {"logistic": maps.AffineMap, "isotonic": maps.IsotonicMap}
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone map from one method's scores to LLRs.

    It is valid for scores of that method, its settings, scale, model and anchors, on faces like
    those it was fitted on. `check_scores` refuses others; it needs the scores' origin, which the
    scores themselves do not show.

    Attributes:
      kind: "logistic" (affine: keeps the order of pairs exactly) or "isotonic" (non-decreasing: may
        make neighbouring scores equal).
      map: score to LLR.
      method: the scores' method, for example "ida_r"; "" where unknown.
      scale: their scale, "log" or "dao"; "" where unknown.
      genuine: the number of genuine scores that it was fitted on.
      impostor: the number of impostor scores.
      origin: what these scores were made with; None where unknown, as in calibrations of older
        versions and of other software's scores.
    """

    kind: str
    map: maps.AffineMap | maps.IsotonicMap
    method: str = ""
    scale: str = ""
    genuine: int = 0
    impostor: int = 0
    origin: ScoreOrigin | None = None

    def llr(self, scores: ArrayLike) -> np.ndarray:
        """Natural-log likelihood ratios of scores of any shape; NaN stays NaN.

        Computed in float64, chunk by chunk, and returned in the scores' own floating type.
        """
        scores = np.asarray(scores)
        if not np.issubdtype(scores.dtype, np.floating):
            scores = scores.astype(np.float64)
        flat = scores.ravel()
        out = np.empty_like(flat)
        for start in range(0, flat.size, _CHUNK):
            out[start : start + _CHUNK] = self.map(flat[start : start + _CHUNK].astype(np.float64))
        return out.reshape(scores.shape)

    def percent(self, scores: ArrayLike, *, prior: float = 0.5) -> np.ndarray:
        """100 · σ(LLR + log(π/(1−π))): the chance in percent that a pair is genuine.

        Args:
          scores: of any shape; NaN stays NaN.
          prior: π in (0, 1), the share of genuine pairs where the percentage is shown.

        Raises:
          UserError: a prior outside (0, 1).
        """
        return maps.percent(self.llr(scores), prior=prior)

    def check_scores(self, origin: ScoreOrigin | None, *, name: str = "the calibration") -> str:
        """Refuses scores that this calibration was not fitted to.

        Another k or another anchor set shifts scores by what no score shows: k = 20 after a fit
        with k = 10 by about 17 nats of LLR on LFW.

        Args:
          origin: the scores', `ida_jax.rescoring.rescorer.Rescorer.origin`; None where unknown.
          name: how an error names the calibration.

        Returns:
          A warning where no such check is possible, or the fit itself is doubtful; else "".

        Raises:
          UserError: method, settings, scale, model, anchors or an artefact differ.
        """
        if self.origin is None or origin is None:
            whose = f"{name} does not say" if self.origin is None else "it is not known"
            return (
                f"{whose} which anchors and settings the scores were made with: LLRs are wrong "
                "with any others, and that cannot be checked; fit one to scores that rescore wrote"
            )
        if found := differences(self.origin, origin):
            raise UserError(
                f"{name} was fitted to scores made with {'; '.join(found)}: fit one to scores like "
                "these (ida-jax evaluate --fit)"
            )
        shared = self.origin.shared
        if shared is not None and shared.share > MOST_SHARED:
            return (
                f"{name} was fitted to scores that leak ({shared.described()}): LLRs are too high"
            )
        return ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the calibration as one safetensors file, whole or not at all."""
        tensors = {
            name: np.asarray(value, np.float64) for name, value in self.map._asdict().items()
        }
        metadata = {"map": self.kind} | {name: getattr(self, name) for name in _METADATA}
        if self.origin is not None:
            metadata["origin"] = self.origin.to_json()
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Calibration":
        """Reads a saved calibration.

        Raises:
          UserError: the file is absent, torn, or not a calibration.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            kind = metadata["map"]
            # Copied: a map is small, and its file may be replaced while it is in use.
            take = np.ndarray.item if kind == "logistic" else np.array
            loaded = _MAPS[kind](**{name: take(value) for name, value in tensors.items()})
            _check(loaded)
            origin = metadata.get("origin")  # older calibrations have none
            if origin is not None:
                origin = ScoreOrigin.from_json(origin)
            of_scores = {name: metadata[name] for name in _METADATA}
            calibration = cls(kind, loaded, **of_scores, origin=origin)
            require_types(calibration)
        return calibration


def fit_calibration(
    genuine: np.ndarray,
    impostor: np.ndarray,
    *,
    kind: str,
    method: str = "",
    scale: str = "",
    origin: ScoreOrigin | None = None,
) -> Calibration:
    """Fits a calibration to labelled scores; only finite ones are fitted.

    Args:
      genuine: [G] scores.
      impostor: [n] scores.
      kind: "logistic" or "isotonic".
      method, scale: the origin's where it is known.
      origin: what the scores were made with.

    Raises:
      UserError: an unknown kind, or scores that cannot be fitted: constant ones, distances.
    """
    if kind not in KINDS:
        raise UserError(f"calibration '{kind}' was asked for, expected one of {', '.join(KINDS)}")
    if wrong := wrong_way(genuine, impostor):
        raise UserError(f"no calibration can be made: {wrong}")
    fit = maps.fit_logistic if kind == "logistic" else maps.fit_isotonic
    counts = (int(np.count_nonzero(np.isfinite(scores))) for scores in (genuine, impostor))
    if origin is not None:
        method, scale = origin.method, origin.scale
    return Calibration(kind, fit(genuine, impostor), method, scale, *counts, origin=origin)


def _check(loaded: maps.AffineMap | maps.IsotonicMap) -> None:
    if not all(np.isfinite(value).all() for value in loaded):
        raise ValueError("a value is NaN or infinite")
    if isinstance(loaded, maps.AffineMap):
        if not loaded.slope > 0:
            raise ValueError("the slope is not positive")
    elif loaded.knots.ndim != 1 or loaded.knots.shape != loaded.llr.shape or not loaded.knots.size:
        raise ValueError("knots and LLRs differ in number")
    elif not ((np.diff(loaded.knots) > 0).all() and (np.diff(loaded.llr) >= 0).all()):
        raise ValueError("the map is not monotone")
