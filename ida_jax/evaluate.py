"""ida-jax evaluate --scores=S --labels=L [--baseline=S0] [--identities=I] [--groups=G]

Evaluates scores of labelled pairs, from any method or software: TAR, threshold and their
confidence intervals at each FAR, EER, Cllr and min-Cllr; the difference from a second method's
scores of the same pairs; realised FAR by group at one threshold. With --fit, also fits a
calibration to log-likelihood ratios for ida-jax rescore --calibration.

  S, S0  scores, higher meaning more alike; NaN is never a match, and counts
  L      1 for a pair of one person, 0 for a pair of two (or true, false)
  G      the pair's group, a name or an integer; or a list of people and their groups (.csv, .tsv or
         .txt of person and group), which goes with --identities
  I      two columns: the identities of the pair's two sides, names or integers

All are .npy, .csv or .parquet with one row per pair, in the same order. From a file with several
columns, those named score, label, group, identity_1 and identity_2 are read.

Some of I's people may be one person under two names, which causes most false accepts at the lowest
FARs: ida-jax check_labels proposes them as a list for --ignore_identity_pairs.

To evaluate all methods at once on a protocol's own files, see the list of protocols in
ida-jax evaluate --protocol=lfw --help

examples:
  ida-jax evaluate --scores=scores.npy --labels=labels.npy
  ida-jax evaluate --scores=scores.npy --baseline=cosine.npy --labels=labels.npy \\
      --identities=people.csv --json=figures.json
  ida-jax evaluate --scores=dev_scores.npy --labels=dev_same.npy --identities=dev_people.csv \\
      --fit=logistic --calibration=calibration.safetensors
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser, numbers, seed_number
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    import numpy as np

    from ida_jax.metrics.groups import ListedGroups
    from ida_jax.tables.labelled_scores import Identities
    from ida_jax.tables.score_origin import ScoreOrigin

_LEVEL = 0.95


def main(argv: list[str]) -> None:
    """Parses flags, evaluates, prints, and writes what was asked for."""
    if any(word.split("=")[0] == "--protocol" for word in argv):
        from ida_jax.runs.protocol_command import main as evaluate_protocol

        evaluate_protocol(argv)
        return
    options = _parser().parse_args(argv)
    _check(options)
    from ida_jax.common.outputs import writing

    read = ("scores", "labels", "baseline", "identities", "groups", "ignore_identity_pairs")
    outputs, reading = (
        {f"--{name}": getattr(options, name) for name in names}
        for names in (("calibration", "json", "plot"), read)
    )
    with writing(outputs, reading=reading):
        _write(options)


def _write(options: Any) -> None:
    from ida_jax.report.score_report import score_text

    results = _evaluate(options)
    print(printable(score_text(results)))
    if options.json is not None:
        from ida_jax.common.files import json_text, written_whole
        from ida_jax.common.provenance import provenance

        results["provenance"] = provenance()
        with written_whole(options.json) as temporary:
            temporary.write_text(json_text(results), encoding="utf-8")
    if options.plot is not None:
        from ida_jax.common.files import written_whole
        from ida_jax.report.score_report import score_figure

        with written_whole(options.plot) as temporary:
            score_figure(results).savefig(temporary, format="png")


def _parser() -> Parser:
    parser = Parser("evaluate", description=__doc__)
    # fmt: off
    add = parser.add_argument_group("pairs").add_argument
    add("--scores", type=Path, required=True, metavar="S", help="one score per pair")
    add("--labels", type=Path, required=True, metavar="L", help="one label per pair")
    add("--baseline", type=Path, metavar="S0", help="a second method's scores")
    add("--identities", type=Path, metavar="I", help="intervals over identities, not over pairs")
    add("--ignore_identity_pairs", type=Path, metavar="FILE", help="identities that show one "
        "person, two per line: the pairs between them count neither way; with --identities")
    add = parser.add_argument_group("groups").add_argument
    add("--groups", type=Path, metavar="G", help="one group per pair, or a person")
    add("--group_thresholds", action="store_true", help="with --groups: also at a threshold a "
        "group, which holds the FAR in each; they are in --json")
    add = parser.add_argument_group("figures").add_argument
    add("--fars", type=numbers(float), default=(1e-3, 1e-4, 1e-5), metavar="FAR,…",
        help="false accept rates (1e-3,1e-4,1e-5)")
    add("--resamples", type=int, default=1000, help="of the bootstrap; 0 leaves it out (1000)")
    add("--seed", type=seed_number, default=0, help="of the bootstrap (0)")
    add("--json", type=Path, metavar="OUT", help="all figures and curves")
    add("--plot", type=Path, metavar="OUT", help="DET curves and groups, .png")
    add = parser.add_argument_group("calibration").add_argument
    add("--fit", choices=("logistic", "isotonic"), help="fit a calibration of S")
    add("--calibration", type=Path, metavar="OUT", help="the fitted calibration, .safetensors")
    add("--method", default="", help="the method of S, such as ida_r, where S was not written by "
        "rescore: kept with the calibration, which rescore then refuses for other methods")
    add("--allow_shared", action="store_true",
        help="fit though people of S seem to be among the anchors, where they are not")
    # fmt: on
    return parser


def _check(options: Any) -> None:
    """What is wrong with the flags themselves, before anything is read."""
    if options.group_thresholds and options.groups is None:
        raise UserError("--group_thresholds goes with --groups=G: a threshold for each of them")
    if (options.fit is None) != (options.calibration is None):
        raise UserError("--fit and --calibration go together: the kind, and the file that it gets")
    if options.ignore_identity_pairs is not None and options.identities is None:
        raise UserError(
            "--ignore_identity_pairs needs --identities=I, which says whose faces the pairs are of"
        )
    if options.allow_shared and options.fit is None:
        raise UserError("--allow_shared goes with --fit")
    if options.resamples < 0 or options.resamples == 1:
        raise UserError(
            f"--resamples={options.resamples}: expected 0 (no bootstrap) or at least 2 resamples"
        )
    for far in options.fars:
        if not 0 < far <= 1:
            raise UserError(f"--fars: {far:g} is not above 0 and at most 1")
    for output in (options.calibration, options.json, options.plot):
        if output is not None and not output.absolute().parent.is_dir():
            raise UserError(f"cannot write {output}: no folder {output.parent}; make it first")
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise UserError(f"--plot={options.plot}: expected a name that ends in .png")


def _evaluate(options: Any) -> dict[str, Any]:
    """All figures; the calibration is written at the end."""
    import numpy as np

    from ida_jax.metrics.evaluation import (
        score_figures,
        split_scores,
        wrong_way,
    )
    from ida_jax.tables.labelled_scores import (
        read_labels,
        read_named_identities,
        read_scores,
    )  # fmt: skip

    files = {} if options.baseline is None else {"baseline": options.baseline}
    files["scores"] = options.scores
    scores = {role: read_scores(path) for role, path in files.items()}
    same = read_labels(options.labels)
    for role, path in files.items():
        _require_length(path, scores[role], options.labels, same)
    if same.all() or not same.any():
        raise UserError(
            f"{options.labels}: all {same.size} labels are {int(same.any())}, expected pairs of "
            "one person (1) and of two (0)"
        )
    named, ignored = None, {}
    if options.identities is not None:
        named = read_named_identities(options.identities)
        _require_length(options.identities, named.codes, options.labels, same)
    groups = None if options.groups is None else _pair_groups(options, named)
    origin = _origin(options)
    if groups is not None:
        _require_length(options.groups, groups.codes, options.labels, same)
    identities = None if named is None else named.codes
    if options.ignore_identity_pairs is not None:
        kept, ignored = _kept_pairs(options.ignore_identity_pairs, named)
        scores = {role: of[kept] for role, of in scores.items()}
        same, identities = same[kept], identities[kept]
        groups = groups and groups.rows(kept)

    results: dict[str, Any] = {
        **ignored,
        "labels": str(options.labels),
        "genuine": int(np.count_nonzero(same)),
        "impostor": int(np.count_nonzero(~same)),
        "fars": sorted(set(options.fars), reverse=True),
        "level": _LEVEL,
        "methods": {},
    }
    for role, path in files.items():
        split = split_scores(scores[role], same)
        if wrong := wrong_way(*split):
            if role == "scores" and options.fit is not None:
                raise UserError(f"{path}: no calibration can be made: {wrong}")
            print(f"warning: {path}: {wrong}", file=sys.stderr)
        figures = {"name": _name(role, files), "file": str(path)}
        figures |= score_figures(split, fars=results["fars"])
        results["methods"][role] = figures
    if groups is not None:
        from ida_jax.metrics.group_rates import few_errors
        from ida_jax.protocols.group_figures import NO_PEOPLE, listed_group_rates

        rates = listed_group_rates(
            scores, same, identities, groups,
            own_thresholds=options.group_thresholds, fars=results["fars"], level=_LEVEL,
            resamples=options.resamples, seed=options.seed,
        )  # fmt: skip
        for role, figures in results["methods"].items():
            figures |= rates[role]
        no_people = (NO_PEOPLE,) if options.resamples and identities is None else ()
        results["group_notes"] = [*groups.notes, *no_people, *few_errors(rates)]
    if options.resamples:
        results |= _bootstrap(options, scores, same, identities, results)
    if options.fit is not None:  # last, so that a mistake found above leaves no file behind
        split = split_scores(scores["scores"], same)
        results["calibration"] = _calibrate(options, split, origin)
    return results


def _kept_pairs(path: Path, named: "Identities") -> "tuple[np.ndarray, dict[str, Any]]":
    """bool [P], the pairs that count; and the results' entries on the others."""
    from ida_jax.tables.identity_pairs import ignored_rows, read_identity_pairs

    known, out = ignored_rows(read_identity_pairs(path), named)
    count = int(out.sum())
    return ~out, {"ignored_pairs": count, "ignored_note": known.note(count)}


