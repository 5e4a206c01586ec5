"""ida-jax fit csn|dao|quality --embeddings=E --labels=L --anchors=A --output=F

  csn      the classifier of discriminative cohort score normalisation, for
           ida-jax rescore --method=csn --csn=F
  dao      IDA-R's constants, the densities' weight and the support set's size, for
           ida-jax rescore --method=ida_r_fitted --dao_fit=F
  quality  IDA-Q's constants, by which an embedding's norm counts beside the density, for
           ida-jax rescore --method=ida_q --quality_fit=F

`ida-jax fit csn --help` and so on say more.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ida_jax.common.command_line import Parser, did_you_mean, seed_number
from ida_jax.common.errors import UserError, exit_code

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ida_jax.anchors.anchor_set import AnchorSet

_FILES = """
  E  .npy, .npz or .parquet: development embeddings [N, D], never the faces under test
  L  .npy, or text with one per line: N integers or names, the faces' identities; -1 where unknown
  A  the anchor set to rescore with (.safetensors), or embeddings as E. Its labels, where it has
     them, are in L's numbering, or L has its names: a face's own identity is then left out of its
     support set or cohort."""
_EXAMPLE = """

examples:
  ida-jax fit {kind} --embeddings=dev.npy --labels=dev_labels.npy --anchors=anchors.safetensors \\
      --output={kind}.safetensors"""
_CSN = "Fits the classifier of discriminative cohort score normalisation (rescore --csn=F).\n"
_DAO = """Fits IDA-R's constants: the densities' weight and the support set's size
(rescore --method=ida_r_fitted --dao_fit=F).
"""
_QUALITY = """Fits IDA-Q's constants: what density, norm and a genuine pair's expected cosine weigh
(rescore --method=ida_q --quality_fit=F). E must be as the model gave it, not normalised, and of
faces of the same kind and quality as those to be scored.
"""


_Made = tuple[Any, list[str]]  # what was fitted, and what to say of it


def main(argv: list[str]) -> None:
    """Fits one of the three."""
    from ida_jax.common.outputs import writing

    kind, *rest = argv or ["--help"]
    if kind in ("-h", "--help"):
        print(__doc__)
        return
    if kind not in _FITS:
        raise UserError(f"unknown fit '{kind}': {did_you_mean(kind, _FITS)}; see --help")
    fit = _FITS[kind]
    parser = _parser(kind, fit.description)
    fit.flags(parser.add_argument_group("the fit").add_argument)
    options = parser.parse_args(rest)
    reading = {f"--{name}": getattr(options, name) for name in ("embeddings", "labels", "anchors")}
    with writing({"--output": options.output}, reading=reading):
        made, said = fit.make(
            options,
            _read(options),
            exclude_own=not options.keep_own,
            searcher=options.searcher,
        )
        made.save(options.output)
        print("\n".join(said))


def _csn_flags(add: "Callable[..., Any]") -> None:
    # fmt: off
    add("--top_n", type=int, help="cohort scores a face (100, or as many as the anchors allow)")
    add("--degree", type=int, default=3, help="the polynomial's degree (3)")
    add("--prior", type=float, default=1e-3,
        help="share of genuine pairs that the fit is weighted to; low for low FARs (0.001)")
    add("--seed", type=seed_number, default=0, help="of the pairs' draw (0)")
    # fmt: on


def _csn(options: Any, given: "_Given", **common: Any) -> _Made:
    from ida_jax.rescoring.csn_fit import USUAL_COHORT, fit_csn

    csn = fit_csn(
        given.faces,
        given.labels,
        given.anchors,
        top_n=options.top_n,
        degree=options.degree,
        prior=options.prior,
        seed=options.seed,
        **common,
    )
    said = []
    if options.top_n is None and csn.top_n < USUAL_COHORT:
        said.append(
            f"top_n is {csn.top_n}, for want of the usual {USUAL_COHORT}: the set has only "
            f"{csn.anchors} anchors"
        )
    said.append(
        f"{options.output}: fitted on {csn.genuine:,} genuine and {csn.impostor:,} impostor pairs "
        f"of {csn.identities:,} identities, cohort: the {csn.top_n} nearest of {csn.anchors:,} "
        "anchors"
    )
    return csn, said


def _dao_flags(add: "Callable[..., Any]") -> None:
    add("--far", type=float, default=1e-4, help="the FAR to fit at (0.0001)")
    add("--most_support", type=int, default=128, help="the most neighbours looked at (128)")


def _dao(options: Any, given: "_Given", **common: Any) -> _Made:
    from ida_jax.rescoring.dao_fit import fit_dao

    fit = fit_dao(
        given.faces,
        given.labels,
        given.anchors,
        far=options.far,
        most_support=options.most_support,
        **common,
    )
    return fit, [
        f"{options.output}: weight {fit.weight:.3g}, support set of {fit.support:.3g} at tau "
        f"{fit.tau:g}; fitted at FAR {fit.far:g} on {fit.genuine:,} genuine and "
        f"{fit.impostor:,} impostor pairs of {fit.identities:,} identities, with {fit.anchors:,} "
        "anchors"
    ]


def _quality_flags(add: "Callable[..., Any]") -> None:
    add("--k", type=int, default=30, help="the nearest anchors whose mean cosine counts (30)")
    add(
        "--form",
        default="fitted",
        help="fitted (default), or base: the density weighs what it does in DAO, and the norm "
        "counts for the genuine side alone",
    )


def _quality(options: Any, given: "_Given", **common: Any) -> _Made:
    import numpy as np

    from ida_jax.rescoring.quality_fit import fit_quality

    fit = fit_quality(
        given.faces,
        given.norms,
        given.labels,
        given.anchors,
        k=options.k,
        form=options.form,
        **common,
    )
    low, high = np.exp([fit.lowest, fit.highest])
    said = [
        f"{options.output}: T {fit.rate:.3g}, theta_u {fit.density_weight:.3g}, theta_l "
        f"{fit.norm_weight:.3g}; a genuine pair's cosine {fit.intercept:.3g} + {fit.slope:.3g} "
        f"(l1 + l2), deviation {fit.deviation:.3g}; norms {low:.3g} … {high:.3g}; fitted on "
        f"{fit.genuine:,} genuine pairs of {fit.people:,} people and {fit.impostor:,} impostor "
        f"pairs, with the {fit.k} nearest of {fit.anchors:,} anchors"
    ]
    if fit.form != options.form:
        said.append(
            "the form is base: the faces have too few impostor pairs for the other, and T is that "
            "of their pairs with the anchors"
        )
    return fit, said


class _Fit(NamedTuple):
    """A fit: its help, what adds its own flags, and what makes it and says so in lines."""

    description: str
    flags: "Callable[[Callable[..., Any]], None]"
    make: "Callable[..., _Made]"


_FITS = {
    "csn": _Fit(_CSN, _csn_flags, _csn),
    "dao": _Fit(_DAO, _dao_flags, _dao),
    "quality": _Fit(_QUALITY, _quality_flags, _quality),
}


class _Given(NamedTuple):
    """Unit rows, the norms that they had, identities in the anchors' numbering, the anchors."""

    faces: "np.ndarray"
    norms: "np.ndarray"
    labels: "np.ndarray"
    anchors: "AnchorSet"


