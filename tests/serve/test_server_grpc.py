"""The gRPC API of the embedded server, as a client of TensorFlow Serving meets it."""

from urllib.parse import quote

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tests.serve.grpc_calls import floats, predict, predict_request, refusal

Code = grpc.StatusCode


def test_predict_answers_with_typed_fields_and_the_full_model_spec(server):
    reply = predict(server, "zoo", x=floats(1, 2, 5))
    assert reply.outputs["y"].float_val == [2.5, 3.0, 4.5]
    assert reply.outputs["y"].dtype == types_pb2.DT_FLOAT
    assert [dim.size for dim in reply.outputs["y"].tensor_shape.dim] == [3]
    assert not reply.outputs["y"].tensor_content
    assert reply.model_spec.name == "zoo"
    assert reply.model_spec.version.value == 7
    assert reply.model_spec.signature_name == "serving_default"


@pytest.mark.parametrize(
    "text",
    [
        "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: 4 float_val: 4",
        "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: 4",  # one stands for all
        r'dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: "\0\0\x80@\0\0\x80@"',
    ],
)
def test_every_way_to_write_a_tensor_is_read(server, text):
    request = predict_request("zoo")
    text_format.Parse(text, request.inputs["x"])
    assert server.prediction.Predict(request).outputs["y"].float_val == [4.0, 4.0]


@pytest.mark.parametrize(
    "text",
    [
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } } float_val: 4",
        "dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 4",
        'dtype: DT_FLOAT tensor_shape { dim { size: 3 } } tensor_content: "four"',
        # eight bytes that ask for 4 TB
        "dtype: DT_FLOAT tensor_shape { dim { size: 1000000000000 } } float_val: 4",
        f"dtype: DT_FLOAT tensor_shape {{ {'dim { size: 1 } ' * 33} }} float_val: 4",
    ],
)
def test_a_tensor_that_is_none_is_refused(server, text):
    request = predict_request("zoo")
    text_format.Parse(text, request.inputs["x"])
    code, details = refusal(server.prediction.Predict, request)
    assert (code, details) == (Code.INVALID_ARGUMENT, "tensor parsing error: x")


@pytest.mark.parametrize(
    ("shape", "string"),
    [
        ([3_000_000], b"a"),  # 20 bytes that ask for 200 MB
        ([200], b"a" * (1 << 20)),
        ([1] * 33, b"a"),  # TensorFlow's conversion of it would end the process
    ],
    ids=["many", "long", "rank 33"],
)
def test_one_string_cannot_stand_for_all_of_a_huge_tensor(server, shape, string):
    request = predict_request("zoo", "strings")
    request.inputs["text"].dtype = types_pb2.DT_STRING
    for size in shape:
        request.inputs["text"].tensor_shape.dim.add(size=size)
    request.inputs["text"].string_val.append(string)
    code, details = refusal(server.prediction.Predict, request)
    assert (code, details) == (Code.INVALID_ARGUMENT, "tensor parsing error: text")


@pytest.mark.parametrize(
    ("dtypes", "details"),
    [
        ({"x": "DT_STRING"}, "Expects arg[0] to be float but string is provided"),
        ({"x": "99"}, "Expects arg[0] to be float but unknown dtype enum (99) is provided"),
        (
            {"x": "DT_FLOAT", "z": "DT_FLOAT"},
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). "
            "Sent extra: {z}. Missing but required: {}.",
        ),
    ],
)
def test_tensors_that_the_signature_does_not_take_are_not_decoded(server, dtypes, details):
    request = predict_request("zoo")
    for name, dtype in dtypes.items():
        text = f"dtype: {dtype} tensor_shape {{ dim {{ size: 1000000000000 }} }}"
        text_format.Parse(text, request.inputs[name])
    refused = refusal(server.prediction.Predict, request)
    assert refused == (Code.INVALID_ARGUMENT, details)


def test_every_dtype_goes_in_and_out_unchanged(server):
    sent = {
        "half": np.array([1.5, -np.inf], np.float16),
        "double": np.array([1e300, np.nan]),
        "long": np.array([-(2**63), 2**63 - 1]),
        "byte": np.array([0, 255], np.uint8),
        "flag": np.array([True, False]),
    }
    reply = predict(server, "zoo", "types", **sent)
    for name, array in sent.items():
        received = tf.make_ndarray(reply.outputs[name])
        assert received.dtype == array.dtype
        np.testing.assert_array_equal(received, array)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3, 4), (1, 1, 1, 1, 1)])
