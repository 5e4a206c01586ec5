"""The SSR module as one file: IDA-L's densities from faces alone, without anchors.

N faces, D embedding.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ida_jax.common.devices import by_blocks
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.common.validation import (
    require_same_model,
    require_tau,
    require_unit,
    require_variables,
)
from ida_jax.models.ssr_network import SSRNetwork

_KIND = "ssr_module"
_METADATA = ("target", "mean", "std", "floor", "k", "tau", "fingerprint")
# Of a module that was judged on held-out people; another's file has none of them.
_JUDGED = ("slope", "intercept", "held_out")
_FURTHER = (*_JUDGED, "anchors_sketch")
_BLOCKS = (64, 4096)

TARGETS = ("standardised", "log", "paper")


@dataclass(frozen=True)
class HeldOut:
    """How the training's settings were chosen on held-out people, and what these people showed.

    Attributes:
      people: that the figures below are of; the settings were chosen on others.
      hidden, copies, noise, weight_decay, steps: the settings. The noise is a share of the faces'
        spread.
      r2, r2_low, r2_high: R² of the calibrated log F, and its 95 % interval.
      raw_r2: R² of the network's own log F, without the calibration.
      raw_slope: least squares of the searched log F on the network's.
      raw_bias: the network's log F less the searched one, in standard deviations of the latter.
      bias: the same of the calibrated log F.
      doubt: why log F is left out of scores, so that pairs rank by their cosine; "" otherwise.
    """

    people: int
    hidden: int
    copies: int
    noise: float
    weight_decay: float
    steps: int
    r2: float
    r2_low: float
    r2_high: float
    raw_r2: float
    raw_slope: float
    raw_bias: float
    bias: float
    doubt: str

    def note(self) -> str:
        """What a reader of scores must know, in one line."""
        if self.doubt:
            return (
                "the SSR module falls back to the cosine, every face having the same F: "
                f"{self.doubt}"
            )
        return (
            f"the SSR module: R² of log F {self.r2:.3f} [{self.r2_low:.3f}, {self.r2_high:.3f}] on "
            f"{self.people:,} held-out people of the training set, bias {self.bias:+.2f} standard "
            f"deviations (uncalibrated: R² {self.raw_r2:.3f}, bias {self.raw_bias:+.2f})"
        )


@dataclass(frozen=True, eq=False)
class SSRModule:
    """IDA-L: a trained SSR module, which needs no anchors at run time (section 3.2).

    Attributes:
      params: the SSR module's parameters.
      target: what the module regresses. "paper": F itself (Eq. 6 to the letter); "standardised":
        (F − mean) / std; "log": (log F − mean) / std.
      mean, std: see target.
      floor: the lower bound of a predicted F, so that its logarithm exists; half the smallest F
        that the module was trained on.
      k: the support set's size that it was trained to replace.
      tau: the τ of F.
      fingerprint: of the model whose embeddings it takes; "" where unknown.
      slope, intercept: of the calibration, log F = intercept + slope · the network's. At slope 0
        every face has the same F, and pairs rank by their cosine.
      held_out: how held-out people judged it; None where they did not.
      anchors_sketch: `ida_jax.anchors.anchor_set.AnchorSet.sketch` of the anchors that its targets
        were searched in; "" where unknown.
    """

    params: Mapping[str, Mapping[str, np.ndarray]]
    target: str
    mean: float
    std: float
    floor: float
    k: int
    tau: float
    fingerprint: str = ""
    slope: float = 1.0
    intercept: float = 0.0
    held_out: HeldOut | None = None
    anchors_sketch: str = ""

    @property
    def width(self) -> int:
        """D, the embedding's width."""
        return self.params["hidden_fc"]["kernel"].shape[0]

    def log_density(self, faces: np.ndarray) -> np.ndarray:
        """log F, float32 [N], of faces [N, D] with unit rows.

        Raises:
          UserError: faces that are not unit-norm, or of a different width.
        """
        faces = require_unit(faces)
        if faces.shape[1] != self.width:
            raise UserError(
                f"the faces' embeddings are {faces.shape[1]} wide, the SSR module's {self.width}: "
                "it must be trained on the same model"
            )
        out = by_blocks(partial(_apply, self.params), faces, sizes=_BLOCKS)
        out = self.mean + self.std * out
        if self.target != "log":
            out = np.log(np.maximum(out, np.float32(self.floor)))
        if not self.calibrated:
            return out
        return np.float32(self.intercept) + np.float32(self.slope) * out

    @property
    def calibrated(self) -> bool:
        """Whether log F is anything but the network's own."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def judgement(self) -> dict[str, Any]:
        """The calibration and how held-out people judged it, JSON-able; {} where they did not."""
        if self.held_out is None:
            return {}
        return {
            "slope": self.slope,
            "intercept": self.intercept,
            "held_out": asdict(self.held_out),
        }

    def check_model(self, *, fingerprint: str, width: int) -> None:
        """Refuses a model that this module was not trained for, as `AnchorSet.check_model`."""
        require_same_model(
            "SSR module", self.fingerprint, self.width, fingerprint=fingerprint, width=width
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the module as one safetensors file, whole or not at all."""
        tensors = {
            f"{layer}/{name}": np.asarray(value)
            for layer, leaves in self.params.items()
            for name, value in leaves.items()
        }
        metadata: dict[str, Any] = {name: getattr(self, name) for name in _METADATA}
        if self.anchors_sketch:
            metadata["anchors_sketch"] = self.anchors_sketch
        if self.held_out is not None or self.calibrated:
            judged = None if self.held_out is None else asdict(self.held_out)
            metadata |= dict(zip(_JUDGED, (self.slope, self.intercept, judged), strict=True))
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SSRModule":
        """Reads a saved module.

        Raises:
          UserError: the file is absent, torn, or not an SSR module.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            params = {
                layer: {leaf: tensors[f"{layer}/{leaf}"] for leaf in ("kernel", "bias")}
                for layer in ("hidden_fc", "output_fc")
            }
            # Older modules have none of these.
            further = {name: metadata[name] for name in _FURTHER if name in metadata}
            if further.get("held_out") is not None:
                further["held_out"] = HeldOut(**further["held_out"])
                require_types(further["held_out"])
            loaded = cls(params, *(metadata[name] for name in _METADATA), **further)
            require_types(loaded)
            hidden = params["hidden_fc"]["kernel"].shape[-1]
            require_variables(
                {"params": params},
                lambda: SSRNetwork(hidden).init(jax.random.key(0), jnp.zeros((1, loaded.width))),
            )
            require_tau(loaded.tau, what=f"{path}: tau")
            if loaded.target not in TARGETS or loaded.k < 1 or not loaded.std > 0:
                raise ValueError(
                    f"target {loaded.target[:40]}, k = {loaded.k}, std = {loaded.std}: expected "
                    f"one of {', '.join(TARGETS)}, k ≥ 1 and std > 0"
                )
            if not loaded.slope >= 0:
                raise ValueError(f"slope = {loaded.slope}: expected 0 or more")
        return loaded


@jax.jit
def _apply(params: Mapping, faces: jax.Array) -> jax.Array:
    return SSRNetwork(hidden=params["hidden_fc"]["kernel"].shape[1]).apply(
        {"params": params}, faces
    )
