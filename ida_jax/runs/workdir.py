"""A workdir: the names of its files, whose it is, the lock, and the one writer of results.json.

A folder is a run's workdir, or what `python -m ida_jax.evaluate --protocol` writes, which has
`RESULTS` and `REPORT` alone. What a training keeps for itself (checkpoints, metrics.jsonl) is named
in `ida_jax.training`.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.errors import UserError
from ida_jax.common.files import json_text, read_json, written_whole
from ida_jax.common.outputs import writing
from ida_jax.common.processes import all_or_none, is_first

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ida_jax.metrics.evaluation import Evaluation

CONFIG = "config.json"
MODEL = "model.safetensors"
GENERATOR = "generator.safetensors"
ANCHORS = "anchors/anchors.safetensors"
ANCHOR_VARIANCES = "anchors/log_variances.npy"
SSR = "ssr.safetensors"
PFE = "pfe.safetensors"
CSN = "csn.safetensors"
RESULTS = "results.json"
REPORT = "report.html"
# Folders of parts: log F of the faces (a run from embeddings), a generator's faces embedded.
TARGETS = "targets"
FAKES = "anchors/fake.parts"
# What a run makes of the files that methods need (`ida_jax.rescoring.method_table.ARTEFACTS`).
METHOD_FILES = {"anchors": ANCHORS, "ssr": SSR, "csn": CSN}
# Beside the parts of the training set's embeddings: their identities, int [N].
LABELS = "labels.npy"
# What stages end in, by the stage; the rest is written by every run.
_WRITTEN = {
    "train": (MODEL,),
    "import": (MODEL,),
    "gan": (GENERATOR,),
    "anchors": (ANCHORS,),
    "ssr": (SSR,),
    "pfe": (PFE, ANCHOR_VARIANCES),
    "csn": (CSN,),
    "": (RESULTS, REPORT, CONFIG, "metrics.jsonl"),
}


@contextlib.contextmanager
def workdir_of_one_job(config: "ConfigDict", workdir: str | Path) -> Iterator[None]:
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


def _inputs(config: "ConfigDict") -> dict[str, Path]:
    """The single files that a config names."""
    if "embeddings" in config:
        named = {key: config.get(key) for key in ("embeddings", "labels", "anchors")}
    else:
        generator = config.get("anchors", {}).get("generator")
        weights = config.get("model", {}).get("weights") if "import" in config.stages else None
        weights = weights and Path(config.data_dir) / weights
        named = {"anchors.generator": generator, "model.weights": weights}
    return {f"--config.{key}": Path(path) for key, path in named.items() if path is not None}


def training_embeddings(workdir: Path, fingerprint: str, *, flip: bool) -> Path:
    """The folder of the training set's embeddings by the model of that fingerprint."""
    return workdir / "embeddings" / f"train-{fingerprint}{'-flip' if flip else ''}"


def file_inside(path: Path, name: str) -> Path:
    """The file itself, or the one of that name where the path is a workdir's."""
    return path / name if path.is_dir() else path


def claim_workdir(workdir: Path, config: "ConfigDict") -> None:
    """Makes the workdir and notes its config, or checks that the config is the same.

    Raises:
      UserError: another config has begun it (the first difference is named); it cannot be made.
    """
    path = workdir / CONFIG
    # Where data lies may change between two runs; what is computed may not.
    present = json.loads(config.to_json_best_effort())
    present.pop("data_dir", None)
    if path.is_file():
        former = read_json(path, advice="take another --workdir, or put the file back")
        if difference := _difference(former, present):
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
        temporary.write_text(json.dumps(present, indent=1) + "\n", encoding="utf-8")


def read_results(workdir: Path) -> dict[str, Any]:
    """The content of results.json."""
    return read_json(workdir / RESULTS, advice="delete it, and the evaluation runs again")


def figures_and_notes(evaluated: "Mapping[str, Evaluation]") -> dict[str, Any]:
    """{"protocols": {variant: figures}, "notes": {variant: its notes, if any}} of results.json."""
    return {
        "protocols": {variant: of.figures for variant, of in evaluated.items()},
        "notes": {variant: list(of.notes) for variant, of in evaluated.items() if of.notes},
    }


def write_results(
    folder: Path,
    results: Mapping[str, Any],
    write_report: Callable[..., None],
    *,
    settings: Mapping[str, Any],
    **page: Any,
) -> None:
    """Writes report.html with its tables and pictures, and then results.json, which marks the end.

    Args:
      folder: an existing one.
      results: the content of results.json, with "provenance".
      write_report: `write_run_report` or `write_protocol_report` of `ida_jax.report.run_report`.
      settings: the run's settings, for the report.
      **page: the report's other arguments.
    """
    write_report(
        folder / REPORT, settings={**settings, **results["provenance"]}, results=results, **page
    )
    with written_whole(folder / RESULTS) as temporary:
        temporary.write_text(json_text(results), encoding="utf-8")


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
