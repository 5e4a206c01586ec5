"""What scores were made with: it travels with a file of scores into the calibration fitted to them.

A calibration is valid for scores of one method with the same settings, model and anchors, which the
scores themselves do not show. So a file of scores says it: a .parquet in its schema's metadata, an
.npy or .csv in a file beside it, tied to it by its size and a hash of both ends.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ida_jax.common.errors import UserError
from ida_jax.common.fingerprints import same_sketch
from ida_jax.tables.embeddings import file_stamp
from ida_jax.tables.parquet_files import is_parquet, parquet_layout

# The key in a .parquet's metadata.
KEY = "score_origin"
# The share of faces whose people may be among the anchors up to which a calibration is made: at
# worst their pairs, 2 % of all, are gone from the impostors' tail. Where nobody is among LFW's
# anchors 0.2 % seem to be (one person under two names).
MOST_SHARED = 0.01
_FEWEST = 3
_MOST = 1 << 63


@dataclass(frozen=True)
class Shared:
    """Faces whose people may be among the anchors, which lowers their scores.

    Attributes:
      faces: how many were looked at.
      left_out: those whose own identity was left out of the search, by its label.
      known: those whose people are among the anchors by name, and were not left out.
      likely: those with an anchor (of another identity, where labels were given) at a cosine of
        `threshold` or more; about 1 is expected by chance.
      threshold: the cosine; where it is 0.999, only an image that is in both is seen.
    """

    faces: int
    left_out: int
    known: int
    likely: int
    threshold: float

    @property
    def share(self) -> float:
        """The larger of the shares `known` and `likely`; one or two likely ones prove nothing."""
        likely = self.likely if self.likely >= _FEWEST else 0
        return max(self.known, likely) / max(self.faces, 1)

    def described(self) -> str:
        """The finding in words, to follow the file's or the job's name."""
        if self.known >= self.likely:
            return f"the people of {self.known:,} of {self.faces:,} faces are among the anchors"
        return (
            f"the people of {self.likely:,} of {self.faces:,} faces are likely among the anchors "
            f"(a cosine of {self.threshold:.3f} or more)"
        )

    def summary(self) -> str:
        """All that was found, in one line."""
        text = (
            f"{self.likely:,} of {self.faces:,} faces have an anchor with a cosine of at least "
            f"{self.threshold:.3f}: 1 may by chance, others may be of its person"
        )
        if self.left_out:
            text = f"{self.left_out:,} faces' own identity was left out; after that {text}"
        return text


@dataclass(frozen=True)
class ScoreOrigin:
    """What scores were made with.

    Attributes:
      method: of `ida_jax.rescoring.method_table`.
      scale: "log", "dao", "llr" or "percent".
      settings: {"k": 10, …}, those that the method's scores depend on.
      model: the fingerprint of the model that made the embeddings; "" where unknown.
      anchors: `AnchorSet.sketch` of the anchors; "" for a method without.
      anchor_count: their number.
      artefacts: {"ssr": its `content_fingerprint`, …}, of what else the method needs.
      shared: people who are among the anchors; None where that was not examined.
    """

    method: str
    scale: str = "log"
    settings: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    anchors: str = ""
    anchor_count: int = 0
    artefacts: Mapping[str, str] = field(default_factory=dict)
    shared: Shared | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> "ScoreOrigin":
        """What `to_json` gave."""
        given = dict(record)
        if given.get("shared") is not None:
            given["shared"] = Shared(**given["shared"])
            _require(given["shared"])
        origin = cls(**given)
        _require(origin)
        for entries, kinds in ((origin.settings, (int, float)), (origin.artefacts, (str,))):
            if not isinstance(entries, dict) or not all(
                name.isprintable() and type(value) in kinds and _fits(value)
                for name, value in entries.items()
            ):
                raise ValueError("settings or artefacts of another kind")
        return origin

    def described(self) -> str:
        """In one line."""
        parts = [self.method, *(f"{name} = {value:g}" for name, value in self.settings.items())]
        if self.anchors:
            parts.append(f"{self.anchor_count:,} anchors")
        parts += [f"{name} {made}" for name, made in self.artefacts.items()]
        return ", ".join([*parts, f"model {self.model or 'unknown'}"])


def differences(fitted: ScoreOrigin, given: ScoreOrigin) -> list[str]:
    """What differs of two origins that changes scores, each as "k = 10, not 20"; empty if nothing.

    A model that is unknown on either side is not compared; nor is `shared`, which is of the faces.
    """
    found = [
        f"{name} {getattr(fitted, name)}, not {getattr(given, name)}"
        for name in ("method", "scale")
        if getattr(fitted, name) != getattr(given, name)
    ]
    if found:
        return found
    for name in sorted({*fitted.settings, *given.settings}):
        of = [
            f"{origin.settings[name]:g}" if name in origin.settings else "none"
            for origin in (fitted, given)
        ]
        if fitted.settings.get(name) != given.settings.get(name):
            found.append(f"{name} = {of[0]}, not {of[1]}")
    if fitted.anchor_count != given.anchor_count:
        found.append(f"{fitted.anchor_count:,} anchors, not {given.anchor_count:,}")
    elif not same_sketch(fitted.anchors, given.anchors):
        found.append(f"another set of {fitted.anchor_count:,} anchors")
    if fitted.model and given.model and fitted.model != given.model:
        found.append(f"model {fitted.model}, not {given.model}")
    for name in sorted({*fitted.artefacts, *given.artefacts}):
        of = [origin.artefacts.get(name, "none") for origin in (fitted, given)]
        if of[0] != of[1]:
            found.append(f"{name} {of[0]}, not {of[1]}")
    return found


def origin_file(path: Path) -> Path:
    """The file beside an .npy or .csv of scores, S.npy.origin.json, that says what made them."""
    return path.with_name(f"{path.name}.origin.json")


def origin_record(origin: ScoreOrigin, scores: Path) -> bytes:
    """The content of `origin_file`, tied to that of the scores' file."""
    return (json.dumps({**origin.to_json(), **file_stamp(scores)}) + "\n").encode()


def read_origin(path: Path) -> ScoreOrigin | None:
    """What a file of scores was made with; None where it does not say, or was changed since."""
    try:
        if is_parquet(path):
            record = json.loads(parquet_layout(path, what="scores").metadata(KEY))
        else:
            record = json.loads(origin_file(path).read_bytes())
            stamp = file_stamp(path)
            if {key: record.pop(key) for key in stamp} != stamp:
                return None
        return ScoreOrigin.from_json(record)
    except (UserError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return None


def _require(entries: Any) -> None:
    """Raises ValueError where a number or text is of another kind."""
    for entry in fields(entries):
        value = getattr(entries, entry.name)
        kinds = {int: (int,), float: (int, float), str: (str,)}.get(entry.type)
        if kinds and not (type(value) in kinds and _fits(value)):
            raise ValueError(f"{entry.name} is {str(value)[:40]}")


def _fits(value: float | str) -> bool:
    """Whether it can be shown: printable text, or a number of 64 bits that is not NaN."""
    return value.isprintable() if isinstance(value, str) else -_MOST < value < _MOST
