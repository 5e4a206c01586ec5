"""ida-jax anchors fake: a generator's faces, checked, become an anchor set."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.anchors.degraded import add_degrade_flags, asked_degradation
from ida_jax.common.command_line import Parser, seed_number
from ida_jax.common.errors import UserError
from ida_jax.common.files import file_inside
from ida_jax.runs.workdir import GENERATOR, LABELS, MODEL, training_embeddings

if TYPE_CHECKING:
    import numpy as np

    from ida_jax.anchors.candidates import CandidateFaces
    from ida_jax.anchors.fake_rules import TrainingFaces
    from ida_jax.artefacts.face_model import FaceModel

_FAKE = """Makes an anchor set of nobody's faces, the paper's fake-db, from exactly one of

  --generator=G      generator.safetensors, or the workdir of a run with the stage gan
  --images=FOLDER    crops that an external generator made, all in one folder

Faces are drawn in order, embedded, and dropped if they are implausible, too near a training face
(the privacy check) or near-duplicates of one that was kept, until COUNT are kept. A.report.html and
A.report.json say what was dropped. After a kill the same command resumes. The training faces are
those of the run in G, if it has them for the same model and --flip.

examples:
  ida-jax anchors fake --model=model.safetensors --generator=runs/stylegan \\
      --output=fake_db.safetensors"""


def main(argv: list[str]) -> None:
    """Parses flags, makes the set and its report, prints what was done."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import writing

    output = options.output
    outputs = {"--output": output} | {
        f"--output (with {path.name})": path
        for path in (output.with_suffix(".report.html"), output.with_suffix(".report.json"))
    }
    reading = {
        "--model": file_inside(options.model, MODEL),
        "--generator": options.generator and file_inside(options.generator, GENERATOR),
        "--images": options.images,
        "--training": options.training,
        "--training_labels": options.training_labels,
    }
    with writing(outputs, reading=reading):
        _make(options)


def _make(options: Any) -> None:
    from ida_jax.anchors.fake import fake_anchors, provenance_line
    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.common.parts import remove_empty, remove_parts
    from ida_jax.report.fake_report import write_fake_report

    model = FaceModel.load(file_inside(options.model, MODEL))
    candidates = _candidates(options, model)
    output = options.output
    parts = output.parent / f".{output.name}.fake.parts"
    try:
        training = _training(options, model, candidates, parts)
        anchors, report = fake_anchors(
            candidates,
            model,
            count=options.count,
            training=training,
            flip=options.flip,
            k=options.k,
            tau=options.tau,
            duplicate_cosine=options.duplicate_cosine,
            privacy_cosine=options.privacy_cosine,
            most_drawn=options.most_drawn,
            parts=parts,
            align=options.align,
            degrade=asked_degradation(options),
        )
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        page = output.with_suffix(".report.html")
        write_fake_report(page, report, candidates)
        anchors.save(output)
    except BaseException:
        for folder in (*parts.glob("*"), parts):
            remove_empty(folder)
        raise
    remove_parts(output)
    print(f"{output}: {anchors.described()}\n{provenance_line(anchors.provenance)}")
    print(f"what was dropped, and the privacy check: {page}")