def _pair_groups(options: Any, identities: "Identities | None") -> "ListedGroups":
    """One group a pair, or by a list of the people of both sides."""
    from ida_jax.metrics.groups import FaceGroups, named_cells, one_group_a_pair
    from ida_jax.tables.groups import groups_of_names, read_group_list, without_group
    from ida_jax.tables.labelled_scores import read_groups

    listed = read_group_list(options.groups)
    if listed is None:
        return one_group_a_pair(*read_groups(options.groups))
    if identities is None:
        raise UserError(
            f"{options.groups} lists people and their groups, and who is on a pair is not known: "
            "give --identities=I, or one group per pair"
        )
    sides, people = identities.named()
    grouped = groups_of_names(options.groups, listed, people)
    notes = without_group(grouped, "people")
    return FaceGroups(grouped.codes, named_cells(grouped.names), notes).listed(sides)


def _bootstrap(
    options: Any,
    scores: "dict[str, np.ndarray]",
    same: "np.ndarray",
    identities: "np.ndarray | None",
    results: dict[str, Any],
) -> dict[str, Any]:
    """The bootstrap's own entries; its TAR and threshold intervals go to the methods."""
    from functools import partial

    from ida_jax.common.progress import progress_bar
    from ida_jax.metrics.bootstrap import bootstrap_tar
    from ida_jax.metrics.evaluation import far_key

    found = bootstrap_tar(
        scores,
        same,
        fars=results["fars"],
        identities=identities,
        baseline="baseline" if "baseline" in scores else None,
        resamples=options.resamples,
        seed=options.seed,
        level=_LEVEL,
        progress=partial(progress_bar, desc="bootstrap", unit="resample", delay=2, leave=False),
    )
    for role, points in found.methods.items():
        figures = results["methods"][role]
        figures["tar_interval@far"] = {far_key(p.far): list(p.tar) for p in points}
        figures["tar_units@far"] = {far_key(p.far): p.units for p in points}
        if identities is not None:
            figures["threshold_interval@far"] = {far_key(p.far): list(p.threshold) for p in points}
    entries = {
        "bootstrap": {
            "over": found.over,
            "units": found.units,
            "resamples": found.resamples,
            "seed": options.seed,
        }
    }
    if differences := found.differences.get("scores"):
        tars = {role: figures["tar@far"] for role, figures in results["methods"].items()}
        entries["difference"] = {
            "tar@far": {far: tar - tars["baseline"][far] for far, tar in tars["scores"].items()},
            "tar_interval@far": {far_key(d.far): list(d.tar) for d in differences},
            "share_above_0": {far_key(d.far): d.share_above_0 for d in differences},
        }
    return entries


