"""A workdir belongs to the config that began it."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir this config's own, or finds that it is.

    Raises:
      UserError: another config has begun it, the first difference named; it cannot be made.
    """
    path = workdir / "config.json"
    # Where data lies may change between two runs; what is computed may not.
    mine = json.loads(config.to_json_best_effort())
    mine.pop("data_dir", None)
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if difference := _difference(theirs, mine):
            raise UserError(
                f"{workdir} was begun by another config ({difference}): take another --workdir, or "
                "delete this one"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the workdir {workdir}: {error.strerror}") from error
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")


def _difference(before: dict, now: dict, prefix: str = "") -> str:
    """The first entry in which two configs differ, in words; "" where they are the same."""
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key, "absent"), now.get(key, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            if difference := _difference(old, new, f"{prefix}{key}."):
                return difference
        elif old != new:
            return f"{prefix}{key} was {old}, is now {new}"
    return ""
