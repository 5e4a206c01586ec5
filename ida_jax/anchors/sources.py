"""Where anchors come from: Table 4's sources.

A anchors, C classes, N faces, D embedding.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.balance import Balance, balanced
from ida_jax.anchors.degraded import copy_labels, degraded_provenance
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings, unit_rows
from ida_jax.data.dataset import LazyImages
from ida_jax.data.degrade import Degradation, with_degraded
from ida_jax.data.sources.image_files import decode, read_image
from ida_jax.data.sources.image_names import SUFFIXES, is_hidden, is_image, sayable
from ida_jax.tables.embeddings import read_embeddings
from ida_jax.tables.parquet_files import row_place
from ida_jax.tables.text import canonical


class ImageFolder(NamedTuple):
    """The crops found in a folder.

    Attributes:
      people: the identity folder of each; empty in a flat folder.
      hidden: the entries that were passed over as hidden.
    """

    files: tuple[Path, ...]
    people: tuple[str, ...]
    hidden: tuple[str, ...] = ()


def class_weights(
    weights: np.ndarray, *, size: int, fingerprint: str = "", seed: int = 0, k: int = 10,
    tau: float = 1.0,
) -> AnchorSet:  # fmt: skip
    """Anchors from the margin head's weights [C, D], "weights of FC layers" in Table 4.

    A weight stands for its class's centre; its label is the class.

    Args:
      weights: [C, D], rows of any norm.
      size: at most this many are kept, drawn without replacement from `seed` (paper: 50,000).
    """
    rows = sampled_rows(len(weights), size=size, seed=seed)
    return AnchorSet.from_embeddings(
        weights[rows], labels=rows, source="class_weights", fingerprint=fingerprint, k=k, tau=tau
    )


def read_anchors(
    path: str | os.PathLike[str],
    *,
    embeddings: str | os.PathLike[str] | None = None,
    verify: bool = False,
) -> AnchorSet:
    """An anchor set's file (.safetensors), or plain embeddings as `read_embeddings` takes them.

    Args:
      embeddings: the file of the faces that are to be scored by the anchors, if there is one.
      verify: as in `AnchorSet.load`.

    Raises:
      UserError: as `AnchorSet.load`, `read_embeddings` and `AnchorSet.from_embeddings`; the anchors
        are the embeddings themselves.
    """
    if embeddings is not None and Path(path).exists() and Path(path).samefile(embeddings):
        raise UserError(
            f"the anchors are the embeddings themselves, {path}: each face would be its own "
            "nearest anchor, and scores would depend on the other faces under test; take faces of "
            "other people"
        )
    if Path(path).suffix == ".safetensors":
        return AnchorSet.load(path, verify=verify)
    table = read_embeddings(path)
    return AnchorSet.from_embeddings(
        table.embeddings, fingerprint=table.fingerprint, place=row_place(path)
    )


def real_db_rows(
    labels: np.ndarray, *, size: int, seed: int = 0, per_identity: int = 1
) -> np.ndarray:
    """Rows of the real-db's images: one per identity, its first (section 4.5 samples it randomly).

    Args:
      labels: int [N], identities; a negative one is unknown, and its row a person of its own.
      size: at most this many rows are kept, drawn without replacement from `seed`.
      per_identity: at most this many of an identity's first rows enter the draw.

    Returns:
      int64 [A], by ascending label.
    """
    labels = np.asarray(labels)
    if per_identity < 1:
        raise UserError(f"per_identity is {per_identity}: expected at least 1")
    order = np.argsort(labels, kind="stable")
    _, first, member = np.unique(labels[order], return_index=True, return_inverse=True)
    rank = np.arange(len(order)) - first[member]
    rows = order[(rank < per_identity) | (labels[order] < 0)]
    return rows[sampled_rows(len(rows), size=size, seed=seed)]


def embedding_anchors(
    embeddings: np.ndarray,
    *,
    size: int,
    people: Sequence[str] | np.ndarray | None = None,
    per_identity: int = 1,
    balance: Balance | None = None,
    seed: int = 0,
    fingerprint: str = "",
    k: int = 10,
    tau: float = 1.0,
) -> AnchorSet:
    """Anchors from embeddings [N, D] of any model: all rows, or the first of each identity.

    Args:
      embeddings: [N, D], rows of any norm; of a memory-mapped file only the anchors are read.
      size: at most this many anchors, drawn without replacement from `seed`.
      people: N identities, as integers or as names; every row is an anchor if None.
      per_identity: with `people`, anchors of one identity.
      balance: as many anchors of each group (`ida_jax.anchors.balance`); what it does is printed.
      fingerprint: of the model that made the embeddings; "" where unknown.

    Raises:
      UserError: a different number of people, or neither integers nor strings; a chosen row that is
        zero, NaN or infinite, by its number in `embeddings`; as `AnchorSet.from_embeddings`.
    """
    labels, names = (None, ()) if people is None else _numbered(people, len(embeddings))
    drawn = {"size": size if balance is None else len(embeddings), "seed": seed}
    if labels is None:
        rows = sampled_rows(len(embeddings), **drawn)
    else:
        rows = real_db_rows(labels, per_identity=per_identity, **drawn)
    provenance = None
    if balance is not None:
        every = rows
        rows, provenance = balanced_rows_of(
            rows, balance, size=size, seed=seed, k=k,
            embeddings=lambda: unit_embeddings(embeddings[every], what="anchors"),
        )  # fmt: skip
    chosen, bad, _ = unit_rows(embeddings[rows], skip_bad=True, what="anchors")
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} of the {len(rows)} rows taken as anchors are zero, NaN or infinite, "
            f"the first is row {rows[bad].min()} of the embeddings: leave it out or embed it again"
        )
    return AnchorSet.from_embeddings(
        chosen,
        labels=None if labels is None else labels[rows],
        fingerprint=fingerprint,
        k=k,
        tau=tau,
        names=[names[row] for row in rows] if names else (),
        provenance=provenance,
    )


def image_anchors(
    folder: str | os.PathLike[str],
    model: FaceModel,
    *,
    size: int,
    per_identity: int = 1,
    balance: Balance | None = None,
    seed: int = 0,
    flip: bool = False,
    k: int = 10,
    tau: float = 1.0,
    degrade: Degradation | None = None,
) -> AnchorSet:
    """Anchors from a folder of aligned crops, "real-db" in Table 4, embedded with a progress bar.

    Args:
      folder: FOLDER/PERSON/IMAGE, or FOLDER/IMAGE, in which every image is an anchor.
      size: at most this many images, drawn without replacement from `seed`.
      per_identity: at most this many images of a person's folder, the first by name.
      balance: as many anchors of each group (`ida_jax.anchors.balance`); what it does is printed.
      flip: f(x) + f(mirrored x), as the faces to be compared are embedded.
      degrade: degraded copies of some of these images are further anchors, by the images' numbers
        in the folder.

    Raises:
      UserError: as `find_images`; an image that cannot be decoded or is of another size.
    """
    images = find_images(folder)
    drawn = {"size": size if balance is None else len(images.files), "seed": seed}
    if images.people:
        _, labels = np.unique(images.people, return_inverse=True)
        rows = real_db_rows(labels, per_identity=per_identity, **drawn)
    else:
        labels, rows = None, sampled_rows(len(images.files), **drawn)
    if k > len(rows):  # before they are embedded
        raise UserError(f"k = {k} is more than the {len(rows)} anchors in {folder}: lower k")

    def crops(rows: np.ndarray) -> LazyImages:
        def crop(index: int) -> np.ndarray:
            file = images.files[rows[index]]
            image = decode(read_image(file), where=str(file))
            model.preprocessing.check(image, what=str(file))
            return image

        return LazyImages(len(rows), crop)

    def embedded(images: Sequence[np.ndarray]) -> np.ndarray:
        return model.embed(images, flip=flip, progress="embed the anchors")

    provenance: dict[str, Any] = {}
    if balance is not None:
        every = rows
        rows, provenance = balanced_rows_of(
            rows, balance, size=size, seed=seed, k=k, embeddings=lambda: embedded(crops(every))
        )
    faces, of = with_degraded(crops(rows), degrade, numbers=rows)
    return AnchorSet.from_embeddings(
        embedded(faces),
        labels=copy_labels(of) if labels is None else labels[rows[of]],
        source="real_db",
        fingerprint=model.fingerprint,
        k=k,
        tau=tau,
        names=[images.people[row] for row in rows[of]] if images.people else (),
        provenance={**provenance, **degraded_provenance(degrade, of)},
    )


def find_images(folder: str | os.PathLike[str]) -> ImageFolder:
    """The images in a folder's identity folders, or in the folder itself.

    Raises:
      UserError: no folder, no image in it, or images both in it and in folders within it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}: expected a folder of face crops")
    flat, folders, hidden = _listed(folder)
    nested: list[Path] = []
    for person in folders:
        images, _, more = _listed(person)
        nested += images
        hidden += more
    if flat and nested:
        raise UserError(
            f"{folder} holds images ({flat[0].name}) and folders of images "
            f"({nested[0].relative_to(folder)}): expected one or the other"
        )
    if not flat and not nested:
        raise UserError(
            f"no image in {folder}: expected FOLDER/PERSON/IMAGE or FOLDER/IMAGE with IMAGE one of "
            f"*{', *'.join(SUFFIXES)}"
        )
    people = tuple(canonical(sayable(file.parent.name)) for file in nested)
    passed = tuple(entry.relative_to(folder).as_posix() for entry in hidden)
    return ImageFolder(tuple(flat or nested), people, passed)


def sampled_rows(available: int, *, size: int, seed: int = 0) -> np.ndarray:
    """At most `size` rows of 0 … available − 1, int64, ascending, drawn without replacement."""
    if size < 1:
        raise UserError(f"an anchor set of {size} was asked for: expected at least 1")
    if size >= available:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).choice(available, size, replace=False))


def balanced_rows_of(
    rows: np.ndarray, balance: Balance, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of a balanced set and its provenance; what was done is printed.

    Args:
      rows: the candidates' rows.
      balance: groups or clusters.
      **options: `ida_jax.anchors.balance.balanced`'s.
    """
    found = balanced(rows, balance, **options)
    print(*found.said, sep="\n")
    return rows[found.places], found.provenance


def _listed(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """A folder's images, its folders and its hidden entries, sorted."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
    seen = [entry for entry in entries if not is_hidden(entry.name)]
    images = [entry for entry in seen if is_image(entry.name) and entry.is_file()]
    folders = [entry for entry in seen if entry.is_dir()]
    return images, folders, [entry for entry in entries if is_hidden(entry.name)]


def _numbered(people: Sequence[str] | np.ndarray, count: int) -> tuple[np.ndarray, list[str]]:
    """Identities as integers [N], and as names where they were names."""
    people = np.asarray(people)
    if people.shape != (count,):
        raise UserError(f"labels are {list(people.shape)} for {count} rows: expected one per row")
    if np.issubdtype(people.dtype, np.integer):
        return people, []
    if people.dtype.kind != "U":
        raise UserError(f"labels are {people.dtype}: expected integers or names")
    _, labels = np.unique(people, return_inverse=True)
    return labels, people.tolist()
