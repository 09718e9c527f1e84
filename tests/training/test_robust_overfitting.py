"""RobustOverfittingMonitor: the rule on courses of trainings, and what it leaves."""

import keras
import numpy as np
import pytest

from der_tf import RobustClassifier
from der_tf.monitors import RobustOverfittingMonitor, read_alarms
from der_tf.training.alarms import Alarms

PEAK, DECAYED = 0.1, 0.01
# Robust overfitting: validation falls from its best after the decay at epoch 4, dE(x) with it.
RATES = [PEAK] * 4 + [DECAYED] * 8
ROBUST = [0.3, 0.4, 0.45, 0.46, 0.521, 0.51, 0.5, 0.49, 0.48, 0.47, 0.46, 0.45]
FALLING = [-0.05, -0.08, -0.1, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -0.9]


def course(rates, robust, deltas, directory=None, before=0, write=lambda line: None, **options):
    """The epochs at which it speaks up, of a training taken up again after ``before`` epochs."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rates[0]), "mse")
    rows = [
        {"learning_rate": r, "val_robust_accuracy": v, "delta_marginal_energy": m}
        for r, v, m in zip(rates[:before], robust[:before], deltas[:before], strict=True)
    ]
    spoken = []
    monitor = RobustOverfittingMonitor(
        directory=directory,
        rows=rows,
        write=lambda line: (spoken.append(line), write(line)),
        **options,
    )
    monitor.set_model(model)
    model.optimizer.iterations.assign(10 * before)
    monitor.on_train_begin()
    found = []
    for epoch in range(before, len(rates)):
        model.optimizer.learning_rate.assign(rates[epoch])
        model.optimizer.iterations.assign(10 * (epoch + 1))
        monitor.on_epoch_begin(epoch)
        logs = {"val_robust_accuracy": robust[epoch], "delta_marginal_energy": deltas[epoch]}
        monitor.on_epoch_end(epoch, logs)
        if len(spoken) > len(found):
            found.append(epoch + 1)
    return found


def test_it_warns_once_and_records_it(tmp_path):
    lines = []
    # Mean of epochs 6 to 10: 0.49, three points below 0.521.
    assert course(RATES, ROBUST, FALLING, tmp_path, write=lines.append) == [10]
    (row,) = read_alarms(tmp_path / "alarms.csv")
    assert (row["epoch"], row["step"], row["action"]) == (10, 100, "warn")
    assert row["monitor"] == "RobustOverfittingMonitor"
    assert "49.0% on average over 5 epochs, at best 52.1%" in row["message"]
    assert row["message"] in lines[0]


def test_all_of_the_rule_is_needed():
    rising = [-delta for delta in FALLING]
    assert course(RATES, ROBUST, rising) == []
    assert course([PEAK] * 12, ROBUST, FALLING) == []
    assert course(RATES, [min(v, 0.46) for v in ROBUST], FALLING) == []
    # A gap from before the decay alone is none: five epochs after it are needed.
    assert course([PEAK] * 8 + [DECAYED] * 4, ROBUST, FALLING) == []
    assert course(RATES, ROBUST, FALLING, gap=0.01, window=3) == [7]


@pytest.mark.parametrize("before", [3, 9, 10, 11])
def test_taken_up_again_it_warns_as_if_it_had_not_been(before, tmp_path):
    course(RATES[:before], ROBUST[:before], FALLING[:before], tmp_path)
    course(RATES, ROBUST, FALLING, tmp_path, before=before)
    assert [row["epoch"] for row in read_alarms(tmp_path / "alarms.csv")] == [10]


def test_alarms_of_a_lost_part_of_the_training_are_dropped(tmp_path):
    course(RATES, ROBUST, FALLING, tmp_path)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.optimizer.iterations.assign(90)
    alarms = Alarms(tmp_path, lambda line: None)
    alarms.set_model(model)
    alarms.on_train_begin()
    assert not (tmp_path / "alarms.csv").exists()


def test_epochs_without_validation_are_left_out():
    model = RobustClassifier(
        keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    )
    model.compile("sgd", run_eagerly=True)
    images, labels, lines = np.zeros((2, 2, 2, 1)), np.zeros(2, int), []
    for validation, said in (({}, True), ({"validation_data": (images, labels)}, False)):
        monitor = RobustOverfittingMonitor(write=lines.append)
        model.fit(
            *(images, labels),
            **validation,
            epochs=2,
            validation_freq=2,
            callbacks=[monitor],
            verbose=0,
        )
        assert len(lines) == said
        if said:
            assert "received no validation data" in lines.pop()


def test_it_says_what_it_needs():
    with pytest.raises(ValueError, match="window is a number of epochs >= 2; received 1"):
        RobustOverfittingMonitor(window=1)
    with pytest.raises(ValueError, match=r"window is a number of epochs >= 2; received 2\.5"):
        RobustOverfittingMonitor(window=2.5)
