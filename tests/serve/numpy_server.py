"""A gRPC server that speaks TensorFlow Serving's API, for the tests of the client.

It is built on the generated modules of tensorflow-serving-api, which the client does not use, and
answers with numpy: so every byte the client writes and reads is checked by another implementation.
"""

import threading
import time
from collections import Counter
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

Code = grpc.StatusCode


class Service(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """A model whose answers numpy computes, and which fails and dawdles as it is told."""

    def __init__(self):
        self.signatures = {
            "predict": ({"images": (tf.float32, [None, 8, 8, 3])}, {"means": (tf.float32, [None])}),
            "predict_bytes": ({"image_bytes": (tf.string, [None])}, {"sizes": (tf.int64, [None])}),
            "sample": (
                {
                    "labels": (tf.int32, [None]),
                    "seeds": (tf.int64, [None]),
                    "num_steps": (tf.int32, [None]),
                },
                {"codes": (tf.int64, [None, 3])},
            ),
            "total": ({"table": (tf.float32, [None, 2])}, {"total": (tf.float32, [])}),
            "echo": ({"images": (tf.float32, [None, 8, 8, 3])}, {"images": (tf.float32, None)}),
        }
        self.version = 1
        self.next_versions = []  # of the next answers, before `version` again
        self.labels = set()
        self.withdrawn = set()  # versions that answer no request which names them
        self.failures = []  # codes the next requests fail with
        self.state = "AVAILABLE"
        self.delay = 0.0
        self.times = []
        self.sizes = []
        self.calls = Counter()
        self.headers = {}
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def enter(self, method, context):
        with self.lock:
            self.calls[method] += 1
            self.times.append(time.monotonic())
            self.headers = dict(context.invocation_metadata())
            failure = self.failures.pop(0) if self.failures else None
        if failure:
            context.abort(failure, f"told to fail with {failure.name}")

    def compute(self, signature, inputs, version):
        if signature == "predict":  # the version shows in the numbers
            return {"means": inputs["images"].mean((1, 2, 3)) + 10 * np.float32(version - 1)}
        if signature == "predict_bytes":
            return {"sizes": np.array([len(item) for item in inputs["image_bytes"]], np.int64)}
        if signature == "sample":
            columns = [inputs[name].astype(np.int64) for name in ("labels", "seeds", "num_steps")]
            return {"codes": np.stack(columns, 1)}
        return (
            {"images": inputs["images"]}
            if signature == "echo"
            else {"total": inputs["table"].sum()}
        )

    def Predict(self, request, context):
        self.enter("Predict", context)
        with self.lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            is_named = request.model_spec.HasField("version")
            if is_named:
                version = request.model_spec.version.value
            else:
                version = self.next_versions.pop(0) if self.next_versions else self.version
        time.sleep(self.delay)
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        self.sizes.append(len(next(iter(inputs.values()))))
        with self.lock:
            self.under_way -= 1
        if "labels" in inputs and (inputs["labels"] < 0).any():
            context.abort(Code.INVALID_ARGUMENT, "labels: received -1, accepted are 0..9")
        if is_named and version in self.withdrawn:
            context.abort(Code.NOT_FOUND, f"model m has no version {version}")
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = version
        for name, value in self.compute(request.model_spec.signature_name, inputs, version).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):
        self.enter("GetModelMetadata", context)
        label = request.model_spec.version_label
        if label and label not in self.labels:
            context.abort(Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        response.model_spec.version.value = self.version
        definitions = get_model_metadata_pb2.SignatureDefMap()
        for name, sides in self.signatures.items():
            definition = definitions.signature_def[name]
            for infos, side in zip((definition.inputs, definition.outputs), sides, strict=True):
                for tensor, (dtype, shape) in side.items():
                    infos[tensor].dtype = dtype.as_datatype_enum
                    infos[tensor].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
        response.metadata["signature_def"].Pack(definitions)
        return response

    def GetModelStatus(self, request, context):
        self.enter("GetModelStatus", context)
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in range(1, self.version + 1):
            entry = response.model_version_status.add(version=version)
            entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(self.state)
            entry.status.error_message = "" if self.state == "AVAILABLE" else "disk on fire"
        return response


@contextmanager
def running(service, credentials=None, address="127.0.0.1:0"):
    """Serve; yields the target."""
    server = grpc.server(
        futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
