"""ida-jax anchors check: near-duplicates in a set, and problems with the faces it will score.

N faces, D embedding.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.anchors.check import Matches

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


class _Probes(NamedTuple):
    """Unit embeddings [N, D] of these norms; their names and people, None where unknown."""

    embeddings: "np.ndarray"
    norms: "np.ndarray"
    names: "Sequence[str] | None"
    people: "Sequence[str] | np.ndarray | None"


def main(argv: list[str]) -> bool:
    parser = Parser("anchors check", description=_CHECK)
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
