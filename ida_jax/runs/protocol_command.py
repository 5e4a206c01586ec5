"""ida-jax evaluate --protocol=P --files=F --embeddings=E --output=DIR [--anchors=A …]

A protocol's figures for cosine, IDA and every other method at once, with confidence intervals:
DIR/results.json, report.html, results.md and results.tex. E comes from ida-jax embed or
from any other model.

Names are E's own (.npz, .parquet), those of --names, or of E.names.txt beside an .npy. --run takes
anchors and modules from a workdir of ida-jax train.

  P          F                                              E, a row each
"""

import argparse
import contextlib
import dataclasses
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from ida_jax.common.command_line import Parser, numbers, seed_number, user_path
from ida_jax.common.errors import UserError, printable
from ida_jax.common.outputs import lock_in
from ida_jax.protocols.table import Protocol, Request, all_protocols
from ida_jax.rescoring.method_table import (
    SEARCHED,
    add_artefact_flags,
    add_setting_flags,
    check_settings,
    methods_set_by,
)
from ida_jax.runs.workdir import (
    ANCHORS,
    METHOD_FILES,
    REPORT,
    RESULTS,
    figures_and_notes,
    write_results,
)
from ida_jax.tables.groups import groups_option

if TYPE_CHECKING:
    import numpy as np

    from ida_jax.metrics.groups import FaceGroups
    from ida_jax.report.run_report import DensitiesByGroup
    from ida_jax.rescoring.rescorer import Rescorer
    from ida_jax.tables.embeddings import EmbeddingFile

# How a flag's text becomes a value, by the type of the option.
_PARSERS = {
    Path: user_path,
    str: str,
    int: int,
    float: float,
    tuple[float, ...]: numbers(float),
}
# What a report is.
_WRITTEN = ("results.json", "report.html", "results.md", "results.tex")

_EXAMPLE = """
examples:
  ida-jax evaluate --protocol=lfw --files=pairs.txt --embeddings=faces.npy \\
      --anchors=anchors.safetensors --output=runs/lfw"""


def main(argv: list[str]) -> None:
    """Parses flags, evaluates, prints the tables, writes DIR."""
    table = all_protocols()
    options = _parser(table, _protocol_of(argv)).parse_args(argv)
    own = _own_options(options, table)
    _check(options, table[options.protocol])
    files, methods = _artefacts(options)
    if options.groups is not None and not table[options.protocol].grouped:
        _check_log_f_by_group(methods)
    with _writing(options, own, files):
        _run(table[options.protocol], options, own, files, methods)


def _run(
    protocol: Protocol,
    options: Any,
    own: Any,
    files: Mapping[str, Path | None],
    methods: tuple[str, ...],
) -> None:
    from ida_jax.common.provenance import provenance
    from ida_jax.metrics.evaluation import with_notes
    from ida_jax.report.run_report import write_protocol_report
    from ida_jax.report.tables import results_table
    from ida_jax.rescoring.methods import cohort_notes

    request = _request(options)
    images = None
    if options.images is not None:
        from ida_jax.data.named_images import image_of_name

        images = image_of_name(options.images, request.embeddings.names)
    people = protocol.people(request)
    scorers = _scorers(options, own, files, methods, request.embeddings, people)
    data = protocol.read(request, own)
    evaluated = protocol.evaluate(request, own, data, scorers)
    notes = cohort_notes(scorers.values(), options.top_n)
    notes += _norm_notes(own, request.embeddings, scorers)
    evaluated = with_notes(evaluated, notes)
    results: dict[str, Any] = {
        **figures_and_notes(evaluated),
        "settings": _settings(options, own, files, scorers),
        "provenance": provenance(),
        **_anchors(scorers),
    }
    write_results(
        options.output,
        results,
        write_protocol_report,
        title=options.title or options.protocol,
        settings=results["settings"],
        evaluated=evaluated,
        groups=_log_f_by_group(request, scorers),
        face_images=images,
    )
    print(printable(results_table(results)))
    for name, notes in results["notes"].items():
        for note in notes:
            print(printable(f"{name}: {note}"))
    print(f"\nsee {options.output / REPORT}")


