"""The machine-readable model card beside a SavedModel."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import der_tf
from der_tf.export import checks
from der_tf.export.signatures import Batching

SCHEMA_VERSION = 1


def build(
    *,
    name: str,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str],
    num_parameters: int,
    signatures: Mapping[str, Any],
    batching: Batching | None,
    defense: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The card as JSON values.

    Args:
        signatures: name -> concrete function.
        defense: settings of the signature ``defend``; None where there is none.
        sampling: how the signature ``sample`` draws; None where there is none.
        extra: keys to add, such as ``training`` and ``evaluation``.

    Raises:
        ValueError: ``extra`` names a key of the card, or holds what JSON cannot.
    """
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "der_tf": der_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "input": {
            "shape": list(image_shape),
            "dtype": "float32",
            "range": [0.0, 1.0],
            "image_bytes": {
                "formats": ["PNG", "JPEG"],
                "resize": "bilinear, antialiased, aspect ratio not kept",
                "max_image_pixels": checks.MAX_IMAGE_PIXELS,
                "max_request_pixels": checks.MAX_REQUEST_PIXELS,
            },
        },
        "classes": list(class_names),
        "num_parameters": num_parameters,
        "signatures": {
            key: {
                "inputs": _describe(function.structured_input_signature[0]),
                "outputs": _describe(function.structured_outputs),
            }
            for key, function in signatures.items()
        },
        "batching": dataclasses.asdict(batching) if batching else None,
        "defense": defense,
        "sampling": sampling,
    }
    taken = sorted(card.keys() & extra.keys())
    if taken:
        raise ValueError(f"card may add keys other than {sorted(card)}, received {taken}")
    try:
        return json.loads(json.dumps({**card, **extra}, default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"card must hold finite JSON values: {error}") from error


def write(path: Path, card: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe(specs: Any) -> dict[str, Any]:
    named = specs if isinstance(specs, Mapping) else {spec.name: spec for spec in specs}
    return {
        name: {"shape": spec.shape.as_list(), "dtype": spec.dtype.name}
        for name, spec in named.items()
    }


def _plain(value: Any) -> Any:
    """numpy and TensorFlow values, and paths, as JSON has them."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"received a {type(value).__name__}")
