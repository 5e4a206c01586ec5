"""Features of images: MegaFace's feature files, or embeddings by name.

    ROOT/<path><ending>      one image's feature: int32 (length, 1, 4, 5), then float32, all
                             little-endian; the ending is "_<model>.bin"

In place of feature files, embeddings in one file (`ida_jax.tables.embeddings`) whose names are the
list's paths.

N images, D embedding.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.tables.embeddings import EmbeddingFile

_BLOCK = 8192
_HEADER = 4
_STRIDE, _FLOAT32 = 4, 5


def feature_blocks(
    source: str | os.PathLike[str] | EmbeddingFile,
    paths: Sequence[str],
    *,
    ending: str | None = None,
    block: int = _BLOCK,
) -> Iterator[np.ndarray]:
    """The features of a list's images in its order, float32 [n, D] blocks of any norm.

    That every image has one is seen at the call; features are read when a block is taken.

    Args:
      source: a folder of feature files, or embeddings whose names are the paths.
      paths: N paths.
      ending: of feature files, "_<model>.bin"; what follows the first image's name if None.
      block: rows at once.

    Raises:
      UserError: images without a feature, the first named and all counted; a feature file that is
        damaged, of another length or not finite.
    """
    starts = range(0, len(paths), block)
    if not isinstance(source, EmbeddingFile):
        folder = Path(source)
        if not folder.is_dir():
            raise UserError(f"no folder of feature files at {folder}")
        ending = _only_ending(folder / paths[0]) if ending is None and paths else ending
        files = [f"{folder}/{path}{ending}" for path in paths]
        _require_all([f for f in files if not os.path.isfile(f)], len(files), f"in {folder}")
        return _read_features(files, starts, block)
    embeddings, own = source.embeddings, source.names
    if own is None:
        raise UserError("the embeddings have no names: give one a row, the list's paths")
    row_of_name = {name.removeprefix("./"): row for row, name in enumerate(own)}
    _require_all([p for p in paths if p not in row_of_name], len(paths), "among the embeddings")
    rows = np.array([row_of_name[path] for path in paths], np.int64)
    return (np.asarray(embeddings[rows[start : start + block]], np.float32) for start in starts)


def read_feature(path: str | os.PathLike[str]) -> np.ndarray:
    """One image's feature, float32 [D].

    Raises:
      UserError: no such file, another header, truncated or too long, NaN or infinite.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    header = np.frombuffer(content[: 4 * _HEADER], "<i4") if len(content) >= 4 * _HEADER else ()
    if len(header) < _HEADER or header[0] < 1 or tuple(header[1:]) != (1, _STRIDE, _FLOAT32):
        raise UserError(
            f"{path} begins with {list(map(int, header))}: expected the header "
            f"(length, 1, {_STRIDE}, {_FLOAT32}) of a feature file"
        )
    expected = 4 * (_HEADER + int(header[0]))
    if len(content) != expected:
        raise UserError(
            f"{path} has {len(content)} bytes, its header promises {expected}: "
            f"{'truncated' if len(content) < expected else 'no feature file'}"
        )
    feature = np.frombuffer(content, "<f4", offset=4 * _HEADER).astype(np.float32)
    if not np.isfinite(feature).all():
        offset = 4 * (_HEADER + int(np.argmin(np.isfinite(feature))))
        raise UserError(f"{path}: byte {offset} begins a number that is NaN or infinite")
    return feature


def _read_features(files: Sequence[str], starts: range, block: int) -> Iterator[np.ndarray]:
    width = None
    for start in starts:
        rows = []
        for file in files[start : start + block]:
            feature = read_feature(file)
            width = len(feature) if width is None else width
            if len(feature) != width:
                raise UserError(
                    f"{file} is {len(feature)} wide, {files[0]} {width}: expected one model's"
                )
            rows.append(feature)
        yield np.stack(rows)


def _require_all(missing: Sequence[str], count: int, where: str) -> None:
    if missing:
        raise UserError(
            f"{len(missing):,} of {count:,} images have no feature {where}, the first is "
            f"{missing[0]!r}: embed them, or delete them by the noise list"
        )


def _only_ending(image: Path) -> str:
    try:
        files = os.listdir(image.parent)
    except (OSError, ValueError):
        files = []
    endings = [file[len(image.name) :] for file in files if file.startswith(image.name)]
    endings = sorted(ending for ending in endings if ending.endswith(".bin"))
    if len(endings) != 1:
        raise UserError(
            f"{len(endings)} feature files ({', '.join(endings[:3]) or 'none'}) of {str(image)!r}: "
            "expected one model's, named IMAGE_<model>.bin"
        )
    return endings[0]
