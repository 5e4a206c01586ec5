"""A run's config from the command line: --config=FILE[:variant] and --config.key=value."""

import re
from pathlib import Path

from ml_collections import ConfigDict

from ida_jax.common.errors import UserError


def parse_config(arguments: list[str], **others: str) -> tuple[ConfigDict | None, dict[str, str]]:
    """Reads --config and further text flags.

    Args:
      arguments: the flags, of sys.argv: --config.key=value is looked up there.
      **others: further flags' names and what they are.

    Returns:
      The config, None where --config is not given; and the further flags' values, None likewise.

    Raises:
      UserError: an unknown flag or key, a value of another type, or no such file.
    """
    from absl import flags
    from ml_collections import config_flags

    parsed = flags.FlagValues()
    # It looks into sys.argv for --config.key=value, so that no other list can be parsed.
    config_flags.DEFINE_config_file("config", None, "The run's config.", flag_values=parsed)
    for name, what in others.items():
        flags.DEFINE_string(name, None, what, flag_values=parsed)
    try:
        rest = parsed(["", *arguments])[1:]
        config = parsed.config
        if config is not None:
            config.stages  # noqa: B018  a file that was not found shows at the first look
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{_one_line(error)}; see --help") from error
    if rest:
        known = ", ".join(f"--{name}=" for name in ("config", *others))
        raise UserError(f"'{rest[0]}' is no flag: flags are {known}, --config.key=")
    return config, {name: getattr(parsed, name) for name in others}


def config_file(arguments: list[str]) -> Path | None:
    """The file of --config=FILE[:variant]; None without the flag."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            named = value if equals else following
            return Path(named if Path(named).exists() else named.rpartition(":")[0] or named)
    return None


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    # ml_collections' suggestion comes as the representation of a two-line text.
    if suggestion := re.search(r'Did you mean "([^"]*)" instead of "([^"]*)"', text):
        return f"the config has no '{suggestion[2]}': did you mean '{suggestion[1]}'?"
    # Of a traceback, the last line tells the cause.
    return text.splitlines()[-1].strip() if text else type(error).__name__
