"""numpy arrays to TensorProto and back, without TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serve.client import messages

# Element type -> numpy type and the repeated field that holds it when `tensor_content` does not.
_TYPES: dict[str, tuple[type, str]] = {
    "DT_FLOAT": (np.float32, "float_val"),
    "DT_DOUBLE": (np.float64, "double_val"),
    "DT_HALF": (np.float16, "half_val"),
    "DT_INT8": (np.int8, "int_val"),
    "DT_INT16": (np.int16, "int_val"),
    "DT_INT32": (np.int32, "int_val"),
    "DT_INT64": (np.int64, "int64_val"),
    "DT_UINT8": (np.uint8, "int_val"),
    "DT_UINT16": (np.uint16, "int_val"),
    "DT_UINT32": (np.uint32, "uint32_val"),
    "DT_UINT64": (np.uint64, "uint64_val"),
    "DT_BOOL": (np.bool_, "bool_val"),
    "DT_COMPLEX64": (np.complex64, "scomplex_val"),
    "DT_COMPLEX128": (np.complex128, "dcomplex_val"),
    "DT_STRING": (np.object_, "string_val"),
}
_NUMBERS = {name: number for number, name in messages.DATA_TYPES.items()}
_FROM_NUMPY = {np.dtype(numpy_type): _NUMBERS[name] for name, (numpy_type, _) in _TYPES.items()}


def dtype_name(number: int) -> str:
    """``float32`` for 1 (DT_FLOAT), ``string`` for 7, ``resource`` for 20: as TensorFlow prints."""
    name = messages.DATA_TYPES.get(number, f"type {number}")
    if name == "DT_STRING" or name not in _TYPES:
        return name.removeprefix("DT_").lower()
    return np.dtype(_TYPES[name][0]).name


def encode(array: np.ndarray) -> Any:
    """A TensorProto of ``array``; an object array holds ``bytes`` and becomes a string tensor."""
    proto = messages.TensorProto(dtype=_FROM_NUMPY[array.dtype.newbyteorder("=")])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == np.object_:
        proto.string_val.extend(array.ravel())
    else:
        little_endian = array.dtype.newbyteorder("<")
        proto.tensor_content = np.ascontiguousarray(array, little_endian).tobytes()
    return proto


def decode(proto: Any) -> np.ndarray:
    """The array in a TensorProto, from ``tensor_content`` or from the typed field.

    A typed field with fewer values than elements repeats its last one, as TensorFlow writes
    constant tensors.

    Raises:
        ValueError: an element type without a numpy counterpart, or a size that contradicts the
            shape.
    """
    name = messages.DATA_TYPES.get(proto.dtype, "")
    if name not in _TYPES:
        raise ValueError(f"cannot turn a tensor of {dtype_name(proto.dtype)} into a numpy array")
    numpy_type, field = _TYPES[name]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    size = math.prod(shape)
    if proto.tensor_content:
        values = np.frombuffer(proto.tensor_content, np.dtype(numpy_type).newbyteorder("<"))
        values = values.astype(numpy_type)  # native byte order, and writable
    else:
        values = _typed_values(getattr(proto, field), numpy_type, name)
        if 0 < len(values) < size:
            values = np.concatenate([values, np.repeat(values[-1:], size - len(values))])
        elif len(values) == 0 and size:
            values = (
                np.full(size, b"", np.object_)
                if name == "DT_STRING"
                else np.zeros(size, numpy_type)
            )
    if len(values) != size:
        raise ValueError(f"a tensor of shape {shape} came with {len(values)} values")
    return values.reshape(shape)


def _typed_values(field: Any, numpy_type: type, name: str) -> np.ndarray:
    if name == "DT_HALF":  # bit patterns, one in each int32
        return np.array(field, np.int32).astype(np.uint16).view(np.float16)
    if name in ("DT_COMPLEX64", "DT_COMPLEX128"):  # real and imaginary parts in turn
        part = np.float32 if name == "DT_COMPLEX64" else np.float64
        return np.array(field, part).view(numpy_type)
    return np.array(field, numpy_type)
