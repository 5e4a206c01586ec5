"""ida-jax embed --model=M --images=I --output=E [--landmarks=L] [--flip] [--pfe=P]

Embeds images with a model of ida_jax: float32 [N, D], as the network gives them. Their norms
are kept, and every command takes any norm. After a kill the same command resumes; the
output appears whole or not at all.

  M  model.safetensors (ida-jax export makes one of .onnx or .pth), or a workdir
  I  a folder (its images sorted by path), a .tar, .tgz or .zip (likewise), or a text file with one
     path per line, such as a list of landmarks; or a verification set (.bin), in its own order
  L  five points per image in LFW's or IJB's form, by which images are aligned; without it they must
     be crops of the model's size
  E  .npy, with the images' names in E.names.txt and the model's fingerprint in E.fingerprint.json
     beside it; .npz or .parquet, with both inside. By the fingerprint other commands refuse anchors
     and modules of another model
  P  the model's uncertainty module (PFE), pfe.safetensors of a run's stage pfe; log σ² of each
     image and dimension, float32 [N, D], is then written to E.log_variances.npy

With --shard=I/N many processes share the work through the folder of E, which all of them must see;
the same command with --join instead then writes E.

--degrade embeds a degraded copy of every image in its place: with the images' own embeddings, these
make anchors and training faces of the SSR module as varied as poor probes.

examples:
  ida-jax embed --model=model.safetensors --images=crops --output=faces.npy
  ida-jax embed --model=model.safetensors --images=photos.tar --landmarks=points.txt --flip \\
      --output=faces.parquet
  srun -n 64 sh -c 'ida-jax embed --model=model.safetensors --images=crops --output=faces.npy \\
      --shard=$SLURM_PROCID/$SLURM_NTASKS'
"""

import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.artefacts.uncertainty_model import UncertaintyModel
    from ida_jax.common.parts import Parts
    from ida_jax.data.degrade import Degradation
    from ida_jax.data.sources.image_files import ImageFiles

# Images a part, the most that a kill costs.
_PART = 4096
_MOST_NAMED = 5


