"""A workdir: the names of its files, whose it is, the lock, and the one writer of results.json.

A folder is a run's workdir, or what `ida-jax evaluate --protocol` writes, which has
`RESULTS` and `REPORT` alone. What a training keeps for itself (checkpoints, metrics.jsonl) is named
in `ida_jax.training`.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.errors import Damaged, UserError
from ida_jax.common.files import json_text, read_json, written_whole
from ida_jax.common.outputs import Taken, writing
from ida_jax.common.parts import key_of
from ida_jax.common.processes import all_or_none, is_first

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ida_jax.metrics.evaluation import Evaluation
    from ida_jax.runs.run import Stage

CONFIG = "config.json"
MODEL = "model.safetensors"
IMPORTED = "imported.safetensors"  # what a training begins with
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
# The training set's embeddings, in parts; and the config's entries that they depend on, beside the
# model and flip, by which their folders are named.
EMBEDDINGS = "embeddings"
_EMBEDDED = ("seed", "train_data")
# Entries that configs of earlier versions lack, whose values here leave everything as it was.
_ADDED = {
    "degrade": "", "degrade_share": 0.5, "degrade_copies": 1, "rule": "exact",
    "verify_rule": "exact", "sample_rule": "frozen", "optimizer": "sgd",
    "interclass_filtering_threshold": 0.0,
}  # fmt: skip
# Beside the parts of the training set's embeddings: their identities, int [N].
LABELS = "labels.npy"
# What stages end in, by the stage; the rest is written by every run.
_WRITTEN = {
    "train": (MODEL,),
    "import": (MODEL, IMPORTED),
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
                try:
                    held.enter_context(writing(outputs, reading=_inputs(config), folder=workdir))
                except Taken as error:
                    raise UserError(
                        f"{error}; if both are processes of one run, give each --coordinator, "
                        "--processes and --process, by which they find one another"
                    ) from error
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
        balance = config.get("anchors", {}).get("balance")
        if balance is not None and balance.partition(":")[0] != "clusters":
            named["anchors.balance"] = balance
    named["evaluate.groups"] = config.get("evaluate", {}).get("groups")
    named["evaluate.ignore_identity_pairs"] = ignored_list(config)
    return {f"--config.{key}": Path(path) for key, path in named.items() if path is not None}


def ignored_list(config: "ConfigDict") -> str | None:
    """The config's list of people that are one person, if its stages evaluate."""
    # A config from before has no such entry.
    return config.get("evaluate", {}).get("ignore_identity_pairs")


def training_embeddings(workdir: Path, fingerprint: str, *, flip: bool) -> Path:
    """The folder of the training set's embeddings by the model of that fingerprint."""
    return workdir / EMBEDDINGS / f"train-{fingerprint}{'-flip' if flip else ''}"


def degraded_training_embeddings(
    workdir: Path, fingerprint: str, *, flip: bool, how: Mapping[str, Any]
) -> Path:
    """The folder of the embeddings of its degraded copies, named by how they are degraded."""
    folder = training_embeddings(workdir, fingerprint, flip=flip)
    return folder.with_name(f"degraded-{folder.name}-{key_of(how)}")


def outdated_stages(
    workdir: Path, config: "ConfigDict", stages: "Mapping[str, Stage]"
) -> dict[str, str]:
    """{stage: why it has to be run again}, of those that another config has finished here.

    Raises:
      UserError: another config has begun a stage that is not made again (`Stage.remade`); what it
        has made depends on the first entry that differs, which is named. A damaged config.json.
    """
    former, present = _former(workdir), _plain(config)
    if former is None:
        return {}
    outdated: dict[str, str] = {}
    for name, stage in stages.items():
        if not any((workdir / path).exists() for path in (stage.result, *stage.parts)):
            continue
        reason = _difference(former, present, stage.depends_on, skipped=_without_effect(present))
        if name not in former["stages"]:
            ends = {stages[other].result for other in former["stages"] if other in stages}
            if stage.result in ends:  # another stage's work, import's in place of train's
                if name not in present["stages"]:
                    continue
                reason = f"stages was {former['stages']}, is now {present['stages']}"
        if reason and not stage.remade:
            raise UserError(
                f"{workdir} was begun by another config ({reason}), and its stage {name} depends "
                "on that: take another --workdir, or delete this one"
            )
        earlier = [other for other in stage.after if other in outdated]
        if reason or earlier:
            outdated[name] = reason or f"the stage {earlier[0]} is run again"
    return outdated


