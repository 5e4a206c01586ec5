"""ida-jax anchors build|fake|info|check …

  build   makes an anchor set from embeddings, a model's class weights, or a model and crops
  fake    makes one from a generator's faces, which it checks: the paper's fake-db
  info    describes a set
  check   looks for near-duplicates in a set, and for problems with the faces that it will score

`ida-jax anchors build --help` and so on say more.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.anchors.check import Matches
    from ida_jax.artefacts.face_model import FaceModel

_BUILD = """Makes an anchor set, from exactly one of

  --embeddings=E [--labels=L]    embeddings, with their model's fingerprint: all, or one a person
  --model=M --class_weights      the weights of a model's margin head
  --class_weights=FILES [--model=M]
                                 those of an arcface_torch training, the embeddings' own: .pt files
                                 of all ranks by commas, or the folder of softmax_fc_gpu_*.pt
  --model=M --images=FOLDER      crops in FOLDER/PERSON/ or in FOLDER, embedded by the model;
                                 with --degrade also degraded copies of some

An existing output is replaced whole or not at all.

examples:
  ida-jax anchors build --embeddings=train.npy --labels=people.txt --output=anchors.safetensors
  ida-jax anchors build --model=model.safetensors --images=crops --degrade \\
      --output=anchors.safetensors"""

_INFO = """Describes an anchor set: size, source, defaults; how near its anchors lie to one
another; how many may show one person twice.

examples:
  ida-jax anchors info --anchors=anchors.safetensors"""

_CHECK = """Looks for pairs of anchors that may show one person twice. With --against, the faces
that the anchors will score, also for leaks (probes who are among the anchors, which lowers their
scores) and for anchors of the wrong domain, or not as varied as the probes, with which IDA can be
worse than the cosine. With --groups, also for anchors that are denser around one group of people
than around another, whose false accept rate then is higher.

exit code: 0 nothing found; 1 leaks, the wrong domain, crowded probes, uneven groups, or faces that
cannot tell whether IDA-R helps; 2 a mistake in the call or in a file. Near-duplicates are listed,
and do not change it.

