"""The REST API of the embedded server, as a client of TensorFlow Serving meets it."""

import base64
import gzip
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2

from tests.serve.grpc_calls import add_example, predict


def post(server, path, body, **kwargs):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, reply = server.http(f"/v1/models/{path}", data, **kwargs)
    assert headers["Content-Type"] == "application/json"
    return status, json.loads(reply)


def error(server, path, body):
    status, reply = post(server, path, body)
    assert reply.keys() == {"error"}
    return status, reply["error"]


def test_row_and_column_format(server):
    assert post(server, "zoo:predict", {"instances": [1.0, 2, 5.0]}) == (
        200,
        {"predictions": [2.5, 3.0, 4.5]},
    )
    assert post(server, "zoo:predict", {"inputs": [1.0, 2, 5.0]}) == (
        200,
        {"outputs": [2.5, 3.0, 4.5]},
    )
    assert post(server, "zoo:predict", {"instances": [{"x": 1.0}, {"x": 2.0}]}) == (
        200,
        {"predictions": [2.5, 3.0]},
    )
    assert post(server, "zoo:predict", {"inputs": {"x": [1.0]}}) == (200, {"outputs": [2.5]})


def test_several_tensors_are_named(server):
    rows = [{"a": [1, 2], "b": 3}, {"a": [0.5, 0], "b": -1}]
    assert post(server, "zoo:predict", {"signature_name": "two", "instances": rows}) == (
        200,
        {"predictions": [{"double": 6, "total": 6.0}, {"double": -2, "total": -0.5}]},
    )
    columns = {"a": [[1, 2], [0.5, 0]], "b": [3, -1]}
    assert post(server, "zoo:predict", {"signature_name": "two", "inputs": columns}) == (
        200,
        {"outputs": {"double": [6, -2], "total": [6.0, -0.5]}},
    )


def test_the_bytes_of_a_reply_are_those_of_tensorflow_serving(server):
    _, _, body = server.http("/v1/models/zoo:predict", b'{"instances": [1.0, 2.0, 5.0]}')
    assert body == b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


def test_base64_both_ways_and_bytes_that_are_no_utf8(server):
    encoded = base64.b64encode(b"\xff\x00").decode()
    texts = ["cat", {"b64": encoded}, "naïve", r"😀\ud800"]
    body = {"signature_name": "strings", "instances": texts}
    body["instances"] = [{"text": text} for text in body["instances"]]
    status, _, reply = server.http("/v1/models/zoo:predict", json.dumps(body).encode())
    assert status == 200
    rows = json.loads(reply.decode("utf-8", "surrogateescape"))["predictions"]
    assert [row["length"] for row in rows] == [3, 2, 6, 10]
    assert rows[0]["text"] == "cat"
    assert rows[1]["text_bytes"] == {"b64": encoded}
    assert [row["text"] for row in rows[2:]] == texts[2:]


def test_base64_in_lines_is_taken_as_one(server):
    """As `base64 FILE` writes it; other characters are refused, as by TensorFlow Serving."""
    lines = base64.encodebytes(b"some text " * 20).decode()
    assert lines.count("\n") > 1
    for encoded in (lines, " \t\r\n\v\f".join("YWJj"), "YQ = =\n"):
        body = {"signature_name": "strings", "instances": [{"b64": encoded}]}
        status, reply = post(server, "zoo:predict", body)
        assert status == 200
        text = base64.decodebytes(encoded.encode()).decode()
        assert reply["predictions"][0]["text"] == text
    for encoded in ("_-_-", "YWJj\u00a0", "YW*Jj"):
        body = {"signature_name": "strings", "instances": [{"b64": encoded}]}
        status, text = error(server, "zoo:predict", body)
        assert status == 400
        assert "Unable to base64 decode" in text


def test_special_numbers(server):
    body = b'{"signature_name": "echo", "inputs": [NaN, Infinity, -Infinity, Inf, -Inf, 1e30]}'
    _, reply = post(server, "zoo:predict", body)
    assert np.isnan(reply["outputs"][0])
    assert reply["outputs"][1:] == [np.inf, -np.inf, np.inf, -np.inf, 1e30]


