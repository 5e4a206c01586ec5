"""python -m ida_jax.embed --model=M --images=I --output=E [--landmarks=L] [--flip]

Embeddings of images by a model of ida_jax, float32 [N, D], as the network gives them: their norms
are kept, and every command takes any norm. Killed in the middle, the same command continues.

  M  model.safetensors (python -m ida_jax.export makes one of .onnx or .pth), or a workdir
  I  a folder (its images sorted by path), a .tar or .tgz, or a .txt list, a path a line
  L  five points an image, LFW's or IJB's form: images are aligned; without it they are crops of the
     model's size already
  E  .npy, with the images' names in E.names.txt beside it; or .npz, with the names inside
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.command_line import Parser
from ida_jax.errors import UserError, exit_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ida_jax.data.image_files import ImageFiles
    from ida_jax.data.landmarks import Landmarks
    from ida_jax.face_model import FaceModel

# Images a part: of a 512-d network 32 MiB, on a CPU the work of minutes.
_PART = 16_384


def main(argv: list[str]) -> None:
    """Parses flags, embeds, prints what was done."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.data.image_files import open_images
    from ida_jax.data.landmarks import read_landmarks
    from ida_jax.face_model import FaceModel

    path = options.model / "model.safetensors" if options.model.is_dir() else options.model
    model = FaceModel.load(path)
    files = open_images(options.images, root=options.root)
    landmarks = None if options.landmarks is None else read_landmarks(options.landmarks)
    images = _Faces(files, model, landmarks, skip_bad=options.skip_bad)
    parts = options.output.parent / f".{options.output.name}.{_key(options, model, files)}.parts"
    parts.mkdir(exist_ok=True)
    for start in range(0, len(files), _PART):
        part = parts / f"from-{start:09}.npy"
        if not part.is_file():
            _embed_part(part, images, model, start, options)
    bad = _put_together(options.output, parts, files.names, model.width)
    shutil.rmtree(parts, ignore_errors=True)
    print(f"{len(files):,} embeddings of {model.width} numbers in {options.output}")
    if bad:
        named = ", ".join(files.where(row) for row in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        print(f"{len(bad)} images have none (NaN): {named}{more}")


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("--model", type=Path, required=True, metavar="M", help="model.safetensors, or a workdir")
    add("--images", type=Path, required=True, metavar="I", help="folder, .tar, .tgz or .txt list")
    add("--root", type=Path, metavar="DIR", help="where a list's paths start (the list's folder)")
    add("--landmarks", type=Path, metavar="L", help="five points an image, by which it is aligned")
    add("--output", type=Path, required=True, metavar="E", help=".npy or .npz")
    add("--flip", action="store_true", help="adds the embedding of the mirror image")
    add("--batch_size", type=int, default=128, help="images at once (128)")
    add("--skip-bad", action="store_true", help="an image that cannot be decoded or has no points "
        "gets NaN instead of an error")
    # fmt: on
    return parser


def _check(options: Any) -> None:
    if options.output.suffix not in (".npy", ".npz"):
        raise UserError(f"--output={options.output}: expected a name that ends in .npy or .npz")
    if not options.output.absolute().parent.is_dir():
        raise UserError(
            f"cannot write {options.output}: no folder {options.output.parent}; make it first"
        )
    if options.batch_size < 1:
        raise UserError(f"--batch_size={options.batch_size}: expected 1 or more")


class _Faces:
    """The images as the model takes them: decoded, and aligned where there are landmarks."""

    def __init__(
        self,
        files: "ImageFiles",
        model: "FaceModel",
        landmarks: "Landmarks | None",
        *,
        skip_bad: bool,
    ) -> None:
        self.files, self.preprocessing, self.skip_bad = files, model.preprocessing, skip_bad
        self.points = None if landmarks is None else landmarks.points
        self.place = {} if landmarks is None else _places(files.names, landmarks.names)
        if landmarks is not None and not skip_bad:
            for name in files.names:
                if name not in self.place:
                    raise UserError(
                        f"image {name} is not in the landmarks, which begin with "
                        f"{landmarks.names[0]}: expected five points an image, or --skip-bad"
                    )

    def load(self, row: int) -> "np.ndarray | None":
        """uint8 [H, W, 3]; None where a bad one is skipped."""
        import numpy as np

        from ida_jax.data.alignment import align

        name = self.files.names[row]
        try:
            if self.points is not None and name not in self.place:
                return None
            image = self.files[row]
            if self.points is not None:
                points = self.points[self.place[name]]
                return align(image, points, size=self.preprocessing.image_size)
        except UserError as error:
            if self.skip_bad:
                return None
            raise UserError(
                f"{error}" if name in str(error) else f"image {self.files.where(row)}: {error}"
            ) from error
        expected = (self.preprocessing.image_size,) * 2
        if image.shape[:2] != expected:
            raise UserError(
                f"image {self.files.where(row)} is {image.shape[1]}×{image.shape[0]}, the model "
                f"takes {expected[0]}×{expected[1]}: give --landmarks to align it, or crop it"
            )
        return np.asarray(image)


def _places(names: "Sequence[str]", listed: "tuple[str, ...]") -> dict[str, int]:
    """{image: its place in the landmarks}, by the same path, or by the file's name alone."""
    by_path = {name: place for place, name in enumerate(listed)}
    by_file = {name.rsplit("/", 1)[-1]: place for place, name in enumerate(listed)}
    if len(by_file) < len(listed):  # files of one name in several folders
        by_file = {}
    places = {}
    for name in names:
        place = by_path.get(name, by_file.get(name.rsplit("/", 1)[-1]))
        if place is not None:
            places[name] = place
    return places


class _Part:
    """Images of a part; a skipped one is black, and its row is noted."""

    def __init__(self, images: _Faces, start: int) -> None:
        self.images, self.start = images, start
        self.stop = min(start + _PART, len(images.files))
        self.skipped: set[int] = set()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, row: int) -> "np.ndarray":
        import numpy as np

        image = self.images.load(self.start + row)
        if image is None:
            self.skipped.add(row)
            return np.zeros((self.images.preprocessing.image_size,) * 2 + (3,), np.uint8)
        return image


