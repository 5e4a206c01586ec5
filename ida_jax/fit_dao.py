"""python -m ida_jax.fit_dao --embeddings=E --labels=L --anchors=A --output=F.safetensors

Fits IDA-R's constants: the densities' weight and the support set's size
(rescore --method=ida_r_fitted --dao_fit=F).

  E  .npy, .npz or .parquet: development embeddings [N, D], never the faces under test
  L  .npy, or text of one a line: N integers, the faces' identities; -1 where unknown
  A  the anchor set to rescore with (.safetensors), or embeddings as E. Its labels, where it has
     them, are in L's numbering: a pair's identities are then left out of its support sets.
"""

import sys
from pathlib import Path

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import exit_code


def main(argv: list[str]) -> None:
    """Parses flags, fits, writes the constants."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--embeddings", type=Path, required=True, metavar="E", help="the development faces")
    add("--labels", type=Path, required=True, metavar="L", help="their identities")
    add("--anchors", type=Path, required=True, metavar="A", help="the anchors")
    add("--output", type=Path, required=True, metavar="F", help="where the constants go")
    add("--far", type=float, default=1e-4, help="the FAR to fit at (0.0001)")
    add("--most_support", type=int, default=128, help="the most neighbours looked at (128)")
    add(
        "--keep_own",
        action="store_true",
        help="A's labels are in another numbering, and nobody is both in E and in A",
    )
    add("--searcher", default="auto", help="as in rescore (auto)")
    options = parser.parse_args(argv)

    from ida_jax.anchors.sources import read_anchors
    from ida_jax.common.validation import unit_embeddings
    from ida_jax.rescoring.dao_fit import fit_dao
    from ida_jax.tables.embeddings import read_embeddings
    from ida_jax.tables.integer_labels import read_labels

    found, anchors = read_embeddings(options.embeddings), read_anchors(options.anchors)
    anchors.check_model(
        fingerprint=found.fingerprint, width=found.width, whose=str(options.embeddings)
    )
    fit = fit_dao(
        unit_embeddings(found.embeddings),
        read_labels(options.labels),
        anchors,
        far=options.far,
        most_support=options.most_support,
        exclude_own=not options.keep_own,
        searcher=options.searcher,
    )
    fit.save(options.output)
    print(
        f"{options.output}: weight {fit.weight:.3g}, support set of {fit.support:.3g} at tau "
        f"{fit.tau:g}; fitted at FAR {fit.far:g} on {fit.genuine:,} genuine and "
        f"{fit.impostor:,} impostor pairs of {fit.identities:,} identities, with {fit.anchors:,} "
        "anchors"
    )


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