def _parser() -> Parser:
    parser = Parser("anchors fake", description=_FAKE)
    # fmt: off
    add = parser.add_argument_group("where they come from").add_argument
    add("--output", type=Path, required=True, metavar="A.safetensors", help="the anchor set")
    add("--model", type=Path, required=True, metavar="M",
        help="the face model: model.safetensors, or the folder that holds it")
    add("--generator", type=Path, metavar="G", help="generator.safetensors, or a run's workdir")
    add("--images", type=Path, metavar="FOLDER", help="an external generator's crops")
    add = parser.add_argument_group("the set").add_argument
    add("--count", type=int, default=50_000, help="anchors (50,000, the paper's)")
    add("--truncation", type=float, metavar="PSI",
        help="ψ, 0 < ψ ≤ 1 (1): less gives cleaner faces that are more alike; with --generator")
    add("--seed", type=seed_number, metavar="SEED", help="of the faces drawn (0); with --generator")
    add("--flip", action="store_true", help="add the mirrored face's embedding")
    add("--align", action="store_true", help="bring the embeddings to the mean and covariance of "
        "the training faces': for a generator whose faces lie apart from real ones")
    add("--k", type=int, default=10, help="the set's default support set size (10)")
    add("--tau", type=float, default=1.0, help="the set's default τ (1)")
    add = parser.add_argument_group("the checks").add_argument
    add("--training", type=Path, metavar="T", help="the faces that the generator was trained on: "
        "their embeddings by the same model (.npy, .npz or .parquet), or a folder of their crops")
    add("--training_labels", type=Path, metavar="L",
        help="who is on each row: .npy, or .txt of one integer or name per line")
    add("--duplicate_cosine", type=float, metavar="COSINE", help="from which on two faces are one "
        "anchor (default: what one of COUNT strangers reaches by chance)")
    add("--privacy_cosine", type=float, metavar="COSINE", help="from which on a face is a training "
        "person's (default: what one of COUNT strangers reaches by chance)")
    add("--most_drawn", type=int, metavar="N",
        help="give up after N faces (4 × COUNT; all of a folder)")
    add("--skip_bad", action="store_true",
        help="with --images: an image that cannot be decoded is dropped, instead of ending the run")
    # fmt: on
    add_degrade_flags(parser)
    return parser


def _check(options: Any) -> None:
    if (options.generator is None) == (options.images is None):
        raise UserError("expected exactly one of --generator and --images; see --help")
    if options.images is not None and (options.truncation, options.seed) != (None, None):
        raise UserError("--truncation and --seed go with --generator: images are there already")
    if options.skip_bad and options.images is None:
        raise UserError("--skip_bad goes with --images")
    if options.seed is not None and options.seed >= 1 << 32:
        raise UserError(f"--seed is {options.seed}: expected less than 2³²")
    from ida_jax.common.validation import require_tau

    asked_degradation(options)
    require_tau(options.tau, what="--tau")
    if options.output.suffix != ".safetensors":
        raise UserError(f"--output is {options.output}: expected a name that ends in .safetensors")
    if not options.output.parent.is_dir():
        raise UserError(f"no folder {options.output.parent} to write in: make it first")
    if options.count < 1:
        raise UserError(f"--count is {options.count}: expected 1 or more")
    for written in (options.output, options.output.with_suffix(".report.html")):
        if written.is_dir():
            raise UserError(f"{written} is a folder: give --output another name")


def _candidates(options: Any, model: "FaceModel") -> "CandidateFaces":
    from ida_jax.anchors.candidates import folder_candidates, generated_candidates

    size = model.preprocessing.image_size
    if options.images is not None:
        found = folder_candidates(options.images, image_size=size, skip_bad=options.skip_bad)
        _tell_hidden(found.hidden)
        return found
    from ida_jax.artefacts.generator import FaceGenerator

    generator = FaceGenerator.load(file_inside(options.generator, GENERATOR))
    truncation = 1.0 if options.truncation is None else options.truncation
    return generated_candidates(generator, seed=options.seed or 0, truncation=truncation)


def _tell_hidden(names: tuple[str, ...]) -> None:
    from ida_jax.data.sources.image_names import hidden_note

    if names:
        print(hidden_note(names))


