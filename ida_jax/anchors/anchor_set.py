"""The anchor embedding set 𝒜_E (section 3.2): what support sets are searched in.

A anchors, D embedding.
"""

import os
from dataclasses import dataclass

import numpy as np

from ida_jax.errors import UserError
from ida_jax.files import complete, load_tensors, save_tensors
from ida_jax.validation import require_same_model, unit_embeddings

_KIND = "anchor_set"


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """Anchors' unit embeddings and where they come from.

    Attributes:
      embeddings: float32 [A, D], unit rows; memory-mapped where the set was loaded.
      labels: int32 [A], each anchor's identity in the numbering of the set it was taken from, -1
        where unknown; None where no anchor has one. Needed to exclude a face's own identity.
      source: where the anchors come from: "class_weights", "real_db", "fake_db" (Table 4) or
        "embeddings" for a plain array.
      fingerprint: the fingerprint of the model that made the embeddings; "" where unknown.
      k: the default size of a support set (paper: 10).
      tau: the default τ (paper: 1).
    """

    embeddings: np.ndarray
    labels: np.ndarray | None = None
    source: str = "embeddings"
    fingerprint: str = ""
    k: int = 10
    tau: float = 1.0

    @classmethod
    def from_embeddings(
        cls,
        embeddings: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        source: str = "embeddings",
        fingerprint: str = "",
        k: int = 10,
        tau: float = 1.0,
    ) -> "AnchorSet":
        """An anchor set from [A, D] embeddings of any norm.

        Raises:
          UserError: embeddings that are not [A, D] floating point, or zero, NaN or infinite rows;
            labels that are not A integers; k or τ out of range.
        """
        if k < 1 or not 0 < tau < float("inf"):
            raise UserError(
                f"k = {k} and tau = {tau} were given: expected k ≥ 1 and a finite τ > 0"
            )
        embeddings = unit_embeddings(embeddings, what="anchors")
        if labels is not None:
            labels = np.asarray(labels)
            if not np.issubdtype(labels.dtype, np.integer):
                raise UserError(f"the anchors' labels are {labels.dtype}: expected integers")
            if labels.shape != embeddings.shape[:1]:
                raise UserError(
                    f"labels are {list(labels.shape)}, expected one for each of the "
                    f"{embeddings.shape[0]} anchors"
                )
            labels = labels.astype(np.int32)
        return cls(embeddings, labels, source, fingerprint, k, tau)

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def width(self) -> int:
        """D, the embedding's width."""
        return self.embeddings.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set as one safetensors file, whole or not at all."""
        tensors = {"embeddings": self.embeddings}
        if self.labels is not None:
            tensors["labels"] = self.labels
        metadata = {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "k": self.k,
            "tau": self.tau,
        }
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AnchorSet":
        """Reads a saved set, memory-mapped.

        Raises:
          UserError: the file is absent, torn, or not an anchor set.
        """
        tensors, metadata = load_tensors(path, kind=_KIND)
        with complete(path):
            return cls(
                tensors["embeddings"],
                tensors.get("labels"),
                *(metadata[name] for name in ("source", "fingerprint", "k", "tau")),
            )

    def check_model(self, *, fingerprint: str, width: int) -> None:
        """Refuses a model that did not make these anchors.

        Embeddings of two models share no space, even of the same width: densities between them
        would be noise.

        Raises:
          UserError: another width, or another fingerprint where both are known.
        """
        require_same_model(
            "anchors", self.fingerprint, self.width, fingerprint=fingerprint, width=width
        )
