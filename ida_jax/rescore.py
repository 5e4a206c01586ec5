"""ida-jax rescore --embeddings=E --pairs=P --anchors=A --output=S [--method=ida_r …]

Scores a list of pairs by IDA or by another method, from files to a file. Memory does not grow with
the list; after a kill the same command resumes; the output appears whole or not at all.

  E  .npy, .npz or .parquet: embeddings [N, D] of any model, of any norm
  P  .npy, .csv, .tsv or .parquet: two columns, rows of E from 0, or names
  A  an anchor set (ida-jax anchors build), or embeddings as E
  S  .npy, .csv or .parquet: one score per pair, in P's order; the .parquet itself, or S.origin.json
     beside the others, records what made them, for the calibration that is fitted to them

A folder of .parquet files, as Spark and Ray write it, is accepted wherever one such file is; it is
read in the order of the files' names. S without a suffix is such a folder.

With --shard=I/N many processes, such as an array job's, share the work through the folder of S,
which all of them must see; the same command with --join instead then writes the same file. None
needs another: if one is lost, run its command again.

examples:
  ida-jax rescore --embeddings=faces.npy --pairs=pairs.csv --anchors=anchors.safetensors \\
      --output=scores.npy
  ida-jax rescore --embeddings=faces.npy --pairs=pairs.csv --anchors=anchors.safetensors \\
      --calibration=calibration.safetensors --scale=percent --output=percent.csv
  srun -n 64 sh -c 'ida-jax rescore --embeddings=faces.npy --pairs=pairs.npy \\
      --anchors=anchors.safetensors --output=scores.npy --shard=$SLURM_PROCID/$SLURM_NTASKS'
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, require_module

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ida_jax.artefacts.calibration import Calibration
    from ida_jax.rescoring.ray_engine import RayEngine
    from ida_jax.rescoring.rescorer import Rescorer
    from ida_jax.tables.score_origin import ScoreOrigin

_ENGINES = ("local", "ray")
_SCALES = ("log", "dao", "llr", "percent")


def main(argv: list[str]) -> None:
    """Parses flags, rescores, prints what was done."""
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import refuse_overwriting, writing
    from ida_jax.rescoring.method_table import ARTEFACTS
    from ida_jax.tables.score_output import files_beside

    files = ("embeddings", "pairs", "names", "labels", *ARTEFACTS, "calibration")
    reading = {f"--{name}": getattr(options, name) for name in files}
    outputs = {f"--output (with {path.name})": path for path in files_beside(options.output)}
    outputs = {"--output": options.output, **outputs}
    if options.shard is not None:  # others write here too
        refuse_overwriting(reading, outputs)
        _rescore(options)
        return
    with writing(outputs, reading=reading):
        _rescore(options)


def _rescore(options: Any) -> None:
    from ida_jax.common.parts import stamp
    from ida_jax.rescoring.job import JobFiles, rescore_files
    from ida_jax.rescoring.method_table import ARTEFACTS, methods_set_by
    from ida_jax.tables.parquet_files import refuse_inside, require_table

    _give_memory_back()
    read = (options.embeddings, options.pairs, options.labels, options.anchors)
    refuse_inside(options.output, read)
    calibration = _calibration(options)
    if options.weight is None and options.method in methods_set_by("weight"):
        options.weight = _supported_weight(options)

    def check_origin(origin: "ScoreOrigin") -> None:
        if calibration is None:
            return
        warning = calibration.check_scores(origin, name=str(options.calibration))
        if warning:
            print(f"warning: {warning}", file=sys.stderr)

    settings = {key: value for key, value in vars(options).items() if key not in _NO_SETTINGS}
    for flag in (*ARTEFACTS, "calibration"):
        path = getattr(options, flag)
        if path is not None:
            require_table(path, what="file")
            settings[flag] = stamp(path)
    summary = rescore_files(
        JobFiles(options.embeddings, options.pairs, options.names, options.labels),
        options.output,
        partial(_scorer, options),
        settings=settings,
        finish=_finish(options, calibration),
        scale=options.scale,
        check_origin=check_origin,
        skip_bad=options.skip_bad,
        chunk=options.chunk,
        key=options.key,
        make_engine=partial(_engine, options) if options.engine == "ray" else None,
        shard=options.shard,
        join=options.join,
    )
    rate = summary.pairs / summary.seconds
    took = f"({summary.seconds:.1f} s, {rate:,.0f} pairs/s)"
    if options.shard is not None:
        print(f"shard {options.shard}: {summary.pairs:,} scores by {options.method} {took}")
        if not summary.pairs:
            print(f"there are fewer chunks of {options.chunk:,} pairs than shards: see --chunk")
        return
    print(f"{summary.pairs:,} scores by {options.method} in {options.output} {took}")
    if summary.bad_faces:
        print(
            f"{summary.bad_faces} faces are zero, NaN or infinite; {summary.unmatched:,} pairs "
            "with them have the score NaN, which never counts as a match"
        )
    for note in summary.notes:
        print(note)
    shared = summary.origin.shared
    if shared is not None and (shared.left_out or shared.likely):
        print(shared.summary())


def _give_memory_back() -> None:
    """Has glibc return every freed array of 8 MiB and more to the system.

    Else it learns from the first chunk's arrays to keep later ones of their size, and a list of
    many chunks peaks 0.2 GiB higher than a list of one. Elsewhere nothing is done.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "mallopt", None)
    if mallopt is not None:
        mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 8 << 20)


