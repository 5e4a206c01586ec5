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

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np

    from ida_jax.anchors.anchor_set import AnchorSet

_FILES = """
  E  .npy, .npz or .parquet: development embeddings [N, D], never the faces under test
  L  .npy, or text of one a line: N integers or names, the faces' identities; -1 where unknown
  A  the anchor set to rescore with (.safetensors), or embeddings as E. Its labels, where it has
     them, are in L's numbering, or L has its names: a face's own identity is then left out of its
     support set or cohort."""
_CSN = "Fits the classifier of discriminative cohort score normalisation (rescore --csn=F).\n"
_DAO = """Fits IDA-R's constants: the densities' weight and the support set's size
(rescore --method=ida_r_fitted --dao_fit=F).
"""
_QUALITY = """Fits IDA-Q's constants: what density, norm and a genuine pair's expected cosine weigh
(rescore --method=ida_q --quality_fit=F). E must be as the model gave it, not normalised, and of
faces of the same kind and quality as those to be scored.
"""


def main(argv: list[str]) -> None:
    """Fits one of the three."""
    commands = {
        "csn": (_CSN, _csn_flags, _fit_csn),
        "dao": (_DAO, _dao_flags, _fit_dao),
        "quality": (_QUALITY, _quality_flags, _fit_quality),
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
    elif argv[0] not in commands:
        raise UserError(f"unknown fit '{argv[0]}': expected csn, dao or quality; see --help")
    else:
        description, add_flags, fit = commands[argv[0]]
        parser = _parser(argv[0], description)
        add_flags(parser.add_argument)
        options = parser.parse_args(argv[1:])
        with _writing(options):
            fit(options, _read(options))


def _csn_flags(add: "Callable[..., Any]") -> None:
    # fmt: off
    add("--top_n", type=int, help="cohort scores a face (100, or as many as the anchors allow)")
    add("--degree", type=int, default=3, help="the polynomial's degree (3)")
    add("--prior", type=float, default=1e-3,
        help="share of genuine pairs that the fit is weighted to; low for low FARs (0.001)")
    add("--seed", type=int, default=0, help="of the pairs' draw (0)")
    # fmt: on


def _fit_csn(options: Any, given: "_Given") -> None:
    from ida_jax.rescoring.csn_fit import USUAL_COHORT, fit_csn

    csn = fit_csn(
        given.faces,
        given.labels,
        given.anchors,
        top_n=options.top_n,
        degree=options.degree,
        prior=options.prior,
        **_search(options),
        seed=options.seed,
    )
    csn.save(options.output)
    if options.top_n is None and csn.top_n < USUAL_COHORT:
        print(
            f"top_n is {csn.top_n}, for want of the usual {USUAL_COHORT}: the set has only "
            f"{csn.anchors} anchors"
        )
    print(
        f"{options.output}: fitted on {csn.genuine:,} genuine and {csn.impostor:,} impostor pairs "
        f"of {csn.identities:,} identities, cohort: the {csn.top_n} nearest of {csn.anchors:,} "
        "anchors"
    )


def _dao_flags(add: "Callable[..., Any]") -> None:
    add("--far", type=float, default=1e-4, help="the FAR to fit at (0.0001)")
    add("--most_support", type=int, default=128, help="the most neighbours looked at (128)")


def _fit_dao(options: Any, given: "_Given") -> None:
    from ida_jax.rescoring.dao_fit import fit_dao

    fit = fit_dao(
        given.faces,
        given.labels,
        given.anchors,
        far=options.far,
        most_support=options.most_support,
        **_search(options),
    )
    fit.save(options.output)
    print(
        f"{options.output}: weight {fit.weight:.3g}, support set of {fit.support:.3g} at tau "
        f"{fit.tau:g}; fitted at FAR {fit.far:g} on {fit.genuine:,} genuine and "
        f"{fit.impostor:,} impostor pairs of {fit.identities:,} identities, with {fit.anchors:,} "
        "anchors"
    )


def _quality_flags(add: "Callable[..., Any]") -> None:
    add("--k", type=int, default=30, help="the nearest anchors whose mean cosine counts (30)")
    add(
        "--form",
        default="fitted",
        help="fitted (default), or base: the density weighs what it does in DAO, and the norm "
        "counts for the genuine side alone",
    )


def _fit_quality(options: Any, given: "_Given") -> None:
    import numpy as np

    from ida_jax.rescoring.quality_fit import fit_quality

    fit = fit_quality(
        given.faces,
        given.norms,
        given.labels,
        given.anchors,
        k=options.k,
        form=options.form,
        **_search(options),
    )
    fit.save(options.output)
    low, high = np.exp([fit.lowest, fit.highest])
    print(
        f"{options.output}: T {fit.rate:.3g}, theta_u {fit.density_weight:.3g}, theta_l "
        f"{fit.norm_weight:.3g}; a genuine pair's cosine {fit.intercept:.3g} + {fit.slope:.3g} "
        f"(l1 + l2), deviation {fit.deviation:.3g}; norms {low:.3g} … {high:.3g}; fitted on "
        f"{fit.genuine:,} genuine pairs of {fit.people:,} people and {fit.impostor:,} impostor "
        f"pairs, with the {fit.k} nearest of {fit.anchors:,} anchors"
    )
    if fit.form != options.form:
        print(
            "the form is base: the faces have too few impostor pairs for the other, and T is that "
            "of their pairs with the anchors"
        )


def _search(options: Any) -> dict[str, Any]:
    """What all three fits take alike."""
    return {"exclude_own": not options.keep_own, "searcher": options.searcher}


class _Given(NamedTuple):
    """Unit rows, the norms that they had, identities in the anchors' numbering, the anchors."""

    faces: "np.ndarray"
    norms: "np.ndarray"
    labels: "np.ndarray"
    anchors: "AnchorSet"


def _parser(kind: str, description: str) -> Parser:
    parser = Parser(f"fit {kind}", description=description + _FILES)
    add = parser.add_argument
    # fmt: off
    add("--embeddings", type=Path, required=True, metavar="E", help="the development faces")
    add("--labels", type=Path, required=True, metavar="L", help="their identities")
    add("--anchors", type=Path, required=True, metavar="A", help="the anchors, or the cohort")
    add("--output", type=Path, required=True, metavar="F", help="where the fit goes")
    add("--keep_own", action="store_true",
        help="A's labels are in another numbering, and no person is in both E and A")
    add("--searcher", default="auto", help="as in rescore (auto)")
    # fmt: on
    return parser


def _writing(options: Any) -> "AbstractContextManager[None]":
    from ida_jax.common.outputs import writing

    read = ("embeddings", "labels", "anchors")
    reading = {f"--{name}": getattr(options, name) for name in read}
    return writing({"--output": options.output}, reading=reading)


def _read(options: Any) -> _Given:
    import numpy as np

    from ida_jax.anchors.sources import read_anchors
    from ida_jax.common.validation import unit_rows
    from ida_jax.tables.embeddings import read_embeddings
    from ida_jax.tables.identities import numbered, read_people

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
    rows, _, norms = unit_rows(faces.embeddings)
    return _Given(rows, norms, labels, anchors)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
