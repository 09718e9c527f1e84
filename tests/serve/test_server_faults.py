"""What goes wrong in production, done to a real server: it must answer the next good request."""

import json
import os
import shutil
import signal
import socket
import threading
import time

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2

from tests.serve import serving_models
from tests.serve.grpc_calls import floats, predict, predict_request
from tests.serve.processes import free_port, run_server, running_server, wait_for

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def victim(tmp_path_factory, zoo):
    """A server of its own, with little capacity; the model's folder cannot be written."""
    base = tmp_path_factory.mktemp("victim") / "zoo"
    shutil.copytree(zoo, base)
    for folder, _, files in os.walk(base, topdown=False):
        for file in files:
            os.chmod(os.path.join(folder, file), 0o444)
        os.chmod(folder, 0o555)
    flags = ["--model_name=zoo", f"--model_base_path={base}", "--grpc_max_threads=4"]
    with running_server(base.parent, *flags, "--rest_api_num_threads=2") as server:
        yield server


@pytest.fixture(autouse=True)
def next_good_request(request):
    """After each fault done to the victim, it answers over gRPC and REST, and has not died."""
    yield
    if "victim" in request.fixturenames:
        victim = request.getfixturevalue("victim")
        assert predict(victim, "zoo", x=floats(2)).outputs["y"].float_val == [3.0]
        status, _, body = victim.http("/v1/models/zoo:predict", b'{"instances": [2.0]}')
        assert (status, json.loads(body)) == (200, {"predictions": [3.0]})
        assert victim.process.poll() is None


def slow_request(milliseconds):
    return predict_request("zoo", "slow", steps=np.array([milliseconds], np.int32))


def code_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def test_client_that_goes_away_mid_request(victim):
    calls = [victim.prediction.Predict.future(slow_request(500)) for _ in range(4)]
    time.sleep(0.1)
    for call in calls:
        call.cancel()
    wait_for(lambda: code_of(predict, victim, "zoo", x=floats(1)) == Code.OK)
    assert code_of(victim.prediction.Predict, slow_request(2000), timeout=0.1) == (
        Code.DEADLINE_EXCEEDED
    )
    wait_for(lambda: code_of(predict, victim, "zoo", x=floats(1)) == Code.OK)


