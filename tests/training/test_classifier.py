"""RobustClassifier in plain Keras code: metrics, passes, saving, precision, distribution."""

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
from sklearn.datasets import load_digits

from der_tf import RobustClassifier, attacks, energy, objectives
from der_tf.regularizers import AbnormalExamples, DeltaEnergy, GradAlign

METRICS = {
    "loss",
    "clean_accuracy",
    "robust_accuracy",
    "delta_marginal_energy",
    "delta_joint_energy",
    "abnormal_fraction",
}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] / 16).astype(np.float32), data.target.astype(np.int32)


def small_network(batch_norm=True, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3),
            *([keras.layers.BatchNormalization()] if batch_norm else []),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, dtype="float32"),
        ]
    )


def compiled(*args, optimizer=None, steps_per_execution=1, **kwargs):
    model = RobustClassifier(*args, **kwargs)
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, steps_per_execution=steps_per_execution)
    return model


def fit(model, x, y, **kwargs):
    return model.fit(x, y, batch_size=64, shuffle=False, verbose=0, **kwargs).history


def assert_same_weights(one, other, tolerance=0.0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attack", [None, "fgsm", "rs_fgsm", "n_fgsm", "pgd", "mim", "trades"])
def test_all_metrics_are_there_for_every_attack(attack, digits):
    x, y = digits[0][:200], digits[1][:200]
    if attack is not None:
        attack = attacks.get(attack, epsilon=0.1)
    history = fit(compiled(small_network(), attack), x, y, validation_data=(x[:50], y[:50]))
    assert set(history) == METRICS | {f"val_{name}" for name in METRICS}
    assert np.isfinite(list(history.values())).all()


@pytest.mark.parametrize("objective", objectives.names())
def test_training_makes_robust(objective, digits):
    """From chance to well above it under PGD, for every outer loss."""
    x, y = digits
    model = compiled(small_network(), attacks.get("pgd", epsilon=0.1, steps=5), objective)
    before = model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]
    fit(model, x, y, epochs=8)
    after = model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]
    assert before < 0.3
    assert after > 0.6


def test_evaluate_measures_what_the_functions_say(digits):
    x, y = digits[0][:150], digits[1][:150]
    network = small_network()
    attack = attacks.get("fgsm", epsilon=0.1)
    model = compiled(network, attack, evaluation_attack=attack)
    measured = model.evaluate(x, y, batch_size=64, verbose=0, return_dict=True)  # 64 + 64 + 22
    natural, moved = network(x), network(attack(network, x, y))
    expected = {
        "loss": energy.cross_entropy(moved, y),
        "clean_accuracy": np.argmax(natural, axis=1) == y,
        "robust_accuracy": np.argmax(moved, axis=1) == y,
        "delta_marginal_energy": energy.delta_energy(natural, moved),
        "delta_joint_energy": energy.delta_energy(natural, moved, y),
        "abnormal_fraction": energy.abnormal(natural, moved, y),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], np.mean(values), atol=1e-5, err_msg=name)


class CountsCalls(keras.Model):
    """A network that counts how often it is really run."""

    def __init__(self):
        super().__init__()
        self.network = small_network()
        self.calls = tf.Variable(0, trainable=False)

    def build(self, input_shape):
        self.built = True

    def call(self, images, training=None):
        self.calls.assign_add(1)
        return self.network(images, training=training)


@pytest.mark.parametrize(
    ("attack", "objective", "regularizers", "passes"),
    [
        (None, "madry", (), 1),
        ("fgsm", "madry", (), 2),
        ("pgd", "madry", (), 11),
        ("fgsm", "trades", (), 3),
        ("fgsm", "madry", (DeltaEnergy(1.0, reference="natural"),), 3),
        (
            "fgsm",
            "trades",
            (
                DeltaEnergy(1.0, reference="natural"),
                DeltaEnergy(1.0, penalty="hinge", reference="natural"),
            ),
            3,
        ),
        ("pgd", "madry", (DeltaEnergy(1.0, reference="interior"),), 12),
        ("rs_fgsm", "madry", (DeltaEnergy(1.0, reference="path"),), 3),
        ("rs_fgsm", "madry", (DeltaEnergy(1.0, reference="start"),), 3),
        # In the mode of the outer pass, the attack's own pass through the start serves the loss.
        (
            attacks.get("rs_fgsm", training=True),
            "madry",
            (DeltaEnergy(1.0, reference="start"),),
            2,
        ),
        (attacks.get("n_fgsm", training=True), "madry", (AbnormalExamples(),), 2),
        ("n_fgsm", "madry", (AbnormalExamples(),), 3),
        # The input gradient that FGSM climbs is the one that GradAlign aligns.
        (attacks.get("fgsm", training=True), "madry", (GradAlign(),), 3),
        (attacks.get("fgsm", training=True), "trades", (GradAlign(),), 3),
        ("rs_fgsm", "madry", (GradAlign(),), 4),
    ],
)
def test_forward_passes_are_taken_only_when_read(attack, objective, regularizers, passes, digits):
    network = CountsCalls()
    model = RobustClassifier(network, attack, objective, regularizers, natural_metrics_every=0)
    model.compile("sgd")
    data = digits[0][:8], digits[1][:8]
    model.train_on_batch(*data)
    network.calls.assign(0)
    model.train_on_batch(*data)
    assert network.calls.numpy() == passes


