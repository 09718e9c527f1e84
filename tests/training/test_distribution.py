"""RobustClassifier on several replicas and workers: as on one, however the batches are split."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.regularizers import DeltaEnergy
from tests.training.small_classifiers import assert_same_weights, compiled, fit, small_network


@pytest.mark.parametrize(
    "regularizers",
    [
        (),
        (DeltaEnergy(5.0, reference="natural"),),
        (DeltaEnergy(5.0, reference="start"),),
        (DeltaEnergy(5.0, reference="start", interval=2),),
    ],
    ids=["plain", "der", "der_start", "lazy_der_start"],
)
def test_two_replicas_train_like_one(regularizers, digits, two_replicas):
    """5 steps of 64, the last one of 19 images: 10 on one replica and 9 on the other."""

    def train(strategy):
        with strategy.scope():
            model = compiled(
                small_network(batch_norm=False),
                attacks.get("fgsm", epsilon=0.1, training=True),
                regularizers=regularizers,
            )
        dataset = tf.data.Dataset.from_tensor_slices((digits[0][:275], digits[1][:275])).batch(64)
        history = model.fit(dataset, shuffle=False, verbose=0).history
        return model.get_weights(), history["loss"]

    one, loss = train(tf.distribute.get_strategy())
    two, loss_of_two = train(two_replicas())
    assert_same_weights(two, one, 1e-5)
    np.testing.assert_allclose(loss_of_two, loss, rtol=1e-5)


def test_replicas_with_different_numbers_of_images(digits, two_replicas):
    """From the first batch on: 25 and 24 images; in validation 41, as 21 and 20."""
    with two_replicas().scope():
        model = RobustClassifier(small_network(), "rs_fgsm", regularizers=[DeltaEnergy(5.0)])
        model.compile("sgd", metrics=[keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")])
    x, y = digits[0][:98], digits[1][:98]
    history = model.fit(x, y, batch_size=49, validation_data=(x[:41], y[:41]), verbose=0).history
    natural = model.network.predict(x[:41], verbose=0)
    among = [label in row.argsort()[-3:] for label, row in zip(y, natural, strict=False)]
    assert history["val_top"] == [pytest.approx(np.mean(among))]
    clean = natural.argmax(axis=1) == y[:41]
    assert history["val_clean_accuracy"] == [pytest.approx(np.mean(clean))]


@pytest.mark.parametrize("attack", [None, "rs_fgsm"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_network_that_is_not_built_is_built_by_fit(attack, replicas, digits, two_replicas):
    strategy = two_replicas() if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        regularizers = [DeltaEnergy(5.0)] if attack else []
        model = compiled(network, attack, regularizers=regularizers)
    x, y = digits[0][:64], digits[1][:64]
    first = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    fit(model, x, y, epochs=8)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] < first


def test_replicas_read_the_data_once(digits, two_replicas):
    """Keras draws a first batch to see its shape; dropping that iterator can crash TensorFlow."""
    begun = []

    def images():
        begun.append(len(begun))
        yield from zip(digits[0][:40], digits[1][:40], strict=True)

    signature = (tf.TensorSpec((8, 8, 1), tf.float32), tf.TensorSpec((), tf.int32))
    dataset = tf.data.Dataset.from_generator(images, output_signature=signature).batch(16)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(3))
    with two_replicas().scope():
        network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        model = compiled(network, "fgsm")
    model.evaluate(dataset, verbose=0)
    assert begun == [0]


def test_two_workers_train_like_one_process(tmp_path):
    """MultiWorkerMirroredStrategy through TF_CONFIG: two processes on loopback."""
    job = Path(__file__).with_name("worker_job.py")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    processes = []
    for index in (0, 1, None):
        extra = {}
        if index is not None:
            task = {"type": "worker", "index": index}
            extra = {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
        command = [sys.executable, str(job), str(tmp_path / f"{index}.npz")]
        processes.append(subprocess.Popen(command, env={**environment, **extra}))
    assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
    first, second, single = (np.load(tmp_path / f"{index}.npz") for index in (0, 1, None))
    for name in single.files:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=0)
        np.testing.assert_allclose(first[name], single[name], rtol=0, atol=1e-5)
