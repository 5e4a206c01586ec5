"""python -m ida_jax.embed --model=M --images=I --output=E [--landmarks=L] [--flip]

Embeddings of images by a model of ida_jax, float32 [N, D], as the network gives them: their norms
are kept, and every command takes any norm. Killed in the middle, the same command continues; the
output appears whole or not at all.

  M  model.safetensors (python -m ida_jax.export makes one of .onnx or .pth), or a workdir
  I  a folder (its images sorted by path), a .tar or .tgz (likewise), or a text file, a path a line;
     a list of landmarks is one too
  L  five points an image, LFW's or IJB's form: images are aligned; without it they are crops of the
     model's size already
  E  .npy, with the images' names in E.names.txt beside it; .npz or .parquet, with the names inside
"""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.command_line import Parser
from ida_jax.errors import UserError, exit_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from ida_jax.data.image_files import ImageFiles
    from ida_jax.face_model import FaceModel

# Images a part, which is what a kill can cost: of a 100-layer network half an hour of a CPU.
_PART = 4096
_TOLD = 5


def main(argv: list[str]) -> None:
    """Parses flags, embeds, prints what was done."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.data.image_files import open_images
    from ida_jax.face_model import FaceModel

    folder = options.model.is_dir()
    model = FaceModel.load(options.model / "model.safetensors" if folder else options.model)
    files = open_images(options.images, root=options.root)
    points = None if options.landmarks is None else _points(options, files)
    crops = _Crops(files, model.preprocessing.image_size, points, skip_bad=options.skip_bad)
    output = options.output
    parts = output.parent / f".{output.name}.{_key(options, model, files)}.parts"
    try:
        parts.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    try:
        _embed_parts(parts, crops, model, options)
        skipped = _put_together(output, parts, files.names, model.width)
    except BaseException:
        if not any(parts.iterdir()):
            parts.rmdir()
        raise
    _clear(output)
    print(f"{len(files):,} embeddings of {model.width} numbers in {output}")
    if skipped:
        print(
            f"{len(skipped)} of them are NaN, which never counts as a match: "
            f"{', '.join(skipped[:_TOLD])}{', …' if len(skipped) > _TOLD else ''}; the reasons are "
            f"in {output.with_suffix('.skipped.txt')}"
        )


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("--model", type=Path, required=True, metavar="M", help="model.safetensors, or a workdir")
    add("--images", type=Path, required=True, metavar="I", help="a folder, .tar, .tgz or list")
    add("--root", type=Path, metavar="DIR", help="where a list's paths start (the list's folder)")
    add("--landmarks", type=Path, metavar="L", help="five points an image, by which it is aligned")
    add("--output", type=Path, required=True, metavar="E", help=".npy, .npz or .parquet")
    add("--flip", action="store_true", help="adds the embedding of the mirror image")
    add("--batch_size", type=int, default=128, help="images at once (128)")
    add("--skip_bad", action="store_true", help="what cannot be decoded, aligned or embedded "
        "becomes NaN and is listed in E.skipped.txt, instead of ending the run")
    # fmt: on
    return parser


def _check(options: Any) -> None:
    output = options.output
    if output.suffix not in _WRITERS:
        raise UserError(f"--output={output}: expected a name that ends in {', '.join(_WRITERS)}")
    if output.is_dir():
        raise UserError(f"cannot write {output}: it is a folder; name a file")
    if not output.absolute().parent.is_dir():
        raise UserError(f"cannot write {output}: no folder {output.parent}; make it first")
    if options.batch_size < 1:
        raise UserError(f"--batch_size={options.batch_size}: expected 1 or more")
    if not options.model.is_dir() and options.model.suffix != ".safetensors":
        raise UserError(
            f"--model={options.model}: expected a workdir or a .safetensors file, as "
            "python -m ida_jax.export --output=X.safetensors writes of other weights"
        )


class _Crops(Sequence["np.ndarray"]):
    """The images as the model takes them; a bad one that is skipped is black, and noted."""

    def __init__(
        self,
        files: "ImageFiles",
        size: int,
        points: "list[np.ndarray | None] | None",
        *,
        skip_bad: bool,
    ) -> None:
        self.files, self.size, self.points, self.skip_bad = files, size, points, skip_bad
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> "np.ndarray":
        import numpy as np

        from ida_jax.data.alignment import align

        image = np.zeros((self.size, self.size, 3), np.uint8)
        if self.points is not None and self.points[row] is None:
            self.skip(row, f"image {self.files.where(row)} has no landmarks")
            return image
        try:
            found = self.files[row]
        except UserError as error:
            self.skip(row, str(error))
            return image
        if self.points is not None:
            try:
                return align(found, self.points[row], size=self.size)
            except UserError as error:
                self.skip(row, f"image {self.files.where(row)}: {error}")
                return image
        # Never skipped: a wrong size is that of all images, as a rule.
        if found.shape != image.shape:
            height, width, _ = found.shape
            raise UserError(
                f"image {self.files.where(row)} is {width}×{height} pixels, the model takes "
                f"{self.size}×{self.size}: give --landmarks to align it, or crop it before"
            )
        return found

    def skip(self, row: int, reason: str) -> None:
        """Notes a bad image, or raises if such are not skipped."""
        if not self.skip_bad:
            raise UserError(f"{reason}; --skip_bad goes on without it")
        self.skipped[row] = " ".join(reason.split())


def _points(options: Any, files: "ImageFiles") -> "list[np.ndarray | None]":
    """Each image's five points: of the same path, or of the same file name where all differ."""
    from ida_jax.data.landmarks import read_landmarks

    landmarks = read_landmarks(options.landmarks)
    place = {name: row for row, name in enumerate(landmarks.names)}
    wanted = list(files.names)
    if not any(name in place for name in wanted):
        listed, short = [_file_name(n) for n in place], [_file_name(n) for n in wanted]
        if len(set(listed)) == len(listed) and len(set(short)) == len(short):
            place, wanted = {name: row for row, name in enumerate(listed)}, short
    missing = [row for row, name in enumerate(wanted) if name not in place]
    if missing and (len(missing) == len(wanted) or not options.skip_bad):
        raise UserError(
            f"{options.landmarks} has no points for {len(missing)} of {len(wanted)} images, "
            f"{files.names[missing[0]]} the first; its own first is {landmarks.names[0]}: expected "
            "the same paths, or the same file names; --skip_bad goes on without images that lack "
            "points"
        )
    return [landmarks.points[place[name]] if name in place else None for name in wanted]


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _embed_parts(parts: Path, crops: _Crops, model: "FaceModel", options: Any) -> None:
    """Makes the parts that are not there."""
    from tqdm import tqdm

    # A part of whole batches, of one at least.
    size = options.batch_size * max(1, _PART // options.batch_size)
    ranges = [range(start, min(start + size, len(crops))) for start in range(0, len(crops), size)]
    left = [rows for rows in ranges if not _is_done(_part(parts, rows), options.skip_bad)]
    done = len(crops) - sum(map(len, left))
    start = time.perf_counter()
    with tqdm(total=len(crops), initial=done, desc="embed", unit="image", delay=1) as bar:
        for rows in left:
            _embed_part(_part(parts, rows), crops, rows, model, options, bar.update)
    seconds = time.perf_counter() - start
    if left:
        count = len(crops) - done
        print(f"{count:,} images in {seconds:.1f} s, {count / seconds:,.0f} images/s")


def _part(parts: Path, rows: range) -> Path:
    return parts / f"from-{rows.start:09}.npy"


def _reasons(part: Path) -> Path:
    return part.with_suffix(".skipped.txt")


def _is_done(part: Path, skip_bad: bool) -> bool:
    # What another run skipped is to end this one.
    return part.is_file() and (skip_bad or not _reasons(part).is_file())
