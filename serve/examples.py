"""tf.Examples in, classifications and regressions out: what lies around a run of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serve import tensors
from serve.errors import invalid_argument
from serve.json_values import shape_text


def serialized_examples(examples: input_pb2.Input) -> np.ndarray:
    """The ``[B]`` string tensor of serialized tf.Examples that an Input stands for."""
    kind = examples.WhichOneof("kind")
    prefix = b""
    listed: Sequence = ()
    if kind == "example_list":
        listed = examples.example_list.examples
    elif kind == "example_list_with_context":
        # Serialized messages concatenated are the merged message.
        prefix = examples.example_list_with_context.context.SerializeToString()
        listed = examples.example_list_with_context.examples
    if not listed:
        raise invalid_argument("Input is empty.")
    if len(prefix) * len(listed) > tensors.MAX_EXPANDED_BYTES:
        raise invalid_argument(
            f"A context of {len(prefix)} bytes for each of {len(listed)} examples is more than "
            f"{tensors.MAX_EXPANDED_BYTES} bytes."
        )
    rows = np.empty(len(listed), dtype=object)
    rows[:] = [prefix + example.SerializeToString() for example in listed]
    return rows


def classification(
    signature: meta_graph_pb2.SignatureDef, count: int, outputs: Mapping[str, np.ndarray]
) -> classification_pb2.ClassificationResult:
    """Outputs by tensor name, ``[count, K]``, as pairs of class and score.

    Raises:
        ServingError: INVALID_ARGUMENT for outputs of another shape or type.
    """
    columns = {}
    for alias, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if alias not in signature.outputs:
            continue
        values = outputs[signature.outputs[alias].name]
        if values.ndim != 2:
            raise invalid_argument(
                "Expected Tensor shape: [batch_size num_classes] but got " + shape_text(values)
            )
        if tensors.dtype_enum_name(values) != dtype:
            raise invalid_argument(
                f"Expected {alias} Tensor of {dtype}. Got: {tensors.dtype_enum_name(values)}"
            )
        if len(values) != count:
            raise invalid_argument(
                f"Expected {alias} output batch size of {count}. Got: {len(values)}"
            )
        columns[alias] = values
    if len({values.shape[1] for values in columns.values()}) > 1:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{columns['classes'].shape[1]} vs. {columns['scores'].shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    for row in range(count):
        entry = result.classifications.add()
        for column in range(next(iter(columns.values())).shape[1]):
            label = entry.classes.add()
            if "classes" in columns:
                label.label = columns["classes"][row, column]
            if "scores" in columns:
                label.score = columns["scores"][row, column]
    return result


def regression(
    signature: meta_graph_pb2.SignatureDef, count: int, outputs: Mapping[str, np.ndarray]
) -> regression_pb2.RegressionResult:
    """The output, ``[count]`` or ``[count, 1]``, as values.

    Raises:
        ServingError: INVALID_ARGUMENT for an output of another shape or type.
    """
    values = outputs[signature.outputs["outputs"].name]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            + shape_text(values)
        )
    if len(values) != count:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {count} vs. {len(values)}"
        )
    if tensors.dtype_enum_name(values) != "DT_FLOAT":
        raise invalid_argument(
            f"Expected output Tensor of DT_FLOAT.  Got: {tensors.dtype_enum_name(values)}"
        )
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result
