"""Servers for the tests: two small models behind the embedded server, or behind a real binary.

``TF_MODEL_SERVER_BIN`` names a ``tensorflow_model_server``; the tests then run against it as well.
"""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import keras
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

import der_tf
from serve.client import Client

CLASS_NAMES = ["cat", "dog", "eel", "fox", "gnu"]
COMMANDS = {"embedded": [sys.executable, "-W", "ignore", "-m", "serve"]}
if binary := os.environ.get("TF_MODEL_SERVER_BIN"):
    COMMANDS["tensorflow_model_server"] = [binary]


@dataclass
class Served:
    """A running server and what it serves.

    Attributes:
        target: host:port of gRPC.
        rest: base URL of REST.
        folder: holds NAME/VERSION of both models.
        direct: our export as a SavedModel in this process, called without any server.
    """

    target: str
    rest: str
    folder: Path
    direct: object
    predictions: prediction_service_pb2_grpc.PredictionServiceStub = field(repr=False)
    models: model_service_pb2_grpc.ModelServiceStub = field(repr=False)

    def client(self, model="robust", version=None, **options) -> Client:
        return Client(self.target, model, version, **options)


class Generator(tf.Module):
    """The signatures ``sample`` and ``defend`` of the contract, with answers known in advance.

    A sample's pixels are label / 10 + (seed mod 10) / 100; a defended image is 1 - image.
    """

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int32, name="labels"),
            tf.TensorSpec([None], tf.int64, name="seeds"),
            tf.TensorSpec([None], tf.int32, name="num_steps"),
        ]
    )
    def sample(self, labels, seeds, num_steps):
        pixels = tf.cast(labels, tf.float32) / 10 + tf.cast(seeds % 10, tf.float32) / 100
        images = tf.ones([tf.size(labels), 8, 8, 3]) * tf.reshape(pixels, [-1, 1, 1, 1])
        return {
            "images": images,
            "joint_energy": -tf.cast(labels, tf.float32),
            "steps_taken": num_steps,
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="images")])
    def defend(self, images):
        logits = tf.reduce_mean(images, [1, 2, 3])[:, None] * [[-1.0, 0.0, 1.0]]
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "classes": tf.argmax(logits, axis=1),
            "marginal_energy": -tf.reduce_logsumexp(logits, axis=1),
            "images": 1 - images,
        }


def write_models(folder: Path) -> None:
    """``robust``: our export of a small network; ``generator``: `Generator`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    hidden = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    logits = keras.layers.Dense(len(CLASS_NAMES))(keras.layers.Flatten()(hidden))
    network = keras.Model(inputs, logits)
    der_tf.export.export(network, folder / "robust", class_names=CLASS_NAMES)
    generator = Generator()
    tf.saved_model.save(
        generator,
        str(folder / "generator" / "1"),
        signatures={"sample": generator.sample, "defend": generator.defend},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder: Path, command: list[str], *flags: str):
    """Write the models, start the server on them, wait until it answers; ends it afterwards."""
    write_models(folder)
    config = folder / "models.config"
    entries = [
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
        for name in ("robust", "generator")
    ]
    config.write_text("model_config_list {\n" + "\n".join(entries) + "\n}\n")
    port, rest_port = free_port(), free_port()
    arguments = [f"--port={port}", f"--rest_api_port={rest_port}", f"--model_config_file={config}"]
    with (
        open(folder / "server.log", "w") as log,
        subprocess.Popen([*command, *arguments, *flags], stdout=log, stderr=log) as process,
    ):
        try:
            target = f"127.0.0.1:{port}"
            for model in ("robust", "generator"):
                with Client(target, model) as client:
                    client.wait_until_ready(120)
            with grpc.insecure_channel(target) as channel:
                yield Served(
                    target,
                    f"http://127.0.0.1:{rest_port}",
                    folder,
                    tf.saved_model.load(str(folder / "robust" / "1")),
                    prediction_service_pb2_grpc.PredictionServiceStub(channel),
                    model_service_pb2_grpc.ModelServiceStub(channel),
                )
        finally:
            process.terminate()