def _training(
    options: Any, model: "FaceModel", candidates: "CandidateFaces", parts: Path
) -> "TrainingFaces | None":
    """The training faces: those that are named, or those that the generator's run has left."""
    from ida_jax.anchors.fake_rules import TrainingFaces
    from ida_jax.common.validation import require_same_model
    from ida_jax.tables.embeddings import read_embeddings
    from ida_jax.tables.identities import numbered, read_people

    path = options.training
    if path is None:
        left = _of_the_run(options, model, candidates)
        if left is None:
            if options.training_labels is not None:
                raise UserError("--training_labels goes with --training: there are none to label")
            return None
        embeddings, labels, path = left
    elif path.is_dir():
        if options.training_labels is not None:
            raise UserError("--training_labels goes with embeddings: crops are labelled by folders")
        return _from_crops(path, model, options.flip, parts)
    else:
        read = read_embeddings(path)
        require_same_model(
            "training faces", read.fingerprint, read.width, fingerprint=model.fingerprint,
            width=model.width,
        )  # fmt: skip
        embeddings, labels = read.embeddings, None
    if options.training_labels is not None:
        labels = numbered(read_people(options.training_labels, len(embeddings)))
    return TrainingFaces(embeddings, labels, str(path))


def _of_the_run(
    options: Any, model: "FaceModel", candidates: "CandidateFaces"
) -> "tuple[np.ndarray, np.ndarray | None, Path] | None":
    """Embeddings, labels where they are known, and the folder, of a run of `ida_jax.main`."""
    import numpy as np

    from ida_jax.common.parts import read_part
    from ida_jax.tables.blocks import open_npy

    path = options.generator
    if path is None:
        return None
    # A generator's file is in the workdir, or in its folder `generators`.
    workdirs = (path,) if path.is_dir() else path.absolute().parents[:2]
    folders = [
        training_embeddings(workdir, model.fingerprint, flip=options.flip) for workdir in workdirs
    ]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    files = [] if folder is None else sorted(folder.glob("from-*.npy"))
    if not files:
        others = [other.name for f in folders for other in f.parent.glob("train-*")]
        if others:
            print(
                f"the run's training faces are embedded by another model or --flip, as "
                f"{others[0]}, and not as {folders[0].name}",
                file=sys.stderr,
            )
        return None
    try:
        embeddings = np.concatenate([read_part(file) for file in files])
        labels = (
            np.array(open_npy(folder / LABELS, what="labels"))
            if (folder / LABELS).is_file()
            else None
        )
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{folder} does not hold whole files of embeddings: {error}; remove the folder and run "
            "the run's command again, or give --training"
        ) from error
    expected = candidates.provenance["trained"].get("faces")
    if expected is not None and expected != len(embeddings):
        raise UserError(
            f"{folder} holds {len(embeddings):,} of the {expected:,} faces that the generator was "
            "trained on: run the run's command again, or give --training"
        )
    return embeddings, labels, folder


def _from_crops(folder: Path, model: "FaceModel", flip: bool, parts: Path) -> "TrainingFaces":
    """A folder of crops, embedded in parts as the candidates are."""
    import numpy as np

    from ida_jax.anchors.candidates import embedded_chunks, file_candidates
    from ida_jax.anchors.fake_rules import TrainingFaces
    from ida_jax.anchors.sources import find_images
    from ida_jax.common.progress import progress_bar

    images = find_images(folder)
    _tell_hidden(images.hidden)
    crops = file_candidates(images.files, folder, image_size=model.preprocessing.image_size)
    chunks = []
    with progress_bar(
        total=len(images.files), desc="training faces", unit="face", leave=False
    ) as bar:
        for chunk in embedded_chunks(crops, model, stop=bar.total, flip=flip, parts=parts):
            chunks.append(chunk)
            bar.update(len(chunk))
    embeddings = np.concatenate(chunks)
    bad = np.flatnonzero(np.isnan(embeddings).any(axis=1))
    if bad.size:
        raise UserError(
            f"image {images.files[bad[0]]}: its embedding is zero, NaN or infinite; look at the "
            "image and at the model"
        )
    labels = None
    if images.people:
        _, labels = np.unique(images.people, return_inverse=True)
    return TrainingFaces(embeddings, labels, str(folder))