def _embed_part(path: Path, images: _Faces, model: "FaceModel", start: int, options: Any) -> None:
    import numpy as np

    from ida_jax.files import written_whole

    part = _Part(images, start)
    of = "" if len(images.files) <= _PART else f" {start} … {part.stop - 1} of {len(images.files)}"
    embeddings = model.raw_embeddings(
        part, batch_size=options.batch_size, flip=options.flip, progress=f"embed{of}"
    )
    embeddings[sorted(part.skipped)] = np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(embeddings, axis=1)
    bad = [
        row
        for row in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist()
        if row not in part.skipped
    ]
    if bad and not options.skip_bad:
        raise UserError(
            f"the embedding of {images.files.where(start + bad[0])} is zero, NaN or infinite: look "
            "at the image and the model, or give --skip-bad"
        )
    embeddings[bad] = np.nan
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, embeddings)


def _put_together(output: Path, parts: Path, names: "Sequence[str]", width: int) -> list[int]:
    """Writes E and the names; the rows that are NaN."""
    import numpy as np

    from ida_jax.files import written_whole

    bad: list[int] = []

    def blocks() -> "Any":
        for start in range(0, len(names), _PART):
            block = np.load(parts / f"from-{start:09}.npy")
            bad.extend((start + np.flatnonzero(np.isnan(block).any(axis=1))).tolist())
            yield block

    with written_whole(output) as temporary, temporary.open("wb") as file:
        if output.suffix == ".npz":
            np.savez(file, embeddings=np.concatenate(list(blocks())), names=np.array(names))
        else:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks():
                file.write(np.ascontiguousarray(block, "<f4"))
    if output.suffix == ".npy":
        with written_whole(output.with_suffix(".names.txt")) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return bad


def _key(options: Any, model: "FaceModel", files: "ImageFiles") -> str:
    """Names a job: what its embeddings depend on."""
    inputs = [options.images, options.landmarks]
    stamps = [path and [str(path.resolve()), path.stat().st_mtime_ns] for path in inputs]
    described = [model.fingerprint, options.flip, options.skip_bad, stamps, files.names]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