def _writing(
    options: Any, own: Any, files: Mapping[str, Path | None]
) -> contextlib.AbstractContextManager[None]:
    from ida_jax.common.outputs import writing

    named = ("files", "embeddings", "names", "images", "groups", "ignore_identity_pairs")
    read = {name: getattr(options, name) for name in named}
    read |= {**files, **dataclasses.asdict(own)}
    reading = {f"--{name}": path for name, path in read.items() if isinstance(path, Path)}
    outputs = {f"--output ({name})": options.output / name for name in _WRITTEN}
    return writing(outputs, reading=reading, folder=options.output)


def _protocol_of(argv: list[str]) -> str:
    """The protocol that flags name, "" without one: the help is of its options alone."""
    protocol = ""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--protocol":
            protocol = value if equals else following
    return protocol


def _parser(table: Mapping[str, Protocol], protocol: str) -> Parser:
    lines = [f"  {entry.name:<11}{entry.files:<47}{entry.rows}" for entry in table.values()]
    parser = Parser("evaluate", description="\n".join([__doc__.rstrip(), *lines, _EXAMPLE]))
    # fmt: off
    add = parser.add_argument_group("files").add_argument
    add("--protocol", required=True, choices=tuple(table), help="one of the table above")
    add("--files", type=Path, metavar="F", help="the protocol's files")
    add("--embeddings", type=Path, required=True, metavar="E", help=".npy, .npz or .parquet")
    add("--names", type=Path, metavar="FILE", help="E's names, one per line")
    add("--output", type=Path, required=True, metavar="DIR", help="results and report")
    add("--title", help="the report's")
    add("--images", type=Path, metavar="I", help="the images by E's names: a folder, a .tar, .tgz "
        "or .zip, or a list of paths; the report gets pictures of at most 200 faces of the pairs "
        f"to look at, personal data ({_of(table, 'failures')})")
    add = parser.add_argument_group("the methods").add_argument
    add("--run", type=Path, metavar="W", help=f"a workdir: its {', '.join(METHOD_FILES)}")
    add_artefact_flags(add)
    add("--methods", type=_names, metavar="METHOD,…", help="all that the files allow")
    add_setting_flags(add, ddof=False)
    add = parser.add_argument_group("what counts").add_argument
    add("--ignore_identity_pairs", type=Path, metavar="FILE", help="identities that show one "
        f"person, two per line: their pairs count neither way{_named(table.get(protocol))}")
    add("--groups", type=groups_option, metavar="G", help="FAR and TAR by group: a list of person "
        "or image and group, .csv, .tsv or .txt; one group per row of E; or norms:N, N levels of "
        "the embeddings' norms. With anchors the report shows the groups' log F too")
    add("--group_thresholds", action="store_true", help="with --groups: also at a threshold a "
        "group, which holds the FAR in each; they are in results.json")
    add("--skip_bad", action="store_true", help="faces without an embedding (zero, NaN) never "
        "match, or are left out of their template, video or crowd, and are counted")
    add("--resamples", type=int, default=1000, help="of the bootstrap (1000)")
    add("--seed", type=seed_number, default=0, help="of the bootstrap (0)")
    # fmt: on
    known = protocol in table
    group = parser.add_argument_group(f"of {protocol}" if known else "of single protocols")
    for name, owners in _owners(table).items():
        # Flags of other protocols are parsed too: the refusal says which protocols they are for.
        entry = table[protocol if protocol in owners else owners[0]]
        flag, kind = _flags(entry)[name]
        shown = dict(flag.metadata)
        if known and protocol not in owners:
            shown["help"] = argparse.SUPPRESS
        elif not known:
            shown["help"] = f"of {', '.join(owners)}: {shown['help']}"
        if kind is bool:
            group.add_argument(f"--{name}", action="store_true", default=None, help=shown["help"])
        else:
            group.add_argument(f"--{name}", type=_PARSERS[kind], **shown)
    return parser


def _of(table: Mapping[str, Protocol], what: str) -> str:
    """The protocols of which that is true."""
    return ", ".join(name for name, entry in table.items() if getattr(entry, what))


def _named(protocol: Protocol | None) -> str:
    """What the list of identities names, for the help."""
    if protocol is None:
        return ""
    if not protocol.identities:
        return f" (not for {protocol.name}: {protocol.no_identities})"
    return f" ({protocol.identities})"


def _flags(protocol: Protocol) -> dict[str, tuple[dataclasses.Field, Any]]:
    """{name: its field and its type, less None} of the protocol's own options."""
    kinds = get_type_hints(protocol.flags)
    flags = {}
    for flag in dataclasses.fields(protocol.flags):
        kind = kinds[flag.name]
        if get_origin(kind) in (Union, types.UnionType):
            (kind,) = (part for part in get_args(kind) if part is not type(None))
        flags[flag.name] = flag, kind
    return flags