def test_a_deadline_stops_the_graph(victim):
    """Four runs that would take hours do not keep the four threads."""
    hours = predict_request("zoo", "slow", steps=np.array([2**31 - 1], np.int32))
    calls = [victim.prediction.Predict.future(hours, timeout=0.5) for _ in range(4)]
    codes = {call.code() for call in calls}
    # One more than the free threads is refused: a client that went away may still hold one.
    assert Code.DEADLINE_EXCEEDED in codes
    assert codes <= {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
    wait_for(lambda: code_of(predict, victim, "zoo", x=floats(1)) == Code.OK, 10)


def test_http_client_that_goes_away_mid_request(victim):
    body = b'{"signature_name": "slow", "instances": [500]}'
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", victim.rest_port)) as connection:
            connection.sendall(head("zoo:predict", len(body)) + body)


def head(path, length):
    return (
        f"POST /v1/models/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_malformed_protobuf(victim):
    method = "/tensorflow.serving.PredictionService/Predict"
    call = victim.channel.unary_unary(method)  # no serializer: bytes go as they are
    assert code_of(call, b"\xff\xff\xff\xff no protobuf", timeout=10) == Code.INTERNAL
    assert code_of(call, b"", timeout=10) == Code.INVALID_ARGUMENT
    nowhere = victim.channel.unary_unary("/tensorflow.serving.PredictionService/Guess")
    assert code_of(nowhere, b"", timeout=10) == Code.UNIMPLEMENTED


def test_bytes_that_are_neither_http_nor_grpc(victim):
    for port in (victim.grpc_port, victim.rest_port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(os.urandom(4096))
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass  # the other right answer to noise


def test_truncated_http(victim):
    with socket.create_connection(("127.0.0.1", victim.rest_port)) as connection:
        connection.sendall(head("zoo:predict", 1000) + b'{"instances": [1.0')
    with socket.create_connection(("127.0.0.1", victim.rest_port)) as connection:
        connection.sendall(b"POST /v1/models/zoo:pre")


def test_http_connections_that_say_nothing_do_not_block_others(victim):
    silent = [socket.create_connection(("127.0.0.1", victim.rest_port)) for _ in range(50)]
    assert victim.http("/v1/models/zoo")[0] == 200
    for connection in silent:
        connection.close()


def test_a_message_of_100_megabytes_is_answered_and_a_larger_one_refused(victim):
    reply = predict(victim, "zoo", x=np.zeros(25_000_000, np.float32))
    assert len(reply.outputs["y"].float_val) == 25_000_000
    del reply
    call = victim.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert code_of(call, bytes(130 << 20), timeout=60) == Code.RESOURCE_EXHAUSTED
    with socket.create_connection(("127.0.0.1", victim.rest_port), timeout=60) as connection:
        connection.sendall(head("zoo:predict", 200 << 20))
        chunk = bytes(1 << 20)
        try:
            for _ in range(200):
                connection.sendall(chunk)
            answer = connection.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            answer = connection.recv(100)
        assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "images",
    [
        np.full([1, 4], np.nan, np.float32),
        np.full([1, 4], np.inf, np.float32),
        np.ones([1, 4], np.int32),
        np.ones([1, 4], np.float64),
        np.array([b"four"], object),
        np.ones([4], np.float32),
        np.ones([1, 4, 1], np.float32),
        np.float32(1),
    ],
    ids=["nan", "inf", "int", "double", "string", "rank 1", "rank 3", "scalar"],
)
def test_bad_inputs(victim, images):
    assert code_of(predict, victim, "zoo", "checked", images=images) == Code.INVALID_ARGUMENT


def test_a_zero_size_batch_has_a_zero_size_answer(victim):
    reply = predict(victim, "zoo", "checked", images=np.zeros([0, 4], np.float32))
    assert [dim.size for dim in reply.outputs["mean"].tensor_shape.dim] == [0]


def test_beyond_capacity_is_refused_at_once_and_loses_nothing(victim):
    started = time.monotonic()
    calls = [victim.prediction.Predict.future(slow_request(1500)) for _ in range(30)]
    codes, refusal_seconds = [], []
    for call in calls:
        codes.append(call.code())
        if codes[-1] == Code.RESOURCE_EXHAUSTED:
            refusal_seconds.append(time.monotonic() - started)
    assert codes.count(Code.OK) >= 4
    assert set(codes) == {Code.OK, Code.RESOURCE_EXHAUSTED}
    texts = {call.details() for call in calls if call.code() == Code.RESOURCE_EXHAUSTED}
    assert "Server Threadpool Exhausted" in texts


def test_status_and_health_answer_while_all_threads_are_busy(victim):
    calls = [victim.prediction.Predict.future(slow_request(1000)) for _ in range(4)]
    time.sleep(0.2)
    assert victim.states("zoo") == {7: "AVAILABLE"}
    assert all(call.code() == Code.OK for call in calls)


def test_versions_swapped_under_load_fail_no_request(tmp_path):
    base = tmp_path / "line"
    for version in range(1, 5):
        serving_models.export_line(tmp_path / "made" / str(version), slope=version)
    base.mkdir()
    (tmp_path / "made" / "1").rename(base / "1")
    flags = ["--model_name=line", f"--model_base_path={base}"]
    with running_server(tmp_path, *flags) as server:
        wrong, seen, done = [], set(), threading.Event()

        def ask():
            while not done.is_set():
                try:
                    reply = predict(server, "line", x=floats(1))
                    version = reply.model_spec.version.value
                    seen.add(version)
                    if reply.outputs["y"].float_val != [version]:
                        wrong.append(reply)
                except grpc.RpcError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for version in (2, 3, 4):
            (tmp_path / "made" / str(version)).rename(base / str(version))
            wait_for(lambda version=version: version in seen)
        corrupt = tmp_path / "made" / "5"
        corrupt.mkdir()
        (corrupt / "saved_model.pb").write_bytes(os.urandom(1000))
        corrupt.rename(base / "5")
        wait_for(lambda: server.states("line").get(5) == "LOADING")
        shutil.rmtree(base / "4")
        wait_for(lambda: server.states("line")[4] in ("AVAILABLE", "END"))
        time.sleep(0.5)
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert seen == {1, 2, 3, 4}


def test_sigterm_under_load_finishes_or_refuses_each_call(tmp_path, zoo):
    """What runs is finished; what arrives is UNAVAILABLE, which clients take elsewhere; exit 0."""
    flags = ["--model_name=zoo", f"--model_base_path={zoo}", "--grpc_max_threads=64"]
    with running_server(tmp_path, *flags) as server:
        codes = []

        def ask_until_refused():
            code = Code.OK
            while code == Code.OK:
                code = code_of(predict, server, "zoo", x=floats(1))
                codes.append(code)

        threads = [threading.Thread(target=ask_until_refused) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(codes) > 500)
        assert server.stop(signal.SIGTERM) == 0
        for thread in threads:
            thread.join()
        assert set(codes) == {Code.OK, Code.UNAVAILABLE}
        assert "Traceback" not in server.log


def test_sigterm_lets_a_running_request_finish(tmp_path, zoo):
    flags = ["--model_name=zoo", f"--model_base_path={zoo}"]
    with running_server(tmp_path, *flags) as server:
        call = server.prediction.Predict.future(slow_request(20_000))
        time.sleep(0.3)
        assert not call.done()
        server.process.send_signal(signal.SIGINT)
        assert call.result(timeout=120).outputs["done"].float_val
        assert server.process.wait(timeout=120) == 0


def test_a_port_already_taken_is_one_line(tmp_path, zoo):
    models = ["--model_name=zoo", f"--model_base_path={zoo}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for number, flags in enumerate(
            ([f"--port={port}"], [f"--port={free_port()}", f"--rest_api_port={port}"])
        ):
            log = tmp_path / f"log{number}"
            process = run_server(log, *flags, *models)
            assert process.wait(timeout=180) == 1
            (line,) = [line for line in log.read_text().splitlines() if "Failed to start" in line]
            assert str(port) in line
            assert "Traceback" not in log.read_text()


def test_unreadable_request_is_logged_in_one_line(victim):
    call = victim.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert code_of(call, predict_pb2.PredictRequest().SerializeToString() + b"\x0f") != Code.OK
    assert "Traceback" not in victim.log
