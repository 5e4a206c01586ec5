"""A workdir belongs to the config that began it, and to one job at a time."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.common.outputs import writing
from ida_jax.common.processes import all_or_none, is_first

# What stages end in or go on from, by the stage; the rest is written by every run.
_WRITTEN = {
    "train": ("model.safetensors",),
    "import": ("model.safetensors",),
    "gan": ("generator.safetensors",),
    "anchors": ("anchors/anchors.safetensors",),
    "ssr": ("ssr.safetensors",),
    "pfe": ("pfe.safetensors", "anchors/log_variances.npy"),
    "csn": ("csn.safetensors",),
    "": ("results.json", "report.html", "config.json", "metrics.jsonl"),
}


@contextlib.contextmanager
def workdir_of_one_job(config: ConfigDict, workdir: str | Path) -> Iterator[None]:
    """A block in which this job alone, all of its processes, writes the workdir.

    Raises:
      UserError: another job works there, or the workdir holds under a result's name what the config
        reads; it cannot be made.
    """
    workdir = Path(workdir)
    outputs = {
        f"--workdir (its {name})": workdir / name
        for stage, names in _WRITTEN.items()
        if not stage or stage in config.stages
        for name in names
    }
    with contextlib.ExitStack() as held:
        with all_or_none():
            if is_first():
                held.enter_context(writing(outputs, reading=_inputs(config), folder=workdir))
        yield


def _inputs(config: ConfigDict) -> dict[str, Path]:
    """The single files that a config names."""
    if "embeddings" in config:
        named = {key: config.get(key) for key in ("embeddings", "labels", "anchors")}
    else:
        generator = config.get("anchors", {}).get("generator")
        weights = config.get("model", {}).get("weights") if "import" in config.stages else None
        weights = weights and Path(config.data_dir) / weights
        named = {"anchors.generator": generator, "model.weights": weights}
    return {f"--config.{key}": Path(path) for key, path in named.items() if path is not None}


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
