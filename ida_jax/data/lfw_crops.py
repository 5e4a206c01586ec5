"""Labeled Faces in the Wild as aligned crops in one tar file, or in a folder.

    ROOT/lfw_112.tar      ./NAME/NAME_0001.jpg, 112×112 (or a folder ROOT/lfw_112/ of the same)
    ROOT/split.csv        identity,role,images: role "anchor" may be trained on, "eval" may not
    ROOT/pairs.txt        LFW's own 6,000 pairs

N faces.
"""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import FaceDataset, LazyImages
from ida_jax.data.sources.image_files import decode, open_images
from ida_jax.tables.text import canonical, delimiter_of, text_lines


def load_lfw(
    root: str | os.PathLike[str], *, role: str | None = None, images_per_identity: int | None = None
) -> FaceDataset:
    """LFW's crops, sorted by name.

    Args:
      root: the folder that holds the files above.
      role: "anchor" or "eval" keeps that part of the split's identities; None keeps all.
      images_per_identity: keeps at most this many images of an identity, the first by number.
    """
    root = Path(root)
    encoded = _read_crops(find_crops(root))
    wanted = None if role is None else _identities_of(root / "split.csv", role)
    taken: Counter[str] = Counter()
    names = []
    for name in sorted(encoded):
        identity = name.split("/")[0]
        if wanted is not None and canonical(identity) not in wanted:
            continue
        if images_per_identity is None or taken[identity] < images_per_identity:
            taken[identity] += 1
            names.append(name)
    if not names:
        raise UserError(f"no image of role '{role}' in {root}: expected crops of the split's names")
    identities, labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    images = LazyImages(len(names), partial(_decoded, names, [encoded[name] for name in names]))
    return FaceDataset(images, labels.astype(np.int32), tuple(map(str, identities)), tuple(names))


def _decoded(names: Sequence[str], encoded: Sequence[bytes], index: int) -> np.ndarray:
    return decode(encoded[index], where=names[index])


def find_crops(root: str | os.PathLike[str]) -> Path:
    """The tar file or the folder that holds the crops."""
    tar, folder = Path(root) / "lfw_112.tar", Path(root) / "lfw_112"
    if tar.is_file():
        return tar
    if folder.is_dir():
        return folder
    raise UserError(
        f"no LFW crops at {tar} or {folder}/: set --config.data_dir to the folder that holds "
        "lfw/lfw_112.tar (112×112 aligned crops, NAME/NAME_0001.jpg)"
    )


def read_split(path: str | os.PathLike[str]) -> dict[str, str]:
    """The roles that a split gives to identities: {identity: role}.

    Args:
      path: lines identity,role,… under a header with at least these two names.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no split at {path}: expected lines identity,role,images")
    roles: dict[str, str] = {}
    lines = text_lines(path, what="split")
    try:
        rows = (f"{line}\n" for line in lines)
        reader = csv.DictReader(rows, delimiter=delimiter_of("".join(lines[:1]).encode()))
        if not {"identity", "role"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path}, line 1: expected a header identity,role,images")
        for row in reader:
            identity, role = ((row[name] or "").strip() for name in ("identity", "role"))
            where = f"{path}, line {reader.line_num}"
            if not identity or not role:
                raise UserError(f"{where}: expected identity,role,images")
            if identity in roles:
                raise UserError(f"{where}: {identity} comes twice, expected once")
            roles[identity] = role
    except csv.Error as error:
        raise UserError(f"{path} is not a split, lines identity,role,images: {error}") from error
    return roles


def _read_crops(path: Path) -> dict[str, bytes]:
    """{"NAME/NAME_0001": the encoded image}; the whole set is 85 MB."""
    files = open_images(path)
    encoded = {}
    for row, full in enumerate(files.names):
        name = full.rsplit(".", 1)[0]
        if name in encoded:
            raise UserError(f"{files.where(row)}: {name} is there with another suffix too")
        encoded[name] = files.encoded(row)
    return encoded


def _identities_of(path: Path, role: str) -> set[str]:
    roles = read_split(path)
    if role not in roles.values():
        known = ", ".join(sorted(set(roles.values())))
        raise UserError(f"role '{role}' is not in {path}: it has {known}")
    return {identity for identity, its_role in roles.items() if its_role == role}
