"""JSON bodies of the REST API to arrays and tf.Examples, by TensorFlow Serving's rules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2

from serve.errors import ServingError, invalid_argument
from serve.json_values import (
    FLOATS,
    INTEGERS,
    checked_name,
    fill_example,
    is_named,
    quoted,
    shape_text,
    tensor,
)
from serve.tensors import MAX_RANK

TensorInfos = Mapping[str, meta_graph_pb2.TensorInfo]

# Python's parser has no "Inf"; strings are matched first so that their insides stay as they are.
_STRING_OR_INF = re.compile(r'"(?:[^"\\]|\\.)*"|-?\bInf\b')
# Every escape of a string; the group is half of a surrogate pair without its other half.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>u[dD][89a-fA-F]..)|.)", re.DOTALL
)
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
        _refuse_lone_surrogates(text)
        # numpy would take true for 1 among numbers: without these words it need not be checked.
        self._plain = b"true" not in body and b"false" not in body
        if not isinstance(self.document, dict):
            raise invalid_argument(f"JSON Value: {quoted(self.document)} Is not object")

    @property
    def signature_name(self) -> str:
        name = self.document.get("signature_name", "")
        if not isinstance(name, str):
            raise invalid_argument(
                f"JSON Value: {quoted(self.document)} not formatted correctly. "
                "'signature_name' key must be a string value."
            )
        return checked_name(name)

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
            fill_example(document["context"], result.example_list_with_context.context)
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
            fill_example(value, target.add())
        return result

    def _refused(self, why: str) -> ServingError:
        return invalid_argument(f"JSON Value: {quoted(self.document)} {why}")

    def _from_rows(self, instances: list, infos: TensorInfos) -> dict[str, np.ndarray]:
        named = is_named(instances[0])
        if not isinstance(instances[0], dict) and len(infos) > 1:
            raise invalid_argument(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        for index, element in enumerate(instances):
            if named and not is_named(element):
                raise invalid_argument(
                    f"Expecting object but got list at item {index} of input list"
                )
            if not named and is_named(element):
                raise invalid_argument(
                    f"Expecting value/list but got object at item {index} of input list"
                )
            if named and element.keys() != infos.keys():
                self._refuse_keys(index, element, infos)
        if not named:
            alias = next(iter(infos))
            return {alias: self._rows(instances, infos[alias].dtype, "")}
        return {
            alias: self._rows(
                [element[alias] for element in instances], info.dtype, f" key: {alias}"
            )
            for alias, info in infos.items()
        }

    def _refuse_keys(self, index: int, element: dict, infos: TensorInfos) -> None:
        for key in element:
            if checked_name(key) not in infos:
                error = invalid_argument(f"JSON object: does not have named input: {key}")
                raise _element_error(index, f" key: {key}", error)
        raise invalid_argument(
            f"Failed to process element: {index} of 'instances' list. JSON object: "
            f"{quoted(element)} keys must be equal to: {','.join(sorted(infos))}"
        )

    def _rows(self, values: list, dtype: int, key: str) -> np.ndarray:
        fast = self._fast(values, dtype)
        if fast is not None:
            return fast
        rows: list[np.ndarray] = []
        for index, value in enumerate(values):
            try:
                row = tensor(value, dtype, MAX_RANK - 1)
                if rows and row.size != rows[0].size:
                    raise invalid_argument(
                        f"Expecting tensor size: {rows[0].size} but got: {row.size}"
                    )
                if rows and row.shape != rows[0].shape:
                    raise invalid_argument(
                        f"Expecting shape {shape_text(rows[0])} but got: {shape_text(row)}"
                    )
            except ServingError as error:
                raise _element_error(index, key, error) from error
            rows.append(row)
        return np.stack(rows)

    def _from_columns(self, value: Any, infos: TensorInfos) -> dict[str, np.ndarray]:
        if not is_named(value):
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
        return tensor(value, dtype) if fast is None else fast

    def _fast(self, value: Any, dtype: int) -> np.ndarray | None:
        """All of a rectangular numeric list at once; None leaves it to the careful way."""
        if not self._plain or not (dtype in FLOATS or dtype in INTEGERS):
            return None
        try:
            array = np.array(value)
        except (ValueError, OverflowError):  # ragged or too deep
            return None
        if not array.size or array.ndim > MAX_RANK:
            return None
        if dtype in INTEGERS:
            limits = np.iinfo(INTEGERS[dtype])
            if array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
                return None
            return array.astype(INTEGERS[dtype])
        target, largest_integer, largest = FLOATS[dtype]
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


def _refuse_lone_surrogates(text: str) -> None:
    """They are no characters: nothing that holds one can be compared, stored or sent back."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    for escape in _ESCAPE.finditer(text):
        if escape["lone"]:
            raise invalid_argument(
                "JSON Parse error: The surrogate pair in string is invalid. "
                f"at offset: {escape.start()}"
            )


def _element_error(index: int, key: str, error: ServingError) -> ServingError:
    return invalid_argument(
        f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
    )
