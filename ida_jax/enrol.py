"""ida-jax enrol --gallery=G --embeddings=E --anchors=A [--names=N …]

Enrols faces in a gallery for ida-jax identify, with their densities: all of them, or none where it
ends early. What is enrolled already is not written again; killed, the same command continues.

  G  the gallery: a folder, made where it is not there
  E  .npy, .npz or .parquet: embeddings [N, D] of any model, of any norm
  A  an anchor set (ida-jax anchors build), or embeddings as E
  N  the faces' names, one per line, where E has none; distinct, for they are who a face is

The method and its settings are those of the first enrolment; what it needs is given each time.

With --delete=NAMES faces are deleted by name, a file with one per line: no search finds them, and
with --compact their bytes are gone from the folder too.

examples:
  ida-jax enrol --gallery=gallery --embeddings=faces.npy --names=names.txt \\
      --anchors=anchors.safetensors
  ida-jax enrol --gallery=gallery --delete=leavers.txt --compact
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    from ida_jax.rescoring.face_files import Faces
    from ida_jax.rescoring.rescorer import Rescorer

_MOST_NAMED = 5


def main(argv: list[str]) -> None:
    """Parses flags, changes the gallery, prints what was done."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import refuse_overwriting, writing
    from ida_jax.rescoring.method_table import ARTEFACTS

    files = ("embeddings", "names", "templates", "delete", *ARTEFACTS)
    reading = {f"--{name}": getattr(options, name) for name in files}
    refuse_overwriting(reading, {}, folders={"--gallery": options.gallery})
    if options.gallery.is_file():
        raise UserError(f"--gallery={options.gallery} is a file: name a folder")
    with writing({}, reading=reading, folder=options.gallery):
        if options.embeddings is not None:
            _enrol(options)
        if options.delete is not None:
            _delete(options)
        if options.compact:
            from ida_jax.rescoring.gallery_file import GalleryFile

            file = GalleryFile.open(options.gallery, verify=options.verify)
            file.tidy()
            kept = _faces(len(file.compact()))
            print(f"{kept} in {options.gallery}, no deleted faces are left in it")


def _enrol(options: Any) -> None:
    from ida_jax.common.parts import stamp
    from ida_jax.rescoring.enrol_job import enrol_faces
    from ida_jax.rescoring.face_files import read_faces, skipped_images
    from ida_jax.rescoring.method_table import ARTEFACTS
    from ida_jax.rescoring.methods import cohort_notes

    faces = read_faces(
        options.embeddings,
        names=options.names,
        templates=options.templates,
        skip_bad=options.skip_bad,
    )
    scorer = _scorer(options, faces)
    for note in cohort_notes([scorer], options.top_n):
        print(note)
    files = [getattr(options, flag) for flag in ("names", "templates", *ARTEFACTS)]
    done = enrol_faces(
        options.gallery,
        faces,
        scorer,
        settings=[
            [stamp(path) for path in files if path is not None],
            [
                options.method,
                options.k,
                options.tau,
                options.weight,
                options.top_n,
                options.ddof,
                options.searcher,
            ],
        ],
        dtype=options.dtype,
        replacing=options.replace,
        verify=options.verify,
    )
    said = f"{_faces(done.enrolled)} enrolled by {scorer.method} in {options.gallery}"
    said += f", {done.replaced:,} of them in place of others" if done.replaced else ""
    said += f"; {done.already:,} were enrolled already" if done.already else ""
    rate = done.enrolled / done.seconds
    print(f"{said}; it holds {done.faces:,} ({done.seconds:.1f} s, {rate:,.0f} faces/s)")
    if done.skipped:
        named = ", ".join(map(printable, done.skipped[:_MOST_NAMED]))
        more = ", …" * (len(done.skipped) > _MOST_NAMED)
        are = "is" if len(done.skipped) == 1 else "are"
        print(
            f"{_faces(len(done.skipped))} {are} zero, NaN or infinite and {are} not enrolled: "
            f"{named}{more}"
        )
    if done.images:
        print(skipped_images(done.images))
    if done.shared is not None and done.shared.likely:
        print(done.shared.summary())