def main(argv: list[str]) -> None:
    """Parses flags, embeds, prints what was done."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import refuse_overwriting, writing

    if options.shard is not None:  # others write here too
        refuse_overwriting(_inputs(options), _outputs(options.output))
        _embed(options)
        return
    with writing(_outputs(options.output), reading=_inputs(options)):
        _embed(options)


def _inputs(options: Any) -> "dict[str, Path | None]":
    from ida_jax.common.files import file_inside
    from ida_jax.runs.workdir import MODEL

    return {
        "--model": file_inside(options.model, MODEL),
        "--images": options.images,
        "--landmarks": options.landmarks,
        "--pfe": options.pfe,
    }


def _outputs(output: Path) -> dict[str, Path]:
    from ida_jax.tables.embedding_output import files_beside

    beside = [*files_beside(output), _variances(output), _reasons(output)]
    return {"--output": output, **{f"--output (with {path.name})": path for path in beside}}


def _embed(options: Any) -> None:
    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.artefacts.uncertainty_model import UncertaintyModel
    from ida_jax.common.files import file_inside
    from ida_jax.common.parts import (
        folder_beside,
        key_of,
        place_beside,
        remove_empty,
        remove_parts,
    )
    from ida_jax.common.shards import note_shard, refuse_other_shards, require_all, require_shards
    from ida_jax.data.degrade import degradation
    from ida_jax.data.sources.image_files import open_images
    from ida_jax.data.sources.image_names import hidden_note
    from ida_jax.data.sources.verification_bin import open_bin
    from ida_jax.runs.workdir import MODEL

    model = FaceModel.load(file_inside(options.model, MODEL))
    if options.images.suffix.lower() == ".bin":
        if options.root is not None:
            raise UserError(f"--root={options.root} is for lists of images: leave it out")
        files = open_bin(options.images)
    else:
        files = open_images(options.images, root=options.root)
    points = None if options.landmarks is None else _points(options, files)
    how = degradation(options.degrade, seed=options.degrade_seed, what="--degrade")
    source = _Source(files, model.preprocessing.image_size, points, options.skip_bad, how)
    output = options.output
    uncertainty = None
    if options.pfe is not None:
        uncertainty = UncertaintyModel.load(options.pfe)
        uncertainty.check_model(fingerprint=model.fingerprint, width=model.width)
    settings = _settings(options, model, files)
    key = key_of(settings)
    refuse_other_shards(output, place_beside(output, key), settings)
    if options.join:
        require_shards(output, place_beside(output, key))
    folder = folder_beside(output, key)
    try:
        parts = _parts(folder, source, uncertainty, options)
        if options.shard is not None:
            note_shard(folder, options.shard, settings)
        if options.join:
            require_all(parts, output)
        _embed_parts(parts, source, model, uncertainty, options)
        if options.shard is not None:
            own = sum(len(part.rows) for part in parts.share(options.shard))
            print(f"shard {options.shard}: {own:,} of {len(files):,} embeddings")
            return
        skipped = _put_together(output, [part.path for part in parts], files.names, model)
    except BaseException:
        if options.shard is None:
            remove_empty(folder)
        raise
    remove_parts(output)
    print(f"{len(files):,} embeddings of {model.width} numbers in {output}")
    if files.hidden:
        print(hidden_note(files.hidden))
    if uncertainty is not None:
        print(f"their log-variances in {_variances(output)}")
    if skipped:
        named = ", ".join(printable(line.split("\t")[0]) for line in skipped[:_MOST_NAMED])
        print(
            f"{len(skipped)} of them are NaN, which never match: {named}"
            f"{', …' if len(skipped) > _MOST_NAMED else ''}; the reasons are in {_reasons(output)}"
        )


def _parser() -> Parser:
    from ida_jax.common.shards import add_shard_flags

    parser = Parser("embed", description=__doc__)
    # fmt: off
    add = parser.add_argument_group("files").add_argument
    add("--model", type=Path, required=True, metavar="M", help="model.safetensors, or a workdir")
    add("--images", type=Path, required=True, metavar="I", help="a folder, archive or list")
    add("--root", type=Path, metavar="DIR", help="where a list's paths start (the list's folder)")
    add("--landmarks", type=Path, metavar="L", help="five points per image, by which it is aligned")
    add("--output", type=Path, required=True, metavar="E", help=".npy, .npz or .parquet")
    add("--pfe", type=Path, metavar="P", help="the uncertainty module: log-variances too")
    add = parser.add_argument_group("images").add_argument
    add("--flip", action="store_true", help="adds the embedding of the mirror image")
    add("--degrade", nargs="?", const="varied", default="", metavar="SPEC",
        help="embed degraded copies: varied (if no SPEC is given), or as in anchors build")
    add("--degrade_seed", type=int, default=0, help="another seed, another copy (0)")
    add("--batch_size", type=int, default=128, help="images at once (128)")
    add("--skip_bad", action="store_true", help="an image that cannot be decoded, aligned or "
        "embedded becomes NaN and is listed in E.skipped.txt, instead of ending the run")
    # fmt: on
    add_shard_flags(parser)
    return parser


def _check(options: Any) -> None:
    from ida_jax.common.shards import check_shard_flags
    from ida_jax.tables.embedding_output import check_output

    check_shard_flags(options)
    check_output(options.output)
    from ida_jax.data.degrade import degradation

    degradation(options.degrade, what="--degrade")
    if options.degrade_seed < 0:
        raise UserError(f"--degrade_seed={options.degrade_seed}: expected 0 or more")
    if options.batch_size < 1:
        raise UserError(f"--batch_size={options.batch_size}: expected 1 or more")
    if not options.model.is_dir() and options.model.suffix != ".safetensors":
        raise UserError(
            f"--model={options.model}: expected a workdir or a .safetensors file, as "
            "ida-jax export --output=X.safetensors writes of other weights"
        )


class _Source(NamedTuple):
    """Where crops come from: images, the model's size, each's points, and how they degrade."""

    files: "ImageFiles"
    size: int
    points: "list[np.ndarray | None] | None"
    skip_bad: bool
    degrade: "Degradation | None" = None


class _Crops(Sequence["np.ndarray"]):
    """Some rows' images as the model takes them; a bad one that is skipped is black, and noted."""

    def __init__(self, source: _Source, rows: range, tick: "Callable[[], object]") -> None:
        self._source, self._rows, self._tick = source, rows, tick
        self._lock = threading.Lock()
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> "np.ndarray":
        import numpy as np

        from ida_jax.data.degrade import degraded

        row, (files, size, points, skip_bad, how) = self._rows[index], self._source
        try:
            image = _crop(files, row, size, points)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error}; --skip_bad continues without it") from error
            self.skipped[index] = str(error)
            image = np.zeros((size, size, 3), np.uint8)
        if image.shape != (size, size, 3):
            # Never skipped: a wrong size is that of all images, as a rule.
            raise UserError(
                f"image {files.where(row)} is {image.shape[1]}×{image.shape[0]} pixels, the model "
                f"takes {size}×{size}: give --landmarks to align it, or crop it before"
            )
        with self._lock:
            self._tick()
        return image if how is None else degraded(image, how, number=row)


