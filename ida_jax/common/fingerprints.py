"""Hashes and sketches by which what was made from an artefact knows it again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import numpy as np

# A sketch's directions, and the difference that rounding may make to one of its numbers. Another
# set of N faces differs by about 1/√N, one of which a single face was exchanged by up to 1/N.
_DIRECTIONS, _TOLERANCE = 4, 1e-6
# Of more bytes of rows only some are read: all of a memory-mapped set would take seconds.
_LARGE, _SAMPLED = 256 << 20, 1024


def sketch_of(rows: np.ndarray) -> str:
    """Mean and root mean square of rows [N, D] along four fixed directions, as text.

    Unlike a hash it stays what it is when unit rows are made unit rows again, or on another
    processor, which changes last bits; `same_sketch` compares. The order of rows does not count,
    unless they are more than 256 MiB: then 1,024 of them are looked at, spread evenly.
    """
    if rows.nbytes > _LARGE:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, _SAMPLED).astype(int))]
    golden = (5**0.5 - 1) / 2
    phases = np.outer(np.arange(1.0, rows.shape[1] + 1), golden * np.arange(1, _DIRECTIONS + 1))
    directions = np.cos(2 * np.pi * phases).astype(np.float32)
    along = (np.asarray(rows) @ directions).astype(np.float64)
    numbers = [*along.mean(axis=0), *np.sqrt(np.mean(along**2, axis=0))]
    return " ".join(f"{number:.7f}" for number in numbers)


def same_sketch(first: str, second: str) -> bool:
    """Whether two sketches are of the same rows; other text equals only itself."""
    if first == second:
        return True
    try:
        one, other = (np.array([float(word) for word in text.split()]) for text in (first, second))
    except ValueError:
        return False
    return one.shape == other.shape and bool(np.all(np.abs(one - other) <= _TOLERANCE))


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


def _flat(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"params/conv/kernel": array}, by the names of mappings, dataclasses and named tuples."""
    flat = {}
    for name, value in entries.items():
        inner = _entries(value)
        flat |= {prefix + name: value} if inner is None else _flat(inner, f"{prefix}{name}/")
    return flat


def _entries(value: Any) -> Mapping[str, Any] | None:
    """What is in a mapping, a dataclass or a named tuple; None for anything else."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):
        return value._asdict()
    return value if isinstance(value, Mapping) else None


def content_fingerprint(artefact: Any) -> str:
    """`fingerprint_of` all entries of a dataclass: its numbers, text and arrays, nested ones too.

    Entries with the value that they have by default are left out, so that one which a later version
    adds does not change the fingerprint of what an earlier one saved.
    """
    arrays, described = {}, {}
    for field in fields(artefact):
        for name, value in _flat({field.name: getattr(artefact, field.name)}).items():
            if hasattr(value, "dtype") and not isinstance(value, np.generic):
                arrays[name] = value
            elif name != field.name or field.default is MISSING or value != field.default:
                described[name] = value.item() if isinstance(value, np.generic) else value
    return fingerprint_of(described, arrays)