examples:
  ida-jax anchors check --anchors=anchors.safetensors --against=faces.npy --labels=people.txt"""

# The exact count takes A² · D operations: a minute for these on two cores.
_MOST_COUNTED = 100_000


class _Probes(NamedTuple):
    """Unit embeddings [N, D] of these norms; their names and people, None where unknown."""

    embeddings: "np.ndarray"
    norms: "np.ndarray"
    names: "Sequence[str] | None"
    people: "Sequence[str] | np.ndarray | None"


def main(argv: list[str]) -> bool:
    """Runs one of the four; True where `check` found something."""
    commands = {"build": _build, "fake": _fake, "info": _info, "check": _check}
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
    elif argv[0] not in commands:
        raise UserError(f"'{argv[0]}' is unknown: expected build, fake, info or check; see --help")
    else:
        return commands[argv[0]](argv[1:]) is True
    return False


def _build(argv: list[str]) -> None:
    from ida_jax.anchors.balance import balance_option
    from ida_jax.anchors.degraded import add_degrade_flags

    parser = _parser("build", _BUILD)
    add = parser.add_argument_group("where they come from").add_argument
    add("--output", type=Path, required=True, metavar="A.safetensors", help="the anchor set")
    add("--embeddings", type=Path, metavar="E", help=".npy, .npz or .parquet, [N, D] of any norm")
    people = "who is on each row: .npy, or .txt of one integer or name a line"
    add("--labels", type=Path, metavar="L", help=people)
    add("--model", type=Path, metavar="M", help="model.safetensors, or the folder that holds it")
    weights = "the model's class weights; or those in FILES (.pt), or in a folder's shards"
    add("--class_weights", nargs="?", const="", metavar="FILES", help=weights)
    add("--images", type=Path, metavar="FOLDER", help="embed these crops with the model")
    add("--flip", action="store_true", help="with --images: add the mirrored crop's embedding")
    add = parser.add_argument_group("which of them").add_argument
    add("--per_identity", type=int, default=1, help="anchors of one identity, its first (1)")
    add(
        "--balance",
        type=balance_option,
        metavar="GROUPS",
        help="as many anchors of each group as "
        "of the smallest: a list of person or image and group, .csv, .tsv or .txt; one group a row "
        "of E; or clusters:N, of the embeddings",
    )
    add("--size", type=int, default=50_000, help="at most this many images (50,000, the paper's)")
    add("--seed", type=int, default=0, help="of the draw where there are more (0)")
    add = parser.add_argument_group("what is kept with them").add_argument
    add("--k", type=int, default=10, help="the set's default support set size (10)")
    add("--tau", type=float, default=1.0, help="the set's default τ (1)")  # fmt: skip
    add_degrade_flags(parser)
    options = parser.parse_args(argv)
    _check_build(options)
    from ida_jax.common.outputs import writing
    from ida_jax.runs.workdir import MODEL, file_inside

    reading = {f"--{name}": getattr(options, name) for name in ("embeddings", "labels", "images")}
    if isinstance(options.balance, Path):
        reading["--balance"] = options.balance
    if options.class_weights:
        from ida_jax.interop.class_weights import class_weight_files

        files = class_weight_files(options.class_weights)
        reading |= {f"--class_weights ({path})": path for path in files}
    reading["--model"] = None if options.model is None else file_inside(options.model, MODEL)
    with writing({"--output": options.output}, reading=reading):
        _build_set(options)


def _build_set(options: Any) -> None:
    from ida_jax.anchors import sources
    from ida_jax.anchors.balance import names_of_rows, requested_balance
    from ida_jax.anchors.degraded import asked_degradation
    from ida_jax.data.sources.image_names import hidden_note
    from ida_jax.tables.embeddings import names_beside, read_embeddings
    from ida_jax.tables.identities import read_people

    common = {"size": options.size, "seed": options.seed, "k": options.k, "tau": options.tau}
    if options.embeddings is not None:
        people = None if options.labels is None else read_people(options.labels)
        names = None if options.balance is None else names_beside(options.embeddings, None)
        table = read_embeddings(options.embeddings, names=names)
        anchors = sources.embedding_anchors(
            table.embeddings,
            people=people,
            per_identity=options.per_identity,
            balance=requested_balance(
                options.balance, names_of_rows(table.names, people), len(table.embeddings)
            ),
            fingerprint=table.fingerprint,
            **common,
        )
    elif options.class_weights is not None:
        weights, fingerprint = _class_weights(options)
        anchors = sources.class_weights(weights, fingerprint=fingerprint, **common)
    else:
        found = sources.find_images(options.images)  # its mistakes before the model is read
        if found.hidden:
            print(hidden_note(found.hidden))
        names = [f"{file.parent.name}/{file.name}" for file in found.files]
        anchors = sources.image_anchors(
            options.images,
            _model(options.model),
            per_identity=options.per_identity,
            balance=requested_balance(options.balance, names, len(names)),
            flip=options.flip,
            degrade=asked_degradation(options),
            **common,
        )
    if options.k > len(anchors):
        raise UserError(
            f"k = {options.k} is more than the {len(anchors)} anchors: lower k or take more anchors"
        )
    anchors.save(options.output)
    print(f"{options.output}: {anchors.described()}")


def _class_weights(options: Any) -> "tuple[np.ndarray, str]":
    """[C, D], and their model's fingerprint, "" where it is not known."""
    from ida_jax.interop.class_weights import class_weight_files, read_class_weights

    model = None if options.model is None else _model(options.model)
    if not options.class_weights:
        if model.class_weights is None:
            raise UserError(
                f"{options.model} has no class weights: it was not trained by ida_jax; give those "
                "of its arcface_torch training as --class_weights=FILES"
            )
        return model.class_weights, model.fingerprint
    weights = read_class_weights(class_weight_files(options.class_weights))
    if model is not None and weights.shape[1] != model.width:
        raise UserError(
            f"the class weights in {options.class_weights} are {weights.shape[1]} wide, the "
            f"embeddings of {options.model} {model.width}: expected those of its own training"
        )
    return weights, "" if model is None else model.fingerprint