def _crop(
    files: "ImageFiles", row: int, size: int, points: "list[np.ndarray | None] | None"
) -> "np.ndarray":
    from ida_jax.data.alignment import align

    if points is None:
        return files[row]
    if points[row] is None:
        raise UserError(f"image {files.where(row)} has no landmarks")
    image = files[row]
    try:
        return align(image, points[row], size=size)
    except UserError as error:
        raise UserError(f"image {files.where(row)}: {error}") from error


def _points(options: Any, files: "ImageFiles") -> "list[np.ndarray | None]":
    """Each image's five points: of the same path, or of the same file name where all differ."""
    from ida_jax.data.landmarks import read_landmarks
    from ida_jax.tables.text import canonical

    landmarks = read_landmarks(options.landmarks)
    place = {name: row for row, name in enumerate(landmarks.names)}
    wanted = [canonical(name) for name in files.names]
    if not any(name in place for name in wanted):
        listed, short = [_file_name(n) for n in place], [_file_name(n) for n in wanted]
        if len(set(listed)) == len(listed) and len(set(short)) == len(short):
            place, wanted = {name: row for row, name in enumerate(listed)}, short
    missing = [row for row, name in enumerate(wanted) if name not in place]
    if missing and (len(missing) == len(wanted) or not options.skip_bad):
        raise UserError(
            f"{options.landmarks} has no points for {len(missing)} of {len(wanted)} images, "
            f"{files.names[missing[0]]} the first; its own first is {landmarks.names[0]}: expected "
            "the same paths, or the same file names; --skip_bad continues without images that lack "
            "points"
        )
    return [landmarks.points[place[name]] if name in place else None for name in wanted]


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _parts(
    folder: Path, source: _Source, uncertainty: "UncertaintyModel | None", options: Any
) -> "Parts":
    from ida_jax.common.parts import Parts, read_part

    # Whole batches, one at least: all parts but the last are of one compiled shape.
    size = options.batch_size * max(1, _PART // options.batch_size)

    def done(part: Path) -> bool:
        if not part.is_file():
            return False
        if uncertainty is not None:
            read_part(_variances(part))
        # What a run with --skip_bad has skipped ends one without it.
        return source.skip_bad or not _reasons(part).is_file()

    return Parts(folder, len(source.files), size, done=done)


def _embed_parts(
    parts: "Parts",
    source: _Source,
    model: "FaceModel",
    uncertainty: "UncertaintyModel | None",
    options: Any,
) -> None:
    """Makes the parts, or the shard's, that are not there."""
    from ida_jax.common.progress import progress_bar

    left = parts.left(options.shard)
    count = sum(len(part.rows) for part in parts.share(options.shard))
    todo = sum(len(part.rows) for part in left)
    with progress_bar(
        total=count, initial=count - todo, desc="embed", unit="image", leave=False
    ) as bar:
        for rows, path in left:
            crops = _Crops(source, rows, bar.update)
            how = {"batch_size": options.batch_size, "flip": options.flip}
            if uncertainty is None:
                embeddings, log_variances = model.raw_embeddings(crops, **how), None
            else:
                embeddings, log_variances = uncertainty.raw_embeddings(model, crops, **how)
            _save_part(path, embeddings, log_variances, crops.skipped, source, rows)


def _save_part(
    part: Path,
    embeddings: "np.ndarray",
    log_variances: "np.ndarray | None",
    skipped: dict[int, str],
    source: _Source,
    rows: range,
) -> None:
    import numpy as np

    from ida_jax.common.files import written_whole
    from ida_jax.common.parts import write_part
    from ida_jax.common.validation import unit_rows

    embeddings[list(skipped)] = np.nan
    for bad in np.flatnonzero(unit_rows(embeddings, skip_bad=True).bad).tolist():
        if bad not in skipped:
            where = source.files.where(rows[bad])
            skipped[bad] = f"image {where}: its embedding is zero, NaN or infinite"
            if not source.skip_bad:
                raise UserError(
                    f"{skipped[bad]}; look at the image and at the model, or give --skip_bad"
                )
    embeddings[list(skipped)] = np.nan
    _reasons(part).unlink(missing_ok=True)
    if skipped:
        names = source.files.names
        lines = [
            f"{names[rows[row]]}\t{' '.join(skipped[row].split())}\n" for row in sorted(skipped)
        ]
        with written_whole(_reasons(part)) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    if log_variances is not None:
        log_variances[list(skipped)] = np.nan
        write_part(_variances(part), log_variances)
    write_part(part, embeddings)


def _reasons(part: Path) -> Path:
    return part.with_suffix(".skipped.txt")


def _variances(part: Path) -> Path:
    return part.with_suffix(".log_variances.npy")


def _put_together(
    output: Path,
    paths: Sequence[Path],
    names: Sequence[str],
    model: "FaceModel",
) -> list[str]:
    """Writes E and what stands beside it; the lines of E.skipped.txt."""
    import numpy as np

    from ida_jax.common.parts import read_part
    from ida_jax.tables.embedding_output import write_embeddings

    uncertain = all(_variances(path).is_file() for path in paths)
    reasons = [_reasons(path) for path in paths if _reasons(path).is_file()]
    skipped = [line for path in reasons for line in path.read_text("utf-8", "replace").splitlines()]

    def variances(written: Path) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), model.width)}
        with written.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                file.write(read_part(_variances(path)).astype("<f4", copy=False).tobytes())

    def reasons_given(written: Path) -> None:
        written.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")

    write_embeddings(
        output,
        map(read_part, paths),
        names,
        width=model.width,
        fingerprint=model.fingerprint,
        beside={
            _variances(output): variances if uncertain else None,
            _reasons(output): reasons_given if skipped else None,
        },
    )
    return skipped


def _settings(options: Any, model: "FaceModel", files: "ImageFiles") -> dict[str, Any]:
    """All that the embeddings depend on, to the last bit, by name."""
    from ida_jax.common.parts import stamp

    described = {
        "model": model.fingerprint,
        "images": os.path.realpath(options.images),
        "the images": files.stamp(),
        "flip": options.flip,
        "batch_size": options.batch_size,
    }
    if options.degrade:
        described |= {"degrade": options.degrade, "degrade_seed": options.degrade_seed}
    if options.pfe is not None:
        described["pfe"] = hashlib.sha256(options.pfe.read_bytes()).hexdigest()
    if options.landmarks is not None:
        described["landmarks"] = stamp(options.landmarks)
    return described


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