def test_every_shape_goes_in_and_out_unchanged(server, shape):
    array = np.random.default_rng(0).random(shape, np.float32)
    reply = predict(server, "zoo", "echo", x=array)
    received = tf.make_ndarray(reply.outputs["x"])
    assert received.shape == shape
    np.testing.assert_array_equal(received, array)


def test_strings_are_bytes_and_tables_are_initialized(server):
    reply = predict(server, "zoo", "strings", text=np.array([b"cat", b"\xff\x00", b""], object))
    assert list(reply.outputs["text"].string_val) == [b"cat", b"\xff\x00", b""]
    assert list(reply.outputs["length"].int_val) == [3, 2, 0]
    assert list(reply.outputs["index"].int_val) == [1, -1, -1]


def test_output_filter_selects(server):
    inputs = {"a": np.ones([1, 2], np.float32), "b": np.array([3], np.int32)}
    reply = predict(server, "zoo", "two", outputs=["double"], **inputs)
    assert reply.outputs.keys() == {"double"}
    assert reply.outputs["double"].int_val == [6]
    assert predict(server, "zoo", "two", **inputs).outputs.keys() == {"double", "total"}


def test_keras_and_tf1_models_are_served(server):
    images = np.zeros([2, 8, 8, 1], np.float32)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "keras"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    server.prediction.GetModelMetadata(request).metadata["signature_def"].Unpack(signatures)
    (name,) = signatures.signature_def["serving_default"].inputs
    reply = predict(server, "keras", **{name: images})
    (output,) = reply.outputs.values()
    assert [dim.size for dim in output.tensor_shape.dim] == [2, 3]
    assert predict(server, "tf1", x=floats(2).reshape(1, 1)).outputs["y"].float_val == [3.0]


def test_versions_and_labels_select(server):
    def slope(**choice):
        reply = predict(server, "lines", x=floats(1), **choice)
        return reply.outputs["y"].float_val[0], reply.model_spec.version.value

    assert slope() == (2.0, 2)
    assert slope(version=1) == (1.0, 1)
    assert slope(label="stable") == (1.0, 1)
    assert slope(label="canary") == (2.0, 2)