def _check_build(options: Any) -> None:
    from ida_jax.anchors.degraded import asked_degradation

    kinds = (options.embeddings, options.class_weights, options.images)
    given = [each is not None for each in kinds]
    if sum(given) != 1:
        raise UserError("expected exactly one of --embeddings, --class_weights, --images")
    of_files = bool(options.class_weights)
    if (options.model is None) != given[0] and not of_files:
        raise UserError("--model=M goes with --class_weights or --images, and they need it")
    if options.labels is not None and not given[0]:
        raise UserError("--labels goes with --embeddings: images are labelled by their folders")
    if options.balance is not None and given[1]:
        raise UserError("--balance goes with --embeddings or --images: classes have no names")
    if options.flip and not given[2]:
        raise UserError("--flip goes with --images")
    if options.degrade and not given[2]:
        raise UserError("--degrade goes with --images: embeddings and weights have none to degrade")
    asked_degradation(options)
    if options.output.suffix != ".safetensors":
        raise UserError(f"--output is {options.output}: expected a name that ends in .safetensors")
    if options.size < 1 or options.per_identity < 1:
        raise UserError("--size and --per_identity must be at least 1")
    if not 1 <= options.k <= options.size:
        raise UserError(f"--k is {options.k}: expected k from 1 to the size, {options.size}")
    from ida_jax.common.validation import require_tau

    require_tau(options.tau, what="--tau")
    if not options.output.parent.is_dir():
        raise UserError(f"no folder {options.output.parent} to write in: make it first")


def _fake(argv: list[str]) -> None:
    from ida_jax.runs import fake_command

    fake_command.main(argv)


def _info(argv: list[str]) -> None:
    parser = _parser("info", _INFO)
    parser.add_argument("--anchors", type=Path, required=True, metavar="A", help="the anchor set")
    options = parser.parse_args(argv)

    import numpy as np

    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.anchors.check import near_duplicates, same_person_threshold
    from ida_jax.anchors.coverage import own_neighbourhood
    from ida_jax.anchors.fake import provenance_line
    from ida_jax.common.files import complete

    anchors = AnchorSet.load(options.anchors, verify=True)
    print(f"{options.anchors}: {anchors.described()}")
    if anchors.source == "fake_db" and anchors.provenance:
        with complete(options.anchors):
            made_of = provenance_line(anchors.provenance)
        print(f"made of: {printable(made_of)}")
    if balance := anchors.provenance.get("balance"):
        with complete(options.anchors):
            made = f"{balance['each']:,} anchors of each of {', '.join(balance['groups'])}"
        print(f"balanced: {printable(made)}")
    try:
        own = own_neighbourhood(anchors, k=anchors.k, tau=anchors.tau)
    except UserError as error:  # of too few anchors, but still a set
        print(f"own neighbourhood: none ({error})")
        return
    levels = (1, 10, 50, 90, 99)
    quantiles = np.quantile(own.log_density, [level / 100 for level in levels])
    log_densities = ", ".join(f"{q:.3f} ({p} %)" for p, q in zip(levels, quantiles, strict=True))
    print(
        f"own neighbourhood: cosine to the {anchors.k} nearest others {own.similarity.mean():.3f} "
        f"on average\nlog F of the anchors: {log_densities}"
    )
    if len(anchors) > _MOST_COUNTED:
        print(f"near-duplicates: not counted among more than {_MOST_COUNTED:,}; see check")
        return
    threshold = same_person_threshold(anchors, faces=len(anchors))
    pairs = near_duplicates(anchors, threshold, limit=1)
    print(f"near-duplicates: {pairs.total:,} pairs with a cosine of at least {threshold:.3f}")


