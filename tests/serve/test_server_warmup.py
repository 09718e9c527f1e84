"""Warm-up records: replayed before a version serves, and refused when they are none."""

import shutil

import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serve import warmup
from serve.errors import ServingError
from serve.inference import Inference
from serve.servable import Servable


def write_warmup(path, *records):
    (path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(path / warmup.FILE)) as writer:
        for record in records:
            writer.write(record)


def predict_log(**inputs):
    request = predict_pb2.PredictRequest()
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    log = prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )
    return log.SerializeToString()


GOOD = predict_log(x=[1.0])


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([GOOD, predict_log(z=[1.0])], "input tensor alias not found in signature: z"),
        ([b"\xff\xff"], "Failed to parse warmup record"),
        ([b""], "Unsupported log_type for warmup"),
        ([GOOD] * 1001, "Number of warmup records exceeds the maximum (1000)"),
    ],
)
def test_a_bad_warmup_record_makes_the_version_unfit(line, tmp_path, records, text):
    shutil.copytree(line, tmp_path / "1")
    write_warmup(tmp_path / "1", *records)
    servable = Servable("m", 1, str(tmp_path / "1"))
    with pytest.raises(ServingError) as caught:
        warmup.replay(servable, Inference(), 1, None)
    assert text in caught.value.message


def test_good_warmup_records_run_and_damaged_files_do_not(line, tmp_path):
    shutil.copytree(line, tmp_path / "1")
    write_warmup(tmp_path / "1", *[GOOD] * 1000)
    servable = Servable("m", 1, str(tmp_path / "1"))
    warmup.replay(servable, Inference(), 1, None)
    path = tmp_path / "1" / warmup.FILE
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with pytest.raises(ServingError, match="verify your warmup data is in TFRecord format"):
        warmup.replay(servable, Inference(), 1, None)