TWO = {"x": floats(1), "z": floats(1)}
REFUSALS = [
    (("nope",), {"x": floats(1)}, Code.NOT_FOUND, "Servable not found for request: Latest(nope)"),
    (
        ("zoo",),
        {"x": floats(1), "version": 99},
        Code.NOT_FOUND,
        "Servable not found for request: Specific(zoo, 99)",
    ),
    (("",), {"x": floats(1)}, Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    (
        ("lines",),
        {"x": floats(1), "label": "x"},
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: x",
    ),
    (
        ("zoo", "s"),
        {"x": floats(1)},
        Code.FAILED_PRECONDITION,
        'Serving signature key "s" not found.',
    ),
    (
        ("zoo",),
        TWO,
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). "
        "Sent extra: {z}. Missing but required: {}.",
    ),
    (
        ("zoo", "two"),
        {"b": np.array([1], np.int32)},
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 1!=2 len({b}) != len({a,b}). "
        "Sent extra: {}. Missing but required: {a}.",
    ),
    (
        ("zoo",),
        {"z": floats(1)},
        Code.INVALID_ARGUMENT,
        "input tensor alias not found in signature: z. Inputs expected to be in the set {x}.",
    ),
    (
        ("zoo",),
        {"x": np.array([1], np.int32)},
        Code.INVALID_ARGUMENT,
        "Expects arg[0] to be float but int32 is provided",
    ),
    (
        ("zoo",),
        {"x": np.array([b"a"], object)},
        Code.INVALID_ARGUMENT,
        "Expects arg[0] to be float but string is provided",
    ),
    (
        ("zoo", "two"),
        {"a": np.ones([1, 2], np.float32), "b": np.array([1], np.int32), "outputs": ["q"]},
        Code.INVALID_ARGUMENT,
        "output tensor alias not found in signature: q "
        "Outputs expected to be in the set {double,total}.",
    ),
    (
        ("zoo",),
        {"x": floats(1), "outputs": ["y", "y"]},
        Code.INVALID_ARGUMENT,
        "duplicate output tensor alias: y",
    ),
    (
        ("tf1", "no_method"),
        {"x": floats(1)},
        Code.INTERNAL,
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: ",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "code", "details"), REFUSALS)
def test_refusals_have_the_codes_and_texts_of_tensorflow_serving(
    server, args, kwargs, code, details
):
    request = predict_request(*args, **kwargs)
    assert refusal(server.prediction.Predict, request) == (code, details)


def test_shapes_are_the_graphs_business(server):
    # The signature says [None]; the graph computes elementwise and does not mind.
    reply = predict(server, "zoo", x=np.full([2, 2], 4, np.float32))
    assert list(reply.outputs["y"].float_val) == [4.0] * 4
    request = predict_request("zoo", "checked", images=np.ones([1, 5], np.float32))
    code, details = refusal(server.prediction.Predict, request)
    assert code == Code.INVALID_ARGUMENT
    assert "[1,5]" in details


@pytest.mark.parametrize("character", ["i", "é", "😀"])  # gRPC sends 1, 6 and 12 bytes for them
def test_a_long_error_still_reaches_the_client(server, character):
    request = predict_request("zoo", **{character * 2000: floats(1)})
    code, details = refusal(server.prediction.Predict, request)
    assert code == Code.INVALID_ARGUMENT
    assert details.endswith("...TRUNCATED")
    assert len(quote(details)) < 4096  # above 8192 gRPC refuses it by chance, above 16384 always


def test_missing_model_spec(server):
    assert refusal(server.prediction.Predict, predict_pb2.PredictRequest()) == (
        Code.INVALID_ARGUMENT,
        "Missing ModelSpec",
    )


def metadata(server, model, *fields):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = model
    return request


def test_metadata_is_the_savedmodels_signature_def(server, zoo):
    reply = server.prediction.GetModelMetadata(metadata(server, "zoo", "signature_def"))
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(signatures)
    assert (reply.model_spec.name, reply.model_spec.version.value) == ("zoo", 7)
    saved = tf.compat.v1.saved_model.loader.load  # the file itself is the reference
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = saved(session, ["serve"], str(zoo / "7"))
    assert dict(signatures.signature_def) == dict(meta_graph.signature_def)


def test_metadata_refusals(server):
    call = server.prediction.GetModelMetadata
    assert refusal(call, metadata(server, "zoo")) == (
        Code.INVALID_ARGUMENT,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    assert refusal(call, metadata(server, "zoo", "q"))[0] == Code.INVALID_ARGUMENT
    assert refusal(call, metadata(server, "nope", "signature_def"))[0] == Code.NOT_FOUND


def test_status(server):
    assert server.states("lines") == {2: "AVAILABLE", 1: "AVAILABLE"}
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "lines"
    reply = server.models.GetModelStatus(request)
    assert [entry.version for entry in reply.model_version_status] == [2, 1]
    assert all(entry.status.error_code == 0 for entry in reply.model_version_status)
    request.model_spec.version.value = 1
    (entry,) = server.models.GetModelStatus(request).model_version_status
    assert entry.version == 1
    request.model_spec.version.value = 3  # on disk, but not asked for by the policy
    assert refusal(server.models.GetModelStatus, request) == (
        Code.NOT_FOUND,
        "Could not find version 3 of model lines",
    )
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "nope"
    assert refusal(server.models.GetModelStatus, request) == (
        Code.NOT_FOUND,
        "Could not find any versions of model nope",
    )


def test_standard_health_check(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "tensorflow.serving.PredictionService"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_reply_above_grpcs_default_limit_is_sent(server):
    array = np.arange(3_000_000, dtype=np.float32)
    reply = predict(server, "zoo", "echo", x=array)
    proto = tensor_pb2.TensorProto.FromString(reply.outputs["x"].SerializeToString())
    np.testing.assert_array_equal(np.array(proto.float_val, np.float32), array)
