"""What a run from a file of embeddings reads, and what of it is held out for the report.

Held-out people are held out of the anchors too: a support set that holds the other person of an
impostor pair lowers just that pair's score, and the report would flatter IDA.

N faces, A anchors, D embedding.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import embedding_anchors, read_anchors
from ida_jax.common.errors import UserError
from ida_jax.common.validation import require_same_model, unit_rows
from ida_jax.tables.embeddings import read_embeddings
from ida_jax.tables.identities import numbered, read_people

_SYNTHETIC = "synthetic"


class Inputs(NamedTuple):
    """The embeddings, identities and anchors of a run.

    Attributes:
      faces: float32 [N, D], unit rows.
      norms: float64 [N], those of the embeddings as they were given.
      people: int64 [N], identities in a numbering of their own, -1 where unknown; None without
        labels.
      own: int32 [N], the same in the numbering of the anchors' labels, -1 for those not among them;
        None where no person is in both sets.
      anchors: where support sets are searched.
      fingerprint: of the model that made the embeddings; "" where unknown.
      identities: the distinct people as the labels have them, names or integers, in the order of
        their numbers; None without labels.
    """

    faces: np.ndarray
    norms: np.ndarray
    people: np.ndarray | None
    own: np.ndarray | None
    anchors: AnchorSet
    fingerprint: str
    identities: np.ndarray | None = None


def read_inputs(config: ConfigDict) -> Inputs:
    """Embeddings, anchors and labels, from their files."""
    c = config
    if c.embeddings == _SYNTHETIC:
        if c.anchors is not None or c.labels is not None:
            raise UserError(
                "embeddings is 'synthetic', which makes anchors and labels too: leave anchors and "
                "labels out, or give a file of embeddings"
            )
        faces, norms, people, anchors = _synthetic(c)
        fingerprint = ""
    else:
        for key, what in (("embeddings", "E.npy"), ("anchors", "A.safetensors")):
            if c[key] is None:
                raise UserError(f"{key} is not given: add --config.{key}={what}")
        file = read_embeddings(c.embeddings)
        anchors = read_anchors(c.anchors, embeddings=c.embeddings)
        fingerprint = file.fingerprint
        require_same_model(
            "anchors", anchors.fingerprint, anchors.width,
            fingerprint=fingerprint, width=file.width, whose=str(c.embeddings),
        )  # fmt: skip
        people = None if c.labels is None else read_people(c.labels, len(file.embeddings))
        _check_exclusion(c, people is not None, anchors)
        faces, _, norms = unit_rows(file.embeddings, what=str(c.embeddings))
    own = None if c.disjoint or people is None else anchors.labels_of(people)
    if people is not None and not c.disjoint and own is None:
        raise UserError(
            f"none of the labels' identities ('{people[0]}', …) is among the anchors': give them "
            "as the anchors have them, or add --config.disjoint=True where the anchors are of "
            "other people"
        )
    numbers = None if people is None else numbered(people)
    identities = None if people is None else np.unique(people)
    fingerprint = fingerprint or anchors.fingerprint
    return Inputs(faces, norms, numbers, own, anchors, fingerprint, identities)


def held_out_rows(inputs: Inputs, config: ConfigDict) -> np.ndarray:
    """bool [N], the faces kept for the report: whole identities, or faces where none is known.

    Identities are drawn from `config.seed` up to the share `config.held_out` of them, and to
    `config.evaluate.most_faces` faces. Faces of unknown identity are trained on.
    """
    c, rng = config, np.random.default_rng(config.seed)
    n, most = len(inputs.faces), config.evaluate.most_faces
    if inputs.people is None:
        count = min(round(c.held_out * n), most)
        if not 2 <= count <= n - 2:
            raise UserError(
                f"held_out is {c.held_out} of {n} faces, {count}: expected at least 2 faces on "
                "each side; set another held_out or give more embeddings"
            )
        held = np.zeros(n, bool)
        held[rng.choice(n, count, replace=False)] = True
        return held
    identities, sizes = np.unique(inputs.people[inputs.people >= 0], return_counts=True)
    count = round(c.held_out * len(identities))
    if not 2 <= count <= len(identities) - 2:
        raise UserError(
            f"held_out is {c.held_out} of {len(identities)} identities, {count}: expected at least "
            "2 on each side; set another held_out or give embeddings of more identities"
        )
    order = rng.permutation(len(identities))[:count]
    kept = order[np.cumsum(sizes[order]) <= most]
    if len(kept) < 2 or sizes[kept].max() < 2:
        raise UserError(
            f"the {len(kept)} identities held out have {sizes[kept].sum()} faces: expected at "
            "least 2 identities, and one with two faces; raise held_out or evaluate.most_faces"
        )
    return np.isin(inputs.people, identities[kept])


def anchors_of_others(inputs: Inputs, held: np.ndarray) -> AnchorSet:
    """The anchors without those of the people that are held out.

    Args:
      inputs: the run's.
      held: bool [N], the faces kept for the report.
    """
    if inputs.own is None:
        return inputs.anchors
    held_out = inputs.own[held]
    kept = np.flatnonzero(~np.isin(inputs.anchors.labels, held_out[held_out >= 0]))
    embeddings, labels = inputs.anchors.embeddings[kept], inputs.anchors.labels[kept]
    return replace(inputs.anchors, embeddings=embeddings, labels=labels, names=())


def _check_exclusion(config: ConfigDict, labelled: bool, anchors: AnchorSet) -> None:
    if config.disjoint:
        return
    if not labelled:
        raise UserError(
            "labels are not given, and a face's own identity must be left out of its support set: "
            "add --config.labels=L (.npy, or text of one integer or name per line), or "
            "--config.disjoint=True where the anchors are of other people"
        )
    if anchors.labels is None:
        raise UserError(
            f"{config.anchors} has no labels, so that a face's own identity cannot be left out: "
            "build it by `ida-jax anchors build --embeddings=E --labels=L`, or add "
            "--config.disjoint=True where the anchors are of other people"
        )


def check_k(k: int, inputs: Inputs) -> None:
    """Refuses a k that the anchors cannot give each face, as a UserError."""
    anchors = inputs.anchors
    left = len(anchors)
    if inputs.own is not None:
        shared = anchors.labels[(anchors.labels >= 0) & np.isin(anchors.labels, inputs.own)]
        left -= int(np.unique(shared, return_counts=True)[1].max(initial=0))
    if k > left:
        raise UserError(
            f"k is {k}, but a support set can have at most {left} anchors here, a face's own "
            "identity and those held out left out: lower k or take more anchors"
        )


def _synthetic(config: ConfigDict) -> tuple[np.ndarray, np.ndarray, np.ndarray, AnchorSet]:
    """Synthetic faces of identities around a few groups' centres, their norms, and anchors."""
    rng = np.random.default_rng(config.seed)
    identities, images, width = 200, 5, 32
    groups = rng.standard_normal((8, width))[rng.integers(0, 8, identities)]
    centres = groups + rng.uniform(0.4, 1.2, (identities, 1)) * rng.standard_normal(groups.shape)
    people = np.repeat(np.arange(identities), images)
    faces = centres[people] + 0.3 * rng.standard_normal((len(people), width))
    faces, _, norms = unit_rows(faces.astype(np.float32))
    anchors = embedding_anchors(faces, people=people, size=identities, k=config.k, tau=config.tau)
    return faces, norms, people, anchors
