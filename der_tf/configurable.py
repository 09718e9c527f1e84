"""Frozen dataclasses that Keras can save: the base of attacks, objectives and regularizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import keras

_NUMBERS: dict[str, Callable[[Any], Any]] = {"bool": bool, "float": float, "int": int}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configurable:
    """A frozen dataclass whose fields are its Keras config."""

    def __post_init__(self) -> None:
        """Stores numbers as their fields are annotated: 1 as the float 1.0, 4.0 as the integer 4.

        Equal configurations share what is compiled, and TensorFlow tells 1 from 1.0.
        """
        for field in dataclasses.fields(self):
            value = _as_annotated(getattr(self, field.name), field.type)
            object.__setattr__(self, field.name, value)

    def get_config(self) -> dict[str, Any]:
        """The fields, nested objects in Keras' serialized form."""
        return {
            field.name: keras.saving.serialize_keras_object(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict)
                else value
                for name, value in config.items()
            }
        )

    def _require(self, field: str, accepted: str, fits: Callable[[Any], bool]) -> None:
        """ValueError for a field whose value does not fit, or cannot be compared."""
        value = getattr(self, field)
        try:
            fine = bool(fits(value))
        except (TypeError, ValueError, OverflowError):
            fine = False
        if not fine:
            raise ValueError(f"{type(self).__name__}: {field} is {accepted}; received {value!r}")

    def _require_count(self, *fields: str, least: int = 1) -> None:
        for field in fields:
            self._require(field, f"an integer >= {least}", lambda v: int(v) == v and v >= least)

    def _require_not_negative(self, *fields: str) -> None:
        for field in fields:
            self._require(field, "a finite number >= 0", lambda v: 0 <= v < math.inf)


def _as_annotated(value: Any, annotation: Any) -> Any:
    """The number in the type of its annotation; anything else as it is, for checks to refuse."""
    name = getattr(annotation, "__name__", str(annotation)).removesuffix(" | None")
    if name not in _NUMBERS or isinstance(value, str):
        return value
    try:
        number = _NUMBERS[name](value)
        return number if number == float(value) else value
    except (TypeError, ValueError, OverflowError):
        return value


def accepted(kind: str, registry: Mapping[str, type], name: str) -> list[str]:
    """Options of ``registry[name]``; a wrong name becomes one clear ValueError."""
    if name not in registry:
        raise ValueError(f"{kind} is one of {', '.join(sorted(registry))}; received {name!r}")
    return [field.name for field in dataclasses.fields(registry[name])]


def create(kind: str, registry: Mapping[str, type], name: str, config: dict[str, Any]) -> Any:
    """Build ``registry[name](**config)``; a wrong name or option becomes one clear ValueError."""
    options = accepted(kind, registry, name)
    unknown = sorted(set(config) - set(options))
    if unknown:
        raise ValueError(
            f"{kind} {name!r} accepts {', '.join(options)}; received {', '.join(unknown)}"
        )
    return registry[name](**config)
