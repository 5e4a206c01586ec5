"""A config's own mistakes, found before anything runs: ranges, choices, combinations."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ida_jax.anchors.balance import balance_option
from ida_jax.anchors.search import SEARCHERS, has_scann
from ida_jax.artefacts.face_model import build_network
from ida_jax.artefacts.ssr_module import TARGETS
from ida_jax.common.errors import UserError
from ida_jax.common.files import require_file
from ida_jax.common.validation import require_tau
from ida_jax.data.augment import augmentation
from ida_jax.data.degrade import Degradation, degradation
from ida_jax.data.load import check_section
from ida_jax.models.margin_head import MARGIN_LOSSES
from ida_jax.ops.class_softmax import PRODUCTS
from ida_jax.protocols.insightface_rule import RULES
from ida_jax.rescoring.method_table import METHODS, methods_with
from ida_jax.runs.config import run_section
from ida_jax.runs.workdir import METHOD_FILES
from ida_jax.training.head_step import margin_head
from ida_jax.training.length import check_length
from ida_jax.training.optimizer import OPTIMIZERS, SCHEDULES, is_adamw

ANCHOR_SOURCES = ("class_weights", "real_db", "fake_db")
PAIR_LISTS = ("drawn", "lfw")
INPUTS = ("unit", "scaled", "centred")
SSR_CHOICES = ("given", "held_out", "auto")
_ALWAYS = ("seed", "data_dir", "k", "tau", "searcher", "flip", "model", "train_data")
_SECTIONS = ("train", "gan", "anchors", "ssr", "pfe", "csn", "evaluate")
# Of counts and sizes, which arrays and steps have: 32 bits, but for these.
_BELOW, _BEYOND = 1 << 31, {"seed": math.inf, "train.images": 1 << 53}


def check_config(config: ConfigDict, unfinished: Sequence[str]) -> None:
    """Checks the sections that the unfinished stages will read."""
    c = config
    evaluated = ("eval_data",) if "evaluate" in unfinished else ()
    for entry in (*_ALWAYS, *evaluated, *(stage for stage in unfinished if stage in _SECTIONS)):
        if entry not in c:
            raise UserError(
                f"the config has no '{entry}': begin it with ida_jax.runs.config.run_section"
            )
    _require_entries(c, ("model", *(stage for stage in unfinished if stage in _SECTIONS)))
    _check_sizes(c)
    first = c.stages[0] if c.stages else ""
    if first not in ("train", "import"):
        raise UserError(f"stages begin with '{first}': expected train or import first")
    _check_model(c.model)
    _check_search(c)
    if "train" in unfinished:
        check_training(c)
    if "import" in c.stages[1:]:
        raise UserError(
            f"stages is {tuple(c.stages)}: import is the first, and train, if any, begins with it"
        )
    if "import" in c.stages and c.model.get("weights") is None:
        raise UserError("stages has import, and model.weights names no file")
    if "train" in unfinished and c.train.batch_norm == "frozen" and "import" not in c.stages:
        raise UserError(
            "train.batch_norm is frozen, which keeps the statistics of imported weights, and "
            "stages has no import: put it before train, or take global or per_device"
        )
    only_imported = "import" in c.stages and "train" not in c.stages
    given = c.model.get("class_weights")
    if only_imported and c.anchors.source == "class_weights" and given is None:
        raise UserError(
            "imported weights come without class weights: name those of their training as "
            "model.class_weights, or set anchors.source to real_db"
        )
    if given is not None and not only_imported:
        raise UserError(
            "model.class_weights goes with the stage import and without train, which learns its own"
        )
    for section in ("anchors", "ssr"):
        if section in unfinished:
            section_degradation(c, section)
    if "anchors" in unfinished:
        if c.anchors.get("degrade") and c.anchors.source == "class_weights":
            raise UserError(
                "anchors.degrade takes images, and class weights have none: set anchors.source to "
                "real_db"
            )
        _one_of("anchors.source", c.anchors.source, ANCHOR_SOURCES)
        _at_least_1(c, "anchors.size")
        if c.anchors.get("balance") is not None:
            if c.anchors.source != "real_db":
                raise UserError(
                    f"anchors.balance is given and anchors.source is {c.anchors.source}: only "
                    "real_db has people who could be of a group"
                )
            _option("anchors.balance", c.anchors.balance, balance_option)
        if c.anchors.source == "fake_db":
            if "gan" in c.stages and c.anchors.generator:
                raise UserError(
                    "stages has gan, and anchors.generator names another generator: leave one out"
                )
            if "gan" in c.stages and c.stages.index("gan") > c.stages.index("anchors"):
                raise UserError("stages has gan after anchors, which take its faces: put it before")
            if "gan" not in c.stages and not c.anchors.generator:
                raise UserError(
                    "anchors.source is fake_db, and no generator is named: add the stage 'gan', or "
                    "set anchors.generator to a generator's file"
                )
            _expect(c, "anchors.truncation", lambda x: 0 < x <= 1, "a number above 0, at most 1")
    if "gan" in unfinished:
        _check_gan(c)
    if "ssr" in unfinished:
        _check_ssr(c)
    if "pfe" in unfinished:
        _check_pfe(c)
    if "csn" in unfinished:
        _at_least_1(c, "csn.degree")
        if c.csn.top_n is not None:
            _at_least_1(c, "csn.top_n")
    if {"train", "gan", "anchors", "ssr", "pfe"} & set(unfinished):
        check_section("train_data", c.train_data)
    if "train" in unfinished and c.train.verify_every:
        check_section("verify_data", c.verify_data)
    if "evaluate" in unfinished:
        check_section("eval_data", c.eval_data)
        if not c.evaluate.methods:
            raise UserError("evaluate.methods names no method: name one or more")
        for method in c.evaluate.methods:
            # A fit is not among a run's files: it takes people not trained on.
            _one_of("evaluate.methods", method, methods_with(METHOD_FILES))
            for stage in METHODS[method].needs:
                if stage != "anchors" and stage not in c.stages:
                    raise UserError(
                        f"evaluate.methods has {method}, which the stage '{stage}' makes: add it "
                        "to stages, or leave the method out"
                    )
        if c.evaluate.top_n is not None and c.evaluate.top_n < 2:
            raise UserError(f"evaluate.top_n is {c.evaluate.top_n}: expected 2 or more")
        _one_of("evaluate.pairs", c.evaluate.pairs, PAIR_LISTS)
        _one_of("evaluate.rule", c.evaluate.get("rule", RULES[0]), RULES)
        _check_groups(c)
        _check_fars(c)
        _expect(c, "evaluate.template_size", lambda x: x >= 0, "images a template, or 0 for none")
        for key in ("folds", "resamples"):
            _expect(c, f"evaluate.{key}", lambda x: x >= 2, "2 or more")


def _require_entries(config: ConfigDict, sections: Sequence[str]) -> None:
    """Refuses sections that lack one of `run_section`'s entries."""
    usual = run_section("")
    for section in sections:
        own = config[section]
        for key in usual[section]:
            if not isinstance(own, ConfigDict) or key not in own:
                raise UserError(
                    f"the config has no '{section}.{key}': begin it with "
                    "ida_jax.runs.config.run_section"
                )


