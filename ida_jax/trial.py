"""ida-jax trial --embeddings=E --labels=L --output=DIR [--anchors=A] [--far=1e-4]
                  [--groups=G] [--images=I]

Does IDA help on your data, with which method, and at which threshold? Splits the people into five
folds, so that everybody is tested once, by anchors and fits that never saw them; compares every
method with the cosine, with intervals over people; and ends in a verdict. DIR receives what
production needs: deploy.json (method, thresholds), anchors and fits, calibration.safetensors,
score.py, and results.json with report.html.

  E  .npy, .npz or .parquet: embeddings [N, D] of any model
  L  .npy, or text with one per line: each row's identity; without it, E's names are PERSON/IMAGE
  G  a list of person or image and group, or one group per row of E; norms:N, N levels of the norms
  A  anchors of other people, to be used instead of the data's own
  I  the images, by E's names, for the report: a folder, a .tar, .tgz or .zip, or a list of paths

examples:
  ida-jax trial --demo --output=demo
  ida-jax trial --embeddings=faces.npy --labels=people.txt --output=trial
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.command_line import Parser, seed_number
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.metrics.groups import FaceGroups
    from ida_jax.report.failures import ImageOf
    from ida_jax.trials.rotate import Labelled


def main(argv: list[str]) -> None:
    """Parses flags, tries, prints the verdict, writes DIR."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import writing
    from ida_jax.runs.workdir import REPORT, RESULTS
    from ida_jax.trials.files import CALIBRATION, DEPLOY, SCORE

    names = (RESULTS, REPORT, DEPLOY, SCORE, CALIBRATION, "anchors.safetensors")
    outputs = {f"--output ({name})": options.output / name for name in names}
    reading = {
        f"--{name}": getattr(options, name)
        for name in ("embeddings", "labels", "names", "anchors", "images")
    }
    if isinstance(options.groups, Path):
        reading["--groups"] = options.groups
    with writing(outputs, reading=reading, folder=options.output):
        _try(options)


