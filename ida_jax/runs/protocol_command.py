"""python -m ida_jax.evaluate --protocol=P --files=F --embeddings=E --output=DIR [--anchors=A …]

A protocol's figures for cosine, IDA and every other method at once, with confidence intervals:
DIR/results.json, report.html, results.md and results.tex. E comes from python -m ida_jax.embed or
from any other model.

  P            F                                               E, a row each
  pairs        a pair list, rows of E or names (--labels)      faces
  lfw          pairs.txt                                       images, named A/A_0001.jpg
  calfw cplfw  pairs_CALFW.txt, pairs_CPLFW.txt                images, named A_0001.jpg
  bin          a verification set, X.bin                       its images: embed --images=X.bin
  all_pairs    none: every pair of E                           faces, named PERSON/IMAGE
  ytf          splits.txt                                      frames, named PERSON/VIDEO/FRAME
  ijbb, ijbc   the release's folder, with meta/                images of meta/*_face_tid_mid.txt
  megaface     a folder with the devkit's and the noise lists  FaceScrub's; --distractors=D

Names are E's own (.npz, .parquet), those of --names, or of E.names.txt beside an .npy. --run takes
anchors and modules from a workdir of python -m ida_jax.main.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser, numbers
from ida_jax.common.errors import UserError

if TYPE_CHECKING:
    from ida_jax.metrics.evaluated import Evaluated
    from ida_jax.report.run_report import Groups
    from ida_jax.rescoring.rescorer import Rescorer
    from ida_jax.tables.embeddings import EmbeddingFile

PROTOCOLS = (
    "pairs",
    "lfw",
    "calfw",
    "cplfw",
    "bin",
    "all_pairs",
    "ytf",
    "ijbb",
    "ijbc",
    "megaface",
)
_IJB = ("ijbb", "ijbc")
# Flags that some protocols alone read, and their defaults there.
_ONLY_FOR = {
    "labels": (("pairs",), None),
    "identities": (("pairs",), None),
    "distractors": (("megaface",), None),
    "distractor_names": (("megaface",), None),
    "fars": (("pairs", "all_pairs", *_IJB), None),
    "flip": (_IJB, "none"),
    "norm": (_IJB, "keep"),
    "detector": (_IJB, "weight"),
    "densities": (_IJB, "template"),
    "log_variances": (_IJB, None),
    "anchor_log_variances": (_IJB, None),
}


def main(argv: list[str]) -> None:
    """Parses flags, evaluates, prints the tables, writes DIR."""
    options = _parser().parse_args(argv)
    _check(options)
    files, methods = _artefacts(options)
    with _folder(options.output):
        _run(options, files, methods)


def _run(options: Any, files: Mapping[str, Path | None], methods: tuple[str, ...]) -> None:
    from ida_jax.common.files import json_text, written_whole
    from ida_jax.common.provenance import provenance
    from ida_jax.report.run_report import write_protocol_report
    from ida_jax.report.tables import results_table

    embeddings = _embeddings(options)
    scorers = _scorers(options, files, methods, embeddings)
    evaluated = _evaluate(options, embeddings, scorers)
    groups = _groups(options, embeddings, scorers)
    results: dict[str, Any] = {
        "protocols": {name: each.figures for name, each in evaluated.items()},
        "notes": {name: list(each.notes) for name, each in evaluated.items() if each.notes},
        "settings": _settings(options, files, scorers),
        "provenance": provenance(),
        **_anchors(scorers),
    }
    write_protocol_report(
        options.output / "report.html",
        title=options.title or options.protocol,
        settings={**results["settings"], **results["provenance"]},
        results=results,
        evaluated=evaluated,
        groups=groups,
    )
    with written_whole(options.output / "results.json") as temporary:
        temporary.write_text(json_text(results), encoding="utf-8")
    print(results_table(results))
    for name, notes in results["notes"].items():
        for note in notes:
            print(f"{name}: {note}")
    print(f"\nsee {options.output / 'report.html'}")


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the folder beforehand; where the body fails, an empty one of ours goes again."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a writable folder") from error
    try:
        yield
    finally:
        if made and not any(path.iterdir()):
            path.rmdir()


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("--protocol", required=True, choices=PROTOCOLS, help="one of the table above")
    add("--files", type=Path, metavar="F", help="the protocol's files")
    add("--embeddings", type=Path, required=True, metavar="E", help=".npy, .npz or .parquet")
    add("--names", type=Path, metavar="FILE", help="E's names, one a line")
    add("--labels", type=Path, metavar="L", help="of pairs: 1 or 0 a pair")
    add("--identities", type=Path, metavar="I", help="of pairs: both sides' identities; intervals "
        "are then over people")
    add("--distractors", type=Path, metavar="D", help="of megaface: embeddings as E, or a "
        "folder of feature files")
    add("--distractor_names", type=Path, metavar="FILE", help="D's names, one a line")
    add("--groups", type=Path, metavar="G", help="one group a row of E: the report shows the log F "
        "of each")
    add("--skip-bad", action="store_true", help="faces without an embedding (zero, NaN) never "
        "match, or are left out of their template, video or crowd, and are counted")
    add("--output", type=Path, required=True, metavar="DIR", help="results and report")
    add("--title", help="the report's")
    add("--run", type=Path, metavar="W", help="a workdir: its anchors, ssr and csn")
    add("--anchors", type=Path, metavar="A", help="an anchor set, or embeddings")
    add("--ssr", type=Path, metavar="FILE", help="the SSR module of ida_l")
    add("--csn", type=Path, metavar="FILE", help="the classifier of csn")
    add("--dao_fit", type=Path, metavar="FILE", help="the fit of ida_r_fitted")
    add("--methods", type=_words, metavar="METHOD,…", help="all that the given files allow")
    add("--k", type=int, help="size of the support set (the anchor set's own, 10)")
    add("--tau", type=float, help="τ (the anchor set's own, 1)")
    add("--top_n", type=int, default=300, help="as_norm's cohort (300)")
    add("--searcher", default="auto", help="auto (default), exact, scann, scann_partitioned")
    add("--fars", type=numbers(float), metavar="FAR,…", help="false accept rates")
    add("--resamples", type=int, default=1000, help="of the bootstrap (1000)")
    add("--seed", type=int, default=0, help="of the bootstrap (0)")
    add("--flip", choices=("none", "added", "halves"), help="of ijbb, ijbc: mirror "
        "images' embeddings are added in E already, or stand beside the others, [N, 2D] (none)")
    add("--norm", choices=("keep", "unit"), help="of ijbb, ijbc: an image's weight "
        "in its template is its embedding's norm (keep), or all weigh alike (unit)")
    add("--detector", choices=("weight", "ignore"), help="of ijbb, ijbc: images "
        "are weighted by the detector's score where the release has it (weight)")
    add("--densities", choices=("template", "images"), help="of ijbb, ijbc: F "
        "of the pooled embedding (template), or pooled F of its images")
    add("--log_variances", type=Path, metavar="V", help="of ijbb, ijbc: E's, for PFE (embed --pfe)")
    add("--anchor_log_variances", type=Path, metavar="V", help="the anchors' (W's own)")
    # fmt: on
    return parser


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word for word in text.split(",") if word)
    if not words:
        raise argparse.ArgumentTypeError("is empty: expected names separated by commas")
    return words


def _check(options: Any) -> None:
    """What is wrong with the flags themselves, before anything is read."""
    needed = {"pairs": ("files", "labels"), "all_pairs": (), "megaface": ("files", "distractors")}
    for flag in needed.get(options.protocol, ("files",)):
        if getattr(options, flag) is None:
            raise UserError(
                f"--protocol={options.protocol} needs --{flag}; see python -m ida_jax.evaluate "
                f"--protocol={options.protocol} --help"
            )
    for flag, (protocols, default) in _ONLY_FOR.items():
        given = getattr(options, flag)
        if options.protocol not in protocols and given is not None:
            raise UserError(f"--{flag} is for {', '.join(protocols)}, not for {options.protocol}")
        if options.protocol in protocols and given is None:
            setattr(options, flag, default)
    for far in options.fars or ():
        if not 0 < far <= 1:
            raise UserError(f"--fars: {far:g} is not above 0 and at most 1")
    if options.resamples < 2 or options.seed < 0:
        raise UserError(
            f"--resamples={options.resamples} --seed={options.seed}: expected at least 2 "
            "resamples, and a seed of at least 0"
        )
    if (options.output / "results.json").exists():
        raise UserError(
            f"{options.output} holds results already: name another --output, or delete them"
        )


def _artefacts(options: Any) -> tuple[dict[str, Path | None], tuple[str, ...]]:
    """The files that methods need, and the methods."""
    from ida_jax.common.files import require_file
    from ida_jax.rescoring.method_table import ARTEFACTS, scoring_methods

    files = {kind: getattr(options, kind) for kind in ARTEFACTS}
    if options.run is not None:
        if not options.run.is_dir():
            raise UserError(f"no workdir at {options.run}: expected that of python -m ida_jax.main")
        inside = {
            "anchors": options.run / "anchors" / "anchors.safetensors",
            "ssr": options.run / "ssr.safetensors",
            "csn": options.run / "csn.safetensors",
        }
        if not any(path.is_file() for path in inside.values()):
            listed = ", ".join(str(path.relative_to(options.run)) for path in inside.values())
            raise UserError(f"{options.run} holds none of {listed}: name a workdir that has them")
        for kind, path in inside.items():
            if files[kind] is None and path.is_file():
                files[kind] = path
    for kind, path in files.items():
        if path is not None:
            require_file(path, what=kind)
    known = scoring_methods()
    lacking = {}
    for name, method in known.items():
        missing = [need for need in method.needs if files[need] is None]
        if missing:
            lacking[name] = missing[0]
    if options.methods is None:
        usual = [name for name, method in known.items() if method.usual]
        return files, tuple(name for name in usual if name not in lacking)
    for method in options.methods:
        if method not in known:
            raise UserError(f"--methods: '{method}' is unknown: choose from {', '.join(known)}")
        if method in lacking:
            raise UserError(f"--methods: {method} needs --{lacking[method]}, or --run")
    return files, options.methods


def _embeddings(options: Any) -> "EmbeddingFile":
    from ida_jax.protocols.from_files import names_beside
    from ida_jax.tables.embeddings import read_embeddings

    names = names_beside(options.embeddings, options.names)
    return read_embeddings(options.embeddings, names=names)


def _scorers(
    options: Any,
    files: Mapping[str, Path | None],
    methods: tuple[str, ...],
    found: "EmbeddingFile",
) -> "dict[str, Rescorer]":
    from ida_jax.rescoring.methods import load_scorers, require_same_models

    if files["anchors"] is not None and files["anchors"].samefile(options.embeddings):
        raise UserError(
            f"the anchors are the embeddings themselves, {options.embeddings}: each face would be "
            "its own nearest anchor; take faces of other people"
        )
    scorers = load_scorers(
        methods,
        **files,
        k=options.k,
        tau=options.tau,
        top_n=options.top_n,
        searcher=options.searcher,
        expected_faces=len(found.embeddings),
    )
    require_same_models(options.embeddings, found.fingerprint, scorers.values())
    return scorers


def _evaluate(
    options: Any, found: "EmbeddingFile", scorers: "Mapping[str, Rescorer]"
) -> "dict[str, Evaluated]":
    """{variant: what it gives}."""
    from ida_jax.protocols import from_files as protocols

    match options.protocol:
        case "pairs":
            return protocols.labelled_pairs(options, found, scorers)
        case "lfw" | "calfw" | "cplfw":
            return protocols.kfold(options, found, scorers)
        case "bin":
            return protocols.verification_bin(options, found, scorers)
        case "all_pairs":
            return protocols.all_pairs(options, found, scorers)
        case "ytf":
            return protocols.videos(options, found, scorers)
        case "megaface":
            return protocols.distractors(options, found, scorers)
    return protocols.templates(options, found, scorers)


def _groups(
    options: Any, found: "EmbeddingFile", scorers: "Mapping[str, Rescorer]"
) -> "Groups | None":
    """log F of each row of E with its group, for the report's figure."""
    if options.groups is None:
        return None
    from ida_jax.report.run_report import Groups
    from ida_jax.tables.labelled_scores import read_groups

    if "ida_r" not in scorers:
        raise UserError("--groups shows the groups' log F, which ida_r finds: give --anchors")
    groups = read_groups(options.groups)
    if len(groups.codes) != len(found.embeddings):
        raise UserError(
            f"{options.groups} has {len(groups.codes)} rows and {options.embeddings} "
            f"{len(found.embeddings)}: expected one group a row of E"
        )
    log_density = scorers["ida_r"].log_densities(found.embeddings)
    return Groups(log_density, groups.codes, groups.names)


def _settings(
    options: Any, files: Mapping[str, Path | None], scorers: "Mapping[str, Rescorer]"
) -> dict[str, Any]:
    """What was given, and what was taken where nothing was."""
    taken = {"methods": list(scorers)}
    for scorer in scorers.values():
        if scorer.anchors is not None:
            taken |= {"k": scorer.k, "tau": scorer.tau}
            break
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in {**vars(options), **files, **taken}.items()
        if value is not None
    }


def _anchors(scorers: "Mapping[str, Rescorer]") -> dict[str, Any]:
    for scorer in scorers.values():
        if (anchors := scorer.anchors) is not None:
            found = {"source": anchors.source, "size": len(anchors)}
            return {"anchors": {**found, "fingerprint": anchors.fingerprint}}
    return {}
