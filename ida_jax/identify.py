"""ida-jax identify --gallery=G --probes=E --anchors=A --output=O [--top=10 --threshold=T …]

Searches a gallery (ida-jax enrol) for each probe by the gallery's method, exactly. Streamed; after
a kill the same command resumes; the output appears whole or not at all.

  G  a gallery
  E  .npy, .npz or .parquet: embeddings [M, D] of the gallery's model, of any norm
  A  the gallery's anchors, and its other files, where its method needs them
  O  .parquet or .csv: the columns probe, rank, name and score, one line per candidate; with
     --calibration also probability, of the pair alone at even odds. A probe is its name, or its
     row in E

With --labels, who is on each probe, also how many are found: TPIR at a FPIR, and rank-k.

examples:
  ida-jax identify --gallery=gallery --probes=probes.npy --anchors=anchors.safetensors \\
      --output=found.parquet
  ida-jax identify --gallery=gallery --probes=probes.npy --anchors=anchors.safetensors \\
      --labels=labels.txt --threshold=-1.46 --unknown --output=found.csv --json=figures.json
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser, numbers
from ida_jax.common.errors import UserError, exit_code

if TYPE_CHECKING:
    from ida_jax.artefacts.calibration import Calibration
    from ida_jax.rescoring.face_files import Faces
    from ida_jax.rescoring.gallery_file import GalleryFile

_FILES = ("gallery", "probes", "names", "templates", "labels", "calibration")


def main(argv: list[str]) -> None:
    """Parses flags, searches, prints what was found."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import within, writing
    from ida_jax.rescoring.method_table import ARTEFACTS
    from ida_jax.tables.score_output import check_output

    reading = {f"--{name}": getattr(options, name) for name in (*_FILES, *ARTEFACTS)}
    outputs = {"--output": options.output, "--json": options.json}
    for path in filter(None, outputs.values()):
        if within(path, options.gallery):
            raise UserError(f"{path} would be written into --gallery, {options.gallery}")
    with writing(outputs, reading=reading):
        check_output(options.output)
        _identify(options)


def _identify(options: Any) -> None:
    from ida_jax.common.files import json_text, written_whole
    from ida_jax.common.parts import stamp
    from ida_jax.rescoring.face_files import read_faces, skipped_images
    from ida_jax.rescoring.gallery_file import GalleryFile
    from ida_jax.rescoring.identify_job import Wanted, identify_faces
    from ida_jax.rescoring.method_table import ARTEFACTS, require_flags
    from ida_jax.rescoring.methods import load_scorers

    file = GalleryFile.open(options.gallery, verify=options.verify)
    paths = {flag: getattr(options, flag) for flag in ARTEFACTS}
    whose = f"{options.gallery}, of {file.origin.method},"
    require_flags(file.origin.method, paths, whose=whose)
    probes = read_faces(
        options.probes,
        names=options.names,
        templates=options.templates,
        skip_bad=options.skip_bad,
    )
    (scorer,) = load_scorers(
        [file.origin.method],
        **paths,
        **file.origin.settings,
        embeddings=options.probes,
        searcher=options.searcher,
        expected_faces=len(probes),
        verify=options.verify,
    ).values()
    files = [options.names, options.templates, *paths.values()]
    done = identify_faces(
        file,
        probes,
        scorer,
        options.output,
        wanted=Wanted(
            options.top, options.threshold, options.unknown, _calibration(options, file, probes)
        ),
        settings=[[stamp(path) for path in files if path is not None], options.searcher],
        labels=None if options.labels is None else _labels(options.labels, probes),
        fpirs=options.fpirs,
    )
    if options.json is not None:
        with written_whole(options.json) as temporary:
            record = {"method": scorer.method, "gallery": done.faces, **(done.figures or {})}
            temporary.write_text(json_text(record), encoding="utf-8")
    print(
        f"{done.probes:,} probes searched by {scorer.method} among {done.faces:,} faces, in "
        f"{options.output} ({done.seconds:.1f} s)"
    )
    if done.bad:
        print(f"{done.bad:,} probes are zero, NaN or infinite, and have no candidates")
    if done.images:
        print(skipped_images(done.images))
    if options.threshold is not None:
        print(f"{done.unknown:,} probes have no score above {options.threshold:g}")
    for line in _said(done.figures or {}):
        print(line)