def _owners(table: Mapping[str, Protocol]) -> dict[str, list[str]]:
    """{flag: the protocols whose own it is}."""
    owners: dict[str, list[str]] = {}
    for protocol in table.values():
        for name in _flags(protocol):
            owners.setdefault(name, []).append(protocol.name)
    return owners


def _own_options(options: Any, table: Mapping[str, Protocol]) -> Any:
    """The protocol's own options, checked: what it needs, and nothing of other protocols."""
    protocol = table[options.protocol]
    for flag in protocol.needs:
        if getattr(options, flag) is None:
            raise UserError(
                f"--protocol={options.protocol} needs --{flag}; see ida-jax evaluate "
                f"--protocol={options.protocol} --help"
            )
    given = {}
    for name, owners in _owners(table).items():
        value = getattr(options, name)
        if value is not None and options.protocol not in owners:
            raise UserError(f"--{name} is for {', '.join(owners)}, not for {options.protocol}")
        if value is not None:
            given[name] = value
    return protocol.flags(**given)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise argparse.ArgumentTypeError("is empty: expected names separated by commas")
    return names


def _check(options: Any, protocol: Protocol) -> None:
    """Finds mistakes in the flags themselves, before anything is read."""
    if options.ignore_identity_pairs is not None and not protocol.identities:
        raise UserError(
            f"--ignore_identity_pairs is not for {protocol.name}: {protocol.no_identities}"
        )
    if options.group_thresholds and options.groups is None:
        raise UserError("--group_thresholds goes with --groups=G: a threshold for each of them")
    if options.group_thresholds and not protocol.grouped:
        listed = _of(all_protocols(), "grouped")
        raise UserError(f"--group_thresholds is for {listed}, not for {protocol.name}")
    if options.images is not None and not protocol.failures:
        listed = _of(all_protocols(), "failures")
        raise UserError(f"--images is for {listed}, not for {protocol.name}")
    if options.resamples < 2:
        raise UserError(f"--resamples={options.resamples}: expected at least 2 resamples")
    if options.tau is not None:
        from ida_jax.common.validation import require_tau

        require_tau(options.tau, what="--tau")
    # The lock of a job that was killed as it ended is still there: run again, the job ends well.
    if (options.output / RESULTS).exists() and not lock_in(options.output).exists():
        raise UserError(
            f"{options.output} already holds results: name another --output, or delete them"
        )


def _artefacts(options: Any) -> tuple[dict[str, Path | None], tuple[str, ...]]:
    """The files that methods need, and the methods."""
    from ida_jax.rescoring.method_table import ARTEFACTS, methods_with, require_method
    from ida_jax.tables.parquet_files import require_table

    files = {kind: getattr(options, kind) for kind in ARTEFACTS}
    if options.run is not None:
        if not options.run.is_dir():
            raise UserError(f"no workdir at {options.run}: expected that of ida-jax train")
        inside = {kind: options.run / name for kind, name in METHOD_FILES.items()}
        if not any(path.is_file() for path in inside.values()):
            raise UserError(
                f"{options.run} holds none of {', '.join(METHOD_FILES.values())}: name a workdir "
                "that has them"
            )
        for kind, path in inside.items():
            if files[kind] is None and path.is_file():
                files[kind] = path
    for kind, path in files.items():
        if path is not None:
            require_table(path, what=kind)
    given = [kind for kind, path in files.items() if path is not None]
    if options.methods is None:
        return files, methods_with(given, usual=True)
    for method in options.methods:
        for need in require_method(method).needs:
            if need not in given:
                raise UserError(f"--methods: {method} needs --{need}, or --run")
    return files, options.methods


def _request(options: Any) -> Request:
    from ida_jax.tables.embeddings import names_beside, read_embeddings
    from ida_jax.tables.identity_pairs import read_identity_pairs

    ignored = options.ignore_identity_pairs
    from_workdir = options.run is not None and options.anchors is None
    names = names_beside(options.embeddings, options.names)
    embeddings = read_embeddings(options.embeddings, names=names)
    return Request(
        options.protocol,
        options.embeddings,
        embeddings,
        groups=_face_groups(options, embeddings),
        group_thresholds=options.group_thresholds,
        files=options.files,
        names=options.names,
        anchors=(options.run / ANCHORS).parent if from_workdir else None,
        skip_bad=options.skip_bad,
        one_person=None if ignored is None else read_identity_pairs(ignored),
        resamples=options.resamples,
        seed=options.seed,
    )


