"""A config's own mistakes, found before anything runs: ranges, choices, combinations."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from ida_jax.anchors.search import SEARCHERS, has_scann
from ida_jax.data.augment import augmentation
from ida_jax.errors import UserError
from ida_jax.face_model import build_network
from ida_jax.models.margin_head import KINDS
from ida_jax.rescoring.density import TARGETS
from ida_jax.rescoring.rescorer import METHODS
from ida_jax.training.optimizer import SCHEDULES
from ida_jax.training.train_step import margin_head

ANCHOR_SOURCES = ("class_weights", "real_db")
PAIR_LISTS = ("drawn", "lfw")


def check_config(config: ConfigDict, unfinished: Sequence[str]) -> None:
    """Checks the sections that the unfinished stages will read.

    Raises:
      UserError: a value out of its range, an unknown choice, or two that do not go together.
    """
    c = config
    if c.stages[0] not in ("train", "import"):
        raise UserError(f"stages begin with '{c.stages[0]}': expected train or import first")
    build_network(c.model.network, c.model.options.to_dict())
    _at_least_1(c, "k")
    _positive(c, "tau")
    _one_of("searcher", c.searcher, SEARCHERS)
    if c.searcher == "scann" and not has_scann():
        raise UserError("searcher is 'scann', which is not installed here: choose auto or exact")
    if "train" in unfinished:
        _check_train(c.train)
    if "import" in unfinished and c.anchors.source == "class_weights":
        raise UserError(
            "imported weights come without class weights: set anchors.source to real_db"
        )
    if "anchors" in unfinished:
        _one_of("anchors.source", c.anchors.source, ANCHOR_SOURCES)
        _at_least_1(c, "anchors.size")
    if "ssr" in unfinished:
        _one_of("ssr.target", c.ssr.target, TARGETS)
        for key in ("hidden", "batch_size", "steps"):
            _at_least_1(c, f"ssr.{key}")
        _positive(c, "ssr.learning_rate")
    if "csn" in unfinished:
        _at_least_1(c, "csn.degree")
        _at_least_1(c, "csn.top_n")
    if "evaluate" in unfinished:
        for method in c.evaluate.methods:
            _one_of("evaluate.methods", method, METHODS)
            stage = {"ida_l": "ssr", "csn": "csn"}.get(method)
            if stage is not None and stage not in c.stages:
                raise UserError(
                    f"evaluate.methods has {method}, which the stage '{stage}' makes: add it to "
                    "stages, or leave the method out"
                )
        if c.evaluate.top_n < 2:
            raise UserError(f"evaluate.top_n is {c.evaluate.top_n}: expected 2 or more")
        _one_of("evaluate.pairs", c.evaluate.pairs, PAIR_LISTS)
        if not c.evaluate.fars or not all(0 < far <= 1 for far in c.evaluate.fars):
            raise UserError(f"evaluate.fars is {c.evaluate.fars}: expected rates in (0, 1]")
        if c.evaluate.folds < 2:
            raise UserError(f"evaluate.folds is {c.evaluate.folds}: expected 2 or more")


def _check_train(train: ConfigDict) -> None:
    """Ranges and choices; `training.train_step.make_program` checks what devices decide."""
    c = ConfigDict({"train": train})
    _one_of("train.head", train.head, KINDS)
    _one_of("train.schedule", train.schedule, SCHEDULES)
    _one_of("train.batch_norm", train.batch_norm, ("global", "per_device"))
    _one_of("train.head_dtype", train.head_dtype, ("float32", "bfloat16"))
    _one_of("train.keep", train.keep, ("last", "best"))
    for key in ("batch_size", "accumulate", "steps", "checkpoint_every", "log_every"):
        _at_least_1(c, f"train.{key}")
    for key in (
        "class_shards", "class_block", "warmup_steps", "clip_norm", "workers", "verify_every"
    ):  # fmt: skip
        if not 0 <= train[key] < math.inf:
            raise UserError(f"train.{key} is {train[key]}: expected 0 or more")
    for key in ("learning_rate", "scale"):
        _positive(c, f"train.{key}")
    if not 0 < train.sample_rate <= 1:
        raise UserError(f"train.sample_rate is {train.sample_rate}: expected a share in (0, 1]")
    if not 0 <= train.ema_decay < 1:
        raise UserError(f"train.ema_decay is {train.ema_decay}: expected 0 ≤ decay < 1")
    if train.keep == "best" and not train.verify_every:
        raise UserError(
            "train.keep is best, which verification decides: set train.verify_every, or keep last"
        )
    # The head knows which margins its kind takes.
    margin_head(train, num_classes=1)
    augmentation(train.augment)


def _value(config: ConfigDict, key: str) -> float:
    for part in key.split("."):
        config = config[part]
    return config


def _at_least_1(config: ConfigDict, key: str) -> None:
    if _value(config, key) < 1:
        raise UserError(f"{key} is {_value(config, key)}: expected 1 or more")


def _positive(config: ConfigDict, key: str) -> None:
    if not 0 < _value(config, key) < math.inf:
        raise UserError(f"{key} is {_value(config, key)}: expected a finite number above 0")


def _one_of(key: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UserError(f"{key} is '{given}': choose one of {', '.join(known)}")