def _origin(options: Any) -> "ScoreOrigin | None":
    """What S was made with; what a reader or a calibration must know of it is said or refused."""
    from dataclasses import replace

    from ida_jax.tables.score_origin import MOST_SHARED, read_origin

    origin = read_origin(options.scores)
    if origin is None:
        if options.fit is not None:
            print(
                f"warning: {options.scores} does not say what made it (rescore's files do): the "
                "calibration cannot be checked against the anchors and settings it is used with",
                file=sys.stderr,
            )
        return None
    if options.method not in ("", origin.method):
        raise UserError(
            f"{options.scores} holds scores of {origin.method}, not of {options.method}: leave "
            "--method out"
        )
    shared = origin.shared
    if shared is not None and shared.share > MOST_SHARED and not options.allow_shared:
        if options.fit is not None:
            raise UserError(
                f"{options.scores}: {shared.described()}, and a calibration of their scores is too "
                "lax for others: rescore with --labels, or other people; if no one is, "
                "--allow_shared"
            )
        print(
            f"warning: {options.scores}: {shared.described()}: their scores are lower, and these "
            "thresholds too lax for others",
            file=sys.stderr,
        )
    return replace(origin, shared=None) if options.allow_shared else origin


def _calibrate(options: Any, split: Any, origin: "ScoreOrigin | None") -> dict[str, Any]:
    """Fits and writes the calibration of S; its entries."""
    from ida_jax.artefacts.calibration import fit_calibration
    from ida_jax.metrics.likelihood_ratios import cllr

    calibration = fit_calibration(*split, kind=options.fit, method=options.method, origin=origin)
    calibration.save(options.calibration)
    return {
        "kind": options.fit,
        "file": str(options.calibration),
        "origin": None if origin is None else origin.to_json(),
        "cllr": cllr(*(calibration.llr(kind) for kind in split)),
    }


def _require_length(path: Path, rows: "np.ndarray", labels: Path, same: "np.ndarray") -> None:
    if len(rows) != len(same):
        raise UserError(
            f"{path} has {len(rows)} rows and {labels} has {len(same)}: "
            "expected one per pair in both"
        )


def _name(role: str, files: dict[str, Path]) -> str:
    """The file's name without its ending; where both are named alike, what they are."""
    stems = [path.stem for path in files.values()]
    return files[role].stem if len(set(stems)) == len(stems) else role


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
