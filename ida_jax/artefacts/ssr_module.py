"""The SSR module as one file: IDA-L's densities from faces alone, without anchors.

N faces, D embedding.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

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
_BLOCKS = (64, 4096)

TARGETS = ("standardised", "log", "paper")


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
        if self.target == "log":
            return self.mean + self.std * out
        return np.log(np.maximum(self.mean + self.std * out, np.float32(self.floor)))

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
        metadata = {name: getattr(self, name) for name in (*_METADATA, "anchors_sketch")}
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
            sketch = metadata.get("anchors_sketch", "")  # older modules have none
            loaded = cls(params, *(metadata[name] for name in _METADATA), sketch)
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
        return loaded


@jax.jit
def _apply(params: Mapping, faces: jax.Array) -> jax.Array:
    return SSRNetwork(hidden=params["hidden_fc"]["kernel"].shape[1]).apply(
        {"params": params}, faces
    )
