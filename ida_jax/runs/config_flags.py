"""--config=FILE and --config.key=value on the command line, and what to say of an unknown key."""

import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from ml_collections import ConfigDict

from ida_jax.common.command_line import did_you_mean, underscored, user_path
from ida_jax.common.errors import UserError
from ida_jax.data.load import renamed_section

# The entries that are paths, in either kind of config.
_PATHS = (
    "data_dir", "embeddings", "labels", "anchors", "anchors.generator", "anchors.balance",
    "evaluate.groups", "evaluate.ignore_identity_pairs", "model.weights",
)  # fmt: skip
# Beside the package in a checkout, inside it in a wheel.
_CONFIGS = tuple(Path(__file__).parents[up] / "configs" for up in (1, 2))
_BINS_FLAG = "--config.verify_data"
_DATA_FLAG = re.compile(r"--config\.(train_data|eval_data|verify_data)\.(\w+)")
# Keys of InsightFace's arcface_torch, and what they are here.
ARCFACE_TORCH = {
    "batch_size": "train.batch_size, of all devices together",
    "embedding_size": "model.options.embedding_dim",
    "fp16": "model.options.dtype=float16, with its loss scaling, or bfloat16, which needs none",
    "gradient_acc": "train.accumulate, which averages the parts of one batch",
    "lr": "train.learning_rate",
    "margin_list": "train.head and train.margin: (1, m, 0) is arcface with m, and wherever the "
    "third is above 0, cosface with it",
    "network": "model.network: r50 is iresnet50",
    "num_classes": "not needed: the training set's identities are counted",
    "interclass_filtering_threshold": "train.interclass_filtering_threshold",
    "num_epoch": "train.epochs",
    "num_image": "not needed: the training set's images are counted",
    "output": "--workdir=DIR",
    "optimizer": "train.optimizer: sgd or adamw",
    "rec": "train_data.name=recordio and train_data.dataset=FOLDER, read where it lies",
    "resume": "not needed: the same command with the same --workdir resumes",
    "sample_rate": "train.sample_rate",
    "val_targets": "verify_data=lfw.bin,cfp_fp.bin, the release's files in data_dir",
    "warmup_epoch": "train.warmup_epochs",
    "weight_decay": "train.weight_decay",
}


def parse_config(arguments: list[str], **others: str) -> tuple[ConfigDict | None, dict[str, str]]:
    """Reads --config=FILE[:variant], --config.key=value and further text flags.

    In place of a file, the name of one of the project's configs will do: --config=quickstart.

    Args:
      arguments: the flags, in either spelling.
      **others: further flags' names and what they are.

    Returns:
      The config, None where --config is not given; and the further flags' values, None likewise.

    Raises:
      UserError: a flag that is unknown, given twice, or has a value that cannot be.
    """
    from absl import flags
    from ml_collections import config_flags

    given = underscored(arguments)
    _refuse_repeated(given, ("config", *others))
    words, bins = _listed_bins(given)
    rest, sections = _renamed_data(words)
    parsed, argv = flags.FlagValues(), ["", *_expanded(rest, ("config", *others))]
    config_flags.DEFINE_config_file(
        "config", None, "The run's config.", flag_values=parsed, sys_argv=argv
    )
    for name, what in others.items():
        flags.DEFINE_string(name, None, what, flag_values=parsed)
    try:
        rest = parsed(argv)[1:]
        config = parsed.config
        if config is not None:
            config.stages  # noqa: B018  a file that was not found shows at the first look
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_unknown_key(argv) or f"{_one_line(error)}; see --help") from error
    except Exception as error:  # a config is a program, which can fail in any way
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(f"the config cannot be run: {what}") from error
    for name in others:
        if (given := getattr(parsed, name)) is not None:
            _user_path(f"--{name}", given)
    if config is not None:
        for section, given in sections.items():
            _rename_data(config, section, given)
        if bins is not None:
            config.verify_data = bins
        _expand_paths(config)
        if key := peers_key(config):
            raise UserError(no_such_key(config, key))
    if rest:
        known = ", ".join(f"--{name}=" for name in ("config", *others))
        raise UserError(f"unknown flag '{rest[0]}': expected {known}, --config.key=")
    return config, {name: getattr(parsed, name) for name in others}


def _refuse_repeated(arguments: list[str], names: Sequence[str]) -> None:
    """A UserError for the first flag that is given again.

    Of a number's flags config_flags would take the last, and join the values of a tuple's.
    """
    flag = re.compile(rf"--?(?:no)?((?:{'|'.join(names)})(?:\..+)?)")
    given: set[str] = set()
    for word in arguments:
        if match := flag.fullmatch(word.partition("=")[0]):
            if match[1] in given:
                raise UserError(f"--{match[1]} is given twice: give it once, with the whole value")
            given.add(match[1])


def _unknown_key(argv: list[str]) -> str | None:
    """What to say of the first --config.KEY that the file's own config does not have; or None."""
    own: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--config":
            own = [word, following]
        elif word.startswith("--config="):
            own = [word]
    if own and any(word.startswith("--config.") for word in argv):
        try:
            config, _ = parse_config(own)
        except UserError:  # the file itself is what is wrong
            return None
        if config is not None and (key := missing_key(config, argv)):
            return no_such_key(config, key)
    return None


def config_file(arguments: list[str]) -> Path | None:
    """The file of --config=FILE[:variant]; None without the flag."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            named = _named_config(os.path.expanduser(value if equals else following))
            return Path(named if Path(named).exists() else named.rpartition(":")[0] or named)
    return None


def _named_config(text: str) -> str:
    """FILE[:variant], where the text is NAME[:variant] of one of the project's configs."""
    name, colon, variant = text.partition(":")
    if not name.isidentifier() or Path(text).exists() or Path(name).exists():
        return text
    files = {path.stem: path for folder in _CONFIGS for path in sorted(folder.glob("*.py"))}
    if name in files:
        return f"{files[name]}{colon}{variant}"
    raise UserError(
        f"--config={text}: no such file, and no config of that name: "
        f"{did_you_mean(name, sorted(files))}"
    )


