"""TensorProto to numpy and back, as TensorFlow Serving's C++ reads and writes them."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

# A request cannot make the server allocate more than this for one tensor by naming a large shape
# and sending few values (TensorProto lets a single value stand for all).
MAX_EXPANDED_BYTES = 128 << 20
# What a string takes besides its bytes until a graph has looked at it, in TensorFlow and in Python.
_STRING_OVERHEAD = 512

# TensorFlow walks strings with an iterator of numpy that has no more dimensions, and does not
# look whether it got one: the process would end.
MAX_RANK = 32

# dtype -> (typed field, numpy dtype of the tensor); the typed fields of bool and of the small
# integers are wider than the tensor.
_FIELDS = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT8: ("int_val", np.int8),
    types_pb2.DT_INT16: ("int_val", np.int16),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_UINT8: ("int_val", np.uint8),
    types_pb2.DT_UINT16: ("int_val", np.uint16),
    types_pb2.DT_UINT32: ("uint32_val", np.uint32),
    types_pb2.DT_UINT64: ("uint64_val", np.uint64),
    types_pb2.DT_BOOL: ("bool_val", np.bool_),
}
_ENUMS: dict[np.dtype, int] = {np.dtype(numpy): dtype for dtype, (_, numpy) in _FIELDS.items()}
_ENUMS[np.dtype(object)] = types_pb2.DT_STRING
# The packed fields whose bytes on the wire are the array's own (field number << 3 | 2):
# writing them so is 40 times faster than value by value.
_PACKED = {types_pb2.DT_FLOAT: 5 << 3 | 2, types_pb2.DT_DOUBLE: 6 << 3 | 2}

_CPP_NAMES = {"float16": "half", "float32": "float", "float64": "double"}


def dtype_name(dtype: int) -> str:
    """The name TensorFlow's C++ gives a DataType: ``float``, ``int32``, ``string`` ..."""
    try:
        name = tf.dtypes.as_dtype(dtype).name
    except TypeError:
        return f"unknown dtype enum ({dtype})"
    return _CPP_NAMES.get(name, name)


def dtype_of(array: np.ndarray) -> int:
    """The DataType of an array; an object array is one of strings."""
    found = _ENUMS.get(array.dtype)
    return tf.dtypes.as_dtype(array.dtype).as_datatype_enum if found is None else found


def dtype_enum_name(array: np.ndarray) -> str:
    """``DT_FLOAT``, ``DT_STRING`` ..."""
    return types_pb2.DataType.Name(dtype_of(array))


def decode(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The array a TensorProto holds; strings become an object array of bytes.

    Raises:
        ValueError: the shape is not fully known or too long, or the values do not fill it.
    """
    if proto.tensor_shape.unknown_rank:
        raise ValueError("unknown rank")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if any(size < 0 for size in shape) or len(shape) > MAX_RANK:
        raise ValueError(f"shape {shape}")
    size = math.prod(shape)
    if proto.dtype in _FIELDS:
        field, dtype = _FIELDS[proto.dtype]
        if proto.tensor_content:
            return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
        values = getattr(proto, field)
        if len(values) == size:
            return np.array(values).astype(dtype, copy=False).reshape(shape)
    elif proto.dtype == types_pb2.DT_STRING and len(proto.string_val) == size:
        array = np.empty(size, dtype=object)
        array[:] = proto.string_val
        return array.reshape(shape)
    return _decode_unusual(proto, size)


def _decode_unusual(proto: tensor_pb2.TensorProto, size: int) -> np.ndarray:
    """Rare dtypes, and fewer values than elements: TensorFlow's own parser knows the rules."""
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        if size * _element_bytes(proto, dtype) > MAX_EXPANDED_BYTES:
            raise ValueError(f"{size} elements of {dtype.name}")
        with tf.device("/CPU:0"):
            return tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    except (TypeError, tf.errors.OpError) as error:
        raise ValueError(str(error)) from error


def _element_bytes(proto: tensor_pb2.TensorProto, dtype: tf.DType) -> int:
    """What each missing element takes: the last string stands for them all."""
    if dtype.size:
        return dtype.size
    return _STRING_OVERHEAD + (len(proto.string_val[-1]) if proto.string_val else 0)


def encode(array: np.ndarray, proto: tensor_pb2.TensorProto) -> None:
    """Write an array into an empty TensorProto, values in the typed fields (``float_val`` ...)."""
    dtype = dtype_of(array)
    if dtype in _PACKED:
        data = array.tobytes()
        proto.MergeFromString(bytes([_PACKED[dtype]]) + _varint(len(data)) + data)
    elif dtype in _FIELDS:
        getattr(proto, _FIELDS[dtype][0]).extend(array.ravel().tolist())
    elif dtype == types_pb2.DT_STRING:
        proto.string_val.extend(array.ravel().tolist())
    elif dtype in (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16):
        proto.half_val.extend(array.ravel().view(np.uint16).tolist())
    elif dtype == types_pb2.DT_COMPLEX64:
        proto.scomplex_val.extend(array.ravel().view(np.float32).tolist())
    elif dtype == types_pb2.DT_COMPLEX128:
        proto.dcomplex_val.extend(array.ravel().view(np.float64).tolist())
    else:  # quantized and 8-bit floating types have no typed field of their own
        proto.tensor_content = array.tobytes()
    proto.dtype = dtype
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    proto.tensor_shape.SetInParent()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
