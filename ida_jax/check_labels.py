"""ida-jax check_labels --embeddings=E --output=DIR [--images=I] [--second=E2]

Finds one person under two names, and images under the wrong name: at low FARs these are most of
what is accepted, and figures then measure the labels. The most similar pairs of images under two
names are listed by their names, the most similar first, to be judged by eye:

  DIR/candidates.csv   one line per pair of names, with the cosine of their most similar images and
                       an empty column `decision`: write same (one person), mislabelled (an image of
                       one under the other's name), different or unsure
  DIR/candidates.html  the same with pictures, if I is given

Once they are judged, ida-jax evaluate … --ignore_identity_pairs=DIR/candidates.csv leaves the
pairs of images between such names out of the figures.

  E   .npy, .npz or .parquet, of any model, with names PERSON/IMAGE (--names, or E.names.txt beside
      an .npy); L says instead who is on each row: .npy, or text with one per line
  E2  the same faces by a second model: only pairs that both find similar are listed, which leaves
      fewer lookalikes
  I   the images by E's names: a folder, a .tar or .tgz, or a list of paths

examples:
  ida-jax check_labels --embeddings=faces.npy --images=crops --output=labels
"""

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable
from ida_jax.common.outputs import lock_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ida_jax.anchors.one_person import Candidate

CSV, PAGE = "candidates.csv", "candidates.html"
_PRINTED = 10


class _Faces(NamedTuple):
    """Unit rows by each model, whose they are, and the rows' names, if any."""

    models: "list[np.ndarray]"
    people: "np.ndarray"
    labels: "np.ndarray"
    names: "list[str] | None"