@pytest.mark.parametrize(("objective", "passes"), [("madry", 3), ("trades", 5)])
def test_weight_perturbation_costs_one_more_evaluation_of_the_objective(objective, passes, digits):
    network = CountsCalls()
    model = RobustClassifier(network, "fgsm", objective, awp_gamma=0.01, natural_metrics_every=0)
    model.compile("sgd")
    model.train_on_batch(digits[0][:8], digits[1][:8])
    network.calls.assign(0)
    model.train_on_batch(digits[0][:8], digits[1][:8])
    assert network.calls.numpy() == passes


def test_natural_metrics_cost_one_pass_in_n_steps(digits):
    network = CountsCalls()
    model = RobustClassifier(network, "fgsm", natural_metrics_every=4)
    model.compile("sgd")
    dataset = tf.data.Dataset.from_tensor_slices(digits).batch(8).take(9)
    model.fit(dataset, shuffle=False, verbose=0)
    assert network.calls.numpy() == 9 * 2 + 3  # steps 0, 4 and 8


def test_moving_statistics_follow_the_outer_pass_alone(digits):
    x, y = digits[0][:64], digits[1][:64]
    network = small_network()
    attack = attacks.get("rs_fgsm", epsilon=0.1, training=True, seed=0)
    moved = attack(network, x, y)
    conv, norm = network.layers[:2]
    features = conv(moved).numpy()
    expected = 0.01 * features.mean(axis=(0, 1, 2))  # Keras' momentum of 0.99, from zero
    model = compiled(network, lambda *_: moved)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4)


def test_steps_are_a_function_of_seed_and_step(digits):
    x, y = digits[0][:256], digits[1][:256]

    def weights(seed, **kwargs):
        attack = attacks.get("rs_fgsm", epsilon=0.1)
        model = compiled(small_network(), attack, seed=seed, **kwargs)
        fit(model, x, y, epochs=2)
        return model.get_weights()

    reference = weights(1)
    assert_same_weights(weights(1), reference)
    assert_same_weights(weights(1, steps_per_execution=3), reference, 1e-6)
    with pytest.raises(AssertionError):
        assert_same_weights(weights(2), reference)


def test_saved_and_loaded_it_goes_on_as_before(digits, tmp_path):
    x, y = digits[0][:256], digits[1][:256]
    model = compiled(
        small_network(),
        attacks.get("rs_fgsm", epsilon=0.1),
        objectives.get("weat", objective=objectives.get("trades", beta=2.0)),
        [DeltaEnergy(3.0, reference="start")],
        evaluation_attack=attacks.get("pgd", epsilon=0.1, steps=3),
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True),
    )
    fit(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name in ("attack", "objective", "regularizers", "evaluation_attack", "seed"):
        assert getattr(loaded, name) == getattr(model, name)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for each in (model, loaded):
        fit(each, x, y)
    assert_same_weights(loaded.get_weights(), model.get_weights())


def test_predict_gives_the_logits_of_the_network(digits):
    network = small_network()
    model = compiled(network)
    np.testing.assert_allclose(
        model.predict(digits[0][:70], verbose=0), network(digits[0][:70]), atol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy, digits):
    keras.config.set_dtype_policy(policy)
    try:
        network = small_network()
        model = compiled(
            network, attacks.get("rs_fgsm", epsilon=0.1), regularizers=[DeltaEnergy(1.0)]
        )
        history = fit(model, *digits, epochs=5)
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.layers[0].compute_dtype == policy.removeprefix("mixed_")
    assert history["robust_accuracy"][-1] > 0.6


def test_ema_callbacks_and_users_metrics(digits):
    x, y = digits[0][:256], digits[1][:256]
    model = RobustClassifier(small_network(), attacks.get("fgsm", epsilon=0.1))
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, metrics=["accuracy"])
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ReduceLROnPlateau(monitor="val_robust_accuracy", mode="max", patience=0),
    ]
    history = fit(model, x, y, epochs=3, validation_data=(x, y), callbacks=callbacks)
    for prefix in ("", "val_"):
        np.testing.assert_allclose(
            history[f"{prefix}accuracy"], history[f"{prefix}clean_accuracy"], atol=1e-6
        )


