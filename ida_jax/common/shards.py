"""Shards of a job: shares of its parts, made by processes that know nothing of one another.

Each makes its own parts in the folder beside the output, which all of them must see. None needs
another, so that one that is lost ends no other: the same command makes the rest of its share,
wherever it runs. No lock is needed, since a part is written whole and has the same bytes whoever
makes it. `--join` puts the parts together. What the shards were made with is noted in their folder,
so that those of other settings are refused by what differs.
"""

import argparse
import contextlib
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import Damaged, UserError
from ida_jax.common.files import read_json, written_whole
from ida_jax.common.parts import Part, Parts, Shard, folders_beside
from ida_jax.common.processes import launched

_NOTE = "shards.json"
_MOST_NAMED = 5
_MOST_SHOWN = 80  # characters
# Seconds without a sign of life after which a maker counts as lost: NFS may show one a minute late.
_PATIENCE, _POLL = 120, 0.5


def shard(text: str) -> Shard:
    """An argparse type: I/N, the share I of 0 … N − 1.

    Raises:
      argparse.ArgumentTypeError: anything else.
    """
    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = map(int, numbers.groups()) if numbers else (0, 0)
    if number >= count:
        raise argparse.ArgumentTypeError(
            f"'{text}': expected I/N, the share I of 0 … N−1, such as 0/4 … 3/4"
        )
    return Shard(number, count)


def add_shard_flags(parser: Parser) -> None:
    """--shard and --join."""
    add = parser.add_argument_group("work shared out").add_argument
    add(
        "--shard",
        type=shard,
        metavar="I/N",
        help="make the share I of 0 … N−1 alone; the shares need no order, and nothing but a "
        "folder of --output that all of them see",
    )
    add(
        "--join",
        action="store_true",
        help="write --output from the shares, with the same flags otherwise; refused while one "
        "of them is not finished",
    )


def check_shard_flags(options: Any) -> None:
    """Refuses a launcher's process that was given no share, and both flags at once."""
    if options.shard is not None and options.join:
        raise UserError(
            "--shard makes a share and --join needs all of them: run one, then the other"
        )
    if options.shard is not None or options.join:
        return
    step = launched()
    if step and step.several > 1:
        raise UserError(
            f"this is one of {step.several} processes ({step.count}): give each its share by "
            f"--shard=${step.number}/${step.count}, in sh -c '…' so that its own shell fills it "
            "in, and run the command once more with --join"
        )


def refuse_other_shards(output: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to begin beside shards that were made with other settings or files.

    Args:
      folder: that of this job's parts, which may not be there.
      settings: JSON-able, by name, all that the parts depend on.

    Raises:
      UserError: there are such shards; it names the first difference.
    """
    for other in folders_beside(output):
        if other.name == folder.name or not (other / _NOTE).is_file():
            continue
        try:
            theirs = read_json(other / _NOTE, what="note").get("settings")
        except Damaged:
            theirs = None
        raise UserError(
            f"{output} has shards of other settings{_difference(theirs, settings)}: give the same "
            f"flags and files as theirs, or name another output, or delete {other}"
        )


def note_shard(folder: Path, mine: Shard, settings: Mapping[str, Any]) -> None:
    """Notes in the parts' folder that shards make them, and with what.

    Raises:
      UserError: it cannot be written.
    """
    note = {"shards": mine.count, "settings": _plain(settings)}
    if not (folder / _NOTE).is_file() or _noted(folder) != mine.count:
        with written_whole(folder / _NOTE) as temporary:
            temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def require_shards(output: Path, folder: Path) -> None:
    """Refuses to join where no shard has begun."""
    if not (folder / _NOTE).is_file():
        raise UserError(
            f"{output} has no shards to join: run this command with --shard=I/N first, for each I "
            "of 0 … N−1"
        )


def require_all(parts: Parts, output: Path) -> None:
    """Refuses to join while a part is missing; the shards that have to be run are named."""
    missing = {part.path for part in parts.left()}
    if not missing:
        return
    count = _noted(parts.folder)
    shards = [Shard(number, count) for number in range(count)]
    unfinished = [
        str(own) for own in shards if any(part.path in missing for part in parts.share(own))
    ]
    named = ", ".join(unfinished[:_MOST_NAMED]) + ", …" * (len(unfinished) > _MOST_NAMED)
    are = "shard {} is" if len(unfinished) == 1 else f"{len(unfinished)} shards ({{}}) are"
    raise UserError(
        f"{output}: {are.format(named)} not finished: run --shard={unfinished[0]} and the like "
        "again, which make what is missing, and then --join"
    )


def in_turn(parts: Sequence[Part], own: Shard | None) -> list[Part]:
    """Parts that every shard needs, in the order in which one makes those that are not there yet.

    Its own share first; then the others', in an order of its own, so that what a lost one has not
    made is not made by all at once.
    """
    if own is None:
        return list(parts)
    share = own.share(len(parts))
    rest = [*parts[: share.start], *parts[share.stop :]]
    random.Random(own.number).shuffle(rest)
    return [*parts[share], *rest]


def made_once(
    path: Path, make: Callable[[Callable[[], None]], None], *, done: Callable[[], bool]
) -> None:
    """Has one of the shards that start together make a file that all of them need.

    The others wait while the maker shows signs of life in a file beside it. A shard whose maker has
    failed, or has shown none for two minutes, makes the file itself: so that no lost one ends
    others, and at worst the same bytes are written twice.

    Args:
      path: the file, which appears whole.
      make: writes it; calls what it is given as it gets on.
      done: whether it is there and whole.
    """
    claim = path.parent / f".{path.name}.claim"
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        print(f"waiting for another shard, which makes {path.name}", file=sys.stderr)
        while not path.is_file() and _seconds_since(claim) < _PATIENCE:
            time.sleep(_POLL)
        if done():
            return

    def lives() -> None:
        with contextlib.suppress(OSError):
            os.utime(claim)

    try:
        if not done():  # which another may have done since
            make(lives)
    finally:
        claim.unlink(missing_ok=True)


def _seconds_since(file: Path) -> float:
    """How long ago a file was touched; infinite where it is not there."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def has_shards(folder: Path) -> bool:
    """Whether shards make, or have made, the parts in a folder."""
    return (folder / _NOTE).is_file()


def _noted(folder: Path) -> int:
    """How many shards were begun last; 1 where the note is damaged."""
    try:
        count = read_json(folder / _NOTE, what="note").get("shards")
    except Damaged:
        return 1
    return count if type(count) is int and 0 < count < 1 << 30 else 1


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, sort_keys=True, default=str))


def _difference(theirs: Any, ours: Mapping[str, Any]) -> str:
    """The first setting that differs, in words."""
    ours = _plain(ours)
    for name in ours if isinstance(theirs, dict) else ():
        if (old := theirs.get(name)) != (new := ours[name]):
            old, new = map(_shown, (old, new))
            return f" ({name} was {old}, is now {new})" if old != new else f" ({name} has changed)"
    return ""


def _shown(setting: Any) -> str:
    """A setting, of a file its path; of what is long the end, where paths differ."""
    match setting:
        case [str(path), int(), *_]:  # ida_jax.common.parts.stamp
            setting = path
    text = str(setting)
    return text if len(text) <= _MOST_SHOWN else f"…{text[-_MOST_SHOWN:]}"
