"""CatastrophicOverfittingGuard on small trainings that lose their robustness at a known step.

They are trained on FGSM, and from step ``SWITCH`` on images that leak the labels: a pattern for
each class, on the image of another sample. As in catastrophic overfitting, the accuracy under the
training attack rises, that attack lowers the loss of most samples, and robustness to PGD is gone
within the epoch.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.monitors import CatastrophicOverfittingGuard, read_alarms
from der_tf.training.catastrophic_overfitting import affordable_steps
from der_tf.training.checkpoints import Checkpoints

EPSILON = 0.1
SWITCH, STEPS, PROBE_EVERY = 80, 110, 40
FGSM = attacks.get("fgsm", epsilon=EPSILON, training=True)


@pytest.fixture(scope="module")
def digits(digits):
    """All but the last 517."""
    return tuple(values[:1280] for values in digits)


def classifier(switch=SWITCH):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    patterns = np.random.default_rng(0).choice([-1.0, 1.0], (10, 8, 8, 1)).astype(np.float32)

    def attack(network, x, y):
        leaking = tf.clip_by_value(tf.roll(x, 1, axis=0) + 0.3 * tf.gather(patterns, y), 0.0, 1.0)
        is_switched = model.optimizer.iterations >= switch
        return tf.where(is_switched, leaking, FGSM.perturb(network, x, y, tf.constant([0, 0])))

    model = RobustClassifier(network, attack, evaluation_attack=attacks.get("pgd", epsilon=EPSILON))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, digits, callbacks=(), start=0, stop=STEPS):
    """Steps of one epoch."""
    stream = tf.data.Dataset.from_tensor_slices(digits).batch(64).repeat().skip(start)
    model.fit(stream, steps_per_epoch=stop - start, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def state(model):
    variables = [*model.weights, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def steps(model):
    return int(model.optimizer.iterations.numpy())


class States(keras.callbacks.Callback):
    """Keeps the state after every step; put it before the guard."""

    def __init__(self):
        super().__init__()
        self.after = {}

    def on_train_batch_end(self, batch, logs=None):
        self.after[steps(self.model)] = state(self.model)


def guard(digits, action="warn", **options):
    x, y = digits
    options = {"probe_every": PROBE_EVERY, "look_every": 5, "write": lambda line: None, **options}
    return CatastrophicOverfittingGuard((x[:128], y[:128]), action, **options)


def robust_accuracy(model, digits):
    x, y = digits[0][:128], digits[1][:128]
    attack = attacks.get("pgd", epsilon=EPSILON, seed=5)
    return np.mean(np.argmax(model.network(attack(model.network, x, y)), axis=1) == y)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_collapse_is_noticed_within_the_epoch_and_the_weights_are_let_alone(digits, tmp_path):
    lines, states = [], States()
    watching = guard(digits, directory=tmp_path, write=lines.append)
    watched = fit(classifier(), digits, [states, watching])
    assert not watching.reached
    (row,) = read_alarms(tmp_path / "alarms.csv")
    assert (row["epoch"], row["action"]) == (1, "warn")
    # Before the next probe that was due anyway: a sign has called for it.
    assert SWITCH < row["step"] < SWITCH + PROBE_EVERY
    assert row["message"] in lines[0]
    assert robust_accuracy(watched, digits) < 0.1
    alone = fit(classifier(), digits)
    assert_same(state(watched), state(alone))
    # What was robust at the last probe before, was.
    for variable, value in zip(watched.weights, states.after[SWITCH], strict=False):
        variable.assign(value)
    assert robust_accuracy(watched, digits) > 0.3


def test_it_stops_the_training(digits, tmp_path):
    stopping = guard(digits, "stop", directory=tmp_path)
    model = fit(classifier(), digits, [stopping])
    (row,) = read_alarms(tmp_path / "alarms.csv")
    assert stopping.reached
    assert steps(model) == row["step"] < STEPS
    assert "training stops" in row["message"]


def test_it_rolls_back_to_the_last_robust_weights_and_goes_on(digits, tmp_path):
    states = States()
    model = fit(classifier(), digits, [states, guard(digits, "roll_back", directory=tmp_path)])
    row = read_alarms(tmp_path / "alarms.csv")[0]
    assert f"back to the weights of step {SWITCH}" in row["message"]
    assert steps(model) == STEPS
    # The step after the alarm starts from weights, batch statistics and momentum of that probe.
    other = classifier()
    variables = [*other.weights, *other.optimizer.variables]
    for variable, value in zip(variables, states.after[SWITCH], strict=True):
        variable.assign(value)
    other.optimizer.iterations.assign(row["step"])
    fit(other, digits, start=row["step"], stop=row["step"] + 1)
    assert_same(state(other), states.after[row["step"] + 1])


def test_taken_up_again_it_goes_on_bit_for_bit(digits, tmp_path):
    """Stopped between the robust probe and the alarm."""
    cut = SWITCH + 3

    def trained(directory, start, stop):
        model, rolling = classifier(), guard(digits, "roll_back", directory=directory)
        rolling.set_model(model)
        checkpoints = Checkpoints(directory / "states", model, others=rolling.variables)
        checkpoints.restore()
        metrics = [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]
        # As SaveState does: an epoch that goes on in the middle goes on with its sums.
        put_back = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: [
                v.assign(m) for v, m in zip(model.metrics_variables, metrics, strict=True)
            ]
        )
        fit(model, digits, [put_back, rolling], start, stop)
        checkpoints.save(0, stop)
        return state(model), rolling

    whole, reference = trained(tmp_path / "whole", 0, STEPS)
    trained(tmp_path / "cut", 0, cut)
    rest, resumed = trained(tmp_path / "cut", cut, STEPS)
    assert_same(rest, whole)
    assert_same(*([v.numpy() for v in each.variables] for each in (resumed, reference)))
    alarms = [(tmp_path / name / "alarms.csv").read_text() for name in ("whole", "cut")]
    assert alarms[0] == alarms[1]


def test_a_training_that_stays_robust_raises_no_alarm(digits, tmp_path):
    lines = []
    model = classifier(switch=10**6)
    fit(model, digits, [guard(digits, probe_every=5, write=lines.append)])
    assert lines == []
    assert robust_accuracy(model, digits) > 0.4


def trained_over_epochs(digits, callbacks, epochs):
    """Epochs of half the steps before the collapse, without a probe in them."""
    x, y = digits
    model = classifier()
    model.fit(
        tf.data.Dataset.from_tensor_slices(digits).batch(64).repeat(),
        validation_data=tf.data.Dataset.from_tensor_slices((x[:256], y[:256])).batch(64),
        steps_per_epoch=SWITCH // 2,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return model


def test_it_rolls_back_to_the_end_of_an_epoch_where_no_probe_came_before(digits, tmp_path):
    states = States()
    rolling = guard(digits, "roll_back", probe_every=10**6, look_every=10**6, directory=tmp_path)
    model = trained_over_epochs(digits, [states, rolling], epochs=4)
    (row,) = read_alarms(tmp_path / "alarms.csv")
    # The collapse begins after the second epoch, and is noticed after the fourth.
    assert (row["epoch"], row["step"]) == (4, 2 * SWITCH)
    assert f"back to the weights of step {SWITCH}" in row["message"]
    kept = [keras.ops.convert_to_numpy(variable) for variable in model.weights]
    assert_same(kept, states.after[SWITCH][: len(kept)])
    assert robust_accuracy(model, digits) > 0.3


def test_a_collapse_between_probes_is_noticed_at_the_end_of_the_epoch(digits, tmp_path):
    watching = guard(digits, "stop", probe_every=10**6, look_every=10**6, directory=tmp_path)
    history = trained_over_epochs(digits, [watching], epochs=5).history.history
    (row,) = read_alarms(tmp_path / "alarms.csv")
    # Robustness is gone after epoch 3. The mean of training over that epoch does not tell yet.
    assert row["epoch"] == 4
    assert watching.reached
    robust = history["val_robust_accuracy"]
    assert len(robust) == 4
    assert robust[1] > 0.3 > 0.1 > robust[2]
    assert f"under PGD {robust[3]:.1%}, in epoch 2 {robust[1]:.1%}" in row["message"]


# A run of RS-FGSM with DER at 16/255 on CIFAR-10 (docs/results.md): no energy shows its collapse.
PGD_ACCURACY = [0.118, 0.154, 0.163, 0.18, 0.179, 0.196, 0.184, 0.199, 0.216, 0.207, 0.098, 0.062]
TRAINED_ACCURACY = [0.129, 0.181, 0.19, 0.197, 0.2, 0.206, 0.218, 0.221, 0.232, 0.245, 0.338, 0.455]


def test_a_collapse_over_two_epochs_is_one_alarm_also_of_a_run_taken_up_again(digits, tmp_path):
    for epoch, (pgd, trained) in enumerate(zip(PGD_ACCURACY, TRAINED_ACCURACY, strict=True)):
        model, watching = classifier(), guard(digits, directory=tmp_path)
        watching.set_model(model)
        checkpoints = Checkpoints(tmp_path / "states", model, others=watching.variables)
        checkpoints.restore()
        watching.on_epoch_begin(epoch)
        watching.on_epoch_end(epoch, {"val_robust_accuracy": pgd, "robust_accuracy": trained})
        checkpoints.save(epoch + 1, 0)
    (row,) = read_alarms(tmp_path / "alarms.csv")
    assert row["epoch"] == 11
    assert "under PGD 9.8%, in epoch 9 21.6%" in row["message"]


def test_a_probe_counts_right_and_abnormal_images_in_inference_mode(digits):
    model = fit(classifier(), digits, stop=SWITCH + 10)
    x, y = digits[0][:128], digits[1][:128]
    watch = guard(digits)
    watch.set_model(model)
    _, trained, abnormal = watch._measure(x, y, tf.constant([0, 0]))

    def loss_and_right(images):
        logits = model.network(images, training=False).numpy().astype(np.float64)
        own = logits[np.arange(128), y]
        return np.log(np.exp(logits).sum(axis=1)) - own, own == logits.max(axis=1)

    before, _ = loss_and_right(x)
    after, right = loss_and_right(model.attack(model.network, x, y))
    assert float(trained) == np.mean(right)
    assert float(abnormal) == np.mean(after < before)
    assert 0.1 < float(abnormal) < 0.9


@pytest.mark.parametrize(
    ("robust", "trained", "reference", "share", "expected"),
    [
        (0.02, 0.6, 0.3, 0.0, True),
        (0.14, 0.6, 0.3, 0.0, False),  # less than chance explains, and nothing confirms it
        (0.16, 0.6, 0.3, 0.6, False),  # less than half is lost
        (0.0, 0.0, 0.3, 0.6, False),  # the training attack's accuracy is gone, too
        (0.0, 0.5, 0.1, 0.6, True),  # all that there was at a large radius
        (0.0, 0.5, 0.1, 0.1, False),  # no share of abnormal samples confirms it
        (0.0, 0.5, 0.1, float("nan"), False),  # nor was one measured
        (0.05, 0.2, 0.1, 0.6, False),  # 3 of 64 images, and 13: chance
        (0.2, 0.9, 0.45, 0.0, True),
    ],
)
def test_the_rule_of_an_alarm(robust, trained, reference, share, expected):
    images = np.zeros((64, 8, 8, 1), np.float32), np.zeros(64, np.int32)
    guard = CatastrophicOverfittingGuard(images)
    assert guard._is_alarm(robust, trained, reference, share) is expected


def test_probes_are_as_frequent_as_they_are_cheap():
    """64 images cost 64 (2 + 13) passes; at batch 128 an RS-FGSM step costs 128 (2 + 3)."""
    network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten()])
    for attack, a_probe, a_step in (("rs_fgsm", 64 * 15, 128 * 5), ("pgd", 64 * 33, 128 * 23)):
        every = affordable_steps(RobustClassifier(network, attack), 128, 64, share=0.015)
        assert a_probe / (every * a_step) <= 0.015 < a_probe / ((every - 1) * a_step)


def test_errors_say_what_was_received(digits):
    with pytest.raises(ValueError, match="action is one of warn, stop, roll_back; received 'off'"):
        guard(digits, "off")
    with pytest.raises(ValueError, match=r"probe_every is an integer >= 1; received 2\.5"):
        guard(digits, probe_every=2.5)
    with pytest.raises(ValueError, match="sample has at least one image; received none"):
        CatastrophicOverfittingGuard((digits[0][:0], digits[1][:0]))
    with pytest.raises(ValueError, match=r"drop is a number between 0 and 1; received 1\.5"):
        guard(digits, drop=1.5)
    with pytest.raises(ValueError, match="watches a RobustClassifier; received Sequential"):
        guard(digits).set_model(classifier().network)