def test_every_float32_survives_the_way_through_text(server):
    numbers = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    body = {"signature_name": "echo", "inputs": numbers.astype(float).tolist()}
    _, reply = post(server, "zoo:predict", body)
    np.testing.assert_array_equal(np.array(reply["outputs"], np.float32), numbers)


def test_dtypes(server):
    columns = {
        "half": [0.5],
        "double": [0.1],
        "long": [2**63 - 1],
        "byte": [255],
        "flag": [True],
    }
    status, reply = post(server, "zoo:predict", {"signature_name": "types", "inputs": columns})
    assert (status, reply["outputs"]) == (200, columns)


def test_versions_and_labels_in_the_path(server):
    def slope(where):
        return post(server, f"lines{where}:predict", {"instances": [1.0]})[1]["predictions"][0]

    assert (slope(""), slope("/versions/1"), slope("/labels/stable")) == (2.0, 1.0, 1.0)
    assert error(server, "lines/versions/9:predict", {"instances": [1.0]}) == (
        404,
        "Servable not found for request: Specific(lines, 9)",
    )
    assert error(server, f"lines/versions/{'9' * 5000}:predict", {"instances": [1.0]}) == (
        400,
        f"Failed to convert version: {'9' * 5000} to numeric.",
    )
    assert error(server, "lines/labels/x:predict", {"instances": [1.0]}) == (
        400,
        "Unrecognized servable version label: x",
    )
    assert error(server, "nope:predict", {"instances": [1.0]}) == (
        404,
        "Servable not found for request: Latest(nope)",
    )


