"""The embedded server under load: lost and wrong answers, memory, latency, throughput.

    python benchmarks/serving.py [--requests 20000] [--clients 32] [--model saved_models/NAME]

Without ``--model`` a PreActResNet-18 of ``--width`` with random weights is exported twice, with
and without batching in its graph; with it, that model is served and the batching comparison needs
``--unbatched``, the same network exported with ``--no-batching``. Every answer of the load is
checked against the SavedModel called directly in this process. Client and server share the
machine. Writes ``benchmarks/results/serving.json`` and the table of ``docs/serving.md``; two and
a half minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import tensorflow as tf
from pages import fill
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from der_tf.files import write_text

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
NAME = "benchmark"
TOLERANCE = 1e-4
DIRECT = "SavedModel in process"
NO_BATCHING = "none"


@dataclass
class Question:
    """A request and the answer that the SavedModel itself gives."""

    request: predict_pb2.PredictRequest
    answers: dict[str, np.ndarray]


@dataclass
class Server:
    process: psutil.Process
    stub: prediction_service_pb2_grpc.PredictionServiceStub
    rest_port: int

    @property
    def megabytes(self) -> float:
        return self.process.memory_info().rss / 2**20


def export_random_network(folder: Path, width: int) -> tuple[Path, Path]:
    from der_tf import models
    from der_tf.export import export

    network = models.preact_resnet18((32, 32, 3), 10, width=width)
    export(network, folder / "batched", batching=True)
    export(network, folder / "unbatched", batching=False)
    return folder / "batched", folder / "unbatched"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(base: Path, *flags: str) -> Iterator[Server]:
    port, rest_port = free_port(), free_port()
    command = [sys.executable, "-m", "serve", f"--port={port}", f"--rest_api_port={rest_port}"]
    command += [f"--model_name={NAME}", f"--model_base_path={base.resolve()}", *flags]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        grpc.insecure_channel(
            f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        try:
            grpc.channel_ready_future(channel).result(timeout=300)
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield Server(psutil.Process(process.pid), stub, rest_port)
        finally:
            process.terminate()
            process.wait()


def sample_input(name: str, spec: tf.TensorSpec, rng: np.random.Generator, rows: int):
    shape = [rows, *spec.shape[1:]]
    if name == "images":
        return rng.random(shape, np.float32)
    if name == "image_bytes":
        pixels = rng.integers(0, 256, [rows, 32, 32, 3], np.uint8)
        return np.array([tf.io.encode_png(image).numpy() for image in pixels], object)
    if name == "labels":
        return rng.integers(0, 2, shape).astype(np.int32)
    if name == "seeds":
        return rng.integers(0, 2**31, shape)
    if name == "num_steps":
        return np.full(shape, 2, np.int32)
    raise SystemExit(f"no way to make up the input {name!r} of shape {spec.shape}")


def make_question(signature: str, function, rng: np.random.Generator, rows: int) -> Question:
    specs = function.structured_input_signature[1]
    inputs = {name: sample_input(name, spec, rng, rows) for name, spec in specs.items()}
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = NAME, signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    outputs = function(**{name: tf.constant(array) for name, array in inputs.items()})
    return Question(request, {name: value.numpy() for name, value in outputs.items()})


def is_right(question: Question, reply: predict_pb2.PredictResponse) -> bool:
    if reply.outputs.keys() != question.answers.keys():
        return False
    for name, wanted in question.answers.items():
        received = tf.make_ndarray(reply.outputs[name])
        if received.shape != wanted.shape:
            return False
        close = np.issubdtype(wanted.dtype, np.floating)
        if close and not np.allclose(received, wanted, atol=TOLERANCE, rtol=TOLERANCE):
            return False
        if not close and not (received == wanted).all():
            return False
    return True


def load(server: Server, questions: list[Question], requests: int, clients: int) -> dict:
    """Mixed requests from many clients, each answer checked."""
    counts = {"lost": 0, "wrong": 0}
    lock = threading.Lock()
    memory = [server.megabytes]
    half = threading.Event()

    def ask(index: int) -> None:
        question = questions[index % len(questions)]
        try:
            reply = server.stub.Predict(question.request, timeout=120)
        except grpc.RpcError:
            with lock:
                counts["lost"] += 1
            return
        if not is_right(question, reply):
            with lock:
                counts["wrong"] += 1
        if index >= requests // 2 and not half.is_set():
            half.set()
            memory.append(server.megabytes)

    for index in range(4 * len(questions)):  # the first runs allocate what later ones reuse
        ask(index)
    memory[0] = server.megabytes
    counts.update(lost=0, wrong=0)
    half.clear()
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(requests)))
    seconds = time.perf_counter() - start
    return {
        "requests": requests,
        "clients": clients,
        **counts,
        "requests_per_second": requests / seconds,
        "server_megabytes": {"start": memory[0], "middle": memory[-1], "end": server.megabytes},
    }


def latencies(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict]:
    """Taken in turn, so that what else the machine does falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-20, repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}
        for name, taken in times.items()
    }


