"""JSON bodies of the REST API to arrays and tf.Examples, by TensorFlow Serving's rules."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2

from serve import tensors
from serve.errors import ServingError, StatusCode, invalid_argument

TensorInfos = Mapping[str, meta_graph_pb2.TensorInfo]

# Python's parser has no "Inf"; strings are matched first so that their insides stay as they are.
_STRING_OR_INF = re.compile(r'"(?:[^"\\]|\\.)*"|-?\bInf\b')
_SYNTAX_ERRORS = {
    "Expecting value": "Invalid value.",
    "Extra data": "The document root must not be followed by other values.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or } or ] after an element.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
# Error texts quote the offending value; a whole batch of images would help nobody.
_MAX_QUOTED = 1000

_INTEGERS: dict[int, Any] = {
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
_FLOATS: dict[int, tuple[Any, int, float]] = {
    types_pb2.DT_HALF: (np.float16, 2**11 - 1, 65504.0),
    types_pb2.DT_FLOAT: (np.float32, 2**24 - 1, float(np.finfo(np.float32).max)),
    types_pb2.DT_DOUBLE: (np.float64, 2**53 - 1, float(np.finfo(np.float64).max)),
}


class JsonRequest:
    """A parsed request body.

    Args:
        body: the bytes as they came.

    Raises:
        ServingError: no JSON, or no JSON object.
    """

    def __init__(self, body: bytes):
        if not body:
            raise invalid_argument("JSON Parse error: The document is empty")
        # Bytes that are no UTF-8 pass through to string tensors unharmed.
        text = body.decode("utf-8", "surrogateescape")
        self.document = _parse(text)
        # numpy would take true for 1 among numbers: without these words it need not be checked.
        self._plain = b"true" not in body and b"false" not in body
        if not isinstance(self.document, dict):
            raise invalid_argument(f"JSON Value: {_quoted(self.document)} Is not object")

    @property
    def signature_name(self) -> str:
        name = self.document.get("signature_name", "")
        if not isinstance(name, str):
            raise invalid_argument(
                f"JSON Value: {_quoted(self.document)} not formatted correctly. "
                "'signature_name' key must be a string value."
            )
        return name

    def inputs(self, infos: TensorInfos) -> tuple[dict[str, np.ndarray], bool]:
        """The input tensors of a predict request.

        Args:
            infos: the inputs of the signature.

        Returns:
            Arrays by alias, and whether the reply is by rows (``instances``).
        """
        document = self.document
        if "instances" in document and "inputs" in document:
            raise self._refused(
                "Not formatted correctly expecting only  one of 'inputs' or 'instances' keys "
                "to exist "
            )
        if "instances" in document:
            instances = document["instances"]
            if not isinstance(instances, list):
                raise self._refused("Excepting 'instances' to be an list/array")
            if not instances:
                raise self._refused("No values in 'instances' array")
            return self._from_rows(instances, infos), True
        if "inputs" in document:
            return self._from_columns(document["inputs"], infos), False
        raise invalid_argument("Missing 'inputs' or 'instances' key")

    def examples(self) -> input_pb2.Input:
        """The tf.Examples of a classify or regress request."""
        document = self.document
        result = input_pb2.Input()
        target = result.example_list.examples
        if "context" in document:
            _fill_example(document["context"], result.example_list_with_context.context)
            target = result.example_list_with_context.examples
        if "examples" not in document:
            raise self._refused(
                "When method is classify, key 'examples' is expected and was not found"
            )
        if not isinstance(document["examples"], list):
            raise self._refused("Expecting 'examples' value to be an list/array")
        if not document["examples"]:
            raise self._refused("'examples' value is an empty array")
        for value in document["examples"]:
            _fill_example(value, target.add())
        return result

    def _refused(self, why: str) -> ServingError:
        return invalid_argument(f"JSON Value: {_quoted(self.document)} {why}")

    def _from_rows(self, instances: list, infos: TensorInfos) -> dict[str, np.ndarray]:
        named = _is_named(instances[0])
        if not isinstance(instances[0], dict) and len(infos) > 1:
            raise invalid_argument(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        for index, element in enumerate(instances):
            if named and not _is_named(element):
                raise invalid_argument(
                    f"Expecting object but got list at item {index} of input list"
                )
            if not named and _is_named(element):
                raise invalid_argument(
                    f"Expecting value/list but got object at item {index} of input list"
                )
            if named and element.keys() != infos.keys():
                self._refuse_keys(index, element, infos)
        if not named:
            alias = next(iter(infos))
            return {alias: self._rows(instances, alias, infos[alias].dtype, "")}
        return {
            alias: self._rows(
                [element[alias] for element in instances], alias, info.dtype, f" key: {alias}"
            )
            for alias, info in infos.items()
        }

    def _refuse_keys(self, index: int, element: dict, infos: TensorInfos) -> None:
        for key in element:
            if key not in infos:
                error = invalid_argument(f"JSON object: does not have named input: {key}")
                raise _element_error(index, f" key: {key}", error)
        raise invalid_argument(
            f"Failed to process element: {index} of 'instances' list. JSON object: "
            f"{_quoted(element)} keys must be equal to: {','.join(sorted(infos))}"
        )

    def _rows(self, values: list, alias: str, dtype: int, key: str) -> np.ndarray:
        fast = self._fast(values, dtype)
        if fast is not None:
            return fast
        rows: list[np.ndarray] = []
        for index, value in enumerate(values):
            try:
                row = _tensor(value, dtype)
                if rows and row.size != rows[0].size:
                    raise invalid_argument(
                        f"Expecting tensor size: {rows[0].size} but got: {row.size}"
                    )
                if rows and row.shape != rows[0].shape:
                    raise invalid_argument(
                        f"Expecting shape {_shape(rows[0])} but got: {_shape(row)}"
                    )
            except ServingError as error:
                raise _element_error(index, key, error) from error
            rows.append(row)
        return np.stack(rows)

    def _from_columns(self, value: Any, infos: TensorInfos) -> dict[str, np.ndarray]:
        if not _is_named(value):
            if len(infos) > 1:
                raise invalid_argument(
                    "inputs is a plain value/list, but expecting an object as multiple "
                    "input tensors required as per tensorinfo_map"
                )
            alias = next(iter(infos))
            return {alias: self._column(value, infos[alias].dtype)}
        arrays = {}
        for alias, info in infos.items():
            if alias not in value:
                raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
            arrays[alias] = self._column(value[alias], info.dtype)
        return arrays

    def _column(self, value: Any, dtype: int) -> np.ndarray:
        fast = self._fast(value, dtype)
        return _tensor(value, dtype) if fast is None else fast

    def _fast(self, value: Any, dtype: int) -> np.ndarray | None:
        """All of a rectangular numeric list at once; None leaves it to the careful way."""
        if not self._plain or not (dtype in _FLOATS or dtype in _INTEGERS):
            return None
        try:
            array = np.array(value)
        except (ValueError, OverflowError):  # ragged or too deep
            return None
        if not array.size:
            return None
        if dtype in _INTEGERS:
            limits = np.iinfo(_INTEGERS[dtype])
            if array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
                return None
            return array.astype(_INTEGERS[dtype])
        target, largest_integer, largest = _FLOATS[dtype]
        if array.dtype.kind == "i":
            exact = max(abs(int(array.min())), abs(int(array.max()))) <= largest_integer
        elif array.dtype.kind == "f":
            finite = array[np.isfinite(array)]
            exact = not finite.size or np.abs(finite).max() <= largest
        else:
            return None
        return array.astype(target) if exact else None


def _parse(text: str) -> Any:
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            if "Inf" not in text:
                raise
            return json.loads(
                _STRING_OR_INF.sub(
                    lambda found: found[0] if found[0][0] == '"' else found[0] + "inity", text
                )
            )
    except json.JSONDecodeError as error:
        if not text.strip():
            reason = "The document is empty."
        else:
            reason = _SYNTAX_ERRORS.get(error.msg, error.msg + ".")
        raise invalid_argument(f"JSON Parse error: {reason} at offset: {error.pos}") from error
    except RecursionError as error:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise invalid_argument(
            "JSON Parse error: Number too big to be stored in double."
        ) from error


def _quoted(value: Any) -> str:
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "..."


def _type_name(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "Null" if value is None else str(value)
    for kind, name in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return name
    return "Number"


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _element_error(index: int, key: str, error: ServingError) -> ServingError:
    return invalid_argument(
        f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
    )


def _tensor(value: Any, dtype: int) -> np.ndarray:
    """One JSON value to one tensor, element by element, with the error of the first bad one."""
    shape: list[int] = []
    probe = value
    while isinstance(probe, list):
        shape.append(len(probe))
        probe = probe[0] if probe else None
    flat: list = []
    _fill(value, 0, shape, dtype, flat)
    if dtype == types_pb2.DT_STRING:
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
    elif dtype == types_pb2.DT_BOOL:
        array = np.array(flat, dtype=np.bool_)
    else:
        numpy_dtype = _FLOATS[dtype][0] if dtype in _FLOATS else _INTEGERS.get(dtype, np.float32)
        array = np.array(flat, dtype=numpy_dtype)
    return array.reshape(shape)


def _fill(value: Any, level: int, shape: list[int], dtype: int, flat: list) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {_quoted(value)} found at incorrect level: {level + 1} in the "
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
    mismatch = f"JSON Value: {_quoted(value)} Type: {_type_name(value)} is not of expected type: "
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, dict):
        if dtype != types_pb2.DT_STRING:
            raise invalid_argument(mismatch + name)
        return _unbase64(value)
    if dtype in _FLOATS:
        if not number:
            raise invalid_argument(mismatch + name)
        _, largest_integer, largest = _FLOATS[dtype]
        limit = largest_integer if isinstance(value, int) else largest
        if (isinstance(value, int) or math.isfinite(value)) and abs(value) > limit:
            raise _lossy(value, name)
        return value
    if dtype in _INTEGERS:
        limits = np.iinfo(_INTEGERS[dtype])
        if not number or isinstance(value, float) or not limits.min <= value <= limits.max:
            raise invalid_argument(mismatch + name)
        return value
    if dtype == types_pb2.DT_STRING:
        if not isinstance(value, str):
            raise invalid_argument(mismatch + name)
        return value.encode("utf-8", "surrogateescape")
    if dtype == types_pb2.DT_BOOL:
        if not isinstance(value, bool):
            raise invalid_argument(mismatch + name)
        return value
    raise ServingError(
        StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value: {_quoted(value)} to type: {name}"
    )


def _lossy(value: float, name: str) -> ServingError:
    return invalid_argument(
        f"Cannot convert JSON value: {_quoted(value)} to {name} without loss of precision."
    )


def _unbase64(value: dict) -> bytes:
    if not _is_base64(value):
        raise invalid_argument(
            f"JSON Value: {_quoted(value)} not formatted correctly for base64 data"
        )
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_type_name(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(item, name, feature)


def _add_to_feature(value: Any, name: str, feature) -> None:
    kinds = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
    if isinstance(value, str) or _is_base64(value):
        kind = "bytes_list"
    elif isinstance(value, bool | int):
        kind = "int64_list"
    elif isinstance(value, float):
        kind = "float_list"
    else:
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}"
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
    elif isinstance(value, float) and math.isfinite(value) and abs(value) > _FLOATS[1][2]:
        raise _lossy(value, "float")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    getattr(feature, kind).value.append(int(value) if kind == "int64_list" else value)