def _labels(path: Path, probes: "Faces") -> list[str]:
    """Who is on each probe, as text; on a template, on its images."""
    from ida_jax.tables.identities import read_people

    people = read_people(path, len(probes.embeddings))
    if probes.template is not None:
        other = people != people[probes.first_row][probes.template]
        if other.any():
            raise UserError(
                f"{path}: row {int(other.argmax())} is of another person than its template's first"
            )
        people = people[probes.first_row]
    return [str(person) for person in people.tolist()]


def _calibration(options: Any, file: "GalleryFile", probes: "Faces") -> "Calibration | None":
    if options.calibration is None:
        return None
    from dataclasses import replace

    from ida_jax.artefacts.calibration import Calibration

    calibration = Calibration.load(options.calibration)
    origin = file.origin
    if probes.fingerprint and not origin.model:
        origin = replace(origin, model=probes.fingerprint)
    if warning := calibration.check_scores(origin, name=str(options.calibration)):
        print(f"warning: {warning}", file=sys.stderr)
    return calibration


def _said(figures: dict[str, Any]) -> list[str]:
    lines = []
    if figures:
        rates = ", ".join(f"rank-{k} {100 * rate:.2f} %" for k, rate in figures["rank"].items())
        lines.append(f"{figures['mated_probes']:,} mated probes: {rates}")
    for fpir, rate in figures.get("tpir@fpir", {}).items():
        alarms, threshold = figures["false_alarms"][fpir], figures["threshold@fpir"][fpir]
        lines.append(
            f"TPIR {100 * rate:.2f} % at FPIR {fpir}, threshold {threshold:.4f} "
            f"({alarms} of {figures['nonmated_probes']:,} non-mated probes)"
        )
    return lines


def _parser() -> Parser:
    from ida_jax.metrics.identification import FPIRS
    from ida_jax.rescoring.method_table import add_artefact_flags

    parser = Parser("identify", description=__doc__)
    add = parser.add_argument_group("files").add_argument
    add("--gallery", type=Path, required=True, metavar="G", help="the gallery's folder")
    add("--probes", type=Path, required=True, metavar="E", help="the probes' embeddings")
    add("--output", type=Path, required=True, metavar="O", help="where the candidates go")
    add("--names", type=Path, metavar="N", help="the probes' names, one per line")
    add(
        "--templates",
        type=Path,
        metavar="T",
        help="the template of each row of E, which names it: a template's images are pooled into "
        "one probe",
    )
    add(
        "--skip_bad",
        action="store_true",
        help="a zero, NaN or infinite probe has no candidates, and such an image is left out of "
        "its template, instead of an error",
    )
    add = parser.add_argument_group("what the gallery's method needs").add_argument
    add_artefact_flags(add)
    add(
        "--searcher",
        default="auto",
        help="auto (default), exact, bfloat16_x6, …_x3, scann, scann_partitioned",
    )
    add(
        "--verify",
        action="store_true",
        help="compare all of a gallery or anchor set of more than 256 MiB with its checksums",
    )
    add = parser.add_argument_group("candidates").add_argument
    add("--top", type=int, help="candidates of a probe (10, or as many as are enrolled)")
    add("--threshold", type=float, metavar="T", help="only candidates with a higher score")
    add(
        "--unknown",
        action="store_true",
        help="a line of rank 0 without a name, and the highest score, for each probe that has no "
        "candidate above --threshold",
    )
    add("--calibration", type=Path, metavar="FILE", help="from ida-jax evaluate --fit")
    add = parser.add_argument_group("figures").add_argument
    add("--labels", type=Path, metavar="L", help="who is on each row of E, by the gallery's names")
    add(
        "--fpirs",
        type=numbers(float),
        default=FPIRS,
        help=f"where TPIR is given ({','.join(f'{fpir:g}' for fpir in FPIRS)})",
    )
    add("--json", type=Path, metavar="OUT", help="these figures")
    return parser


def _check(options: Any) -> None:
    import math

    if options.unknown and options.threshold is None:
        raise UserError("--unknown is for probes below --threshold=T: give it")
    if options.threshold is not None and math.isnan(options.threshold):
        raise UserError("--threshold=nan: expected a number")
    if options.top is not None and options.top < 1:
        raise UserError(f"--top={options.top}: expected 1 or more")
    if bad := [fpir for fpir in options.fpirs if not 0 < fpir <= 1]:
        raise UserError(f"--fpirs={bad[0]:g}: expected numbers above 0, up to 1")
    if options.json is not None and options.labels is None:
        raise UserError("--json holds the figures of labelled probes: give --labels=L")
    if options.output.suffix.lower() not in (".parquet", ".csv"):
        raise UserError(f"--output={options.output}: candidates are one of .parquet, .csv files")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
