"""The client against a real gRPC server, see `numpy_server`."""

import asyncio
import math
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme

from serve.client import TLS, AsyncClient, Client, ServingError, TensorSpec
from tests.serve.numpy_server import Code, Service, running


@pytest.fixture
def service():
    service = Service()
    with running(service) as service.target:
        yield service


class Awaited:
    """The asyncio client behind the blocking methods, so that both run the same tests."""

    def __init__(self, *arguments, **options):
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __getattr__(self, name):
        method = getattr(self._client, name)

        async def call(*arguments):
            return await method(*arguments)

        return lambda *arguments: self._runner.run(call(*arguments))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
        self._runner.close()


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "asyncio"])
def kind(request):
    return request.param


@pytest.fixture
def client(service, kind):
    with kind(service.target, "m", timeout=30) as client:
        yield client


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 3), np.float32)


def test_numbers_bytes_and_integers_arrive_as_sent(client):
    batch = images(3)
    np.testing.assert_allclose(client.predict(batch)["means"], batch.mean((1, 2, 3)), rtol=1e-6)
    contents = [b"", b"\x00\xff\x00", b"x" * 1000]
    assert client.predict_bytes(contents)["sizes"].tolist() == [0, 3, 1000]
    codes = client.sample([3, 1], [2**62, -5], 7)["codes"]
    assert codes.tolist() == [[3, 2**62, 7], [1, -5, 7]]
    assert client.sample([4, 4, 4], None, [1, 2, 3])["codes"].tolist() == [
        [4, i, i + 1] for i in range(3)
    ]


def test_a_large_call_is_cut_sent_ahead_and_put_together_in_order(service, kind):
    batch = images(1000)
    service.delay = 0.05
    with kind(service.target, "m", batch_size=100, max_in_flight=3) as client:
        means = client.predict(batch)["means"]
    np.testing.assert_allclose(means, batch.mean((1, 2, 3)), rtol=1e-6)
    assert service.sizes == [100] * 10
    assert service.most_under_way == 3


def test_a_signature_with_an_output_for_the_whole_call_is_not_cut(service, client):
    assert client.call("total", {"table": np.ones((1000, 2), np.float32)})["total"] == 2000
    assert service.sizes == [1000]


def test_messages_beyond_grpcs_4_mb_come_back(service, kind):
    batch = images(10_000)  # 7.7 MB
    with kind(service.target, "m", batch_size=10_000) as client:
        np.testing.assert_array_equal(client.call("echo", {"images": batch})["images"], batch)
    assert service.sizes == [10_000]


def test_requests_stay_below_16_mb_whatever_the_batch_size(service, kind):
    with kind(service.target, "m", batch_size=10**6) as client:
        client.predict(np.zeros((30_000, 8, 8, 3), np.float32))
    assert max(service.sizes) * 8 * 8 * 3 * 4 <= 16 << 20
    assert len(service.sizes) == 2


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.CANCELLED])
def test_a_busy_server_is_asked_again_with_growing_pauses(service, client, code):
    service.failures = [code] * 3
    client.status()
    assert service.calls["GetModelStatus"] == 4
    pauses = np.diff(service.times)
    assert pauses[2] > pauses[0]
    assert pauses.sum() > 0.5


def test_what_is_cancelled_on_this_side_is_not_sent_again(service):
    service.delay = 0.5
    with Client(service.target, "m") as client, futures.ThreadPoolExecutor() as pool:
        call = pool.submit(client.predict, images(1))
        while not service.calls["Predict"]:
            time.sleep(0.01)
        client.close()
        assert call.exception(timeout=10).code is Code.CANCELLED
        time.sleep(1)
    assert service.calls["Predict"] == 1


def test_retries_end_and_the_last_refusal_is_raised(service, kind):
    service.failures = [Code.RESOURCE_EXHAUSTED] * 10
    with kind(service.target, "m", max_attempts=2) as client, pytest.raises(ServingError) as caught:
        client.status()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert service.calls["GetModelStatus"] == 2


@pytest.mark.parametrize(
    "code", [Code.INVALID_ARGUMENT, Code.INTERNAL, Code.UNKNOWN, Code.ABORTED, Code.NOT_FOUND]
)
def test_other_failures_are_raised_at_once_with_code_and_sentence(service, client, code):
    service.failures = [code]
    with pytest.raises(ServingError, match=f"{code.name}: told to fail") as caught:
        client.status()
    assert caught.value.code is code
    assert caught.value.message == f"told to fail with {code.name}"
    assert service.calls["GetModelStatus"] == 1


def test_no_call_outlives_its_deadline(service, kind):
    service.delay = 3.0
    with kind(service.target, "m", timeout=0.3) as client:
        start = time.monotonic()
        with pytest.raises(ServingError) as caught:
            client.predict(images(1))
        assert time.monotonic() - start < 2
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_the_error_of_a_part_names_its_rows(service, kind):
    labels = [0] * 250 + [-1] + [0] * 149
    with (
        kind(service.target, "m", batch_size=100) as client,
        pytest.raises(ServingError, match=r"received -1.* \(rows 200 to 299 of 400\)"),
    ):
        client.sample(labels)


@pytest.mark.parametrize(
    ("signature", "inputs", "sentence"),
    [
        (
            "predict",
            {"images": np.zeros((2, 8, 8, 3), np.uint8)},
            "images: received uint8 [2, 8, 8, 3], the model takes float32 [?, 8, 8, 3]",
        ),
        (
            "predict",
            {"images": np.zeros((2, 8, 8, 3))},
            "images: received float64 [2, 8, 8, 3], the model takes float32 [?, 8, 8, 3]",
        ),
        (
            "predict",
            {"images": np.zeros((8, 8, 3), np.float32)},
            "images: received float32 [8, 8, 3], the model takes float32 [?, 8, 8, 3]",
        ),
        (
            "predict",
            {"images": np.zeros((1, 8, 9, 3), np.float32)},
            "images: received float32 [1, 8, 9, 3], the model takes float32 [?, 8, 8, 3]",
        ),
        (
            "predict",
            {"images": [[1.0], [1.0, 2.0]]},
            "images: received rows of different shapes, the model takes float32 [?, 8, 8, 3]",
        ),
        (
            "predict",
            {"images": [["a"]]},
            "images: received str32 [1, 1], the model takes float32 [?, 8, 8, 3]",
        ),
        ("predict", {"pictures": 1}, "signature 'predict' takes images; received pictures"),
        (
            "predict_bytes",
            {"image_bytes": b"\x89PNG"},
            "image_bytes: received one bytes, wanted a list of bytes",
        ),
        (
            "predict_bytes",
            {"image_bytes": [b"a", "b"]},
            "image_bytes: item 1 is of type str, not bytes",
        ),
        (
            "sample",
            {"labels": [2**40], "seeds": [0], "num_steps": [1]},
            "labels: received int64 [1], the model takes int32 [?]",
        ),
        (
            "sample",
            {"labels": [0.5], "seeds": [0], "num_steps": [1]},
            "labels: received float64 [1], the model takes int32 [?]",
        ),
        (
            "paint",
            {},
            "model m version 1 has no signature 'paint'; "
            "it has echo, predict, predict_bytes, sample, total",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence_and_not_sent(
    service, client, signature, inputs, sentence
):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the sentence is compared whole)
        client.call(signature, inputs)
    assert str(caught.value) == sentence
    assert service.calls["Predict"] == 0


def test_labels_seeds_and_steps_of_different_lengths_are_refused(client):
    with pytest.raises(ValueError, match="received 2, 3 and 2"):
        client.sample([1, 2], [1, 2, 3], 5)


def test_values_that_conversion_keeps_are_converted(client):
    batch = np.full((1, 8, 8, 3), 0.5)
    assert client.predict(batch.tolist())["means"] == 0.5
    assert client.predict(batch.astype(np.float16))["means"] == 0.5
    assert client.predict(np.ones((1, 8, 8, 3), int).tolist())["means"] == 1
    assert client.sample(np.array([2], np.uint8), np.array([3], np.int16), 4)["codes"].tolist() == [
        [2, 3, 4]
    ]


def test_the_description_is_fetched_once_and_again_when_the_model_changed(service, client):
    for _ in range(3):
        client.predict(images(1))
    assert service.calls["GetModelMetadata"] == 1

    service.version = 2
    service.signatures["predict"] = (
        {"images": (tf.float32, [None, 4, 4, 1])},
        {"means": (tf.float32, [None])},
    )
    assert client.predict(np.ones((1, 4, 4, 1), np.float32))["means"] == 11
    assert service.calls["GetModelMetadata"] == 2


def test_one_version_answers_a_call_during_which_a_new_one_takes_over(service, kind):
    service.next_versions = [1, 1]
    service.version = 2
    batch = images(500)
    with kind(service.target, "m", batch_size=100, max_in_flight=1) as client:
        means = client.predict(batch)["means"]
    np.testing.assert_allclose(means, batch.mean((1, 2, 3)) + 10, rtol=1e-6)
    assert service.calls["Predict"] == 7


def test_a_version_that_takes_over_and_is_withdrawn_fails_no_call(service, kind):
    service.next_versions = [1, 2, 2]
    service.withdrawn = {2}
    batch = images(300)
    with kind(service.target, "m", batch_size=100, max_in_flight=1) as client:
        means = client.predict(batch)["means"]
    np.testing.assert_allclose(means, batch.mean((1, 2, 3)), rtol=1e-6)


def test_versions_that_never_agree_end_a_call(service, kind):
    service.next_versions = [1, 2] * 2
    service.withdrawn = {2}
    options = {"batch_size": 100, "max_in_flight": 1, "max_attempts": 2}
    with (
        kind(service.target, "m", **options) as client,
        pytest.raises(ServingError, match="NOT_FOUND: model m has no version 2"),
    ):
        client.predict(images(200))
    assert service.next_versions == []


def test_version_and_label_are_asked_for(service, kind):
    with kind(service.target, "m", 5) as client:
        assert client.predict(np.zeros((1, 8, 8, 3), np.float32))["means"] == 40
    with pytest.raises(ValueError, match="a version or a label; received version 3, 'stable'"):
        kind(service.target, "m", 3, label="stable")


def test_metadata_and_status_tell_what_the_server_does(service, client):
    description = client.metadata()
    assert (description.model, description.version) == ("m", 1)
    assert description.signatures["predict"].inputs == {
        "images": TensorSpec("float32", (None, 8, 8, 3))
    }
    assert description.signatures["echo"].outputs == {"images": TensorSpec("float32", None)}
    service.version, service.state = 2, "LOADING"
    newest, oldest = client.status()
    assert (newest.version, oldest.version) == (2, 1)
    assert (newest.state, newest.error_message) == ("LOADING", "disk on fire")


def test_waiting_ends_when_the_server_comes_up_and_the_model_is_loaded(kind):
    service = Service()
    service.state = "LOADING"
    with running(Service()) as target:
        pass  # the port is free again, and nobody answers there
    with kind(target, "m") as client, futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_until_ready, 30)
        time.sleep(0.3)
        with running(service, address=target):
            while not service.calls["GetModelStatus"]:
                time.sleep(0.01)
            assert not waiting.done()
            service.state = "AVAILABLE"
            assert waiting.result()[0].state == "AVAILABLE"


def test_waiting_in_vain_says_what_was_last_seen(service, client):
    service.state = "LOADING"
    with pytest.raises(ServingError, match=r"m was not ready after 0\.5 s.*LOADING.*disk on fire"):
        client.wait_until_ready(0.5)
    service.failures = [Code.PERMISSION_DENIED]
    with pytest.raises(ServingError, match="PERMISSION_DENIED"):
        client.wait_until_ready(30)


def test_waiting_for_a_label_ends_when_a_version_has_it(service, kind):
    with kind(service.target, "m", label="stable") as client:
        with pytest.raises(
            ServingError, match=r"label 'stable', was not ready after 0\.3 s"
        ) as caught:
            client.wait_until_ready(0.3)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        service.labels = {"stable"}
        assert client.wait_until_ready(30)[0].state == "AVAILABLE"


def test_threads_share_a_client(service):
    with Client(service.target, "m") as client, futures.ThreadPoolExecutor(8) as pool:
        batches = [images(5, seed) for seed in range(64)]
        for batch, answer in zip(batches, pool.map(client.predict, batches), strict=True):
            np.testing.assert_allclose(answer["means"], batch.mean((1, 2, 3)), rtol=1e-6)


def test_tls_with_certificates_on_both_sides_and_a_token(kind, tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    ours, theirs = authority.issue_cert("client.test"), authority.issue_cert("serving.test")
    chain = theirs.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_server_credentials(
        [(theirs.private_key_pem.bytes(), chain)], authority.cert_pem.bytes(), True
    )
    for name, pem in (
        ("ca", authority.cert_pem),
        ("stranger", stranger.cert_pem),
        ("cert", ours.cert_chain_pems[0]),
        ("key", ours.private_key_pem),
    ):
        pem.write_to_path(tmp_path / name)
    service = Service()
    with running(service, credentials) as target:

        def ask(**files):
            paths = {field: tmp_path / name for field, name in files.items()}
            tls = TLS(**paths, server_name="serving.test")
            headers = {"Authorization": "Bearer 1234"}
            with kind(target, "m", tls=tls, headers=headers, timeout=10, max_attempts=1) as client:
                return client.predict(images(1))

        ask(ca="ca", certificate="cert", key="key")
        assert service.headers["authorization"] == "Bearer 1234"
        for files in ({"ca": "stranger", "certificate": "cert", "key": "key"}, {"ca": "ca"}):
            with pytest.raises(ServingError) as caught:
                ask(**files)
            assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is at least 1, received 0"),
        ({"max_in_flight": -1}, "max_in_flight is at least 1, received -1"),
        ({"max_attempts": 9}, r"max_attempts is 1 \(no retries\) to 5, received 9"),
        *(
            ({"timeout": timeout}, "timeout is a number of seconds above 0 and at most 1000000000")
            for timeout in (0, -1.0, math.nan, math.inf, 1e300)
        ),
        ({"tls": TLS(key="k")}, "come together; received certificate None, key k"),
    ],
)
def test_unusable_arguments_are_named(kind, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind("127.0.0.1:1", "m", **options)
