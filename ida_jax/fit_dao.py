"""python -m ida_jax.fit_dao: the former name of `ida-jax fit dao`."""

import sys

from ida_jax import fit
from ida_jax.common.errors import exit_code


def main(argv: list[str]) -> None:
    """Says the present name, and runs it."""
    print("python -m ida_jax.fit_dao is now ida-jax fit dao", file=sys.stderr)
    fit.main(["dao", *argv])


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
