"""Callbacks around a small RobustClassifier: what they save, and that stopping changes nothing."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier
from der_tf.training.averages import ValidateAverages, averaged_weights
from der_tf.training.callbacks import SaveBest, SaveState, StopOnNonFinite
from der_tf.training.checkpoints import Checkpoints
from der_tf.training.faults import Diverged, Interrupted, RunError, Signals
from der_tf.training.optimizers import CoupledSGD

STEPS = 3
to_numpy = keras.ops.convert_to_numpy


def classifier(rate=0.1, **options):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model = RobustClassifier(network, attack="fgsm", evaluation_attack="fgsm")
    # Eagerly: tracing takes longer than the few steps of a test.
    model.compile(CoupledSGD(rate, **options), jit_compile=False, run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(STEPS * 4, 4, 4, 1)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, rng.integers(0, 3, STEPS * 4))).batch(4)


def test_averaged_weights_come_and_go_without_a_trace(batches):
    model = classifier(use_ema=True, ema_momentum=0.5)
    model.train_on_batch(*next(iter(batches)))
    model.train_on_batch(*next(iter(batches)))
    trained = model.get_weights()
    averages = [to_numpy(v) for v in model.optimizer._model_variables_moving_average]
    with averaged_weights(model):
        for inside, average in zip(model.get_weights(), averages, strict=True):
            np.testing.assert_array_equal(inside, average)
    for after, before in zip(model.get_weights(), trained, strict=True):
        np.testing.assert_array_equal(after, before)
    assert any((a != b).any() for a, b in zip(trained, averages, strict=True))


def test_validation_measures_the_averages(batches):
    model = classifier(rate=1.0, use_ema=True, ema_momentum=0.999)
    first = [to_numpy(v) for v in model.trainable_variables]
    history = model.fit(
        batches,
        validation_data=batches,
        callbacks=[ValidateAverages()],
        verbose=0,
        shuffle=False,
    ).history
    # After three steps the average is still next to the weights after the first step.
    stale = classifier(rate=1.0)
    stale.fit(batches.take(1), verbose=0, shuffle=False)
    expected = stale.evaluate(batches, verbose=0, return_dict=True)
    assert history["val_loss"][0] == pytest.approx(expected["loss"], rel=0.02)
    assert any((a != to_numpy(b)).any() for a, b in zip(first, model.weights, strict=True))


def test_the_loss_that_is_no_number_ends_training_with_step_and_rate(tmp_path):
    model = classifier(rate=0.25)
    images = np.full((8, 4, 4, 1), 0.5, np.float32)
    images[5] = np.nan  # in the second batch of 4
    broken = tf.data.Dataset.from_tensor_slices((images, np.zeros(8, np.int64))).batch(4)
    stop = StopOnNonFinite(Checkpoints(tmp_path, model))
    with pytest.raises(RunError, match=r"became nan at step 1 with learning rate 0\.25; no state"):
        model.fit(broken, callbacks=[stop], verbose=0, shuffle=False)


def test_a_network_that_the_last_step_broke_is_not_the_best(tmp_path, batches):
    """The loss of that step is finite, the weights after it are not."""
    model = classifier(rate=3e38)
    checkpoints, best = Checkpoints(tmp_path / "states", model), tmp_path / "best.keras"
    callbacks = [StopOnNonFinite(checkpoints), SaveBest(best, checkpoints)]
    one = batches.take(1)
    with pytest.raises(Diverged, match=r"a weight became NaN or infinite at step 0 with learning"):
        model.fit(one, validation_data=one, callbacks=callbacks, verbose=0, shuffle=False)
    assert not best.exists()


def test_the_best_epoch_is_kept_and_later_worse_ones_are_not(tmp_path):
    model = classifier()
    path, checkpoints = tmp_path / "best.keras", Checkpoints(tmp_path / "states", model)
    callback = SaveBest(path, checkpoints)
    callback.set_model(model)
    kept = []
    for accuracy in (0.2, 0.6, 0.4):
        model.network.set_weights([w + 1 for w in model.network.get_weights()])
        kept.append(model.network.get_weights()[0])
        callback.on_epoch_end(0, {"val_robust_accuracy": accuracy})
    best = keras.models.load_model(path)
    np.testing.assert_array_equal(best.get_weights()[0], kept[1])
    assert checkpoints.best == 0.6
    assert [p.name for p in tmp_path.iterdir()] == ["best.keras"]


def run_until(model, directory, batches, epochs, signal_at=None, minutes=0.0):
    """Train as a run does; ``signal_at``: ("train" | "test", batch) at which SIGTERM comes."""

    class Interruption(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if signal_at == ("train", batch):
                os.kill(os.getpid(), signal.SIGTERM)

        def on_test_batch_end(self, batch, logs=None):
            if signal_at == ("test", batch):
                os.kill(os.getpid(), signal.SIGTERM)

    with Signals() as signals:
        checkpoints = Checkpoints(directory, model)
        checkpoints.restore()
        state = SaveState(checkpoints, signals, minutes)
        try:
            with signals.deferred():
                model.fit(
                    batches.repeat().skip(checkpoints.step),
                    validation_data=batches,
                    initial_epoch=checkpoints.epoch,
                    epochs=checkpoints.epoch + 1 if checkpoints.step else epochs,
                    steps_per_epoch=STEPS - checkpoints.step,
                    callbacks=[Interruption(), state],
                    verbose=0,
                    shuffle=False,
                )
        except Interrupted:
            state.save_position()
            raise
    return checkpoints


def test_an_epoch_interrupted_by_sigterm_ends_as_one_that_was_not(batches, tmp_path):
    whole = classifier()
    run_until(whole, tmp_path / "whole", batches, epochs=1)
    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        run_until(classifier(), tmp_path / "cut", batches, epochs=1, signal_at=("train", 1))
    assert caught.value.signal_number == signal.SIGTERM
    rest = classifier()
    restored = Checkpoints(tmp_path / "cut", rest)
    restored.restore()
    assert (restored.epoch, restored.step) == (0, 2)
    run_until(rest, tmp_path / "cut", batches, epochs=1)
    for a, b in zip(whole.get_weights(), rest.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resumed_epoch_reports_the_metrics_of_all_its_batches(batches, tmp_path):
    logs = {}

    def fit(model, **options):
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, own: logs.update(own))
        with Signals() as signals:
            checkpoints = Checkpoints(tmp_path, model)
            checkpoints.restore()
            callbacks = [SaveState(checkpoints, signals), keep]
            model.fit(callbacks=callbacks, verbose=0, shuffle=False, **options)
        return dict(logs)

    whole = fit(classifier(), x=batches)
    model = classifier()
    with pytest.raises(Interrupted):
        run_until(model, tmp_path / "cut", batches, epochs=1, signal_at=("train", 0))
    for path in tmp_path.glob("state*"):
        path.unlink()
    for path in (tmp_path / "cut").iterdir():
        path.rename(tmp_path / path.name)
    rest = fit(classifier(), x=batches.skip(1), steps_per_epoch=STEPS - 1)
    assert rest == whole


def test_sigterm_while_validating_saves_the_end_of_the_epoch(batches, tmp_path):
    with pytest.raises(Interrupted):
        run_until(classifier(), tmp_path, batches, epochs=2, signal_at=("test", 1))
    whole = classifier()
    whole.fit(batches, verbose=0, shuffle=False)
    rest = classifier()
    restored = Checkpoints(tmp_path, rest)
    restored.restore()
    assert (restored.epoch, restored.step) == (0, STEPS)
    for a, b in zip(whole.get_weights(), rest.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # The sums of the metrics are those of training, not of the validation that was cut.
    seen = float(rest.get_metrics_result()["loss"])
    assert seen == pytest.approx(float(whole.history.history["loss"][0]))


def test_the_state_is_saved_when_minutes_have_passed(batches, tmp_path):
    model = classifier()
    checkpoints = Checkpoints(tmp_path, model)
    positions, clock = [], iter(range(0, 10_000, 40))  # 40 seconds a look
    with Signals() as signals:
        state = SaveState(checkpoints, signals, minutes=1.0, clock=lambda: next(clock))
        record = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: positions.append(checkpoints.step)
        )
        model.fit(batches, callbacks=[state, record], verbose=0, shuffle=False)
    assert positions == [0, 2, 2]


def test_a_second_signal_ends_deferred_work():
    with Signals() as signals, signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        signals._received = None  # the block may end in peace


def test_a_signal_outside_deferred_work_interrupts_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"), Signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_tensorflow_traces_interrupts():
    @tf.function
    def traced(x):
        os.kill(os.getpid(), signal.SIGTERM)
        return x

    with pytest.raises(Interrupted, match="SIGTERM"), Signals():
        traced(1.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_python_dropped_interrupts_at_the_end():
    class Freed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def free():
        Freed()

    with pytest.raises(Interrupted, match="SIGTERM"), Signals():
        free()