def _check(argv: list[str]) -> bool:
    parser = _parser("check", _CHECK)
    add = parser.add_argument
    add("--anchors", type=Path, required=True, metavar="A", help="the anchor set")
    add("--against", type=Path, metavar="E", help="the probes: .npy, .npz or .parquet")
    people = "who is on each probe, as in build, or PERSON/IMAGE; without it, E's own such names"
    add("--labels", type=Path, metavar="L", help=people)
    groups = "the probes' groups: a list of person or image and group, .csv, .tsv or .txt"
    add("--groups", type=Path, metavar="GROUPS", help=groups)
    add(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="from this on two faces may show one person (default: what one of the compared faces "
        "would reach by chance, by the anchors' own similarities)",
    )
    add("--json", type=Path, metavar="OUT", help="everything found, as a file")
    add("--limit", type=int, default=20, help="at most this many pairs printed per list (20)")
    options = parser.parse_args(argv)
    if options.labels is not None and options.against is None:
        raise UserError("--labels goes with --against=E: they say who is on E's rows")
    if options.groups is not None and options.against is None:
        raise UserError("--groups goes with --against=E: the groups are of E's people")
    if options.limit < 0:
        raise UserError(f"--limit is {options.limit}: expected at least 0")
    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise UserError(f"--threshold is {options.threshold}: expected a cosine from -1 to 1")
    from ida_jax.common.outputs import writing

    read = ("anchors", "against", "labels", "groups")
    reading = {f"--{name}": getattr(options, name) for name in read}
    with writing({"--json": options.json}, reading=reading):
        return _check_set(options)


def _check_set(options: Any) -> bool:
    from ida_jax.anchors import check
    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.anchors.group_check import check_listed_groups

    anchors = AnchorSet.load(options.anchors, verify=True)
    against = None if options.against is None else _probes(options, anchors)
    print(f"{options.anchors}: {anchors.described()}")

    def threshold(faces: int) -> float:
        if options.threshold is not None:
            return options.threshold
        return check.same_person_threshold(anchors, faces=faces)

    findings: list[str] = []
    report: dict[str, Any] = {}
    if against is not None:
        level = threshold(len(against.embeddings))
        findings, report = _against(against, anchors, level, options.limit)
        if options.groups is not None:
            uneven = check_listed_groups(
                options.groups, against.embeddings, against.names, against.people, anchors
            )
            print(*map(printable, uneven.lines), sep="\n")
            report["groups"] = uneven.found.json()
            findings += uneven.findings
    level = threshold(len(anchors))
    duplicates = check.near_duplicates(anchors, level, limit=max(options.limit, 1000))
    print(
        f"near-duplicates: {duplicates.total:,} pairs of anchors with a cosine of at least "
        f"{level:.3f}"
    )
    _list(duplicates, "anchor", anchors.names, anchors.names, options.limit)
    report["near_duplicates"] = check.matches_json(duplicates, threshold=level)
    if anchors.labels is None and level >= check.HIGHEST_THRESHOLD > (options.threshold or 0):
        findings.append(
            "the set seems to hold several images of a person without labels, so that no "
            "threshold follows and leaks go unseen: build it with --labels, or give --threshold"
        )
    for finding in findings:
        print(f"warning: {finding}")
    if options.json is not None:
        _write_json(options.json, {"anchors": str(options.anchors), **report, "findings": findings})
    return bool(findings)


