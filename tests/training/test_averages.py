"""SWA and early stopping: what they compute, and that a stopped run goes on as if it had not."""

import dataclasses
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier
from der_tf.training import run
from der_tf.training.averages import EpochAverages, recompute_batch_statistics
from der_tf.training.callbacks import EarlyStopping
from der_tf.training.faults import Interrupted, Signals
from der_tf.training.recipes import resolve
from der_tf.training.run_directory import RunDirectory


def classifier():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model = RobustClassifier(network, attack="fgsm", evaluation_attack="fgsm")
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False, run_eagerly=True)
    return model


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(12, 4, 4, 1)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, rng.integers(0, 3, 12))).batch(5)


def numpy_weights(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def test_swa_is_the_mean_of_the_epoch_ends_and_leaves_no_trace(batches):
    model, ends = classifier(), []
    swa = EpochAverages(model, first_epoch=2)
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(numpy_weights(model.trainable_variables))
    )
    model.fit(batches, epochs=4, callbacks=[swa, record], verbose=0, shuffle=False)
    assert swa.count == 3
    trained = numpy_weights(model.variables)
    with swa.applied(model, batches.map(lambda x, y: x)):
        for i, weight in enumerate(numpy_weights(model.trainable_variables)):
            mean = np.mean([end[i] for end in ends[1:]], axis=0)
            np.testing.assert_allclose(weight, mean, rtol=0, atol=1e-7)
        inside = numpy_weights(model.variables)
        assert any((a != b).any() for a, b in zip(trained, inside, strict=True))
    for after, before in zip(numpy_weights(model.variables), trained, strict=True):
        np.testing.assert_array_equal(after, before)


def test_batch_statistics_are_those_of_the_training_images(batches):
    network = classifier().network
    conv, norm = network.layers[:2]
    features = [conv(images).numpy() for images, _ in batches]  # 5, 5 and 2 images
    recompute_batch_statistics(network, batches.map(lambda x, y: x))
    mean = np.concatenate(features).mean((0, 1, 2))
    variance = np.average([f.var((0, 1, 2)) for f in features], axis=0, weights=[5, 5, 2])
    np.testing.assert_allclose(norm.moving_mean, mean, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, variance, atol=1e-6)
    assert norm.momentum == 0.99


def test_early_stopping_counts_epochs_without_a_new_best():
    stopping, model = EarlyStopping(patience=2), classifier()
    stopping.set_model(model)
    seen = []
    for accuracy in (0.2, 0.5, 0.5, 0.6, 0.4, 0.6):  # as good is not better
        model.stop_training = False
        stopping.on_epoch_end(0, {"val_robust_accuracy": accuracy})
        seen.append(model.stop_training)
    assert seen == [False, False, False, False, False, True]
    assert stopping.reached


class Cut(run.Training):
    """A run that gets SIGTERM in its third epoch, when the mean has begun."""

    def _guards(self, rows):
        def terminate(batch, logs):
            if self.checkpoints.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        stop = keras.callbacks.LambdaCallback(on_train_batch_end=terminate)
        return [*super()._guards(rows), stop]


def training(path, signals, kind=run.Training, **given):
    options = {"limit_train": 96, "width": 4, "batch_size": 32, "validation_steps": 1, "epochs": 3}
    config = resolve({**options, **given})
    path.mkdir(exist_ok=True)
    dataset = run.load_data(config)
    model = run.build(config, dataset, tf.distribute.get_strategy())
    return kind(config, RunDirectory(path), dataset, model, signals, checkpoint_minutes=0)


def networks(path):
    return {
        name: keras.models.load_model(path / name, compile=False).get_weights()
        for name in ("best.keras", "last.keras", "swa.keras")
    }


def test_a_run_stopped_within_an_epoch_ends_with_the_same_averages(tmp_path):
    options = {"swa_start": 2, "early_stopping": 3, "ema": 0.5}
    with Signals() as signals:
        training(tmp_path / "whole", signals, **options).run()
    with pytest.raises(Interrupted), Signals() as signals:
        training(tmp_path / "cut", signals, Cut, **options).run()
    with Signals() as signals:
        training(tmp_path / "cut", signals, **options).run()
    whole, rest = networks(tmp_path / "whole"), networks(tmp_path / "cut")
    for name, weights in whole.items():
        for a, b in zip(weights, rest[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_run_that_stopped_early_is_finished_and_stays_so(tmp_path):
    # A learning rate of zero never gets better than its first epoch.
    options = {"early_stopping": 2, "learning_rate": 0.0, "schedule": "constant", "epochs": 9}
    with Signals() as signals:
        first = training(tmp_path / "run", signals, **options)
        first.run()
        assert first.stopped_early
        rows = (tmp_path / "run" / "metrics.csv").read_text()
        assert len(rows.splitlines()) <= 1 + 9
        (tmp_path / "run" / "last.keras").unlink()
        again = training(tmp_path / "run", signals, **options)
        assert again.finished
        again.run()
    assert (tmp_path / "run" / "metrics.csv").read_text() == rows
    assert (tmp_path / "run" / "last.keras").exists()
    assert dataclasses.asdict(again.config)["early_stopping"] == 2
