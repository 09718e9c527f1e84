"""The client, every signature and every error case, against each server with the same assertions.

Run on the embedded server, and on the binary that TF_MODEL_SERVER_BIN names, if any.
"""

import asyncio
import base64
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from serve.client import AsyncClient, ServingError, TensorSpec
from tests.serve.contract_servers import CLASS_NAMES, COMMANDS, serving

Code = grpc.StatusCode
OUTPUTS = {"logits", "probabilities", "classes", "marginal_energy"}


@pytest.fixture(scope="module", params=COMMANDS)
def server(request, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("models"), COMMANDS[request.param]) as served:
        yield served


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 3), np.float32)


def file_of(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def assert_close(answer, expected):
    assert answer.keys() == expected.keys()
    for name, value in answer.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


# Signatures


def test_predict_gives_what_the_savedmodel_gives_by_itself(server, client):
    batch = images(5)
    answer = client.predict(batch)
    assert_close(answer, server.direct.signatures["predict"](images=tf.constant(batch)))
    assert {name: value.dtype.name for name, value in answer.items()} == {
        "logits": "float32",
        "probabilities": "float32",
        "classes": "int64",
        "marginal_energy": "float32",
    }
    np.testing.assert_allclose(answer["probabilities"].sum(1), 1, rtol=1e-5)


def test_rows_do_not_depend_on_their_batch_nor_on_how_a_call_is_cut(server, client):
    batch = images(300)
    whole = client.predict(batch)
    alone = {name: client.predict(batch[7:8])[name][0] for name in OUTPUTS}
    assert_close({name: whole[name][7] for name in OUTPUTS}, alone)
    with server.client(batch_size=17, max_in_flight=8) as cutting:
        assert_close(cutting.predict(batch), whole)


def test_predict_bytes_reads_png_and_jpeg_of_any_size(client):
    batch = np.rint(images(2) * 255).astype(np.float32) / 255
    assert_close(client.predict_bytes([file_of(image) for image in batch]), client.predict(batch))
    flat = np.full((40, 20, 3), 0.4, np.float32)  # one colour survives resizing and JPEG
    answer = client.predict_bytes([file_of(flat, "JPEG")])
    expected = client.predict(np.full((1, 8, 8, 3), 102 / 255, np.float32))
    np.testing.assert_allclose(answer["logits"], expected["logits"], atol=0.05)


def test_energies_are_those_of_the_logits(client):
    batch = images(4)
    logits = client.predict(batch)["logits"]
    answer = client.energy(batch)
    np.testing.assert_allclose(answer["joint_energy"], -logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        answer["marginal_energy"], -np.log(np.exp(logits).sum(1)), rtol=1e-5, atol=1e-5
    )


def test_sample_and_defend(server):
    with server.client("generator") as client:
        answer = client.sample([3, 5], [12, 4], 9)
        np.testing.assert_allclose(answer["images"][:, 0, 0, 0], [0.32, 0.54], rtol=1e-6)
        assert answer["images"].shape == (2, 8, 8, 3)
        assert answer["steps_taken"].tolist() == [9, 9]
        assert answer["joint_energy"].tolist() == [-3, -5]
        batch = images(2)
        answer = client.defend(batch)
        np.testing.assert_allclose(answer["images"], 1 - batch, rtol=1e-6)
        assert answer["classes"].tolist() == [2, 2]


def test_defend_of_an_export_gives_what_the_savedmodel_gives_by_itself(server, client):
    batch = images(3)
    answer = client.defend(batch)
    assert_close(answer, server.direct.signatures["defend"](images=tf.constant(batch)))
    assert_close(client.predict(answer.pop("images")), answer)


def test_no_rows_give_no_rows(client):
    answer = client.predict(images(0))
    assert answer["logits"].shape == (0, len(CLASS_NAMES))
    assert answer["classes"].shape == (0,)


def test_the_default_signature_is_predict(client):
    batch = images(2)
    assert_close(client.call("serving_default", {"images": batch}), client.predict(batch))


def test_many_clients_at_once_get_their_own_answers(server, client):
    batches = [images(1 + seed % 3, seed) for seed in range(64)]
    expected = [client.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for answer, wanted in zip(pool.map(client.predict, batches), expected, strict=True):
            assert_close(answer, wanted)

    async def all_at_once():
        async with AsyncClient(server.target, "robust") as asynchronous:
            return await asyncio.gather(*map(asynchronous.predict, batches))

    for answer, wanted in zip(asyncio.run(all_at_once()), expected, strict=True):
        assert_close(answer, wanted)


# Metadata, status, versions


def test_metadata_is_the_contract(client):
    description = client.metadata()
    assert (description.model, description.version) == ("robust", 1)
    signatures = description.signatures
    assert signatures.keys() == {
        "serving_default",
        "predict",
        "predict_bytes",
        "energy",
        "defend",
    }
    predict = signatures["predict"]
    assert predict.inputs == {"images": TensorSpec("float32", (None, 8, 8, 3))}
    assert predict.outputs == {
        "logits": TensorSpec("float32", (None, 5)),
        "probabilities": TensorSpec("float32", (None, 5)),
        "classes": TensorSpec("int64", (None,)),
        "marginal_energy": TensorSpec("float32", (None,)),
    }
    assert signatures["predict_bytes"].inputs == {"image_bytes": TensorSpec("string", (None,))}


def test_status_over_grpc_and_over_rest(server, client):
    (status,) = client.status()
    assert (status.version, status.state, status.error_code) == (1, "AVAILABLE", 0)
    with urllib.request.urlopen(f"{server.rest}/v1/models/robust") as reply:
        (entry,) = json.load(reply)["model_version_status"]
    assert (entry["version"], entry["state"]) == ("1", "AVAILABLE")


def test_rest_gives_the_numbers_of_grpc(server, client):
    batch = images(2)
    body = json.dumps({"signature_name": "predict", "inputs": {"images": batch.tolist()}})
    url = f"{server.rest}/v1/models/robust:predict"
    with urllib.request.urlopen(url, body.encode()) as reply:
        answer = json.load(reply)["outputs"]
    assert_close({name: np.array(value) for name, value in answer.items()}, client.predict(batch))


def test_rest_takes_image_files_in_base64(server, client):
    contents = file_of(images(1)[0])
    body = {"signature_name": "predict_bytes"}
    body["instances"] = [{"b64": base64.b64encode(contents).decode()}] * 2
    url = f"{server.rest}/v1/models/robust:predict"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as reply:
        rows = json.load(reply)["predictions"]
    expected = client.predict_bytes([contents] * 2)
    assert_close({name: np.array([row[name] for row in rows]) for name in OUTPUTS}, expected)


def test_a_version_can_be_named(server, client):
    with server.client(version=1) as pinned:
        assert_close(pinned.predict(images(1)), client.predict(images(1)))


# Errors that a client of ours can cause


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ({"model": "nosuch"}, Code.NOT_FOUND, "Servable not found for request: Latest(nosuch)"),
        ({"version": 99}, Code.NOT_FOUND, "Servable not found for request: Specific(robust, 99)"),
        (
            {"label": "canary"},
            Code.INVALID_ARGUMENT,
            "Unrecognized servable version label: canary",
        ),
        ({"model": ""}, Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    ],
)
def test_a_model_that_is_not_there(server, options, code, sentence):
    with server.client(**options) as wrong, pytest.raises(ServingError) as caught:
        wrong.predict(images(1))
    assert caught.value.code is code
    assert sentence in caught.value.message


def test_the_status_of_an_unknown_model(server):
    with server.client("nosuch") as wrong, pytest.raises(ServingError) as caught:
        wrong.status()
    assert caught.value.code is Code.NOT_FOUND
    assert "Could not find any versions of model nosuch" in caught.value.message


BAD_PIXELS = [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0]
BAD_FILES = [b"", b"not an image", file_of(np.zeros((4, 4, 3)))[:40], b"GIF89a" + bytes(20)]


@pytest.mark.parametrize("pixel", BAD_PIXELS)
@pytest.mark.parametrize("signature", ["predict", "energy", "serving_default"])
def test_bad_pixels_are_refused_and_the_next_request_is_answered(client, signature, pixel):
    batch = images(3)
    batch[1, 2, 3, 0] = pixel
    with pytest.raises(ServingError, match=r"^INVALID_ARGUMENT: images must be [^{]*$") as caught:
        client.call(signature, {"images": batch})
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert client.predict(images(1))["classes"].shape == (1,)


@pytest.mark.parametrize("contents", BAD_FILES)
def test_files_that_are_no_images_are_refused(client, contents):
    with pytest.raises(ServingError, match="image_bytes") as caught:
        client.predict_bytes([file_of(images(1)[0]), contents])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert client.predict(images(1))["classes"].shape == (1,)


def test_bad_requests_fail_alone_among_good_ones(client):
    good, bad = images(1), np.full((1, 8, 8, 3), np.nan, np.float32)
    expected = client.predict(good)

    def ask(number):
        try:
            return client.predict(bad if number % 3 == 0 else good)
        except ServingError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert answer.code is Code.INVALID_ARGUMENT
        else:
            assert_close(answer, expected)


# Errors that only another client can cause: ours would not send these


def request(signature="predict", output_filter=(), model="robust", **inputs):
    message = predict_pb2.PredictRequest(output_filter=output_filter)
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


GOOD = images(2)


@pytest.mark.parametrize(
    ("message", "code", "sentence"),
    [
        (
            request("paint", images=GOOD),
            Code.FAILED_PRECONDITION,
            'Serving signature key "paint" not found.',
        ),
        (
            request(),
            Code.INVALID_ARGUMENT,
            "input size does not match signature: 0!=1 len({}) != len({images}). "
            "Sent extra: {}. Missing but required: {images}.",
        ),
        (
            request(images=GOOD, other=GOOD),
            Code.INVALID_ARGUMENT,
            "Sent extra: {other}. Missing but required: {}.",
        ),
        (request(images=GOOD.astype(np.int32)), Code.INVALID_ARGUMENT, "int32"),
        (request(images=GOOD[0]), Code.INVALID_ARGUMENT, "images must be"),
        (request(images=GOOD[:, :7]), Code.INVALID_ARGUMENT, "images must be"),
        (request(images=GOOD[..., None]), Code.INVALID_ARGUMENT, "images must be"),
        (
            request("predict_bytes", image_bytes=b"scalar"),
            Code.INVALID_ARGUMENT,
            "image_bytes must be",
        ),
        (
            request(images=GOOD, output_filter=["nosuch"]),
            Code.INVALID_ARGUMENT,
            "output tensor alias not found in signature: nosuch",
        ),
        (
            request("sample", model="generator", labels=np.zeros(2, np.int32)),
            Code.INVALID_ARGUMENT,
            "Missing but required: {num_steps,seeds}.",
        ),
    ],
)
def test_requests_that_do_not_fit(server, client, message, code, sentence):
    with pytest.raises(grpc.RpcError) as caught:
        server.predictions.Predict(message, timeout=30)
    assert caught.value.code() is code
    assert sentence in caught.value.details()
    assert client.predict(images(1))["classes"].shape == (1,)


def test_metadata_without_fields_and_status_without_a_name_are_refused(server):
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "robust"
    for method, message in (
        (server.predictions.GetModelMetadata, metadata),
        (server.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(message, timeout=30)
        assert caught.value.code() is Code.INVALID_ARGUMENT


def test_an_output_filter_leaves_the_rest_out(server):
    reply = server.predictions.Predict(request(images=GOOD, output_filter=["classes"]), timeout=30)
    assert set(reply.outputs) == {"classes"}
    assert reply.model_spec.version.value == 1
    assert reply.model_spec.signature_name == "predict"


def test_rest_errors_are_json_with_a_sentence(server):
    for path, body, status in (
        ("robust:predict", b'{"instances": [', 400),
        ("robust:predict", json.dumps({"instances": [[2.0]]}).encode(), 400),
        ("nosuch:predict", b'{"instances": [1]}', 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.rest}/v1/models/{path}", body)
        with caught.value as error:
            assert error.code == status
            assert json.load(error)["error"]
