"""Predict, classify, regress and multi-inference on a loaded version.

Both front ends, gRPC and REST, come through here, so that they check and fail alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from serve import tensors
from serve.errors import ServingError, StatusCode, failed_precondition, invalid_argument
from serve.examples import classification, regression, serialized_examples
from serve.servable import Servable

DEFAULT_SIGNATURE = "serving_default"
PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def model_spec(servable: Servable, name: str, signature: str) -> model_pb2.ModelSpec:
    """The model_spec of a reply: which version and signature answered."""
    spec = model_pb2.ModelSpec(name=name, signature_name=signature or DEFAULT_SIGNATURE)
    spec.version.value = servable.version
    return spec


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


class Inference:
    """Runs requests on versions.

    Args:
        check_method_names: refuse a signature whose method name is not the one of the call.
    """

    def __init__(self, check_method_names: bool = True):
        self._check_method_names = check_method_names

    def predict(
        self,
        servable: Servable,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Arrays by alias in, arrays by alias out; stopped after ``timeout`` seconds."""
        signature = self.predict_signature(servable, signature_name)
        check_inputs(signature, {alias: tensors.dtype_of(array) for alias, array in inputs.items()})
        ordered = sorted(inputs)  # one order for all: graphs are compiled, and batched, by it
        feeds = [signature.inputs[alias].name for alias in ordered]
        arrays = [inputs[alias] for alias in ordered]
        aliases = _output_aliases(signature, output_filter)
        fetches = [signature.outputs[alias].name for alias in aliases]
        outputs = servable.run(feeds, arrays, fetches, timeout)
        return dict(zip(aliases, outputs, strict=True))

    def predict_signature(self, servable: Servable, name: str) -> meta_graph_pb2.SignatureDef:
        name = name or DEFAULT_SIGNATURE
        signature = servable.signatures.get(name)
        if signature is None:
            raise failed_precondition(f'Serving signature key "{name}" not found.')
        if self._check_method_names and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
            raise ServingError(
                StatusCode.INTERNAL,
                "Expected prediction signature method_name to be one of "
                f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {signature.method_name}",
            )
        return signature

    def classify(
        self,
        servable: Servable,
        signature_name: str,
        examples: input_pb2.Input,
        timeout: float | None = None,
    ) -> classification_pb2.ClassificationResult:
        signature = self._example_signature(servable, signature_name, CLASSIFY)
        feed, fetches = self._classify_tensors(signature)
        rows = serialized_examples(examples)
        outputs = servable.run([feed], [rows], fetches, timeout)
        return classification(signature, len(rows), dict(zip(fetches, outputs, strict=True)))

    def regress(
        self,
        servable: Servable,
        signature_name: str,
        examples: input_pb2.Input,
        timeout: float | None = None,
    ) -> regression_pb2.RegressionResult:
        signature = self._example_signature(servable, signature_name, REGRESS)
        feed, fetches = self._regress_tensors(signature)
        rows = serialized_examples(examples)
        outputs = servable.run([feed], [rows], fetches, timeout)
        return regression(signature, len(rows), dict(zip(fetches, outputs, strict=True)))

    def multi_inference(
        self,
        servable: Servable,
        request: inference_pb2.MultiInferenceRequest,
        timeout: float | None = None,
    ) -> inference_pb2.MultiInferenceResponse:
        """Several classify and regress tasks on the same examples, in one run of the graph."""
        signatures: dict[str, meta_graph_pb2.SignatureDef] = {}
        feeds: set[str] = set()
        fetches: set[str] = set()
        names: set[str] = set()
        for task in request.tasks:
            spec = task.model_spec
            if not spec.name:
                raise invalid_argument("Found ModelSpec with an empty model name.")
            names.add(spec.name)
            if len(names) > 1:
                raise invalid_argument(
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name."
                )
            key = spec.signature_name or DEFAULT_SIGNATURE
            if key in signatures:
                raise invalid_argument(f"Duplicate evaluation of signature: {key}")
            if key not in servable.signatures:
                raise invalid_argument(f"Requested signature not found in model graph: {key}")
            signatures[key] = signature = servable.signatures[key]
            if task.method_name == CLASSIFY:
                feed, wanted = self._classify_tensors(signature)
            elif task.method_name == REGRESS:
                feed, wanted = self._regress_tensors(signature)
            else:
                raise ServingError(
                    StatusCode.UNIMPLEMENTED,
                    f"Unsupported signature method_name: {task.method_name}",
                )
            feeds.add(feed)
            if len(feeds) > 1:
                raise invalid_argument("Input tensor must be the same for all Signatures.")
            fetches.update(wanted)
        response = inference_pb2.MultiInferenceResponse()
        rows = serialized_examples(request.input)
        ordered = sorted(fetches)
        outputs = dict(zip(ordered, servable.run([*feeds], [rows], ordered, timeout), strict=True))
        for task, (key, signature) in zip(request.tasks, signatures.items(), strict=True):
            result = response.results.add()
            result.model_spec.CopyFrom(model_spec(servable, task.model_spec.name, key))
            if task.method_name == CLASSIFY:
                classes = classification(signature, len(rows), outputs)
                result.classification_result.CopyFrom(classes)
            else:
                result.regression_result.CopyFrom(regression(signature, len(rows), outputs))
        return response

    def _example_signature(
        self, servable: Servable, name: str, method: str
    ) -> meta_graph_pb2.SignatureDef:
        name = name or DEFAULT_SIGNATURE
        signature = servable.signatures.get(name)
        if signature is None:
            raise invalid_argument(f"No signature was found with the name: {name}")
        self._check_method(signature, method)
        return signature

    def _check_method(self, signature: meta_graph_pb2.SignatureDef, method: str) -> None:
        if self._check_method_names and signature.method_name != method:
            kind = "classification" if method == CLASSIFY else "regression"
            raise invalid_argument(
                f"Expected {kind} signature method_name to be {method}. "
                f"Was: {signature.method_name}"
            )

    def _classify_tensors(self, signature: meta_graph_pb2.SignatureDef) -> tuple[str, list[str]]:
        self._check_method(signature, CLASSIFY)
        if len(signature.inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        if len(signature.outputs) not in (1, 2):
            raise invalid_argument(
                f"Expected one or two output Tensors, found {len(signature.outputs)}"
            )
        if "inputs" not in signature.inputs:
            raise failed_precondition(
                f"No classification inputs found in SignatureDef: {signature}"
            )
        fetches = [
            signature.outputs[alias].name
            for alias in ("classes", "scores")
            if alias in signature.outputs
        ]
        if not fetches:
            raise failed_precondition(
                "Expected classification signature outputs to contain at least one of "
                f'"classes" or "scores". Signature was: {signature}'
            )
        return signature.inputs["inputs"].name, fetches

    def _regress_tensors(self, signature: meta_graph_pb2.SignatureDef) -> tuple[str, list[str]]:
        self._check_method(signature, REGRESS)
        if len(signature.inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        if len(signature.outputs) != 1:
            raise invalid_argument("Expected one output Tensor.")
        if "inputs" not in signature.inputs:
            raise failed_precondition(f"No regression inputs found in SignatureDef: {signature}")
        if "outputs" not in signature.outputs:
            raise failed_precondition(f"No regression outputs found in SignatureDef: {signature}")
        return signature.inputs["inputs"].name, [signature.outputs["outputs"].name]


def check_inputs(signature: meta_graph_pb2.SignatureDef, dtypes: Mapping[str, int]) -> None:
    """Raise ServingError if inputs of these DataTypes by alias are not those of the signature."""
    expected = signature.inputs
    if len(dtypes) != len(expected):
        sent, wanted = set(dtypes), set(expected)
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_braced(sent)}) != len({_braced(wanted)}). "
            f"Sent extra: {_braced(sent - wanted)}. "
            f"Missing but required: {_braced(wanted - sent)}."
        )
    for index, alias in enumerate(sorted(dtypes)):
        if alias not in expected:
            raise invalid_argument(
                f"input tensor alias not found in signature: {alias}. "
                f"Inputs expected to be in the set {_braced(expected)}."
            )
        if dtypes[alias] != expected[alias].dtype:
            raise invalid_argument(
                f"Expects arg[{index}] to be {tensors.dtype_name(expected[alias].dtype)} but "
                f"{tensors.dtype_name(dtypes[alias])} is provided"
            )


def _output_aliases(
    signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]
) -> list[str]:
    seen = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braced(signature.outputs)}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return sorted(seen or signature.outputs)
