"""ida-jax anchors build|fake|info|check …

  build   makes an anchor set from embeddings, a model's class weights, or a model and crops
  fake    makes one from a generator's faces, which it checks: the paper's fake-db
  info    describes a set
  check   looks for near-duplicates in a set, and for problems with the faces that it will score

`ida-jax anchors build --help` and so on say more.
"""

import sys
from pathlib import Path

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable

_INFO = """Describes an anchor set: size, source, defaults; how near its anchors lie to one
another; how many may show one person twice.

examples:
  ida-jax anchors info --anchors=anchors.safetensors"""

# The exact count takes A² · D operations: a minute for these on two cores.
_MOST_COUNTED = 100_000


def main(argv: list[str]) -> bool:
    """Runs one of the four; True where `check` found something."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return False
    command, *flags = argv
    match command:
        case "build":
            from ida_jax.runs.build_command import main as build

            build(flags)
        case "fake":
            from ida_jax.runs.fake_command import main as fake

            fake(flags)
        case "info":
            _info(flags)
        case "check":
            from ida_jax.runs.check_command import main as check

            return check(flags)
        case _:
            raise UserError(
                f"'{command}' is unknown: expected build, fake, info or check; see --help"
            )
    return False


def _info(argv: list[str]) -> None:
    parser = Parser("anchors info", description=_INFO)
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


def _command() -> int:
    commands = []
    code = exit_code(lambda: commands.append(main(sys.argv[1:])))
    return code or int(any(commands))


if __name__ == "__main__":
    sys.exit(_command())
