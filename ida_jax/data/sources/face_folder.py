"""Identity folders: FOLDER/IDENTITY/IMAGE, .jpg, .jpeg or .png.

N faces, C identities.
"""

import os
import unicodedata
from collections.abc import Sequence

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import EncodedFaces, LazyImages
from ida_jax.data.sources.image_files import read_image
from ida_jax.data.sources.image_names import JPEG_AND_PNG, hidden_note, is_hidden

_LISTED = 5


def read_face_folder(folder: str | os.PathLike[str]) -> EncodedFaces:
    """The images of FOLDER/IDENTITY/, by identity and file name; hidden files are passed over.

    Images are read when asked for. The notes report identity folders without an image, and of what
    is left out: other files, what lies in FOLDER itself or below an identity's folder, and hidden
    entries.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no folder at {folder}: expected one that holds one folder per identity")
    folders, left_out, hidden = _listed(folder, keep_folders=True)
    _refuse_twins(folder, folders)
    identities, empty, files, counts = [], [], [], []
    for name in folders:
        images, others, more = _listed(os.path.join(folder, name), keep_folders=False)
        left_out += others
        hidden += [f"{name}/{entry}" for entry in more]
        if not images:
            empty.append(name)
            continue
        identities.append(name)
        files += images
        counts.append(len(images))
    if not files:
        raise UserError(
            f"no image at {folder}/IDENTITY/*.jpg, .jpeg or .png: expected one folder per "
            f"identity, {len(folders)} folders were found"
        )
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def path(row: int) -> str:
        return os.path.join(folder, identities[labels[row]], files[row])

    images = LazyImages(len(files), lambda row: read_image(path(row)))
    notes = []
    if empty:
        notes.append(f"{len(empty)} identity folders hold no image: {_some(empty)}")
    if left_out:
        notes.append(
            f"{len(left_out)} entries that are not FOLDER/IDENTITY/IMAGE are left out: "
            f"{_some(left_out)}"
        )
    if hidden:
        notes.append(hidden_note(hidden))
    return EncodedFaces(images, labels, tuple(identities), path, tuple(notes))


def _listed(folder: str, *, keep_folders: bool) -> tuple[list[str], list[str], list[str]]:
    """Sorted: names to keep (folders, or else images), paths of others, names of hidden ones."""
    kept, others, hidden = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    hidden.append(entry.name)
                    continue
                is_image = entry.name.lower().endswith(JPEG_AND_PNG) and not entry.is_dir()
                wanted = entry.is_dir() if keep_folders else is_image
                (kept if wanted else others).append(entry.name if wanted else entry.path)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
    for name in kept:
        if not name.isprintable():
            raise UserError(f"{folder} holds {name!r}: rename it to printable UTF-8 text")
    return sorted(kept), sorted(others), sorted(hidden)


def _refuse_twins(folder: str, names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            raise UserError(
                f"{folder} holds the identities {twin} and {name}, one name but for its case or "
                "accents: merge or rename them"
            )


def _some(names: Sequence[str]) -> str:
    # A name that is left out need not be text that can be printed.
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:_LISTED])
    return shown + ", …" * (len(names) > _LISTED)