def _expanded(arguments: list[str], paths: Sequence[str]) -> list[str]:
    """The arguments, with ~ expanded in the paths, and a config by its name as a file."""
    expanded = list(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if equals and flag.removeprefix("--") in paths:
            value = _user_path(flag, value)
            expanded[index] = f"{flag}={_named_config(value) if flag == '--config' else value}"
        elif argument == "--config" and index + 1 < len(arguments):
            expanded[index + 1] = _named_config(_user_path(argument, arguments[index + 1]))
    return expanded


def _expand_paths(config: ConfigDict) -> None:
    """Does the same with the config's own paths, from its file or from flags."""
    for key in _PATHS:
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section.get(part, {}) if isinstance(section, ConfigDict) else {}
        if isinstance(section, ConfigDict) and isinstance(section.get(name), str):
            section[name] = _user_path(f"--config.{key}", section[name])


def _user_path(flag: str, text: str) -> str:
    try:
        return str(user_path(text))
    except ArgumentTypeError as error:
        raise UserError(f"argument {flag}: {error}") from error


def _listed_bins(arguments: list[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """The arguments without --config.verify_data=X.bin,Y.bin, and its files."""
    others: list[str] = []
    files, words = None, iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == _BINS_FLAG:
            listed = (value if equals else next(words, "")).strip("()[]").split(",")
            files = tuple(text for f in listed if (text := f.strip().strip("'\"")))
        else:
            others.append(word)
    return others, files


def _renamed_data(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arguments without those of the data sections that a flag renames, and these by section.

    Another data set has other options than the config's file sets, which alone config_flags knows.
    """
    found: dict[str, dict[str, str]] = {}
    others: list[tuple[str, list[str]]] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if not (match := _DATA_FLAG.fullmatch(flag)):
            others.append(("", [word]))
            continue
        spelled = [word] if equals else [word, value := next(words, "")]
        others.append((match[1], spelled))
        found.setdefault(match[1], {})[match[2]] = value
    renamed = {section: given for section, given in found.items() if "name" in given}
    rest = [word for section, spelled in others if section not in renamed for word in spelled]
    return rest, renamed


def _rename_data(config: ConfigDict, section: str, given: Mapping[str, str]) -> None:
    if section not in config:
        raise UserError(f"the config has no '{section}', which --config.{section}.name changes")
    former = config[section]
    if not isinstance(former, ConfigDict):
        former = ConfigDict()  # verification sets
    config[section], left_out = renamed_section(section, former, given)
    if left_out:
        print(
            f"{section} is {given['name']}: {', '.join(left_out)} of {former.name} left out",
            file=sys.stderr,
        )


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    # ml_collections' suggestion comes as the representation of a two-line text.
    if suggestion := re.search(r'Did you mean "([^"]*)" instead of "([^"]*)"', text):
        return f"the config has no '{suggestion[2]}': did you mean '{suggestion[1]}'?"
    # A traceback's last line states the cause.
    said = text.splitlines()[-1].strip() if text else type(error).__name__
    said = said.removeprefix(
        "Configuration is not available because of an earlier failure to load: "
    )
    return re.sub(r"^\[Errno \d+\] (.*?): '(.*)'$", r"\2: \1", said)


def no_such_key(config: ConfigDict, key: str) -> str:
    """One line on a dotted key that the config does not have: the nearest ones, or ours."""
    name = key.rpartition(".")[2]
    if name in ARCFACE_TORCH:
        return f"the config has no '{key}': arcface_torch's {name} is here {ARCFACE_TORCH[name]}"
    keys = list(_keys(config))
    same = [each for each in keys if each.rpartition(".")[2] == name]
    near = same or get_close_matches(key, keys, 3, 0.75)
    leaves = {each.rpartition(".")[2]: each for each in reversed(keys)}
    near = near or [leaves[leaf] for leaf in get_close_matches(name, leaves, 3, 0.75)]
    if near:
        return f"the config has no '{key}': did you mean {' or '.join(near[:3])}?"
    sections = ", ".join(sorted(k for k in config if isinstance(config[k], ConfigDict)))
    return f"the config has no '{key}': its sections are {sections}"


def missing_key(config: ConfigDict, arguments: list[str]) -> str | None:
    """The first key of --config.KEY among the arguments that the config does not have."""
    for word in arguments:
        flag = word.partition("=")[0]
        if flag.startswith("--config.") and not _has(config, key := flag.removeprefix("--config.")):
            return key
    return None


def peers_key(config: ConfigDict) -> str | None:
    """A key of arcface_torch's that the config's file has set where no section has it; or None."""
    for section in ("", "train", "model"):
        inside = config.get(section) if section else config
        for name in inside if isinstance(inside, ConfigDict) else ():
            key = f"{section}.{name}" if section else name
            if name in ARCFACE_TORCH and key not in _OURS:
                return key
    return None


# Those of the words that are ours too.
_OURS = (
    "train.batch_size", "train.sample_rate", "train.optimizer", "train.weight_decay",
    "train.interclass_filtering_threshold", "model.network",
)  # fmt: skip


def _has(config: ConfigDict, key: str) -> bool:
    for part in key.split("."):
        name = part.partition("[")[0]
        if not isinstance(config, ConfigDict):
            return True  # inside a value, of which config_flags knows
        if name not in config:
            return False
        config = config.get(name)
    return True


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name in config:
        value = config.get(name)
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{name}.")
        yield f"{prefix}{name}"
