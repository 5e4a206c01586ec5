"""python -m ida_jax.csn --embeddings=E --labels=L --anchors=A --output=C.safetensors

Fits the classifier of discriminative cohort score normalisation (rescore --method=csn --csn=C).

  E  .npy, .npz or .parquet: development embeddings [N, D], never the faces under test
  L  .npy, or text of one a line: N integers, the faces' identities; -1 where unknown
  A  the anchor set to rescore with (.safetensors), or embeddings as E. Its labels, where it has
     them, are in L's numbering: a face's own identity is then left out of its cohort.
"""

import sys
from pathlib import Path

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import exit_code


def main(argv: list[str]) -> None:
    """Parses flags, fits, writes the classifier."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--embeddings", type=Path, required=True, metavar="E", help="the development faces")
    add("--labels", type=Path, required=True, metavar="L", help="their identities")
    add("--anchors", type=Path, required=True, metavar="A", help="the cohort")
    add("--output", type=Path, required=True, metavar="C", help="where the classifier goes")
    add("--top_n", type=int, default=100, help="cohort scores a face (100)")
    add("--degree", type=int, default=3, help="the polynomial's degree (3)")
    add(
        "--prior",
        type=float,
        default=1e-3,
        help="share of genuine pairs that the fit is weighted to; low for low FARs (0.001)",
    )
    add(
        "--keep_own",
        action="store_true",
        help="A's labels are in another numbering, and nobody is both in E and in A",
    )
    add("--searcher", default="auto", help="as in rescore (auto)")
    add("--seed", type=int, default=0, help="of the pairs' draw (0)")  # fmt: skip
    options = parser.parse_args(argv)

    from ida_jax.anchors.sources import read_anchors
    from ida_jax.common.validation import unit_embeddings
    from ida_jax.rescoring.csn_fit import fit_csn
    from ida_jax.tables.embeddings import read_embeddings
    from ida_jax.tables.integer_labels import read_labels

    found, anchors = read_embeddings(options.embeddings), read_anchors(options.anchors)
    anchors.check_model(
        fingerprint=found.fingerprint, width=found.width, whose=str(options.embeddings)
    )
    csn = fit_csn(
        unit_embeddings(found.embeddings),
        read_labels(options.labels),
        anchors,
        top_n=options.top_n,
        degree=options.degree,
        prior=options.prior,
        exclude_own=not options.keep_own,
        searcher=options.searcher,
        seed=options.seed,
    )
    csn.save(options.output)
    print(
        f"{options.output}: fitted on {csn.genuine:,} genuine and {csn.impostor:,} impostor pairs "
        f"of {csn.identities:,} identities, cohort: the {csn.top_n} nearest of {csn.anchors:,} "
        "anchors"
    )


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
