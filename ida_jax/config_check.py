"""A config's own mistakes, found before anything runs: ranges, choices, combinations."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from ida_jax.anchors.search import SEARCHERS, has_scann
from ida_jax.errors import UserError
from ida_jax.face_model import build_network
from ida_jax.models.margin_head import KINDS
from ida_jax.rescoring.density import TARGETS
from ida_jax.rescoring.rescorer import METHODS

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
        _one_of("train.head", c.train.head, KINDS)
        for key in ("batch_size", "steps", "checkpoint_every", "log_every"):
            _at_least_1(c, f"train.{key}")
        _positive(c, "train.learning_rate")
        _positive(c, "train.scale")
        if not 0 <= c.train.margin < math.pi / 2:
            raise UserError(f"train.margin is {c.train.margin}: expected 0 ≤ m < π/2")
    if "import" in unfinished:
        given = (c.model.network, c.model.options.embedding_dim, c.model.image_size)
        if given != ("mobilefacenet", 128, 112):
            raise UserError(
                f"model is {given[0]}, {given[1]}-d, {given[2]} px: weights are imported for "
                "mobilefacenet, 128-d, 112 px alone"
            )
        if c.anchors.source == "class_weights":
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