PREFIX = "Failed to process element: "
REFUSALS = [
    (b"", "JSON Parse error: The document is empty"),
    (b'{"instances": [1.0,', "JSON Parse error: Invalid value. at offset: 19"),
    (b"[1, 2]", "JSON Value: [\n    1,\n    2\n] Is not object"),
    (b'{"x": 1}', "Missing 'inputs' or 'instances' key"),
    ({"signature_name": "s", "instances": [1]}, 'Serving signature name: "s" not found in sig'),
    ({"signature_name": 5, "instances": [1]}, "'signature_name' key must be a string value."),
    ({"instances": [1], "inputs": [1]}, "expecting only  one of 'inputs' or 'instances' keys"),
    ({"instances": 1}, "Excepting 'instances' to be an list/array"),
    ({"instances": []}, "No values in 'instances' array"),
    (
        {"instances": ["a"]},
        PREFIX + "0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\" "
        "Type: String is not of expected type: float",
    ),
    ({"instances": [1, True]}, "JSON Value: true Type: True is not of expected type: float"),
    ({"instances": [1, None]}, "JSON Value: null Type: Null is not of expected type: float"),
    (
        {"instances": [[1, 2], [3]]},
        PREFIX + "1 of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting tensor size: 2 but got: 1",
    ),
    ({"instances": [[1, 2], [[3, 4]]]}, "Expecting shape [2] but got: [1,2]"),
    ({"instances": [[1, [2]]]}, "Encountered list at unexpected level: 1 expected < 1"),
    ({"instances": [[[1, 2], [3]]]}, "Encountered list at unexpected size: 1 at level: 1"),
    ({"instances": [[[1], 2]]}, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM."),
    ({"instances": [{"z": 1}]}, "JSON object: does not have named input: z"),
    ({"instances": [{"x": 1}, 2]}, "Expecting object but got list at item 1 of input list"),
    ({"instances": [1, {"x": 2}]}, "Expecting value/list but got object at item 1 of input list"),
    ({"instances": [2**24 + 1]}, "Cannot convert JSON value: 16777217 to float without loss"),
    ({"inputs": {"z": [1]}}, "Missing named input: x in 'inputs' object."),
    ({"signature_name": "two", "inputs": [1]}, "inputs is a plain value/list, but expecting an"),
    ({"signature_name": "two", "instances": [1]}, "instances is a plain list, but expecting list"),
    (
        {"signature_name": "two", "instances": [{"a": [1, 2]}]},
        "keys must be equal to: a,b",
    ),
    (
        {"signature_name": "two", "inputs": {"a": [[1, 2]], "b": [1.0]}},
        "JSON Value: 1.0 Type: Number is not of expected type: int32",
    ),
    ({"signature_name": "strings", "instances": [{"b64": "*"}]}, "Unable to base64 decode"),
    ({"signature_name": "total", "instances": [1]}, "Tensor name: total has no shape information"),
    (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"instances": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}", "nested 69 levels deep, expected at"),
    (b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", "nested 900 levels deep, expected at"),
    (
        b'{"signature_name": "strings", "inputs": ' + b"[" * 33 + b'"a"' + b"]" * 33 + b"}",
        "nested 33 levels deep, expected at most 32",
    ),
    (rb'{"instances": ["\ud800"]}', "The surrogate pair in string is invalid. at offset: 16"),
    (rb'{"instances": [{"\udfff": 1}]}', "The surrogate pair in string is invalid."),
    (rb'{"signature_name": "\uD800\u0041", "instances": [1]}', "The surrogate pair in string is"),
    (rb'{"signature_name": "strings", "instances": [{"b64": "\ud800"}]}', "The surrogate pair in"),
    (b'{"signature_name": "\xff", "instances": [1]}', "Names must be UTF-8, received b'\\xff'"),
    (b'{"instances": [{"\xff": 1}]}', "Names must be UTF-8, received b'\\xff'"),
    ({"signature_name": "checked", "instances": [[1, 2]]}, "[1,2]"),
    (b'{"signature_name": "checked", "instances": [[1, 2, NaN, 4]]}', "images hold NaN"),
]


@pytest.mark.parametrize(("body", "text"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(server, body, text):
    status, message = error(server, "zoo:predict", body)
    assert status == 400
    assert text in message


def test_classify_and_regress(server):
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": [4.0]}]}
    assert post(server, "tf1:classify", body) == (
        200,
        {"results": [[["3.000000", 3.0]], [["4.000000", 4.0]]]},
    )
    body = {"signature_name": "regress_x_to_y", "context": {"x": 8.0}, "examples": [{}, {"x": 2.0}]}
    assert post(server, "tf1:regress", body) == (200, {"results": [6.0, 3.0]})
    status, message = error(server, "tf1:classify", {"signature_name": "classify_x_to_y"})
    assert status == 400
    assert "key 'examples' is expected and was not found" in message
    status, message = error(server, "tf1:regress", {"examples": [{"x": [1.0, 2]}]})
    assert message == "Unexpected element type in feature: x expecting type: float"
    for feature in (rb'"x": "\ud800"', rb'"\ud800": 1.0', b'"\xff": 1.0'):
        assert error(server, "tf1:regress", b'{"examples": [{' + feature + b"}]}")[0] == 400


def test_classify_agrees_with_grpc(server):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "tf1"
    request.model_spec.signature_name = "classify_x_to_y"
    add_example(request, 0.3)
    (row,) = server.prediction.Classify(request).result.classifications
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 0.3}]}
    ((pair,),) = post(server, "tf1:classify", body)[1]["results"]
    assert pair[0] == row.classes[0].label
    assert np.float32(pair[1]) == np.float32(row.classes[0].score)


def test_status_and_metadata(server, zoo):
    status, _, body = server.http("/v1/models/zoo")
    assert status == 200
    assert json.loads(body) == {
        "model_version_status": [
            {
                "version": "7",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    _, _, body = server.http("/v1/models/lines/versions/1")
    assert [entry["version"] for entry in json.loads(body)["model_version_status"]] == ["1"]
    _, _, body = server.http("/v1/models/zoo/metadata")
    reply = json.loads(body)
    assert reply["model_spec"] == {"name": "zoo", "signature_name": "", "version": "7"}
    signatures = reply["metadata"]["signature_def"]["signature_def"]
    assert signatures["two"]["inputs"]["a"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
            "unknown_rank": False,
        },
        "name": "two_a:0",
    }
    assert signatures["echo"]["inputs"]["x"]["tensor_shape"] == {"dim": [], "unknown_rank": True}
    assert signatures["two"]["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/v1/foo", "Malformed request: GET /v1/foo"),
        ("GET", "/v1/models/zoo:predict", "Malformed request: GET /v1/models/zoo:predict"),
        ("POST", "/v1/models/zoo", "Malformed request: POST /v1/models/zoo"),
        ("POST", "/v1/models/zoo:guess", "Malformed request: POST /v1/models/zoo:guess"),
        ("PUT", "/v1/models/zoo:predict", "Malformed request: PUT /v1/models/zoo:predict"),
        ("GET", "/v1/models", "Missing model name in request."),
    ],
)
def test_paths_that_are_none(server, method, path, message):
    body = None if method == "GET" else b"{}"
    status, _, reply = server.http(path, body, method)
    assert (status, json.loads(reply)) == (400, {"error": message})


def test_paths_elsewhere_are_html_404(server):
    status, headers, body = server.http("/v2/models/zoo")
    assert status == 404
    assert headers["Content-Type"].startswith("text/html")
    assert b"404 Not Found" in body
    status, _, body = server.http("/v1/models/nope")
    assert status == 404
    assert json.loads(body) == {"error": "Could not find any versions of model nope"}


def test_paths_ignore_case_and_unescape_names(server):
    assert server.http("/V1/MODELS/zoo")[0] == 200
    assert server.http("/v1/models/%7Aoo?x=1")[0] == 200


def test_gzip_bodies_and_their_limit(server):
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    headers = {"Content-Encoding": "gzip"}
    assert post(server, "zoo:predict", body, headers=headers) == (200, {"predictions": [2.5]})
    bomb = gzip.compress(b" " * (129 << 20), 1)
    status, reply = post(server, "zoo:predict", bomb, headers=headers)
    assert status == 413
    assert "larger than max" in reply["error"]
    assert post(server, "zoo:predict", b"plain", headers=headers)[0] == 400


def test_cors_headers_when_asked_for(server):
    status, headers, _ = server.http("/v1/models/zoo:predict", method="OPTIONS")
    assert status == 200
    assert headers["Access-Control-Allow-Origin"] == "*"
    assert server.http("/v1/models/zoo")[1]["Access-Control-Allow-Origin"] == "*"


def test_metrics_carry_tensorflow_servings_names(server):
    def counts():
        status, headers, body = server.http("/monitoring/prometheus/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        return body.decode()

    def value(page, sample):
        found = re.search(re.escape(sample) + r" (\S+)", page)
        return float(found[1]) if found else 0.0

    before = counts()
    post(server, "zoo:predict", {"instances": [1.0]})
    post(server, "zoo:predict", {"instances": ["a"]})
    after = counts()
    for sample in (
        ':tensorflow:serving:request_count{model_name="zoo",status="OK"}',
        ':tensorflow:serving:request_count{model_name="zoo",status="INVALID_ARGUMENT"}',
        ':tensorflow:serving:request_latency_count{model_name="zoo",API="predict",'
        'entrypoint="REST"}',
        ':tensorflow:serving:request_latency_bucket{model_name="zoo",API="predict",'
        'entrypoint="REST",le="+Inf"}',
    ):
        assert value(after, sample) == value(before, sample) + 1, sample
    assert "# TYPE :tensorflow:serving:request_count counter" in after
    path = re.search(r'load_attempt_count{model_path="(.*zoo/7)",status="success"} 1\n', after)[1]
    assert value(after, f':tensorflow:cc:saved_model:load_latency{{model_path="{path}"}}') > 0
    assert server.http("/metrics")[0] == 404


def test_rest_and_grpc_give_the_same_numbers(server):
    images = np.random.default_rng(0).random([3, 4], np.float32)
    body = {"signature_name": "checked", "instances": images.astype(float).tolist()}
    rest = np.array(post(server, "zoo:predict", body)[1]["predictions"], np.float32)
    grpc = tf.make_ndarray(predict(server, "zoo", "checked", images=images).outputs["mean"])
    np.testing.assert_array_equal(rest, grpc)
