"""The client's own message classes and tensor encoding, against TensorFlow's."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serve.client import messages, tensors

NUMERIC = [
    np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64,
    np.uint8, np.uint16, np.uint32, np.uint64, np.bool_, np.complex64, np.complex128,
]  # fmt: skip

ARRAYS = st.sampled_from(NUMERIC).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
) | hnp.arrays(np.object_, hnp.array_shapes(min_dims=0, min_side=0), elements=st.binary())


def python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )


def test_importing_the_client_takes_less_than_a_second_and_no_tensorflow():
    code = (
        "import sys, serve.client; assert not any(m.startswith('tensorflow') for m in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: other work may share the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_tensorflow_its_serving_api_and_our_server_may_be_imported_after_the_client():
    # The other order is that of this test session.
    python(
        """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from serve.client import messages, tensors
import warnings
warnings.simplefilter("ignore")  # of TensorFlow's own imports
import numpy, tensorflow
import serve.server
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, model_management_pb2
request = messages.PredictRequest()
request.inputs["x"].CopyFrom(tensors.encode(numpy.arange(3, dtype="int32")))
theirs = predict_pb2.PredictRequest.FromString(request.SerializeToString())
assert tensorflow.make_ndarray(theirs.inputs["x"]).tolist() == [0, 1, 2]
"""
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (messages.PredictRequest, predict_pb2.PredictRequest),
        (messages.PredictResponse, predict_pb2.PredictResponse),
        (messages.SignatureDefMap, get_model_metadata_pb2.SignatureDefMap),
        (messages.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
    ],
)
def test_message_classes_have_the_fields_of_the_generated_ones(ours, theirs):
    assert ours is not theirs
    fields = {(f.name, f.number, f.type) for f in ours.DESCRIPTOR.fields}
    assert fields == {(f.name, f.number, f.type) for f in theirs.DESCRIPTOR.fields}


@settings(max_examples=200, deadline=None)
@given(ARRAYS)
def test_tensorflow_reads_what_we_encode(array):
    proto = tf.make_tensor_proto(0)
    proto.ParseFromString(tensors.encode(array).SerializeToString())
    theirs = tf.make_ndarray(proto)
    assert theirs.dtype == array.dtype
    np.testing.assert_array_equal(theirs, array)


@settings(max_examples=200, deadline=None)
@given(ARRAYS)
def test_we_read_what_tensorflow_encodes(array):
    proto = messages.TensorProto.FromString(tf.make_tensor_proto(array).SerializeToString())
    ours = tensors.decode(proto)
    assert ours.dtype == array.dtype
    np.testing.assert_array_equal(ours, array)


@settings(max_examples=100, deadline=None)
@given(ARRAYS.filter(lambda array: array.dtype not in (np.float16, np.complex64, np.complex128)))
def test_we_read_the_typed_fields_that_tensorflow_serving_answers_with(array):
    field = {
        "f": {4: "float_val", 8: "double_val"}.get(array.itemsize),
        "b": "bool_val",
        "O": "string_val",
        "i": "int64_val" if array.itemsize == 8 else "int_val",
        "u": {4: "uint32_val", 8: "uint64_val"}.get(array.itemsize, "int_val"),
    }[array.dtype.kind]
    proto = messages.TensorProto(dtype=tf.as_dtype(array.dtype).as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, field).extend(array.ravel().tolist())
    np.testing.assert_array_equal(tensors.decode(proto), array)


def test_half_and_complex_numbers_in_typed_fields():
    half = messages.TensorProto(dtype=tf.float16.as_datatype_enum, half_val=[0x3C00, 0xC000])
    half.tensor_shape.dim.add(size=2)
    assert tensors.decode(half).tolist() == [1.0, -2.0]
    number = messages.TensorProto(dtype=tf.complex64.as_datatype_enum, scomplex_val=[1, 2, 3, 4])
    number.tensor_shape.dim.add(size=2)
    assert tensors.decode(number).tolist() == [1 + 2j, 3 + 4j]


def test_a_short_typed_field_repeats_its_last_value():
    proto = messages.TensorProto(dtype=tf.int32.as_datatype_enum, int_val=[1, 2])
    proto.tensor_shape.dim.add(size=5)
    assert tensors.decode(proto).tolist() == [1, 2, 2, 2, 2]


def test_a_tensor_that_contradicts_its_shape_is_refused():
    proto = tensors.encode(np.zeros(3, np.float32))
    proto.tensor_shape.dim[0].size = 4
    with pytest.raises(ValueError, match=r"shape \(4,\) came with 3 values"):
        tensors.decode(proto)
    resource = messages.TensorProto(dtype=tf.resource.as_datatype_enum)
    with pytest.raises(ValueError, match="tensor of resource"):
        tensors.decode(resource)


def test_big_endian_and_strided_arrays_are_sent_as_their_values():
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    proto = tf.make_tensor_proto(0)
    proto.ParseFromString(tensors.encode(array).SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)
