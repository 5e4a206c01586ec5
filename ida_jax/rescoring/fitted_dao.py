"""IDA-R with fitted constants: the density's weight and the support set's size.

N faces, A anchors, D embedding, K support.

The paper sets k = 10 and τ = 1 by hand and gives the densities weight 1. DAO is differentiable, so
that `ida_jax.rescoring.dao_fit` can fit them by gradient (ours, not the paper's). With a face's
similarities s₁ ≥ … ≥ s_K to its anchors and soft members of the support set

    log F(f)  = −lse_j(τ s_j + log m_j),   m_j = sigmoid((κ − j + ½) / T)
    score     = τ c + w · logaddexp(log F₁, log F₂)

At w = 1, κ = k and T → 0 this is log-DAO (Eq. 4). Divided by w it is log-DAO with τ/w at the cosine
in place of τ, which ranks alike: the rule "dao" of `ida_jax.rescoring.terms`.
"""

import os
from dataclasses import asdict, dataclass

import jax
import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.devices import block_size, padded
from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.common.validation import require_same_model
from ida_jax.ops.dao import soft_log_density
from ida_jax.rescoring.terms import FaceTerms

CONSTANTS = ("tau", "weight", "support")
_KIND = "dao_fit"
_BLOCKS = (64, 4096)
# Members past κ + 10 T have m < 5·10⁻⁵.
REACH = 10.0


@dataclass(frozen=True)
class DaoFit:
    """Fitted constants of IDA-R (this module's formula), made by `fit_dao`.

    Attributes:
      tau: τ of the densities.
      weight: w; the cosine has τ/w in the rule "dao".
      support: κ, the support set's size, a real number.
      softness: T, over how many ranks the membership falls off; towards 0 it is a hard support set.
      width: D, the embeddings' width.
      anchors: the size of the anchor set that it was fitted with: a larger one is denser.
      fingerprint: of the model whose embeddings it takes; "" where unknown.
      far: the FAR that it was fitted at.
      identities: how many people the development faces are of.
      genuine: how many genuine pairs it was fitted on.
      impostor: how many impostor pairs there were, of which the highest were looked at.
    """

    tau: float
    weight: float
    support: float
    softness: float
    width: int
    anchors: int
    fingerprint: str = ""
    far: float = 0.0
    identities: int = 0
    genuine: int = 0
    impostor: int = 0

    @property
    def neighbours(self) -> int:
        """K, the anchors that a face is searched for."""
        # A fit that ends on its bound is beyond it in the last bit.
        reach = np.ceil(self.support + REACH * self.softness - 1e-6)
        return min(self.anchors, int(reach))

    def log_density(self, similarities: np.ndarray) -> np.ndarray:
        """log F by this module's formula, float32 [N].

        Args:
          similarities: float32 [N, K], descending, K = `neighbours`.

        Raises:
          UserError: another number of similarities a face.
        """
        if similarities.ndim != 2 or similarities.shape[1] != self.neighbours:
            raise UserError(
                f"the similarities are {list(similarities.shape)}: expected [N, "
                f"{self.neighbours}], what the fitted support set reaches to"
            )
        out = np.empty(len(similarities), np.float32)
        block = block_size(_BLOCKS, len(out))
        constants = np.float32([self.tau, self.support, self.softness])
        for start in range(0, len(out), block):
            rows = padded(similarities[start : start + block], block)
            found = _soft_log_density(rows, *constants)
            out[start : start + block] = np.asarray(found)[: len(out) - start]
        return out

    @property
    def cosine_tau(self) -> float:
        """τ/w, the cosine's factor in the rule "dao"."""
        return self.tau / self.weight

    def terms(self, similarities: np.ndarray) -> FaceTerms:
        """What `score_pairs` needs of the faces, of `log_density`'s similarities."""
        log_f = self.log_density(similarities)
        return FaceTerms("dao", log_f[:, None], np.float32([self.cosine_tau]))

    def check_anchors(self, anchors: AnchorSet) -> None:
        """Refuses, by UserError, anchors of another model, width or number."""
        require_same_model(
            "DAO fit",
            self.fingerprint,
            self.width,
            fingerprint=anchors.fingerprint,
            width=anchors.width,
            whose="the anchor set",
        )
        if len(anchors) != self.anchors:
            raise UserError(
                f"the DAO fit was made with {self.anchors} anchors, {len(anchors)} were given: "
                "use the same anchor set, or fit again (python -m ida_jax.fit dao)"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fit as one safetensors file, whole or not at all."""
        metadata = asdict(self)
        constants = np.array([metadata.pop(name) for name in (*CONSTANTS, "softness")])
        save_tensors(path, {"constants": constants}, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DaoFit":
        """Reads a saved fit.

        Raises:
          UserError: the file is absent, torn, or not a DAO fit.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            loaded = cls(*np.array(tensors["constants"]).tolist(), **metadata)
            require_types(loaded)
            if not (loaded.tau > 0 and loaded.weight > 0 and loaded.support > 0):
                raise ValueError("tau, weight or support is not above 0")
        return loaded


_soft_log_density = jax.jit(soft_log_density)
