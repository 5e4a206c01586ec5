"""python -m ida_jax.main --config=FILE[:variant] --workdir=DIR [--config.key=value …]

Runs the stages that the config names: train, anchors, ssr, evaluate. Each is resumable; run the
same command again after an interruption.
"""

import sys

from ida_jax.errors import UserError, exit_code


def main(argv: list[str]) -> None:
    """Parses flags, runs the config's stages, prints the table of results."""
    from absl import flags
    from ml_collections import config_flags

    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "The run's config file, FILE or FILE:variant.", flag_values=parsed
    )
    flags.DEFINE_string("workdir", None, "Where the run keeps its files.", flag_values=parsed)
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return
    try:
        rest = parsed(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{_one_line(error)}; see --help") from error
    if rest:
        raise UserError(f"'{rest[0]}' is no flag: flags are --config=, --workdir=, --config.key=")
    if parsed.config is None or parsed.workdir is None:
        raise UserError(
            "expected --config=FILE and --workdir=DIR, e.g. "
            "--config=configs/quickstart.py --workdir=runs/quickstart"
        )

    from ida_jax.report.tables import results_table
    from ida_jax.stages import run

    results = run(parsed.config, parsed.workdir)
    print(results_table(results))
    print(f"report: {parsed.workdir}/report.html")


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv)))
