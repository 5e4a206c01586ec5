"""A stand-in for ml_collections, so that a benchmark runs where that package is not installed.

`ida_jax.runs.config` and what it configures use `ConfigDict` as a dict whose keys are attributes,
its `to_dict`, `placeholder`, and `FieldReference` for a value of any type; nothing else of it.
Import this module before ida_jax's.
"""

import sys
import types
from typing import Any


class ConfigDict(dict):
    """A dict whose keys are attributes; dicts given to it become such dicts too."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (values or {}).items():
            self[name] = ConfigDict(value) if type(value) is dict else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts."""
        return {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in self.items()}


try:
    import ml_collections  # noqa: F401
except ImportError:
    _package, _module = (types.ModuleType(f"ml_collections{end}") for end in ("", ".config_dict"))
    _package.ConfigDict, _module.placeholder = ConfigDict, lambda kind: None
    _package.FieldReference = lambda value, field_type: value
    sys.modules |= {_package.__name__: _package, _module.__name__: _module}
