"""How methods and rates are written in tables and figures."""

from collections.abc import Mapping
from typing import Any

METHOD_NAMES = {
    "cosine": "Cosine",
    "ida_r": "IDA-R",
    "ida_r_fallback": "IDA-R fallback",
    "ida_r_fitted": "IDA-R fitted",
    "ida_l": "IDA-L",
    "pfe_fusion": "PFE fusion",
    "pfe": "PFE",
    "pfe_ida_r": "PFE & IDA-R",
    "pfe_ida_l": "PFE & IDA-L",
    "pfe_mls_ida_r": "PFE & IDA-R, MLS",
    "pfe_mls_ida_l": "PFE & IDA-L, MLS",
    "z_norm": "Z-norm",
    "t_norm": "T-norm",
    "s_norm": "S-norm",
    "as_norm": "AS-norm",
    "csn": "CSN",
}
MISSING = "–"


def method_name(method: str) -> str:
    """The display name of a method's key; an unknown key stands for itself."""
    return METHOD_NAMES.get(method, method)


def in_order(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries in METHOD_NAMES' order, unknown ones last in theirs."""
    place = {method: i for i, method in enumerate(METHOD_NAMES)}
    return dict(sorted(methods.items(), key=lambda item: place.get(item[0], len(place))))


def far_name(far: float | str) -> str:
    """A FAR in short: 1e-5 for 1e-05, 1e-3 for 0.001."""
    mantissa, exponent = f"{float(far):.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def score_name(method: str) -> str:
    """What a method's score is called: an axis' title."""
    if method in ("cosine", "pfe_fusion"):
        return "cosine similarity"
    return "log-DAO" if "ida" in method else f"{method_name(method)} score"