def _check_sizes(config: ConfigDict, above: str = "") -> None:
    for name in config:
        key, value = f"{above}{name}", config.get(name)
        limit = _BEYOND.get(key, _BELOW)
        if isinstance(value, ConfigDict):
            _check_sizes(value, f"{key}.")
        elif isinstance(value, int) and value >= limit:
            raise UserError(f"{key} is {value}: expected less than {limit:,}")


def section_degradation(config: ConfigDict, section: str) -> Degradation | None:
    """The degraded copies that a run's section asks for; None without.

    Raises:
      UserError: as `degradation`.
    """
    own = config[section]
    if not own.get("degrade"):  # a section from before there was the entry
        return None
    return degradation(
        own.degrade,
        share=own.degrade_share,
        copies=own.degrade_copies,
        seed=config.seed,
        what=f"{section}.degrade",
    )


def check_embedding_config(config: ConfigDict) -> None:
    """Checks the sections of a run from a file of embeddings; their files: `embedding_inputs`."""
    c = config
    _check_sizes(c)
    _check_search(c)
    _check_ssr(c)
    _expect(c, "held_out", lambda x: 0 < x < 1, "a share between 0 and 1, say 0.1")
    _check_groups(c)
    _check_fars(c)
    for method in c.evaluate.get("further", ()):
        _one_of("evaluate.further", method, methods_with({"anchors"}))
    _expect(c, "evaluate.most_faces", lambda x: x >= 2, "2 or more")
    _expect(c, "evaluate.resamples", lambda x: x >= 2, "2 or more")


def _check_search(c: ConfigDict) -> None:
    _expect(c, "seed", lambda x: 0 <= x < 2**63, "0 or more, and less than 2^63")
    _at_least_1(c, "k")
    require_tau(c.tau)
    _one_of("searcher", c.searcher, SEARCHERS)
    if c.searcher == "scann" and not has_scann():
        raise UserError("searcher is 'scann', which is not installed here: choose auto or exact")