def _parser() -> Parser:
    from ida_jax.tables.groups import groups_option

    parser = Parser("trial", description=__doc__)
    data = parser.add_argument_group("the data")
    add = data.add_argument
    add("--embeddings", type=Path, metavar="E", help="the faces' embeddings")
    add("--labels", type=Path, metavar="L", help="who is on each row of E")
    add("--names", type=Path, metavar="FILE", help="E's names, one per line: PERSON/IMAGE")
    add("--anchors", type=Path, metavar="A", help="an anchor set, or embeddings as E")
    add("--groups", type=groups_option, metavar="G", help="FAR and TAR by group, in results.json")
    add(
        "--images",
        type=Path,
        metavar="I",
        help="pictures of at most 200 faces of the pairs to look at, in the report: personal data",
    )
    add("--demo", action="store_true", help="rendered people instead of your data")
    add("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    how = parser.add_argument_group("the trial")
    add = how.add_argument
    add("--far", type=float, default=1e-4, help="the FAR to choose for (0.0001)")
    add("--model_name", default="", metavar="NAME", help="of the embeddings' model, for the report")
    add("--resamples", type=int, default=1000, help="of the bootstrap over people (1000)")
    add("--seed", type=seed_number, default=0, help="of the folds, fits and resamples (0)")
    return parser


def _check(options: Any) -> None:
    from ida_jax.common.outputs import lock_in
    from ida_jax.runs.workdir import RESULTS

    if options.demo == (options.embeddings is not None):
        raise UserError("expected --embeddings=E, or --demo for a trial without data")
    if options.demo:
        for flag in ("labels", "names", "anchors", "groups", "images"):
            if getattr(options, flag) is not None:
                raise UserError(f"--demo brings its own data: leave out --{flag}")
    if not 0 < options.far <= 0.1:
        raise UserError(f"--far={options.far:g}: expected a rate above 0, at most 0.1")
    if options.resamples < 2:
        raise UserError(f"--resamples={options.resamples}: expected at least 2 resamples")
    if (options.output / RESULTS).exists() and not lock_in(options.output).exists():
        raise UserError(
            f"{options.output} already holds results: name another --output, or delete them"
        )


def _try(options: Any) -> None:
    from ida_jax.common.provenance import provenance
    from ida_jax.metrics.evaluation import Evaluation
    from ida_jax.report.run_report import write_protocol_report
    from ida_jax.report.tables import results_table
    from ida_jax.runs.workdir import REPORT, RESULTS, figures_and_notes, write_results
    from ida_jax.trials.files import write_files
    from ida_jax.trials.trial import run_trial
    from ida_jax.trials.verdict import json_of

    data, anchors, names, groups, images = _data(options)
    trial = run_trial(
        data,
        anchors,
        names=names,
        groups=groups,
        far=options.far,
        resamples=options.resamples,
        seed=options.seed,
    )
    made = provenance()
    evaluated = {"cross_fitted": trial.evaluated}
    written = write_files(
        options.output,
        trial,
        model=options.model_name or data.fingerprint,
        versions=made["versions"],
        command=made["command"],
    )
    results = {
        "verdict": trial.text,
        "trial": json_of(trial.finding) | {"method_to_use": trial.method},
        **figures_and_notes(evaluated),
        "provenance": made,
    }
    settings = {
        "embeddings": str(options.embeddings or "rendered faces"),
        "model": options.model_name or data.fingerprint or "unknown",
        "far": options.far,
        **{
            name: str(getattr(options, name))
            for name in ("groups", "images")
            if getattr(options, name) is not None
        },
        "seed": options.seed,
        "resamples": options.resamples,
        "identities": trial.identities,
        "faces": len(data.faces),
    }
    # Its thresholds are those of deploy.json, unlike those of the pooled, cross-fitted scores.
    shown = evaluated | {"deployed": Evaluation({}, {}, thresholds=trial.curves)}
    title = f"Trial of {options.model_name}" if options.model_name else "Trial"
    write_results(
        options.output,
        results,
        write_protocol_report,
        title=title,
        settings=settings,
        evaluated=shown,
        face_images=images,
    )
    print(printable(results_table(results)))
    for note in trial.evaluated.notes:
        print(printable(f"note: {note}"))
    print(f"\n{printable(trial.text)}\n")
    print(f"in {options.output}: {', '.join([*written, RESULTS, REPORT])}")


class _Data(NamedTuple):
    """The faces, anchors if given, the faces' names, their groups, and their images by name."""

    faces: "Labelled"
    anchors: "AnchorSet | None"
    names: "Sequence[str] | None"
    groups: "FaceGroups | None"
    images: "ImageOf | None"


def _data(options: Any) -> _Data:
    import numpy as np

    from ida_jax.protocols.group_figures import requested_groups
    from ida_jax.rescoring.log_norms import log_norms
    from ida_jax.rescoring.method_table import methods_by_norm
    from ida_jax.trials.rotate import Labelled

    if options.demo:
        from ida_jax.trials.demo import LEARNT, TRIED, demo_faces

        print(f"rendering {LEARNT + TRIED:,} people and learning a small model of {LEARNT} of them")
        return _Data(demo_faces(seed=options.seed)[0], None, None, None, None)
    from ida_jax.anchors.sources import read_anchors
    from ida_jax.common.validation import unit_rows
    from ida_jax.tables.embeddings import names_beside, read_embeddings
    from ida_jax.tables.identities import numbered, people_of_images, read_people
    from ida_jax.tables.parquet_files import row_place

    table = read_embeddings(
        options.embeddings, names=names_beside(options.embeddings, options.names)
    )
    if options.labels is not None:
        people = read_people(options.labels, len(table.embeddings))
    else:
        named = people_of_images(table.names) if table.names else None
        if named is None:
            raise UserError(
                f"who is on each row of {options.embeddings} is not given: name --labels=L, or "
                "--names=FILE of PERSON/IMAGE"
            )
        people = np.array(named)
    codes = numbered(people)
    known = codes >= 0
    codes[known] = np.unique(codes[known], return_inverse=True)[1]
    anchors = None
    if options.anchors is not None:
        anchors = read_anchors(options.anchors, embeddings=options.embeddings)
        anchors.check_model(
            fingerprint=table.fingerprint, width=table.width, whose=str(options.embeddings)
        )
        if anchors.labels is not None and (own := anchors.labels_of(people)) is not None:
            raise UserError(
                f"{len(np.unique(own[own >= 0]))} people of {options.embeddings} are among the "
                f"anchors of {options.anchors}, which lowers their scores: leave --anchors out, or "
                "take anchors of other people"
            )
    faces, _, norms = unit_rows(
        table.embeddings, what=str(options.embeddings), place=row_place(options.embeddings)
    )
    try:
        log_norms(norms, len(norms), method=", ".join(methods_by_norm()))
    except UserError as error:
        print(printable(f"not tried: {error}"))
        norms = None
    groups = None
    if options.groups is not None:
        named = table.names or (people.tolist() if people.dtype.kind == "U" else None)
        groups = requested_groups(
            options.groups, table.embeddings, named, what=str(options.embeddings)
        )
    images = None
    if options.images is not None:
        from ida_jax.data.named_images import image_of_name

        images = image_of_name(options.images, table.names)
    names = table.names or [f"{who}, row {row}" for row, who in enumerate(people.tolist())]
    labelled = Labelled(faces, codes.astype(np.int64), table.fingerprint, norms)
    return _Data(labelled, anchors, names, groups, images)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
