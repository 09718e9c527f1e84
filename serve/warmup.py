"""Replay of the warm-up requests that a SavedModel brings along."""

from __future__ import annotations

import logging
import os
import time

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serve import tensors
from serve.errors import ServingError, StatusCode, as_serving_error, invalid_argument
from serve.inference import Inference
from serve.monitoring import Metrics
from serve.servable import Servable

log = logging.getLogger(__name__)

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000


def replay(
    servable: Servable, inference: Inference, iterations: int, metrics: Metrics | None
) -> None:
    """Run every recorded request, so that the first real one finds the graph compiled.

    Raises:
        ServingError: a record is damaged or fails; the version is then unfit to serve.
    """
    path = os.path.join(servable.path, FILE)
    if not os.path.exists(path):
        log.info("No warmup data file found at %s", path)
        return
    start = time.perf_counter()
    status = "OK"
    try:
        records = _replay(servable, inference, path, iterations)
    except Exception as error:
        refused = as_serving_error(error)
        status = refused.code.name
        raise refused from error
    finally:
        seconds = time.perf_counter() - start
        if metrics is not None:
            metrics.record_warmup(servable.path, status, seconds)
    log.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.",
        path,
        records,
        seconds * 1e6,
    )


def _replay(servable: Servable, inference: Inference, path: str, iterations: int) -> int:
    count = 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            if count == MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}"
                )
            try:
                entry = prediction_log_pb2.PredictionLog.FromString(record)
            except DecodeError as error:
                raise invalid_argument(
                    f"Failed to parse warmup record: {record!r} from {path}"
                ) from error
            for _ in range(iterations):
                _run(servable, inference, entry)
            count += 1
    except tf.errors.DataLossError as error:
        raise ServingError(
            StatusCode.DATA_LOSS,
            f"{error.message}. Please verify your warmup data is in TFRecord format.",
        ) from error
    return count


def _run(servable: Servable, inference: Inference, entry: prediction_log_pb2.PredictionLog) -> None:
    kind = entry.WhichOneof("log_type")
    if kind == "predict_log":
        predict = entry.predict_log.request
        arrays = {alias: tensors.decode(proto) for alias, proto in predict.inputs.items()}
        name = predict.model_spec.signature_name
        inference.predict(servable, name, arrays, predict.output_filter)
    elif kind == "classify_log":
        classify = entry.classify_log.request
        inference.classify(servable, classify.model_spec.signature_name, classify.input)
    elif kind == "regress_log":
        regress = entry.regress_log.request
        inference.regress(servable, regress.model_spec.signature_name, regress.input)
    elif kind == "multi_inference_log":
        inference.multi_inference(servable, entry.multi_inference_log.request)
    else:
        raise ServingError(
            StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind or 'none'}"
        )