def _check_groups(c: ConfigDict) -> None:
    if c.evaluate.get("groups") is not None:
        require_file(Path(c.evaluate.groups), what="groups (evaluate.groups)")
    elif c.evaluate.get("group_thresholds"):
        raise UserError("evaluate.group_thresholds goes with evaluate.groups: name the list")


def _check_fars(c: ConfigDict) -> None:
    _numbers(c, "evaluate.fars")
    rates = "rates in (0, 1]"
    _expect(c, "evaluate.fars", lambda x: x and all(0 < far <= 1 for far in x), rates)


def _check_pfe(c: ConfigDict) -> None:
    for key in ("hidden", "identities", "steps", "checkpoint_every", "log_every"):
        _at_least_1(c, f"pfe.{key}")
    _expect(c, "pfe.images", lambda x: x >= 2, "2 or more, since it learns from pairs")
    _expect(c, "pfe.workers", lambda x: x >= 0, "0 or more")
    _check_sgd(c, "pfe")
    augmentation(c.pfe.augment)


def _check_gan(c: ConfigDict) -> None:
    gan, crops = c.gan, c.model.image_size
    _one_of("gan.resolution", gan.resolution, (8, 16, 32, 64, 128))
    beyond = gan.resolution - crops
    if beyond > 0 and (beyond % 2 or gan.resolution >= 2 * crops):
        raise UserError(
            f"gan.resolution is {gan.resolution}, but the crops of {crops} px cannot be reflected "
            "outwards to that: take a smaller one"
        )
    _one_of("gan.dtype", gan.dtype, ("float32", "bfloat16"))
    _one_of("gan.keep", gan.keep, ("best", "last"))
    for key in (
        "latent_dim", "style_dim", "mapping_layers", "channel_base", "channel_max", "batch_size",
        "steps", "r1_every", "path_every", "ema_images", "augment_images", "evaluate_every",
        "checkpoint_every", "log_every",
    ):  # fmt: skip
        _at_least_1(c, f"gan.{key}")
    _positive(c, "gan.learning_rate")
    for key in ("r1_weight", "path_weight", "workers"):
        _expect(c, f"gan.{key}", lambda x: 0 <= x < math.inf, "0 or more")
    for key in ("style_mixing", "augment_target"):
        _expect(c, f"gan.{key}", lambda x: 0 <= x <= 1, "a number from 0 to 1")
    if gan.batch_size % 4:
        raise UserError(
            f"gan.batch_size is {gan.batch_size}: expected a multiple of 4, the discriminator's "
            "groups"
        )
    third = "4 or more, for precision and recall by the third neighbour"
    _expect(c, "gan.evaluate_faces", lambda x: x >= 4, third)
    augmentation(gan.augment)


def _check_ssr(c: ConfigDict) -> None:
    _one_of("ssr.targets", c.ssr.targets, ("searched", "on_the_fly"))
    choose = c.ssr.get("choose", "given")  # a section from before there was the entry
    _one_of("ssr.choose", choose, SSR_CHOICES)
    if choose == "held_out" and c.ssr.targets == "on_the_fly":
        raise UserError(
            "ssr.choose is held_out, which searches its targets, and ssr.targets is on_the_fly: "
            "set it to searched, or ssr.choose to given"
        )
    _one_of("ssr.target", c.ssr.target, TARGETS)
    _one_of("ssr.input", c.ssr.input, INPUTS)
    for key in ("copies", "mix", "noise"):
        _expect(c, f"ssr.{key}", lambda x: 0 <= x < math.inf, "0 or more")
    _expect(c, "ssr.mix", lambda x: x <= 0.5, "at most 0.5, where a face is half another's")
    for key in ("hidden", "batch_size", "steps"):
        _at_least_1(c, f"ssr.{key}")
    _check_sgd(c, "ssr")


def _check_sgd(c: ConfigDict, section: str) -> None:
    """The optimiser's entries, which the sections train, ssr and pfe share."""
    own = c[section]
    _positive(c, f"{section}.learning_rate")
    _expect(c, f"{section}.momentum", lambda x: 0 <= x < 1, "0 ≤ momentum < 1")
    for key in ("weight_decay", "decay_factor"):
        _expect(c, f"{section}.{key}", lambda x: 0 <= x < math.inf, "0 or more")
    _numbers(c, f"{section}.decay_steps")
    if list(own.decay_steps) != sorted(own.decay_steps):
        raise UserError(f"{section}.decay_steps is {own.decay_steps}: expected ascending steps")


