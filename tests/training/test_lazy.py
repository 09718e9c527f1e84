"""Lazy regularization: on which steps the gradient of DER is taken, and what it costs."""

import keras
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.regularizers import AbnormalExamples, DeltaEnergy
from tests.training.small_classifiers import assert_same_weights, compiled, fit, small_network


def one_step(taken, regularizers, digits, optimizer="sgd"):
    """Weights after the optimizer step that follows ``taken`` others, and the loss it shows."""
    x, y = digits[0][:64], digits[1][:64]
    optimizer = keras.optimizers.get(optimizer)
    attack = attacks.get("rs_fgsm", epsilon=0.1, training=True)
    model = compiled(small_network(), attack, regularizers=regularizers, optimizer=optimizer)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(taken)
    loss = model.train_on_batch(x, y, return_dict=True)["loss"]
    return model.network.get_weights(), loss


@pytest.mark.parametrize("reference", ["start", "natural"])
@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_one_step_in_three_takes_the_gradient_with_three_times_the_weight(taken, reference, digits):
    der = {"reference": reference, "penalty": "absolute"}
    beside = AbnormalExamples(2.0)
    weights, loss = one_step(taken, [DeltaEnergy(4.0, interval=3, **der), beside], digits)
    equal = [DeltaEnergy(12.0 if taken % 3 == 0 else 0.0, **der), beside]
    expected, _ = one_step(taken, equal, digits)
    assert_same_weights(weights, expected, 1e-6)
    other, shown = one_step(taken, [DeltaEnergy(4.0, **der), beside], digits)
    assert loss == pytest.approx(shown, abs=1e-5)
    with pytest.raises(AssertionError):
        assert_same_weights(weights, other, 1e-4)


class CountsBackwardPasses(keras.Model):
    """A network that counts how often a gradient goes back through it."""

    def __init__(self):
        super().__init__()
        self.network = small_network()
        self.passes = tf.Variable(0, trainable=False)

    def build(self, input_shape):
        self.built = True

    def call(self, images, training=None):
        @tf.custom_gradient
        def counted(logits):
            def backward(upstream):
                self.passes.assign_add(1)
                return upstream

            return tf.identity(logits), backward

        return counted(self.network(images, training=training))


@pytest.mark.parametrize(("taken", "passes"), [(0, 3), (1, 2), (2, 3)])
def test_a_step_between_goes_back_through_the_attack_and_its_counterpart_alone(
    taken, passes, digits
):
    network = CountsBackwardPasses()
    attack = attacks.get("rs_fgsm", epsilon=0.1, training=True)
    model = compiled(network, attack, regularizers=[DeltaEnergy(4.0, interval=2)])
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(taken)
    model.train_on_batch(digits[0][:64], digits[1][:64])
    assert network.passes.numpy() == passes


def test_accumulated_gradients_are_all_of_a_step_that_is_due_or_all_between(digits):
    """Two batches make a step: at steps 0 and 2 both count, at 1 none does."""

    def train(regularizers):
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
        attack = attacks.get("fgsm", epsilon=0.1, training=True)
        model = compiled(small_network(), attack, regularizers=regularizers, optimizer=optimizer)
        x, y = digits[0][:64], digits[1][:64]
        weights = []
        for _ in range(6):
            model.train_on_batch(x, y)
            weights.append([w.copy() for w in model.network.get_weights()])
        return weights

    lazy = train([DeltaEnergy(4.0, interval=2, penalty="absolute")])
    every = train([DeltaEnergy(8.0, penalty="absolute")])
    assert_same_weights(lazy[1], every[1], 1e-6)
    with pytest.raises(AssertionError):
        assert_same_weights(lazy[3], every[3], 1e-5)


def test_in_half_precision_both_kinds_of_step_are_scaled(digits):
    inner = keras.optimizers.SGD(0.05)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    der = DeltaEnergy(4.0, interval=2, penalty="absolute")
    for taken in (0, 1):
        plain, _ = one_step(taken, [der], digits, keras.optimizers.SGD(0.05))
        scaled, _ = one_step(taken, [der], digits, optimizer.from_config(optimizer.get_config()))
        assert_same_weights(plain, scaled, 1e-5)


def test_the_interval_is_saved(tmp_path, digits):
    model = compiled(small_network(), "rs_fgsm", regularizers=[DeltaEnergy(4.0, interval=2)])
    fit(model, digits[0][:64], digits[1][:64])
    model.save(tmp_path / "model.keras")
    (der,) = keras.models.load_model(tmp_path / "model.keras").regularizers
    assert der == DeltaEnergy(4.0, interval=2)


def test_two_intervals_are_refused():
    with pytest.raises(ValueError, match="one interval beside 1; received 2 and 4"):
        RobustClassifier(
            small_network(),
            regularizers=[DeltaEnergy(1.0, interval=4), DeltaEnergy(1.0, interval=2)],
        )
