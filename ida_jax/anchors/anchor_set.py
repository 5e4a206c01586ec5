"""The anchor embedding set 𝒜_E (section 3.2): what support sets are searched in.

A anchors, D embedding.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.common.files import complete, load_tensors, require_types, save_tensors
from ida_jax.common.fingerprints import same_sketch, sketch_of
from ida_jax.common.validation import require_same_model, require_tau, unit_rows
from ida_jax.tables.identities import labels_among, name_among
from ida_jax.tables.text import name_fault

_KIND = "anchor_set"


class Fit(Protocol):
    """What was fitted with an anchor set: the model's fingerprint, D, A and the set's sketch."""

    fingerprint: str
    width: int
    anchors: int
    anchors_sketch: str


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """Anchors' unit embeddings and where they come from.

    Attributes:
      embeddings: float32 [A, D], unit rows; memory-mapped where the set was loaded.
      labels: int32 [A], each anchor's identity in the numbering of the set it was taken from,
        negative where unknown; None where no anchor has one. Needed to exclude a face's own
        identity. In a set with degraded copies a number below -1 is shared by the copies of a face
        of unknown identity.
      source: where the anchors come from: "class_weights", "real_db", "fake_db" (Table 4) or
        "embeddings" for a plain array.
      fingerprint: the fingerprint of the model that made the embeddings; "" where unknown.
      k: the default size of a support set (paper: 10).
      tau: the default τ (paper: 1).
      names: A names, of the person on each anchor; empty where unknown.
      provenance: how the set was made, JSON-able; empty where nothing was written down.
    """

    embeddings: np.ndarray
    labels: np.ndarray | None = None
    source: str = "embeddings"
    fingerprint: str = ""
    k: int = 10
    tau: float = 1.0
    names: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
        names: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
        place: Callable[[int], str] | None = None,
    ) -> "AnchorSet":
        """An anchor set from [A, D] embeddings of any norm.

        Args:
          place: where a row is, in words, in an error; see `unit_rows`.

        Raises:
          UserError: embeddings that are not [A, D] floating point, or zero, NaN or infinite rows;
            labels that are not A integers; a different number of names; k or τ out of range.
        """
        if k < 1:
            raise UserError(f"k is {k}: expected 1 or more")
        require_tau(tau)
        embeddings = unit_rows(embeddings, what="anchors", place=place).embeddings
        if labels is not None:
            labels = np.asarray(labels)
            if not np.issubdtype(labels.dtype, np.integer):
                raise UserError(f"the anchors' labels are {labels.dtype}: expected integers")
            if labels.size and labels.max() > np.iinfo(np.int32).max:
                raise UserError("the anchors' labels are beyond 32 bits: number identities from 0")
            if labels.shape != embeddings.shape[:1]:
                raise UserError(
                    f"labels are {list(labels.shape)}, expected one for each of the "
                    f"{embeddings.shape[0]} anchors"
                )
            # What is negative is unknown, however large.
            labels = np.maximum(labels.astype(np.int64), np.iinfo(np.int32).min).astype(np.int32)
        if names and len(names) != len(embeddings):
            raise UserError(f"{len(names)} names for {len(embeddings)} anchors: expected one each")
        for row, name in enumerate(names):
            if fault := name_fault(name):
                raise UserError(f"the name of anchor {row} {fault}")
        provenance = dict(provenance or {})
        return cls(embeddings, labels, source, fingerprint, k, tau, tuple(names), provenance)

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def width(self) -> int:
        """D, the embedding's width."""
        return self.embeddings.shape[1]

    @property
    def degraded(self) -> int:
        """How many of the anchors are degraded copies of others, by the provenance."""
        return int(self.provenance.get("degraded", {}).get("anchors", 0))

    def people(self) -> np.ndarray:
        """int32 [A]: the labels, with a number of its own for each person of unknown identity.

        An anchor of unknown identity is a person of its own, together with its degraded copies.
        """
        if self.labels is None:
            return np.arange(len(self), dtype=np.int32)
        labels = np.array(self.labels, np.int32)
        unknown = np.flatnonzero(labels < 0)
        groups = np.arange(unknown.size)
        if self.degraded:
            own = labels[unknown]
            shared = np.where(own < -1, own.astype(np.int64), groups)
            _, groups = np.unique(shared, return_inverse=True)
        labels[unknown] = labels.max(initial=-1) + 1 + groups
        return labels

    @cached_property
    def sketch(self) -> str:
        """What calibrations and fits know the embeddings by (`sketch_of`)."""
        return sketch_of(self.embeddings)

    def described(self) -> str:
        """The set in one line."""
        people = "unlabelled"
        if self.labels is not None and not (self.degraded and self.labels.max(initial=-1) < 0):
            known = np.unique(self.labels)
            people = f"of {np.count_nonzero(known >= 0):,} identities"
            people += " with names" if self.names else ""
        if self.degraded:
            people += f", {self.degraded:,} of them degraded copies"
        return (
            f"{len(self):,} anchors {people}, {self.width} wide, from {self.source}, "
            f"model {self.fingerprint or 'unknown'}, k = {self.k}, tau = {self.tau:g}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set as one safetensors file, whole or not at all."""
        tensors = {"embeddings": self.embeddings}
        if self.labels is not None:
            tensors["labels"] = self.labels
        if self.names:
            # Not in the header, which is meant to be small. No file's or line's name holds NUL.
            tensors["names"] = np.frombuffer("\0".join(self.names).encode(), np.uint8)
        metadata = {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "k": self.k,
            "tau": self.tau,
        }
        if self.provenance:
            metadata["provenance"] = dict(self.provenance)
        save_tensors(path, tensors, kind=_KIND, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> "AnchorSet":
        """Reads a saved set, memory-mapped.

        Args:
          verify: compare all of a file of more than 256 MiB with its checksum too, which reads it.

        Raises:
          UserError: the file is absent, torn, damaged (the row named) or not an anchor set.
        """
        tensors, metadata = load_tensors(path, kind=_KIND, unit_rows=("embeddings",), verify=verify)
        with complete(path):
            names = tensors["names"].tobytes().decode().split("\0") if "names" in tensors else ()
            loaded = cls(
                tensors["embeddings"],
                tensors.get("labels"),
                *(metadata[name] for name in ("source", "fingerprint", "k", "tau")),
                names=tuple(names),
                provenance=metadata.get("provenance", {}),  # older sets have none
            )
            require_types(loaded)
            if not isinstance(loaded.provenance, dict):
                raise ValueError("its provenance is not an object")
            if loaded.degraded < 0:
                raise ValueError(f"{loaded.degraded} anchors are degraded copies")
            require_tau(loaded.tau, what=f"{path}: tau")
            for what, rows in (("labels", loaded.labels), ("names", loaded.names or None)):
                if rows is not None and np.shape(rows) != (len(loaded),):
                    raise ValueError(f"{len(rows)} {what} for {len(loaded)} anchors")
            if loaded.labels is not None and loaded.labels.dtype != np.int32:
                raise ValueError(f"the labels are {loaded.labels.dtype}, expected int32")
            if loaded.k < 1:
                raise ValueError(f"k is {loaded.k}, expected 1 or more")
        return loaded

    def labels_of(self, people: Sequence[str] | np.ndarray) -> np.ndarray | None:
        """Each face's identity in the numbering of this set's labels, int32 [N].

        With it a search leaves out a face's own identity. −1 for faces whose identity is not among
        the anchors; None where none is.

        Args:
          people: the N faces' identities, integers in the labels' own numbering, or names.

        Raises:
          UserError: names, and the set has none.
        """
        people = np.asarray(people)
        if people.dtype.kind != "U":
            # No anchor's label is beyond 32 bits.
            known = (people >= 0) & np.isin(people, self.labels)
            return np.where(known, people, -1).astype(np.int32) if known.any() else None
        if not self.names:
            raise UserError(
                f"labels are names ({name_among(people)}), but the anchors have none: give "
                "integers in the anchors' numbering, or build the anchors with names as labels"
            )
        return labels_among(people, self.names, self.labels)

    def check_model(self, *, fingerprint: str, width: int, whose: str = "the model") -> None:
        """Refuses a model that did not make these anchors.

        Embeddings of two models share no space, even of the same width: densities between them
        would be noise.

        Raises:
          UserError: another width, or another fingerprint where both are known.
        """
        require_same_model(
            "anchors", self.fingerprint, self.width,
            fingerprint=fingerprint, width=width, whose=whose,
        )  # fmt: skip

    def check_fit(self, fit: Fit, what: str, command: str) -> None:
        """Refuses a fit (`what`) that was made with other anchors, or those of another model.

        Sketches are compared unless one is unknown, as in fits of older versions.

        Raises:
          UserError: it names the command that fits again.
        """
        require_same_model(
            what, fit.fingerprint, fit.width,
            fingerprint=self.fingerprint, width=self.width, whose="the anchor set",
        )  # fmt: skip
        if len(self) != fit.anchors:
            raise UserError(
                f"the {what} was fitted with {fit.anchors} anchors, {len(self)} were given: use "
                f"the same anchor set, or fit again (ida-jax fit {command})"
            )
        if fit.anchors_sketch and not same_sketch(fit.anchors_sketch, self.sketch):
            raise UserError(
                f"the {what} was fitted with another set of {fit.anchors} anchors than the one "
                f"given: use the same set, or fit again (ida-jax fit {command})"
            )
