"""Lazy regularization: on which steps the gradient of DER is taken, and what it costs."""

import keras
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.regularizers import AbnormalExamples, DeltaEnergy
from tests.training.small_classifiers import assert_same_weights, compiled, fit, small_network


class Steps:
    """One compiled model, whose steps begin at the same weights, after so many others."""

    def __init__(self, digits, regularizers, optimizer=None):
        self.data = digits[0][:64], digits[1][:64]
        attack = attacks.get("rs_fgsm", epsilon=0.1, training=True)
        optimizer = optimizer or keras.optimizers.SGD(0.05)
        self.model = compiled(
            small_network(), attack, regularizers=regularizers, optimizer=optimizer
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.begin = self.model.network.get_weights()

    def after(self, taken):
        """Weights and shown loss of the optimizer step that follows ``taken`` others."""
        self.model.network.set_weights(self.begin)
        self.model.optimizer.iterations.assign(taken)
        loss = self.model.train_on_batch(*self.data, return_dict=True)["loss"]
        return self.model.network.get_weights(), loss


@pytest.mark.parametrize("reference", ["start", "natural"])
def test_one_step_in_three_takes_the_gradient_with_three_times_the_weight(reference, digits):
    der = {"reference": reference, "penalty": "absolute"}
    lazy, heavy, without, constant = (
        Steps(digits, [DeltaEnergy(weight, interval=interval, **der), AbnormalExamples(2.0)])
        for weight, interval in ((4.0, 3), (12.0, 1), (0.0, 1), (4.0, 1))
    )
    for taken, equal, other in ((0, heavy, without), (1, without, heavy), (2, without, heavy)):
        weights, loss = lazy.after(taken)
        assert_same_weights(weights, equal.after(taken)[0], 1e-6)
        with pytest.raises(AssertionError):
            assert_same_weights(weights, other.after(taken)[0], 1e-4)
        assert loss == pytest.approx(constant.after(taken)[1], abs=1e-5)
    assert_same_weights(lazy.after(3)[0], heavy.after(3)[0], 1e-6)


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


def test_a_step_between_goes_back_through_the_attack_and_its_counterpart_alone(digits):
    network = CountsBackwardPasses()
    attack = attacks.get("rs_fgsm", epsilon=0.1, training=True)
    model = compiled(network, attack, regularizers=[DeltaEnergy(4.0, interval=2)])
    passes = []
    for _ in range(4):
        before = int(network.passes)
        model.train_on_batch(digits[0][:64], digits[1][:64])
        passes.append(int(network.passes) - before)
    assert passes == [3, 2, 3, 2]


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


def test_with_a_scaled_loss_both_kinds_of_step_are_those_without(digits):
    inner = keras.optimizers.SGD(0.05)
    scaling = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    der = [DeltaEnergy(4.0, interval=2, penalty="absolute")]
    plain, scaled = Steps(digits, der), Steps(digits, der, scaling)
    for taken in (0, 1):
        assert_same_weights(plain.after(taken)[0], scaled.after(taken)[0], 1e-5)


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
