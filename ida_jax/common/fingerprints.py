"""Hashes by which what was made from an artefact knows it again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np


def fingerprint_of(described: Any, variables: Mapping[str, Any]) -> str:
    """16 hex digits of a SHA-256 over a JSON-able description and every array, by its name.

    Args:
      described: what is not in the arrays: a network's name and options.
      variables: nested, of arrays.
    """
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, value in sorted(_flat(variables).items()):
        value = np.ascontiguousarray(value)
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def _flat(variables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"params/conv/kernel": array}."""
    flat = {}
    for name, value in variables.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}/") if nested else {f"{prefix}{name}": value}
    return flat


def content_fingerprint(artefact: Any) -> str:
    """`fingerprint_of` all entries of a dataclass: its numbers, text and arrays.

    Entries with the value that they have by default are left out, so that one which a later version
    adds does not change the fingerprint of what an earlier one saved.
    """
    arrays, described = {}, {}
    for field in fields(artefact):
        value = getattr(artefact, field.name)
        if isinstance(value, np.ndarray | Mapping):
            arrays[field.name] = value
        elif field.default is MISSING or value != field.default:
            described[field.name] = value
    return fingerprint_of(described, arrays)
