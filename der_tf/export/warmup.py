"""Warm-up requests: what TensorFlow Serving plays to a version before it takes traffic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


def requests(
    model_name: str,
    image_shape: tuple[int, int, int],
    signatures: Iterable[str],
    batch_sizes: Sequence[int],
) -> Iterator[predict_pb2.PredictRequest]:
    """One request a signature, and one a batch size for each queue: predictions, moves, samples.

    Each new batch size costs its first batch time and memory (on GPUs the choice of kernels).
    """
    height, width, channels = image_shape
    grey = tf.fill([height, width, channels], tf.constant(128, tf.uint8))
    for signature in signatures:
        if signature == "sample":
            for rows in batch_sizes:
                request = _request(model_name, signature)
                wishes = {
                    "labels": (0, tf.int32),
                    "seeds": (0, tf.int64),
                    "num_steps": (1, tf.int32),
                }
                for name, (value, dtype) in wishes.items():
                    request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype, [rows]))
                yield request
            continue
        request = _request(model_name, signature)
        if signature == "predict_bytes":
            files = [tf.io.encode_png(grey), tf.io.encode_jpeg(grey)]
            request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(tf.stack(files)))
            yield request
            continue
        for rows in batch_sizes if signature in ("serving_default", "defend") else [1]:
            request = _request(model_name, signature)
            # A single value stands for all of them: the file stays small at any image size.
            request.inputs["images"].CopyFrom(
                tf.make_tensor_proto(0.5, tf.float32, [rows, *image_shape])
            )
            yield request


def _request(model_name: str, signature: str) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature
    return request


def write(path: Path, warmup_requests: Iterable[predict_pb2.PredictRequest]) -> None:
    """Writes the TFRecord of PredictionLog that TensorFlow Serving reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in warmup_requests:
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
