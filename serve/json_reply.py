"""Arrays and results to the JSON text that TensorFlow Serving's REST API writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    regression_pb2,
)

from serve import tensors
from serve.errors import ServingError, StatusCode, invalid_argument


def error(message: str) -> bytes:
    return f'{{\n    "error": {_string(message)}\n}}'.encode("utf-8", "surrogateescape")


def predictions(outputs: Mapping[str, np.ndarray], by_rows: bool) -> bytes:
    """The reply to predict; a single output goes unnamed."""
    text = _rows(outputs) if by_rows else _columns(outputs)
    return text.encode("utf-8", "surrogateescape")


def _rows(outputs: Mapping[str, np.ndarray]) -> str:
    batch = -1
    for name, array in outputs.items():
        if not array.ndim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if batch >= 0 and len(array) != batch:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {batch}"
            )
        batch = len(array)
    columns = {name: list(_per_row(name, array)) for name, array in outputs.items()}
    if len(columns) == 1:
        rows = ", ".join(next(iter(columns.values())))
    else:
        rows = ",".join(
            "\n        {\n"
            + ",\n".join(
                f"            {_string(name)}: {column[row]}" for name, column in columns.items()
            )
            + "\n        }"
            for row in range(batch)
        )
    return f'{{\n    "predictions": [{rows}\n    ]\n}}'


def _per_row(name: str, array: np.ndarray) -> Iterator[str]:
    values = _values(name, array)
    return (_nested(values, array.shape[1:]) for _ in range(len(array)))


def _columns(outputs: Mapping[str, np.ndarray]) -> str:
    columns = {name: _nested(_values(name, array), array.shape) for name, array in outputs.items()}
    if len(columns) == 1:
        return f'{{\n    "outputs": {next(iter(columns.values()))}\n}}'
    members = ",\n".join(f"        {_string(name)}: {text}" for name, text in columns.items())
    return f'{{\n    "outputs": {{\n{members}\n    }}\n}}'


def _nested(values: Iterator[str], shape: tuple[int, ...]) -> str:
    if not shape:
        return next(values)
    if len(shape) == 1:
        return "[" + ", ".join(islice(values, shape[0])) + "]"
    return "[" + ", ".join(_nested(values, shape[1:]) for _ in range(shape[0])) + "]"


def _values(name: str, array: np.ndarray) -> Iterator[str]:
    """The JSON text of each element, in order."""
    flat = array.ravel()
    kind = array.dtype.kind
    if array.dtype == object:
        if name.endswith("_bytes"):
            return (f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in flat)
        return (_string(value.decode("utf-8", "surrogateescape")) for value in flat)
    if array.dtype in (np.float16, np.float32, np.float64):
        return iter(decimals(flat))
    if kind in "iu":
        return map(str, flat.tolist())
    if kind == "b":
        return iter(["true" if value else "false" for value in flat.tolist()])
    raise invalid_argument(
        "Failed to write JSON value for tensor type: " + tensors.dtype_name(tensors.dtype_of(array))
    )


def decimals(flat: np.ndarray) -> list[str]:
    """Six digits where they are exact, else as many as the type needs; whole numbers get ".0".

    Not a number and infinities are written ``NaN``, ``Infinity`` and ``-Infinity``.
    """
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    digits = 17 if flat.dtype == np.float64 else 9
    values = flat.tolist()
    texts = [f"{value:.6g}" for value in values]
    exact = np.array(texts, dtype=np.float64).astype(flat.dtype) == flat
    for index in np.flatnonzero(~exact):
        texts[index] = f"{values[index]:.{digits}g}"
    return [_decimal(text) for text in texts]


def _decimal(text: str) -> str:
    if text in _SPECIAL:
        return _SPECIAL[text]
    return text if "." in text or "e" in text else text + ".0"


_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def classifications(result: classification_pb2.ClassificationResult) -> bytes:
    rows = []
    for row in result.classifications:
        scores = decimals(np.array([entry.score for entry in row.classes], dtype=np.float32))
        pairs = zip((entry.label for entry in row.classes), scores, strict=True)
        rows.append("[" + ", ".join(f"[{_string(label)}, {score}]" for label, score in pairs) + "]")
    return _results(rows)


def regressions(result: regression_pb2.RegressionResult) -> bytes:
    values = np.array([entry.value for entry in result.regressions], dtype=np.float32)
    return _results(decimals(values))


def _results(items: Iterable[str]) -> bytes:
    return f'{{\n    "results": [{", ".join(items)}\n    ]\n}}'.encode()


def status(response: get_model_status_pb2.GetModelStatusResponse) -> bytes:
    return (_message(response) + "\n").encode()


def metadata(response: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    """The metadata with the packed signatures unpacked, as its own kind of JSON."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    if not response.metadata["signature_def"].Unpack(signatures):
        raise ServingError(
            StatusCode.INTERNAL, "Failed to unpack 'Any' object to 'SignatureDefMap'."
        )
    return (
        f'{{\n"model_spec":{_message(response.model_spec)}\n,\n'
        f'"metadata": {{"signature_def": {_message(signatures)}\n}}\n}}\n'
    ).encode()


def _message(message) -> str:
    return json_format.MessageToJson(
        message,
        indent=1,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
