"""python -m ida_jax.csn: the former name of `ida-jax fit csn`."""

import sys

from ida_jax import fit
from ida_jax.common.errors import exit_code


def main(argv: list[str]) -> None:
    """Says the present name, and runs it."""
    print("python -m ida_jax.csn is now ida-jax fit csn", file=sys.stderr)
    fit.main(["csn", *argv])


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
