"""Frozen dataclasses that Keras can save: the base of attacks, objectives and regularizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import keras


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configurable:
    """A frozen dataclass whose fields are its Keras config."""

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