def rest_call(server: Server, images: np.ndarray) -> Callable[[], object]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    body = json.dumps({"instances": images.round(4).tolist()})

    def call() -> None:
        connection.request("POST", f"/v1/models/{NAME}:predict", body)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 200

    return call


def calls_per_second(call: Callable[[], object], calls: int, clients: int) -> float:
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: call(), range(clients * 4)))
        start = time.perf_counter()
        list(pool.map(lambda _: call(), range(calls)))
        return calls / (time.perf_counter() - start)


def throughput(server: Server, question: Question, requests: int, clients: int) -> dict:
    """Single-image predict requests per second, and the CPU time that one takes on either side."""
    processes = {"server": server.process, "clients": psutil.Process()}
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    rate = calls_per_second(lambda: server.stub.Predict(question.request), requests, clients)
    asked = requests + 4 * clients
    cpu = {
        name: (sum(process.cpu_times()[:2]) - before[name]) / asked * 1e3
        for name, process in processes.items()
    }
    return {"requests_per_second": rate, "cpu_ms_per_request": cpu}


def without_server(function, images: np.ndarray, requests: int, clients: int) -> dict[str, float]:
    """Images a second of the SavedModel called directly: what batching can give at most."""
    one, many = tf.constant(images), tf.constant(np.repeat(images, clients, axis=0))
    return {
        "one image a call": calls_per_second(lambda: function(images=one), requests, clients),
        f"{clients} images a call": clients
        * calls_per_second(lambda: function(images=many), requests // clients, os.cpu_count() or 1),
    }


def measure(arguments: argparse.Namespace, batched: Path, unbatched: Path | None) -> dict:
    rng = np.random.default_rng(0)
    version = max((path for path in batched.iterdir() if path.name.isdigit()), key=_number)
    functions = tf.saved_model.load(str(version)).signatures
    names = sorted(name for name in functions if name != "serving_default")
    questions = [
        make_question(name, functions[name], rng, rows)
        for name in names
        for rows in (1, 1, 1, 2, 5)
        for _ in range(4)
    ]
    rng.shuffle(questions)
    single = make_question("predict", functions["predict"], rng, 1)
    images = tf.make_ndarray(single.request.inputs["images"])
    repeats = max(100, min(1000, arguments.requests // 4))
    result: dict = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}",
        "model": str(arguments.model or f"PreActResNet-18, width {arguments.width}"),
        "signatures": names,
    }
    print("latency and load ...", file=sys.stderr)
    with serving(batched) as server:
        function = functions["predict"]
        calls = {
            DIRECT: lambda: {
                name: output.numpy()
                for name, output in function(images=tf.constant(images)).items()
            },
            "gRPC": lambda: server.stub.Predict(single.request),
            "REST": rest_call(server, images),
        }
        result["latency"] = latencies(calls, repeats)
        result["load"] = load(server, questions, arguments.requests, arguments.clients)
    rates: dict[str, dict] = {}
    requests = max(10 * arguments.clients, min(arguments.requests, 2000))
    variants: list[tuple[str, Path | None, list[str]]] = [
        (NO_BATCHING, unbatched, []),
        ("in the graph", batched, []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        parameters = Path(folder) / "batching.config"
        parameters.write_text(f"max_batch_size {{ value: {arguments.clients} }}")
        flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
        variants.append(("by the server (--enable_batching)", unbatched, flags))
        for title, base, extra in variants:
            if base is None:
                continue
            print(f"throughput, batching: {title} ...", file=sys.stderr)
            with serving(base, *extra) as server:
                rates[title] = throughput(server, single, requests, arguments.clients)
    result["throughput"] = {
        "clients": arguments.clients,
        "served": rates,
        "without_server": without_server(functions["predict"], images, requests, arguments.clients),
    }
    return result


def _number(path: Path) -> int:
    return int(path.name)


def markdown(result: dict) -> str:
    load_, direct = result["load"], result["latency"][DIRECT]
    memory = load_["server_megabytes"]
    lines = [
        f"{result['model']}; {result['machine']}; client and server on the same machine.",
        "",
        f"| load: {load_['clients']} clients, {', '.join(result['signatures'])} | |",
        "|---|---|",
        f"| requests | {load_['requests']:,} |",
        f"| lost | {load_['lost']} |",
        f"| wrong (beyond {TOLERANCE} of the SavedModel called directly) | {load_['wrong']} |",
        f"| server memory, MB: start, middle, end | {memory['start']:.0f}, "
        f"{memory['middle']:.0f}, {memory['end']:.0f} |",
        f"| requests/s, answers checked | {load_['requests_per_second']:.0f} |",
        "",
        "| latency of predict, one image | p50 ms | p99 ms | added p50 ms |",
        "|---|---|---|---|",
    ]
    for name, times in result["latency"].items():
        added = times["p50_ms"] - direct["p50_ms"]
        lines.append(
            f"| {name} | {times['p50_ms']:.2f} | {times['p99_ms']:.2f} | "
            + (f"{added:.2f} |" if times is not direct else "|")
        )
    rates = result["throughput"]
    lines += [
        "",
        f"| predict, {rates['clients']} clients, one image each, batching | requests/s | ratio | "
        "CPU of the server, ms a request | CPU of the clients, ms |",
        "|---|---|---|---|---|",
    ]
    unbatched = rates["served"].get(NO_BATCHING)
    for name, served in rates["served"].items():
        rate, cpu = served["requests_per_second"], served["cpu_ms_per_request"]
        ratio = f"{rate / unbatched['requests_per_second']:.2f}" if unbatched else ""
        lines.append(
            f"| {name} | {rate:.0f} | {ratio} | {cpu['server']:.2f} | {cpu['clients']:.2f} |"
        )
    alone = rates["without_server"]
    first = next(iter(alone.values()))
    lines += [
        f"| {DIRECT}, {name} | {rate:.0f} | {rate / first:.2f} | | |"
        for name, rate in alone.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000, help="of the load")
    parser.add_argument("--clients", type=int, default=32, help="that ask at the same time")
    parser.add_argument("--model", type=Path, help="folder of a model's versions")
    parser.add_argument("--unbatched", type=Path, help="the same, exported with --no-batching")
    parser.add_argument("--width", type=int, default=16, help="of the network made without --model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        batched, unbatched = arguments.model, arguments.unbatched
        if batched is None:
            batched, unbatched = export_random_network(Path(folder), arguments.width)
        result = measure(arguments, batched, unbatched)
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "serving.json", json.dumps(result, indent=2) + "\n")
    fill(PAGE, "benchmarks/serving.py", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