def _against(
    probes: _Probes, anchors: "AnchorSet", threshold: float, limit: int
) -> tuple[list[str], dict[str, Any]]:
    """Coverage and leaks printed; the warnings, and the same for a JSON file."""
    import numpy as np

    from ida_jax.anchors import check
    from ida_jax.anchors.coverage import coverage
    from ida_jax.anchors.crowding import reported_crowding
    from ida_jax.anchors.supported_weight import probe_gain

    findings, report = [], {}
    faces, count = probes.embeddings, f"{len(probes.embeddings):,}"
    near = coverage(faces, anchors)
    report["coverage"] = near._asdict()
    print(
        f"coverage: cosine to the {anchors.k} nearest anchors {near.similarity:.3f}, of an anchor "
        f"to the others {near.own_similarity:.3f}; {near.share_uncovered:.1%} of {near.faces:,} "
        "probes uncovered (about 1 % is usual)"
    )
    if near.wrong_domain:
        findings.append(
            "the anchors are not of the probes' domain, or not of their model, and IDA can then be "
            "worse than the cosine: make them as the probes, or take --method=ida_r_fallback"
        )
    crowd = reported_crowding(faces, probes.people, anchors, norms=probes.norms)
    print(crowd.line)
    report["crowding"] = crowd.json
    findings += crowd.warnings
    names = probes.names or ()
    gain = probe_gain(faces, anchors, people=_people_on(probes), threshold=threshold)
    report["gain"] = gain._asdict()
    print(gain.described())
    if not near.wrong_domain and not gain.helpful:
        findings.append(
            "IDA-R raises a threshold among the probes' impostor pairs: the anchors are of another "
            "domain, or few, and IDA can then be worse than the cosine: make them as the probes, "
            "or take --method=ida_r_fallback"
            if gain.harmful
            else "these probes cannot tell whether IDA-R ranks better than the cosine with these "
            "anchors: give more people's faces or, if that changes nothing, anchors that are more "
            "or nearer to the probes, or take --method=ida_r_fallback or the cosine"
        )
    if probes.people is not None:
        known = check.known_leaks(faces, probes.people, anchors)
        given = np.asarray(probes.people)
        asked = len(np.unique(given[given >= 0] if given.dtype.kind in "iu" else given))
        found = len(np.unique(given[known.first]))
        print(
            f"known leaks: the people of {known.total:,} of {count} probes are among the anchors, "
            f"{found:,} of {asked:,} known people"
        )
        _list(known, "probe", names, anchors.names, limit)
        report["known_leaks"] = check.matches_json(known, people=asked, people_found=found)
        if known.total:
            findings.append(
                f"the people of {known.total:,} probes are among the anchors, by name or label"
            )
    leaks = check.identity_leaks(faces, anchors, threshold)
    print(
        f"likely leaks: {leaks.total:,} of {count} probes have an anchor with a cosine of at least "
        f"{threshold:.3f}"
    )
    _list(leaks, "probe", names, anchors.names, limit)
    report["leaks"] = check.matches_json(leaks, threshold=threshold)
    if leaks.total:
        findings.append(
            f"{leaks.total:,} probes are likely among the anchors, which lowers their scores: "
            "build the set without these anchors"
        )
    return findings, report


def _people_on(probes: _Probes) -> "np.ndarray | None":
    """Who is on each probe, by its labels or its names' folders; None where unknown."""
    import numpy as np

    from ida_jax.tables.identities import people_of_images

    people = probes.people
    if people is None and probes.names:
        people = people_of_images(probes.names)
    return None if people is None else np.asarray(people)


def _parser(command: str, description: str) -> Parser:
    return Parser(f"anchors {command}", description=description)


def _model(path: Path) -> "FaceModel":
    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.runs.workdir import MODEL, file_inside

    return FaceModel.load(file_inside(path, MODEL))


def _probes(options: Any, anchors: "AnchorSet") -> _Probes:

    from ida_jax.common.validation import unit_rows
    from ida_jax.tables.embeddings import names_beside, read_embeddings
    from ida_jax.tables.identities import people_of_images, read_people_or_images

    table = read_embeddings(options.against, names=names_beside(options.against, None))
    path = str(options.against)
    anchors.check_model(fingerprint=table.fingerprint, width=table.width, whose=path)
    people = None
    if options.labels is not None:
        people = read_people_or_images(options.labels, len(table.embeddings), among=anchors.names)
    elif anchors.names and table.names:
        people = people_of_images(table.names)
    faces, _, norms = unit_rows(table.embeddings, what="probes")
    return _Probes(faces, norms, table.names, people)


def _list(
    matches: "Matches", what: str, names: "Sequence[str]", anchor_names: "Sequence[str]", limit: int
) -> None:
    def row(what: str, number: int, names: "Sequence[str]") -> str:
        return f"{what} {number}" + (f" ({printable(names[number])})" if names else "")

    for first, second, cosine in list(zip(*matches[1:], strict=True))[:limit]:
        print(f"  {cosine:.3f}  {row(what, first, names)}  {row('anchor', second, anchor_names)}")
    if matches.total > limit:
        print(f"  … and {matches.total - limit:,} more (--limit, --json)")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    from ida_jax.common.files import json_text, written_whole

    with written_whole(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def _command() -> int:
    commands = []
    code = exit_code(lambda: commands.append(main(sys.argv[1:])))
    return code or int(any(commands))


if __name__ == "__main__":
    sys.exit(_command())