# What does not change the scores.
_NO_SETTINGS = (
    "output", "embeddings", "pairs", "names", "labels", "verify", "shard", "join", "engine",
    "actors",
)  # fmt: skip


def _parser() -> Parser:
    from ida_jax.common.shards import add_shard_flags
    from ida_jax.rescoring.method_table import (
        HEADLINE,
        add_artefact_flags,
        add_setting_flags,
        scoring_methods,
    )

    parser = Parser("rescore", description=__doc__)
    add = parser.add_argument_group("files").add_argument
    add("--embeddings", type=Path, required=True, metavar="E", help="the faces' embeddings")
    add("--pairs", type=Path, required=True, metavar="P", help="the pairs to score")
    add("--output", type=Path, required=True, metavar="S", help="where the scores go")
    add(
        "--key",
        metavar="COLUMN",
        help="a column of P (.csv, .tsv, .parquet) beside its two: carried to S before the scores",
    )
    add = parser.add_argument_group("the method").add_argument
    add_artefact_flags(add)
    add(
        "--method",
        default=HEADLINE,
        metavar="METHOD",
        help=f"{', '.join(scoring_methods())} (default: {HEADLINE})",
    )
    add_setting_flags(add)
    add = parser.add_argument_group("the search").add_argument
    add(
        "--tolerance",
        type=float,
        default=0.02,
        help="error in log F, over its spread, up to which an approximate search is taken (0.02)",
    )
    add = parser.add_argument_group("faces and scores").add_argument
    add("--names", type=Path, metavar="FILE", help="E's names, one per line: P then holds names")
    add(
        "--labels",
        type=Path,
        metavar="L",
        help="who is on each row of E, names or integers as the anchors': leaves a face's own "
        "identity out of its support set or cohort",
    )
    add(
        "--scale",
        choices=_SCALES,
        default="log",
        help="log-DAO (default) or DAO; llr and percent by --calibration. Other methods have one "
        "scale of their own, written under log",
    )
    add("--calibration", type=Path, metavar="FILE", help="from ida-jax evaluate --fit")
    add(
        "--skip_bad",
        action="store_true",
        help="zero, NaN or infinite embeddings give NaN scores instead of an error",
    )
    add(
        "--chunk",
        type=int,
        default=1 << 24,
        help="pairs at once, of which shards have whole numbers (16,777,216)",
    )
    add(
        "--verify",
        action="store_true",
        help="compare all of an anchor set of more than 256 MiB with its checksum",
    )
    add_shard_flags(parser)
    add = parser.add_argument_group("engine").add_argument
    add(
        "--engine",
        choices=_ENGINES,
        default=_ENGINES[0],
        help="local, in this process (default), or ray: actors of the cluster of RAY_ADDRESS, or "
        "of this host, make the same scores",
    )
    add("--actors", type=int, help="Ray's (one per GPU or, without any, one per node)")
    return parser