def _scorer(options: Any, faces: "Faces") -> "Rescorer":
    """The method of the flags, which are those of the gallery where they were not given."""
    from ida_jax.anchors.supported_weight import PROBES
    from ida_jax.rescoring.gallery_file import LIST, GalleryFile
    from ida_jax.rescoring.method_table import (
        ARTEFACTS,
        HEADLINE,
        SETTINGS,
        check_settings,
        methods_set_by,
        require_flags,
    )
    from ida_jax.rescoring.methods import load_scorers

    method, settings = options.method, {name: getattr(options, name) for name in SETTINGS}
    whose = ""
    if (options.gallery / LIST).is_file():
        origin = GalleryFile.open(options.gallery).origin
        whose = f"{options.gallery}, of {origin.method}," if method is None else ""
        method = method or origin.method
        if method == origin.method:
            given = {name: value for name, value in settings.items() if value is not None}
            settings |= {**origin.settings, **given}
    method = method or HEADLINE
    paths = {flag: getattr(options, flag) for flag in ARTEFACTS}
    require_flags(method, paths, whose=whose)
    check_settings([method], vars(options))
    sought = method in methods_set_by("weight") and settings["weight"] is None
    settings["ddof"] = settings["ddof"] or 0
    (scorer,) = load_scorers(
        [method],
        **paths,
        **settings,
        embeddings=options.embeddings,
        probes=faces.sample(PROBES) if sought else None,
        searcher=options.searcher,
        expected_faces=len(faces),
        verify=options.verify,
    ).values()
    return scorer


def _delete(options: Any) -> None:
    from ida_jax.rescoring.gallery_file import GalleryFile
    from ida_jax.tables.text import text_lines

    names = list(dict.fromkeys(text_lines(options.delete, what="names")))
    file = GalleryFile.open(options.gallery, verify=options.verify)
    file.tidy()
    rows = file.find(names)
    there = [name for name, row in zip(names, rows.tolist(), strict=True) if row >= 0]
    missing = [name for name, row in zip(names, rows.tolist(), strict=True) if row < 0]
    if missing:
        others = f" and {len(missing) - 1:,} others are" if len(missing) > 1 else " is"
        print(f"warning: {missing[0]!r}{others} not enrolled", file=sys.stderr)
    if there:
        file = file.delete(there)
        if file.wants_compacting():
            file = file.compact()
    print(f"{_faces(len(there))} deleted from {options.gallery}; it holds {len(file):,}")


def _faces(count: int) -> str:
    return f"{count:,} face{'s' * (count != 1)}"


def _parser() -> Parser:
    from ida_jax.rescoring.gallery_file import DTYPES
    from ida_jax.rescoring.method_table import (
        HEADLINE,
        add_artefact_flags,
        add_setting_flags,
        scoring_methods,
    )

    parser = Parser("enrol", description=__doc__)
    add = parser.add_argument_group("files").add_argument
    add("--gallery", type=Path, required=True, metavar="G", help="the gallery's folder")
    add("--embeddings", type=Path, metavar="E", help="embeddings of the faces to be enrolled")
    add("--names", type=Path, metavar="N", help="their names, one per line")
    add(
        "--templates",
        type=Path,
        metavar="T",
        help="the template of each row of E, which names it: a template's images are pooled into "
        "one face",
    )
    add("--delete", type=Path, metavar="NAMES", help="names to be deleted, one per line")
    add(
        "--skip_bad",
        action="store_true",
        help="zero, NaN or infinite embeddings are left out, of the gallery or of their template, "
        "instead of an error",
    )
    add = parser.add_argument_group("the method").add_argument
    add_artefact_flags(add)
    add(
        "--method",
        metavar="METHOD",
        help=f"of a new gallery: {', '.join(scoring_methods())} (default: {HEADLINE})",
    )
    add_setting_flags(add)
    add = parser.add_argument_group("the gallery").add_argument
    add(
        "--dtype",
        choices=DTYPES,
        help="of a new gallery's embeddings; float16 halves its size (float32)",
    )
    add("--replace", action="store_true", help="faces take the places of those of their names")
    add("--compact", action="store_true", help="removes what deleted faces have left in the folder")
    add(
        "--verify",
        action="store_true",
        help="compare all of a gallery or anchor set of more than 256 MiB with its checksums",
    )
    return parser


def _check(options: Any) -> None:
    if options.embeddings is None and options.delete is None and not options.compact:
        raise UserError("nothing to do: give --embeddings=E, --delete=NAMES or --compact")
    if options.embeddings is not None and options.delete is not None:
        raise UserError("--embeddings enrols and --delete deletes: run one after the other")
    if options.names is not None and options.embeddings is None:
        raise UserError("--names are of --embeddings=E: give both, or --delete=NAMES")
    if options.skip_bad and options.embeddings is None:
        raise UserError("--skip_bad is of --embeddings=E: give both")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
