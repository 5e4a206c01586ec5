"""Finds checkpoints that the disk has damaged, by the size and CRC-32 of every file.

Orbax's format has checksums of its indices, not of the arrays: an altered weight loads in silence.
"""

import json
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ida_jax.common.errors import UserError
from ida_jax.common.processes import OthersFailed, agree, cores, is_first

_NAME = "checksums.json"
_SMALL = 2**20  # bytes
_OF_ORBAX = "_CHECKPOINT_METADATA"  # gets a date after the checksums are made


def write_checksums(checkpoint: Path) -> None:
    """Writes checksums.json, {name: [bytes, CRC-32]} of all files below a folder."""
    files = (p for p in checkpoint.rglob("*") if p.is_file() and p.name != _OF_ORBAX)
    names = [file.relative_to(checkpoint).as_posix() for file in files]
    sizes = [(checkpoint / name).stat().st_size for name in names]
    sums = zip(names, sizes, _crcs(checkpoint, names), strict=True)
    text = json.dumps({name: [size, crc] for name, size, crc in sums})
    (checkpoint / _NAME).write_text(text)


def put_damaged_aside(folder: Path) -> None:
    """Renames the damaged checkpoints of a folder to `corrupt-STEP`, where a whole one is left.

    Every byte is read back to the newest whole one; of those before it only the small files, which
    Orbax reads when it opens the folder. Several processes call it together.

    Raises:
      UserError: there are checkpoints, and all are damaged; nothing is renamed.
    """
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), reverse=True)
    damaged, newest_whole = {}, None
    for step in steps:
        damage = damage_of(folder / str(step), every_byte=newest_whole is None)
        if damage is not None:
            damaged[step] = damage
        elif newest_whole is None:
            newest_whole = step
    if steps and newest_whole is None:
        what = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
        raise UserError(
            f"every checkpoint in {folder} is damaged ({what}): put a whole one there, or delete "
            "the folder to begin again"
        )
    for step, damage in damaged.items() if is_first() else ():
        aside = folder / f"corrupt-{step}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        (folder / str(step)).rename(aside)
        print(
            f"checkpoint {folder / str(step)} is damaged ({damage}): it is renamed to "
            f"{aside.name}; the newest whole one is of step {newest_whole}",
            file=sys.stderr,
        )
    agree()


def damage_of(checkpoint: Path, *, every_byte: bool) -> str | None:
    """What process 0 finds wrong with a checkpoint's files, on every process; None where nothing.

    Args:
      checkpoint: its folder.
      every_byte: False reads only files up to 1 MiB, and the others' sizes.
    """
    damage = _damage(checkpoint, every_byte=every_byte) if is_first() else None
    try:
        agree(damage is None)
    except OthersFailed:
        return "as process 0 says"
    return damage


def _damage(checkpoint: Path, *, every_byte: bool) -> str | None:
    try:
        json.loads((checkpoint / _OF_ORBAX).read_bytes())
        expected = json.loads((checkpoint / _NAME).read_bytes())
        for name, (size, _) in expected.items():
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes of {size}"
        names = [name for name, (size, _) in expected.items() if every_byte or size <= _SMALL]
        for name, crc in zip(names, _crcs(checkpoint, names), strict=True):
            if crc != expected[name][1]:
                return f"{name} was altered"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(checkpoint)} is missing"
    except (OSError, ValueError) as error:  # ValueError: checksums.json is no JSON
        return f"{type(error).__name__}: {error}"
    return None


def _crcs(folder: Path, names: list[str]) -> list[int]:
    with ThreadPoolExecutor(min(4, cores())) as threads:  # zlib and reads let go of the GIL
        return list(threads.map(lambda name: _crc(folder / name), names))


def _crc(file: Path) -> int:
    crc, buffer = 0, bytearray(2**22)
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            crc = zlib.crc32(memoryview(buffer)[:count], crc)
    return crc
