"""Servers started as a user starts them: a process, flags, free ports."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

_REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class RunningServer:
    """A server process and the ways to talk to it."""

    process: subprocess.Popen
    grpc_port: int
    rest_port: int
    log_path: Path
    channel: grpc.Channel

    @property
    def prediction(self):
        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    @property
    def models(self):
        return model_service_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def http(self, path: str, body: bytes | None = None, method: str | None = None, headers=None):
        """(status, headers, body) of one HTTP request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rest_port}{path}", body, headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def states(self, model: str) -> dict[int, str]:
        """Version -> name of its state."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        state = get_model_status_pb2.ModelVersionStatus.State
        reply = self.models.GetModelStatus(request, timeout=10)
        return {entry.version: state.Name(entry.state) for entry in reply.model_version_status}

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


def run_server(log_path: Path, *flags: str, **options) -> subprocess.Popen:
    """Start ``python -m serve`` with flags; its output goes to a file."""
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    with open(log_path, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "serve", *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            **options,
        )


def wait_for(condition, seconds: float = 60.0, what: str = "the condition"):
    """Poll until true, and return what it returned."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come within {seconds} seconds"
        time.sleep(0.05)


@contextmanager
def running_server(folder: Path, *flags: str, credentials=None, wait: bool = True, **options):
    """A server on free ports, ready to answer; killed at the end."""
    grpc_port, rest_port = free_port(), free_port()
    log_path = folder / f"server-{grpc_port}.log"
    process = run_server(
        log_path, f"--port={grpc_port}", f"--rest_api_port={rest_port}", *flags, **options
    )
    target = f"localhost:{grpc_port}"
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if credentials is None:
        channel = grpc.insecure_channel(target, unlimited)
    else:
        channel = grpc.secure_channel(target, credentials, unlimited)
    server = RunningServer(process, grpc_port, rest_port, log_path, channel)
    try:
        if wait:
            wait_for(
                lambda: "Exporting HTTP/REST API" in server.log or process.poll() is not None,
                seconds=180,  # TensorFlow is imported, on a machine that may be busy
                what="the server",
            )
            assert process.poll() is None, server.log
        yield server
    finally:
        channel.close()
        if process.poll() is None:
            process.kill()
        process.wait()