def _check_model(model: ConfigDict) -> None:
    build_network(model.network, model.options.to_dict())
    rate = model.options.get("dropout_rate", 0.0)
    if not 0 <= rate < 1:
        raise UserError(f"model.options.dropout_rate is {rate}: expected 0 ≤ rate < 1")
    if given := {"remat", "batch_norm_groups"} & set(model.options):
        raise UserError(
            f"model.options has {given.pop()}, which is the training's: set train.remat or "
            "train.batch_norm"
        )
    for key in ("mean", "std"):
        _numbers(ConfigDict({"model": model}), f"model.{key}")
    if len(model.mean) != 3 or len(model.std) != 3 or not all(s > 0 for s in model.std):
        raise UserError(
            f"model.mean is {model.mean} and model.std {model.std}: expected three numbers each, "
            "for R, G and B, and deviations above 0"
        )


def check_training(c: ConfigDict) -> None:
    """Checks the sections model and train alone; what devices decide, `check_batch` does."""
    _check_model(c.model)
    train = c.train
    _one_of("train.head", train.head, MARGIN_LOSSES)
    _one_of("train.schedule", train.schedule, SCHEDULES)
    _one_of("train.optimizer", train.get("optimizer", "sgd"), OPTIMIZERS)
    _one_of("train.batch_norm", train.batch_norm, ("global", "per_device", "frozen"))
    _one_of("train.head_dtype", train.head_dtype, tuple(PRODUCTS))
    _one_of("train.keep", train.keep, ("last", "best"))
    _one_of("train.sample_rule", train.get("sample_rule", "frozen"), ("dense", "frozen"))
    _one_of("train.verify_rule", train.get("verify_rule", RULES[0]), RULES)
    for key in ("batch_size", "accumulate", "steps", "checkpoint_every", "log_every"):
        _at_least_1(c, f"train.{key}")
    for key in (
        "class_shards", "class_block", "warmup_steps", "clip_norm", "workers", "verify_every"
    ):  # fmt: skip
        _expect(c, f"train.{key}", lambda x: 0 <= x < math.inf, "0 or more")
    _check_sgd(c, "train")
    _positive(c, "train.scale")
    _expect(c, "train.ema_decay", lambda x: 0 <= x < 1, "0 ≤ ema_decay < 1")
    if train.schedule == "polynomial":
        _positive(c, "train.power")
    if is_adamw(train) and train.accumulate > 1:
        raise UserError(
            f"train.optimizer is adamw and train.accumulate {train.accumulate}: its second moment "
            "takes the class weights' whole gradient; keep accumulate at 1 (train.remat saves "
            "memory), or take sgd"
        )
    check_length(train)
    if train.sample_rate < 1 and train.accumulate > 1:
        raise UserError(
            f"train.sample_rate is {train.sample_rate} and train.accumulate {train.accumulate}: "
            "each part of a batch would draw other classes; keep one of them at 1"
        )
    _expect(c, "train.sample_rate", lambda x: 0 < x <= 1, "a share in (0, 1]")
    if train.keep == "best" and not train.verify_every:
        raise UserError(
            "train.keep is best, which verification decides: set train.verify_every, or keep last"
        )
    # The head knows which margins its kind takes.
    margin_head(train, num_classes=1)
    augmentation(train.augment)


def _option(key: str, given: Any, parse: Callable[[str], Path | int]) -> None:
    """Refuses what a command's flag would refuse, and a file that is not there."""
    try:
        asked = parse(given)
    except ArgumentTypeError as error:
        raise UserError(f"{key} is {error}") from error
    if isinstance(asked, Path):
        require_file(asked, what=key)


def _value(config: ConfigDict, key: str) -> float:
    for part in key.split("."):
        if part not in config:
            raise UserError(f"the config has no '{key}': begin it with one of the configs/")
        config = config[part]
    return config


def _expect(c: ConfigDict, key: str, fits: Callable[[Any], bool], expected: str) -> None:
    if not fits(given := _value(c, key)):
        raise UserError(f"{key} is {given}: expected {expected}")


def _at_least_1(c: ConfigDict, key: str) -> None:
    _expect(c, key, lambda x: not x < 1, "1 or more")


def _positive(c: ConfigDict, key: str) -> None:
    _expect(c, key, lambda x: 0 < x < math.inf, "a finite number above 0")


def _numbers(c: ConfigDict, key: str) -> None:
    numbers = "numbers separated by commas, all finite"
    _expect(
        c, key, lambda x: all(isinstance(n, int | float) and abs(n) < math.inf for n in x), numbers
    )


def _one_of(key: str, given: Any, known: Sequence[Any]) -> None:
    if given not in known:
        raise UserError(f"{key} is '{given}': choose one of {', '.join(map(str, known))}")