def _scorers(
    options: Any,
    own: Any,
    files: Mapping[str, Path | None],
    methods: tuple[str, ...],
    embeddings: "EmbeddingFile",
    people: Sequence[str] | None,
) -> "dict[str, Rescorer]":
    from ida_jax.rescoring.methods import load_scorers, require_same_models

    check_settings(methods, vars(options))
    scorers = load_scorers(
        methods,
        **files,
        embeddings=options.embeddings,
        k=options.k,
        tau=options.tau,
        weight=options.weight,
        probes=_probes(own, embeddings.embeddings),
        people=people,
        top_n=options.top_n,
        searcher=options.searcher,
        expected_faces=len(embeddings.embeddings),
    )
    require_same_models(options.embeddings, embeddings.fingerprint, scorers.values())
    return scorers


def _probes(own: Any, rows: "np.ndarray") -> "np.ndarray":
    """Of E's rows [N, D] or, of halves, [N, 2D] some as they are scored, for a weight of log F."""
    if getattr(own, "flip", "") != "halves" or rows.shape[1] % 2:
        return rows
    some = rows[:: max(1, len(rows) // 2000)]
    return some[:, : some.shape[1] // 2] + some[:, some.shape[1] // 2 :]


def _face_groups(options: Any, embeddings: "EmbeddingFile") -> "FaceGroups | None":
    """The groups of E's rows."""
    if options.groups is None:
        return None
    from ida_jax.protocols.group_figures import requested_groups

    return requested_groups(
        options.groups, embeddings.embeddings, embeddings.names, what=str(options.embeddings)
    )


def _check_log_f_by_group(methods: Collection[str]) -> None:
    """Of a protocol without rates by group the report shows the groups' log F alone."""
    if SEARCHED not in methods:
        raise UserError(f"--groups shows the groups' log F, which {SEARCHED} finds: give --anchors")


def _log_f_by_group(
    request: Request, scorers: "Mapping[str, Rescorer]"
) -> "DensitiesByGroup | None":
    """log F of each row of E that has an embedding and a group, for the report's figure."""
    if request.groups is None or SEARCHED not in scorers:
        return None
    from ida_jax.common.validation import unit_rows
    from ida_jax.report.run_report import DensitiesByGroup

    (codes, cells, _), rows = request.groups, request.embeddings.embeddings
    known = (codes >= 0) & ~unit_rows(rows, skip_bad=True).bad
    log_density = scorers[SEARCHED].log_densities(rows[known])
    return DensitiesByGroup(log_density, codes[known], cells.names[: cells.compared])


def _norm_notes(
    own: Any, embeddings: "EmbeddingFile", scorers: "Mapping[str, Rescorer]"
) -> tuple[str, ...]:
    """`norm_notes` of the rows of E, whatever the protocol makes of them."""
    from ida_jax.common.validation import row_norms
    from ida_jax.rescoring.log_norms import norm_notes

    if all(scorer.quality_fit is None for scorer in scorers.values()):
        return ()
    norms = row_norms(embeddings.embeddings, halves=getattr(own, "flip", "") == "halves")
    return norm_notes(scorers.values(), norms[norms > 0])


def _settings(
    options: Any, own: Any, files: Mapping[str, Path | None], scorers: "Mapping[str, Rescorer]"
) -> dict[str, Any]:
    """The flags' values, and the defaults where there were none."""
    used = {**dataclasses.asdict(own), "methods": list(scorers)}
    for scorer in scorers.values():
        if scorer.anchors is not None:
            used |= {"k": scorer.k, "tau": scorer.tau, "top_n": scorer.top_n}
            break
    for name in scorers.keys() & methods_set_by("weight"):
        used["weight"] = scorers[name].weight
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in {**vars(options), **files, **used}.items()
        if value is not None
    }


def _anchors(scorers: "Mapping[str, Rescorer]") -> dict[str, Any]:
    for scorer in scorers.values():
        if (anchors := scorer.anchors) is not None:
            size = {"source": anchors.source, "size": len(anchors)}
            return {"anchors": {**size, "fingerprint": anchors.fingerprint}}
    return {}
