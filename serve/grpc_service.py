"""The gRPC front end: PredictionService, ModelService and the standard health service."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serve import tensors
from serve.core import Capacity, ServerCore
from serve.errors import as_serving_error, invalid_argument
from serve.inference import check_inputs
from serve.servable import Servable

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 128 << 20
# Threads beyond the capacity: they answer status and health, and refuse what is too much.
_SPARE_THREADS = 8
# Calls that may wait for one of these; gRPC itself refuses more, with another text.
_MAX_WAITING = 1024
# Refusing before the end: gRPC drops what has arrived and is not yet taken up when it stops.
_REFUSING_SECONDS = 0.5
# A reload waits for its models to load, so few of them may hold a spare thread.
_MAX_RELOADS = 2

_NO_DEADLINE = 86400.0 * 365

_Response = TypeVar("_Response")


def _answer(
    context: grpc.ServicerContext, call: Callable[[], _Response], capacity: Capacity | None = None
) -> _Response:
    try:
        with capacity.slot() if capacity is not None else nullcontext():
            return call()
    except Exception as error:
        refused = as_serving_error(error)
        context.abort(refused.code, refused.grpc_details)
        raise  # not reached: abort raises


def _timeout(context: grpc.ServicerContext) -> float | None:
    """Seconds that the client still waits; without a deadline gRPC says centuries."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _NO_DEADLINE else remaining


def _require_spec(request) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow.serving.PredictionService on a core, at most ``capacity`` calls at once."""

    def __init__(self, core: ServerCore, capacity: Capacity):
        self._core = core
        self._capacity = capacity

    def Predict(self, request, context):
        return _answer(context, lambda: self._predict(request, _timeout(context)), self._capacity)

    def _predict(
        self, request: predict_pb2.PredictRequest, timeout: float | None
    ) -> predict_pb2.PredictResponse:
        _require_spec(request)

        def decode(servable: Servable) -> dict[str, np.ndarray]:
            name = request.model_spec.signature_name
            return _decode(request, self._core.inference.predict_signature(servable, name))

        spec, outputs = self._core.predict(
            request.model_spec, decode, request.output_filter, "GRPC", timeout
        )
        response = predict_pb2.PredictResponse(model_spec=spec)
        for alias, array in outputs.items():
            tensors.encode(array, response.outputs[alias])
        return response

    def Classify(self, request, context):
        def call():
            _require_spec(request)
            timeout = _timeout(context)
            return self._core.classify(request.model_spec, request.input, "GRPC", timeout)

        return _answer(context, call, self._capacity)

    def Regress(self, request, context):
        def call():
            _require_spec(request)
            timeout = _timeout(context)
            return self._core.regress(request.model_spec, request.input, "GRPC", timeout)

        return _answer(context, call, self._capacity)

    def MultiInference(self, request, context):
        def call():
            return self._core.multi_inference(request, _timeout(context))

        return _answer(context, call, self._capacity)

    def GetModelMetadata(self, request, context):
        return _answer(context, lambda: self._core.metadata(request))


def _decode(
    request: predict_pb2.PredictRequest, signature: meta_graph_pb2.SignatureDef
) -> dict[str, np.ndarray]:
    # Before decoding, which costs memory: as many tensors as the signature takes, and such.
    check_inputs(signature, {alias: proto.dtype for alias, proto in request.inputs.items()})
    arrays = {}
    for alias, proto in request.inputs.items():
        try:
            arrays[alias] = tensors.decode(proto)
        except ValueError as error:
            raise invalid_argument(f"tensor parsing error: {alias}") from error
    return arrays


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow.serving.ModelService: state of the models, and their configuration."""

    def __init__(self, core: ServerCore):
        self._manager = core.manager
        self._reloads = Capacity(_MAX_RELOADS)

    def GetModelStatus(self, request, context):
        def call() -> get_model_status_pb2.GetModelStatusResponse:
            _require_spec(request)
            return self._manager.status(request.model_spec)

        return _answer(context, call)

    def HandleReloadConfigRequest(self, request, context):
        def call() -> model_management_pb2.ReloadConfigResponse:
            if request.config.WhichOneof("config") != "model_config_list":
                raise invalid_argument(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported"
                )
            self._manager.reload(request.config, context.is_active)
            response = model_management_pb2.ReloadConfigResponse()
            response.status.SetInParent()
            return response

        return _answer(context, call, self._reloads)


class _Refusal(grpc.ServerInterceptor):
    """Once ``ending`` is set, calls that arrive are refused; only the health service answers."""

    def __init__(self) -> None:
        self.ending = threading.Event()

    def intercept_service(self, continuation, details):
        if not self.ending.is_set() or details.method.startswith("/grpc.health."):
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(
                grpc.StatusCode.UNAVAILABLE, "Server is shutting down"
            )
        )


class GrpcServer:
    """The listening gRPC server.

    Args:
        core: what answers.
        max_threads: calls of PredictionService that run at once; more get RESOURCE_EXHAUSTED.
        channel_arguments: ``{"grpc.max_connection_age_ms": 2000}``, passed on to gRPC.
    """

    def __init__(
        self,
        core: ServerCore,
        *,
        max_threads: int,
        channel_arguments: dict[str, int | str] | None = None,
    ):
        options: dict[str, int | str] = {
            "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
            "grpc.max_send_message_length": -1,
            "grpc.so_reuseport": 0,  # a port already taken is to be an error
            **(channel_arguments or {}),
        }
        threads = max_threads + _SPARE_THREADS
        self._refusal = _Refusal()
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=[self._refusal],
            options=list(options.items()),
            maximum_concurrent_rpcs=threads + _MAX_WAITING,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(core, Capacity(max_threads)), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(core), self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in (
            "",
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.ModelService",
        ):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def listen(self, address: str, ssl: Any = None) -> None:
        """Add an address: ``127.0.0.1:8500`` or ``unix:/path``; with TLS given an SSLConfig.

        Raises:
            OSError: the address cannot be had.
        """
        try:
            if ssl is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, _credentials(ssl))
        except RuntimeError as error:
            raise OSError(str(error)) from error
        if not port:
            raise OSError(f"cannot listen at {address}")

    def start(self) -> None:
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Refuse new calls, let running ones end; the event is set when they have."""
        self._health.enter_graceful_shutdown()
        self._refusal.ending.set()
        time.sleep(_REFUSING_SECONDS)
        return self._server.stop(seconds)


def _credentials(ssl: Any) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )
