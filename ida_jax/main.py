"""python -m ida_jax.main --config=FILE[:variant] --workdir=DIR [--config.key=value …]

Runs the stages that the config names: train, anchors, ssr, evaluate. Each is resumable; run the
same command again after an interruption.
"""

import re
import sys

from ml_collections import ConfigDict

from ida_jax.errors import UserError, exit_code
from ida_jax.processes import join_processes


def main() -> None:
    """Parses sys.argv, runs the config's stages, prints the table of results."""
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__)
        return
    config, workdir = _flags()
    join_processes()

    from ida_jax.report.tables import results_table
    from ida_jax.stages import run

    results = run(config, workdir)
    if results:
        print(results_table(results))
        print(f"report: {workdir}/report.html")


def _flags() -> tuple[ConfigDict, str]:
    from absl import flags
    from ml_collections import config_flags

    parsed = flags.FlagValues()
    # It looks into sys.argv for --config.key=value, so that no other list can be parsed.
    config_flags.DEFINE_config_file("config", None, "The run's config.", flag_values=parsed)
    flags.DEFINE_string("workdir", None, "Where the run keeps its files.", flag_values=parsed)
    try:
        rest = parsed(sys.argv)[1:]
        config, workdir = parsed.config, parsed.workdir
        if config is not None:
            config.stages  # noqa: B018  a file that was not found shows at the first look
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{_one_line(error)}; see --help") from error
    if rest:
        raise UserError(f"'{rest[0]}' is no flag: flags are --config=, --workdir=, --config.key=")
    if config is None or workdir is None:
        raise UserError(
            "expected --config=FILE and --workdir=DIR, e.g. "
            "--config=configs/quickstart.py --workdir=runs/quickstart"
        )
    return config, workdir


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    # ml_collections' suggestion comes as the representation of a two-line text.
    if suggestion := re.search(r'Did you mean "([^"]*)" instead of "([^"]*)"', text):
        return f"the config has no '{suggestion[2]}': did you mean '{suggestion[1]}'?"
    # Of a traceback, the last line tells the cause.
    return text.splitlines()[-1].strip() if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(exit_code(main))