def main(argv: list[str]) -> None:
    """Parses flags, looks for candidates, writes DIR."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import writing

    outputs = {f"--output ({name})": options.output / name for name in (CSV, PAGE)}
    read = ("embeddings", "names", "labels", "second", "images")
    reading = {f"--{name}": getattr(options, name) for name in read}
    with writing(outputs, reading=reading, folder=options.output):
        _run(options)


def _parser() -> Parser:
    parser = Parser("check_labels", description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("--embeddings", type=Path, required=True, metavar="E", help="one row per face")
    add("--names", type=Path, metavar="FILE", help="E's names, one per line")
    add("--labels", type=Path, metavar="L", help="who is on each row, in place of names")
    add("--second", type=Path, metavar="E2", help="the same rows by another model")
    add("--images", type=Path, metavar="I", help="the pictures, for the page")
    add("--output", type=Path, required=True, metavar="DIR", help="the list and the page")
    add("--far", type=float, default=1e-5, metavar="FAR",
        help="the share of the pairs of two names that is looked at (1e-5)")
    add("--most", type=int, default=500, metavar="N", help="the most pairs of names to list (500)")
    # fmt: on
    return parser


def _check(options: Any) -> None:
    if not 0 < options.far <= 0.01:
        raise UserError(f"--far={options.far:g}: expected a rate above 0, at most 0.01")
    if options.most < 1:
        raise UserError(f"--most={options.most}: expected at least 1")
    # The lock of a job that was killed as it ended is still there: run again, the job ends well.
    if (options.output / CSV).exists() and not lock_in(options.output).exists():
        raise UserError(
            f"{options.output / CSV} is there, perhaps judged already: name another --output"
        )


def _run(options: Any) -> None:
    from ida_jax.anchors.one_person import impostor_threshold, one_person_candidates
    from ida_jax.common.files import written_whole

    faces = _read(options)
    images = None
    if options.images is not None:
        from ida_jax.data.dataset import image_subset
        from ida_jax.data.named_images import open_named_images

        images = image_subset(*open_named_images(options.images, faces.names))
    thresholds = [impostor_threshold(m, faces.labels, far=options.far) for m in faces.models]
    every = one_person_candidates(faces.models, faces.labels, thresholds)
    candidates = every[: options.most]
    if images is not None:
        from ida_jax.report.pair_cards import candidate_page

        page = candidate_page(candidates, faces.people, images, labels=faces.labels)
        with written_whole(options.output / PAGE) as temporary:
            temporary.write_text(page, encoding="utf-8")
    with written_whole(options.output / CSV) as temporary:  # last: it marks the end
        temporary.write_text(_csv(candidates, faces), encoding="utf-8")
    known = len(set(faces.labels[faces.labels >= 0].tolist()))
    levels = " and ".join(f"{threshold:.3f}" for threshold in thresholds)
    print(
        f"{len(faces.labels):,} faces of {known:,} identities: {len(every):,} pairs of "
        f"identities have images with a cosine of at least {levels} (FAR {options.far:g})"
    )
    for candidate in candidates[:_PRINTED]:
        first, second = (faces.people[label] for label in candidate.identities)
        print(printable(f"  {candidate.cosines[0]:.3f}  {first}  {second}"))
    if len(candidates) > _PRINTED:
        print(f"  … {len(candidates) - _PRINTED:,} more in the list")
    if len(every) > len(candidates):
        print(f"{len(every) - len(candidates):,} less similar pairs were left out (--most)")
    print(
        f"judge each line of {options.output / CSV}, then: ida-jax evaluate … "
        f"--ignore_identity_pairs={options.output / CSV}"
    )


def _read(options: Any) -> _Faces:
    import numpy as np

    from ida_jax.common.validation import unit_embeddings
    from ida_jax.tables.embeddings import names_beside, read_embeddings
    from ida_jax.tables.identities import people_of_images, read_people

    path = options.embeddings
    file = read_embeddings(path, names=names_beside(path, options.names))
    if options.labels is not None:
        given = read_people(options.labels, len(file.embeddings))
    elif file.names is None:
        raise UserError(
            f"{path} has no names: give --names=FILE, PERSON/IMAGE a line, or --labels=L"
        )
    else:
        given = people_of_images(file.names)
        if given is None:
            raise UserError(
                f"the names of {path} are not all PERSON/IMAGE, which says whose faces they are: "
                "give --labels=L"
            )
    given = np.asarray(given)
    people, labels = np.unique(given, return_inverse=True)
    if given.dtype.kind in "iu":
        labels[given < 0] = -1
    models = [unit_embeddings(file.embeddings, what=str(path))]
    if options.second is not None:
        second = read_embeddings(options.second, names=names_beside(options.second, None))
        if len(second.embeddings) != len(file.embeddings):
            raise UserError(
                f"{options.second} has {len(second.embeddings)} rows and {path} "
                f"{len(file.embeddings)}: expected the same faces in the same order"
            )
        if second.names is not None and file.names is not None and second.names != file.names:
            raise UserError(
                f"{options.second} and {path} name different rows: expected the same faces in the "
                "same order"
            )
        models.append(unit_embeddings(second.embeddings, what=str(options.second)))
    return _Faces(models, people.astype(str), labels, file.names)


def _csv(candidates: "Sequence[Candidate]", faces: _Faces) -> str:
    from ida_jax.tables.identity_pairs import COLUMNS, DECISION

    def image(row: int) -> str | int:
        return "" if row < 0 else row if faces.names is None else faces.names[row]

    shown = {label for candidate in candidates for label in candidate.identities}
    counts = {label: int((faces.labels == label).sum()) for label in shown}
    text = io.StringIO()
    # Quoted, so that a name that begins with # is not read as a comment.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    second = ["cosine_2"] * (len(faces.models) - 1)
    writer.writerow(
        [*COLUMNS, "cosine", *second, "pairs", "between", "images_1", "images_2", "image_1",
         "image_2", "odd_image", DECISION, "how"]
    )  # fmt: skip
    for candidate in candidates:
        writer.writerow(
            [
                *(str(faces.people[label]) for label in candidate.identities),
                *(round(cosine, 4) for cosine in candidate.cosines),
                candidate.pairs,
                round(candidate.between, 4),
                *(counts[label] for label in candidate.identities),
                *map(image, candidate.rows),
                image(candidate.odd),
                "",
                "",
            ]
        )
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