def claim_workdir(workdir: Path, config: "ConfigDict", stages: "Mapping[str, Stage]") -> None:
    """Makes the workdir and notes its config; removes results that another config has outdated.

    Raises:
      UserError: as `outdated_stages`; the workdir cannot be made.
    """
    outdated = outdated_stages(workdir, config, stages)
    former, present = _former(workdir), _plain(config)
    if former == present:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name, reason in outdated.items():
            print(f"{name}: {reason}: it is run again")
            (workdir / stages[name].result).unlink(missing_ok=True)
        if former is not None and _difference(former, present, _EMBEDDED):
            shutil.rmtree(workdir / EMBEDDINGS, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot make the workdir {workdir}: {error.strerror}") from error
    with written_whole(workdir / CONFIG) as temporary:
        temporary.write_text(json.dumps(present, indent=1) + "\n", encoding="utf-8")


def _former(workdir: Path) -> dict[str, Any] | None:
    """The config that was noted in the workdir."""
    path = workdir / CONFIG
    if not path.is_file():
        return None
    advice = (
        "take another --workdir, or delete this file if the config has not changed since the run "
        "was begun"
    )
    former = read_json(path, what="config", advice=advice)
    if not isinstance(former.get("stages"), list):
        raise Damaged(f"{path} is damaged: it names no stages; {advice}")
    return former


def _plain(config: "ConfigDict") -> dict[str, Any]:
    """The config as JSON has it, without the place of the data, which may change between runs."""
    present = json.loads(config.to_json_best_effort())
    present.pop("data_dir", None)
    return present


def _without_effect(config: Mapping[str, Any]) -> frozenset[str]:
    """The options that change how a stage runs, and not what it makes."""
    sections = ("train", "pfe", "gan")
    options = {f"{s}.{o}" for s in sections for o in ("workers", "log_every", "checkpoint_every")}
    if config.get("train", {}).get("sample_rate", 1) == 1:
        options.add("train.sample_rule")
    if config.get("train", {}).get("schedule") != "polynomial":
        options.add("train.power")
    if config.get("train", {}).get("keep") != "best":
        options |= {"train.verify_every", "train.verify_rule", "verify_data"}
    return frozenset(options)


def read_results(workdir: Path) -> dict[str, Any]:
    """The content of results.json."""
    return read_json(
        workdir / RESULTS, what="results", advice="delete it, and the evaluation is run again"
    )


def figures_and_notes(evaluated: "Mapping[str, Evaluation]") -> dict[str, Any]:
    """results.json's protocols, {variant: figures}, and by variant, if any, notes and failures."""
    kept = {
        "protocols": {variant: of.figures for variant, of in evaluated.items()},
        "notes": {variant: list(of.notes) for variant, of in evaluated.items() if of.notes},
    }
    failures = {v: of.failures for v, of in evaluated.items() if of.failures.pairs}
    if failures:
        kept["failures"] = {
            variant: {"reading": of.reading, "pairs": [pair._asdict() for pair in of.pairs]}
            for variant, of in failures.items()
        }
    return kept


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


def _difference(
    before: dict[str, Any],
    now: dict[str, Any],
    keys: Sequence[str] = ("",),
    *,
    skipped: frozenset[str] = frozenset(),
    prefix: str = "",
) -> str:
    """The first entry in which two configs differ, in words; "" where they are the same.

    Args:
      keys: the entries to compare, such as "train" or "csn.top_n"; "" is all of them.
      skipped: entries not to compare.
    """
    for name in [*before, *(name for name in now if name not in before)]:
        key = f"{prefix}{name}"
        inside = any(not k or key == k or key.startswith(f"{k}.") for k in keys)
        above = any(k.startswith(f"{key}.") for k in keys)
        if key in skipped or not (inside or above):
            continue
        absent = _ADDED.get(name, "absent")
        old, new = before.get(name, absent), now.get(name, absent)
        if old == "absent" and new in (None, False):
            continue  # an option of later versions, which is not used
        if isinstance(old, dict) and isinstance(new, dict):
            if text := _difference(old, new, keys, skipped=skipped, prefix=f"{key}."):
                return text
        elif old != new and inside:
            return f"{key} was {old}, is now {new}"
    return ""
