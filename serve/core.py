"""What both front ends call: find the version, run the request, count it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from serve.errors import ServingError, StatusCode, as_serving_error, invalid_argument
from serve.inference import Inference, model_spec
from serve.manager import ModelManager
from serve.monitoring import Metrics
from serve.servable import Servable


class Capacity:
    """How many requests run at once; one more is refused, never queued without bound."""

    def __init__(self, limit: int):
        self._slots = threading.BoundedSemaphore(limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            raise ServingError(StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
        try:
            yield
        finally:
            self._slots.release()


class ServerCore:
    """Requests against the managed models.

    Args:
        manager: where the versions are.
        inference: how they are run.
        metrics: where requests are counted; None counts nothing.
    """

    def __init__(self, manager: ModelManager, inference: Inference, metrics: Metrics | None):
        self.manager = manager
        self.inference = inference
        self._metrics = metrics

    @contextmanager
    def request(self, spec: model_pb2.ModelSpec, api: str, entrypoint: str) -> Iterator[Servable]:
        """The version that serves a request, held until the request is done.

        Raises:
            ServingError: whatever goes wrong inside, as the client is to see it.
        """
        start = time.perf_counter()
        status = StatusCode.OK
        try:
            servable = self.manager.acquire(spec)
            try:
                yield servable
            finally:
                servable.release()
        except Exception as error:
            refused = as_serving_error(error)
            status = refused.code
            raise refused from error
        finally:
            if self._metrics is not None:
                seconds = time.perf_counter() - start
                # The binary writes the API of REST calls in lower case.
                api = api.lower() if entrypoint == "REST" else api
                self._metrics.record_request(spec.name, api, entrypoint, status.name, seconds)

    @contextmanager
    def _runtime(self, spec: model_pb2.ModelSpec, api: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._metrics is not None:
            self._metrics.record_runtime(spec.name, api, time.perf_counter() - start)

    def predict(
        self,
        spec: model_pb2.ModelSpec,
        decode: Callable[[Servable], Mapping[str, np.ndarray]],
        output_filter: Sequence[str],
        entrypoint: str,
        timeout: float | None = None,
    ) -> tuple[model_pb2.ModelSpec, dict[str, np.ndarray]]:
        """Run a signature on the arrays that ``decode`` makes once the version is known."""
        name = spec.signature_name
        with self.request(spec, "Predict", entrypoint) as servable:
            inputs = decode(servable)
            with self._runtime(spec, "Predict"):
                outputs = self.inference.predict(servable, name, inputs, output_filter, timeout)
            return model_spec(servable, spec.name, name), outputs

    def classify(
        self,
        spec: model_pb2.ModelSpec,
        examples: input_pb2.Input,
        entrypoint: str,
        timeout: float | None = None,
    ) -> classification_pb2.ClassificationResponse:
        """Classes of examples by a signature with the method name of classification."""
        with self.request(spec, "Classify", entrypoint) as servable:
            with self._runtime(spec, "Classify"):
                result = self.inference.classify(servable, spec.signature_name, examples, timeout)
            answered = model_spec(servable, spec.name, spec.signature_name)
            return classification_pb2.ClassificationResponse(result=result, model_spec=answered)

    def regress(
        self,
        spec: model_pb2.ModelSpec,
        examples: input_pb2.Input,
        entrypoint: str,
        timeout: float | None = None,
    ) -> regression_pb2.RegressionResponse:
        """A value an example by a signature with the method name of regression."""
        with self.request(spec, "Regress", entrypoint) as servable:
            with self._runtime(spec, "Regress"):
                result = self.inference.regress(servable, spec.signature_name, examples, timeout)
            answered = model_spec(servable, spec.name, spec.signature_name)
            return regression_pb2.RegressionResponse(result=result, model_spec=answered)

    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest, timeout: float | None = None
    ) -> inference_pb2.MultiInferenceResponse:
        """Several classifications and regressions of the same examples, of one model."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self.request(spec, "MultiInference", "GRPC") as servable:
            return self.inference.multi_inference(servable, request, timeout)

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of the version that serves."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        servable = self.manager.acquire(request.model_spec)
        try:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for key, signature in servable.signatures.items():
                signatures.signature_def[key].CopyFrom(signature)
        finally:
            servable.release()
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response