def test_sample_weights_weight_the_loss(digits):
    x, y = digits[0][:32], digits[1][:32]
    kept = np.arange(32) < 16
    weighted, half = (
        compiled(small_network(batch_norm=False), attacks.get("fgsm", epsilon=0.1))
        for _ in range(2)
    )
    weighted.train_on_batch(x, y, sample_weight=2.0 * kept)
    half.train_on_batch(x[:16], y[:16])
    assert_same_weights(weighted.get_weights(), half.get_weights(), 1e-6)


def test_layer_losses_are_added_once(digits):
    network = small_network(batch_norm=False)
    network.layers[-1].kernel.regularizer = keras.regularizers.L2(0.5)
    model = compiled(network, attacks.get("fgsm", epsilon=0.1), optimizer=keras.optimizers.SGD(1.0))
    plain = compiled(
        small_network(batch_norm=False),
        attacks.get("fgsm", epsilon=0.1),
        optimizer=keras.optimizers.SGD(1.0),
    )
    kernel = network.layers[-1].kernel.numpy()
    for each in (model, plain):
        each.train_on_batch(digits[0][:16], digits[1][:16])
    difference = plain.network.layers[-1].kernel.numpy() - network.layers[-1].kernel.numpy()
    np.testing.assert_allclose(difference, kernel, atol=1e-6)


@pytest.mark.parametrize(
    "regularizers",
    [(), (DeltaEnergy(5.0, reference="natural"),), (DeltaEnergy(5.0, reference="start"),)],
    ids=["plain", "der", "der_start"],
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


def test_errors_say_what_was_received(digits):
    x, y = digits[0][:16], digits[1][:16]
    model = compiled(small_network(), "fgsm")
    with pytest.raises(ValueError, match=r"shape \[B\]; received labels of shape \(None, 10\)"):
        fit(model, x, keras.utils.to_categorical(y, 10))
    with pytest.raises(ValueError, match=r"shape \[B\]; received labels of float"):
        fit(model, x, y.astype(np.float32))
    with pytest.raises(ValueError, match=r"images are one tensor of floats .*received uint8"):
        fit(model, (x * 255).astype(np.uint8), y)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"objective=.*received loss='mse'"):
        fit(model, x, y)
    model.compile("sgd")
    fit(model, x, y)
    with pytest.raises(ValueError, match="attack is one of"):
        RobustClassifier(small_network(), attack="pdg")


@pytest.mark.parametrize("step", ["fit", "evaluate"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (lambda x: 255 * x, None, r"in \[0, 1\]; received values from.*\[0\] \[to\] \[255\]"),
        (lambda x: x - 1, None, r"in \[0, 1\]; received values from.*\[-1\] \[to\] \[0\]"),
        (lambda x: np.where(x > 0, x, np.nan), None, r"finite and in \[0, 1\]; received values"),
        (None, lambda y: y + 1, r"0\.\.9, as the network gives 10.*\[1\] \[to\] \[10\]"),
        (None, lambda y: y - 1, r"0\.\.9, as the network gives 10.*\[-1\] \[to\] \[8\]"),
    ],
)
def test_values_out_of_range_are_refused_in_the_first_batch(step, images, labels, message, digits):
    x, y = digits[0][:32], digits[1][:32]
    model = compiled(small_network(), "fgsm")
    before = model.get_weights()
    x, y = (images(x) if images else x), (labels(y) if labels else y)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        getattr(model, step)(x, y, verbose=0)
    assert_same_weights(model.get_weights(), before)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("network", lambda x: x, "network is a Keras model"),
        ("attack", 0.1, r"attack is a name, an Attack or a callable; received 0\.1"),
        ("evaluation_attack", 3, "evaluation_attack is a name, an Attack or a callable"),
        ("objective", None, "objective is a name or an Objective; received None"),
        ("regularizers", DeltaEnergy(1.0), r"regularizers is a list .*received DeltaEnergy\("),
        ("regularizers", ["der"], r"regularizers is a list .*received \['der'\]"),
        ("natural_metrics_every", -1, "natural_metrics_every is a number >= 0; received -1"),
    ],
)
def test_arguments_of_another_kind_are_refused(argument, value, message):
    with pytest.raises(ValueError, match=message):
        RobustClassifier(**{"network": small_network(), argument: value})