def _parser(kind: str, description: str) -> Parser:
    parser = Parser(f"fit {kind}", description=description + _FILES + _EXAMPLE.format(kind=kind))
    # fmt: off
    add = parser.add_argument_group("files").add_argument
    add("--embeddings", type=Path, required=True, metavar="E", help="the development faces")
    add("--labels", type=Path, required=True, metavar="L", help="their identities")
    add("--anchors", type=Path, required=True, metavar="A", help="the anchors, or the cohort")
    add("--output", type=Path, required=True, metavar="F", help="where the fit goes")
    add("--keep_own", action="store_true",
        help="A's labels are in another numbering, and no person is in both E and A")
    add("--searcher", default="auto", help="as in rescore (auto)")
    # fmt: on
    return parser


def _read(options: Any) -> _Given:
    import numpy as np

    from ida_jax.anchors.sources import read_anchors
    from ida_jax.common.validation import unit_rows
    from ida_jax.tables.embeddings import read_embeddings
    from ida_jax.tables.identities import numbered, read_people
    from ida_jax.tables.parquet_files import row_place

    faces, anchors = read_embeddings(options.embeddings), read_anchors(options.anchors)
    anchors.check_model(
        fingerprint=faces.fingerprint, width=faces.width, whose=str(options.embeddings)
    )
    people = read_people(options.labels, len(faces.embeddings))
    labels = numbered(people)
    if people.dtype.kind == "U" and anchors.labels is not None and not options.keep_own:
        own = anchors.labels_of(people)
        # People who are not among the anchors are numbered above those who are.
        others = labels + int(anchors.labels.max(initial=0)) + 1
        labels = others if own is None else np.where(own >= 0, own, others)
    rows, _, norms = unit_rows(
        faces.embeddings, what=str(options.embeddings), place=row_place(options.embeddings)
    )
    return _Given(rows, norms, labels, anchors)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
