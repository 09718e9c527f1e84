"""JSON values to tensor elements and tf.Example features, each with its own error text."""

from __future__ import annotations

import base64
import binascii
import json
import math
import string
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2

from serve import tensors
from serve.errors import ServingError, StatusCode, invalid_argument

# Error texts quote the offending value; a whole batch of images would help nobody.
_MAX_QUOTED = 1000

INTEGERS: dict[int, Any] = {
    types_pb2.DT_INT8: np.int8,
    types_pb2.DT_INT16: np.int16,
    types_pb2.DT_INT32: np.int32,
    types_pb2.DT_INT64: np.int64,
    types_pb2.DT_UINT8: np.uint8,
    types_pb2.DT_UINT16: np.uint16,
    types_pb2.DT_UINT32: np.uint32,
    types_pb2.DT_UINT64: np.uint64,
}
# dtype -> (numpy dtype, largest integer it holds exactly, largest value)
FLOATS: dict[int, tuple[Any, int, float]] = {
    types_pb2.DT_HALF: (np.float16, 2**11 - 1, 65504.0),
    types_pb2.DT_FLOAT: (np.float32, 2**24 - 1, float(np.finfo(np.float32).max)),
    types_pb2.DT_DOUBLE: (np.float64, 2**53 - 1, float(np.finfo(np.float64).max)),
}

# TensorFlow Serving's base64 decoder passes over ASCII whitespace: files come with line breaks.
_WITHOUT_WHITESPACE = dict.fromkeys(map(ord, string.whitespace))


def quoted(value: Any) -> str:
    text = ""
    # Piece by piece, so that of a large or deep value only the beginning is written.
    for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
        text += piece
        if len(text) > _MAX_QUOTED:
            return text[:_MAX_QUOTED] + "..."
    return text


def checked_name(name: str) -> str:
    """A name that protobufs hold: of bytes that are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        received = name.encode("utf-8", "surrogateescape")
        raise invalid_argument(f"Names must be UTF-8, received {received!r}") from error
    return name


def type_name(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "Null" if value is None else str(value)
    for kind, name in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return name
    return "Number"


def shape_text(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def tensor(value: Any, dtype: int, max_rank: int = tensors.MAX_RANK) -> np.ndarray:
    """One JSON value to one tensor, element by element, with the error of the first bad one."""
    shape: list[int] = []
    probe = value
    while isinstance(probe, list):
        shape.append(len(probe))
        probe = probe[0] if probe else None
    if len(shape) > max_rank:
        raise invalid_argument(
            f"Encountered lists nested {len(shape)} levels deep, expected at most {max_rank}"
        )
    flat: list = []
    _fill(value, 0, shape, dtype, flat)
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
    elif dtype == types_pb2.DT_BOOL:
        array = np.array(flat, dtype=np.bool_)
    else:
        numpy_dtype = FLOATS[dtype][0] if dtype in FLOATS else INTEGERS.get(dtype, np.float32)
        array = np.array(flat, dtype=numpy_dtype)
    return array.reshape(shape)


def _fill(value: Any, level: int, shape: list[int], dtype: int, flat: list) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} in the "
                f"JSON DOM. Expected at level: {len(shape)}"
            )
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid_argument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _fill(item, level + 1, shape, dtype, flat)


def _element(value: Any, dtype: int) -> Any:
    name = tensors.dtype_name(dtype)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, dict):
        if dtype != types_pb2.DT_STRING:
            raise _mismatch(value, name)
        return _unbase64(value)
    if dtype in FLOATS:
        if not number:
            raise _mismatch(value, name)
        _, largest_integer, largest = FLOATS[dtype]
        limit = largest_integer if isinstance(value, int) else largest
        if (isinstance(value, int) or math.isfinite(value)) and abs(value) > limit:
            raise _lossy(value, name)
        return value
    if dtype in INTEGERS:
        limits = np.iinfo(INTEGERS[dtype])
        if not number or isinstance(value, float) or not limits.min <= value <= limits.max:
            raise _mismatch(value, name)
        return value
    if dtype == types_pb2.DT_STRING:
        if not isinstance(value, str):
            raise _mismatch(value, name)
        return value.encode("utf-8", "surrogateescape")
    if dtype == types_pb2.DT_BOOL:
        if not isinstance(value, bool):
            raise _mismatch(value, name)
        return value
    raise ServingError(
        StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value: {quoted(value)} to type: {name}"
    )


def _mismatch(value: Any, name: str) -> ServingError:
    return invalid_argument(
        f"JSON Value: {quoted(value)} Type: {type_name(value)} is not of expected type: {name}"
    )


def _lossy(value: float, name: str) -> ServingError:
    return invalid_argument(
        f"Cannot convert JSON value: {quoted(value)} to {name} without loss of precision."
    )


def _unbase64(value: dict) -> bytes:
    if not is_base64(value):
        raise invalid_argument(
            f"JSON Value: {quoted(value)} not formatted correctly for base64 data"
        )
    text = value["b64"].translate(_WITHOUT_WHITESPACE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_name(value)}")
    for name, content in value.items():
        feature = example.features.feature[checked_name(name)]
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(item, name, feature)


def _add_to_feature(value: Any, name: str, feature) -> None:
    kinds = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
    if isinstance(value, str) or is_base64(value):
        kind = "bytes_list"
    elif isinstance(value, bool | int):
        kind = "int64_list"
    elif isinstance(value, float):
        kind = "float_list"
    else:
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
        )
    current = feature.WhichOneof("kind")
    if current not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {kinds[current]}"
        )
    if isinstance(value, dict):
        value = _unbase64(value)
    elif isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    elif isinstance(value, float) and math.isfinite(value) and abs(value) > FLOATS[1][2]:
        raise _lossy(value, "float")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    getattr(feature, kind).value.append(int(value) if kind == "int64_list" else value)