def _check(options: Any) -> None:
    """Finds the mistakes in flags that would else show after minutes of reading."""
    from ida_jax.common.shards import check_shard_flags
    from ida_jax.rescoring.method_table import check_settings, is_dao, require_method

    check_shard_flags(options)
    method = require_method(options.method)
    for need in method.needs:
        if getattr(options, need) is None and need != "anchors":
            raise UserError(f"--method={options.method} needs --{need}=FILE")
    check_settings([options.method], vars(options))
    if options.labels is not None and method.neighbours is None:
        raise UserError(
            "--labels leaves a face's own identity out of its support set or cohort, and "
            f"{options.method} searches none: leave it out"
        )
    if options.scale == "dao" and not is_dao(options.method):
        raise UserError(f"--scale=dao is for the IDA methods, not for {options.method}")
    if options.scale in ("llr", "percent") and options.calibration is None:
        raise UserError(
            f"--scale={options.scale} needs --calibration=FILE: fit one with "
            "ida-jax evaluate --fit=logistic --calibration=FILE"
        )
    if options.scale in ("log", "dao") and options.calibration is not None:
        raise UserError("--calibration needs --scale=llr or --scale=percent")
    if options.tau is not None:
        from ida_jax.common.validation import require_tau

        require_tau(options.tau, what="--tau")
    if options.actors is not None and (options.engine != "ray" or options.actors < 1):
        raise UserError(f"--actors={options.actors}: expected 1 or more, with --engine=ray")
    if options.engine == "ray":
        if options.shard is not None or options.join:
            given = "--join" if options.join else f"--shard={options.shard}"
            raise UserError(
                f"--engine=ray and {given}: Ray shares the work itself; leave one of them out"
            )
        require_module("ray")
        import jax

        # The GPUs are the actors': this process only reads and writes.
        jax.config.update("jax_platforms", "cpu")
    if options.key is not None and options.output.suffix.lower() == ".npy":
        raise UserError(
            f"--key={options.key} needs scores with named columns: give --output as .csv, .parquet "
            "or a folder"
        )
    if options.chunk < 1:
        raise UserError(f"--chunk={options.chunk}: expected 1 or more")


def _scorer(options: Any, faces: int) -> "Rescorer":
    from ida_jax.anchors.sources import read_anchors
    from ida_jax.rescoring.methods import cohort_notes
    from ida_jax.rescoring.rescorer import Rescorer

    anchors = None
    if options.anchors is not None:
        anchors = read_anchors(
            options.anchors, embeddings=options.embeddings, verify=options.verify
        )
    scorer = Rescorer(anchors, **_settings(options), expected_faces=faces)
    for note in cohort_notes([scorer], options.top_n):
        print(note)
    return scorer


def _supported_weight(options: Any) -> float | None:
    """The weight of log F that E's faces support; the same in every shard."""
    if options.anchors is None:
        return None
    from ida_jax.anchors.sources import read_anchors
    from ida_jax.anchors.supported_weight import supported_weight
    from ida_jax.rescoring.shared_people import own_labels
    from ida_jax.tables.embeddings import read_embeddings

    faces = read_embeddings(options.embeddings).embeddings
    anchors = read_anchors(options.anchors, embeddings=options.embeddings)
    labels = None
    if options.labels is not None:
        labels = own_labels(options.labels, anchors, len(faces))
    given = {name: getattr(options, name) for name in ("k", "tau", "searcher")}
    return supported_weight(faces, anchors, labels=labels, **given).weight


def _settings(options: Any) -> dict[str, Any]:
    """What a Rescorer takes beside the anchors; files by their paths."""
    from ida_jax.rescoring.method_table import ARTEFACTS

    of_method = ("method", "k", "tau", "weight", "top_n", "searcher", "tolerance")
    files = [name for name in ARTEFACTS if name != "anchors"]
    settings = {name: getattr(options, name) for name in (*of_method, *files)}
    return {**settings, "ddof": options.ddof or 0}


def _engine(options: Any, faces: int) -> "RayEngine":
    from ida_jax.rescoring.batch import BatchFaceTerms
    from ida_jax.rescoring.ray_engine import RayEngine

    terms = BatchFaceTerms(options.anchors, **_settings(options), expected_faces=faces)
    return RayEngine(terms, options.actors)


def _calibration(options: Any) -> "Calibration | None":
    """The calibration, if there is one; what its scores were made with is checked later."""
    if options.calibration is None:
        return None
    from ida_jax.artefacts.calibration import Calibration

    calibration = Calibration.load(options.calibration)
    if calibration.scale not in ("", "log"):
        raise UserError(
            f"{options.calibration} was fitted to scores written with --scale={calibration.scale}: "
            "fit one to scores written with --scale=log"
        )
    if calibration.method not in ("", options.method):
        raise UserError(
            f"{options.calibration} was fitted to scores of {calibration.method}, not of "
            f"{options.method}: fit one to these"
        )
    return calibration


def _finish(
    options: Any, calibration: "Calibration | None"
) -> "Callable[[np.ndarray], np.ndarray] | None":
    """The map from a method's scores to the scale that is written."""
    if options.scale == "dao":
        from ida_jax.ops.dao import saturating_exp

        return saturating_exp
    if calibration is None:
        return None
    return calibration.llr if options.scale == "llr" else calibration.percent


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
