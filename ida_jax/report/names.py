"""How methods and rates are written in tables and figures."""

from collections.abc import Mapping
from typing import Any

from ida_jax.rescoring.method_table import METHODS, is_dao

MISSING = "–"


def method_name(method: str) -> str:
    """The display name of a method's key; an unknown key stands for itself."""
    return METHODS[method].title if method in METHODS else method


def in_order(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries in the table's order, unknown ones last in theirs."""
    place = {method: i for i, method in enumerate(METHODS)}
    return dict(sorted(methods.items(), key=lambda item: place.get(item[0], len(place))))


def far_name(far: float | str) -> str:
    """A FAR in short: 1e-5 for 1e-05, 1e-3 for 0.001."""
    mantissa, exponent = f"{float(far):.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def score_name(method: str) -> str:
    """What a method's score is called: an axis' title."""
    if method in METHODS and METHODS[method].score_name:
        return METHODS[method].score_name
    if method in METHODS and METHODS[method].rule == "cosine":
        return "cosine similarity"
    return "log-DAO" if is_dao(method) else f"{method_name(method)} score"
