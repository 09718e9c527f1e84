"""CoupledSGD against PyTorch's rule written out in numpy, and as a Keras optimizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf.training.optimizers import CoupledSGD


def torch_sgd(weight, gradients, rates, momentum, decay):
    """buf = momentum buf + (g + decay w); w -= rate buf, in float64."""
    buffer = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        buffer = momentum * buffer + gradient + decay * weight
        weight = weight - rate * buffer
    return weight


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_follows_pytorchs_rule_while_the_rate_changes(momentum, decay):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(6, 3, 2))
    rates = [0.5, 0.5, 0.5, 0.05, 0.05, 0.05]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.05])
    optimizer = CoupledSGD(schedule, momentum, decay)
    weight = keras.Variable(start)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
    expected = torch_sgd(start, gradients, rates, momentum, decay)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=2e-6)


def test_is_restored_from_its_config():
    optimizer = CoupledSGD(0.3, momentum=0.8, weight_decay=0.01, use_ema=True, ema_momentum=0.95)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, CoupledSGD)
    assert again.get_config() == optimizer.get_config()
    assert again.coupled_weight_decay == 0.01


def test_the_average_of_weights_is_that_of_the_weights_it_made():
    optimizer = CoupledSGD(0.1, momentum=0.5, use_ema=True, ema_momentum=0.9)
    weight, average = keras.Variable([1.0]), None
    for _ in range(4):
        optimizer.apply([tf.constant([0.3])], [weight])
        average = weight.numpy() if average is None else 0.9 * average + 0.1 * weight.numpy()
    made = optimizer._model_variables_moving_average[0].numpy()
    np.testing.assert_allclose(made, average, rtol=1e-6)


def test_loss_scaling_changes_nothing_but_skips_infinite_gradients():
    plain, inner = CoupledSGD(0.1, 0.9, 0.01), CoupledSGD(0.1, 0.9, 0.01)
    scaled = keras.optimizers.LossScaleOptimizer(inner)
    weights = [keras.Variable([1.0, -2.0]), keras.Variable([1.0, -2.0])]
    for gradient in ([0.5, 1.0], [np.inf, 1.0], [-0.2, 0.3]):
        gradient = tf.constant(gradient)
        if np.isfinite(gradient).all():
            plain.apply([gradient], weights[:1])
        scaled.build(weights[1:])
        scaled.apply([scaled.scale_loss(gradient)], weights[1:])
    np.testing.assert_allclose(weights[1].numpy(), weights[0].numpy(), rtol=1e-6)


def test_two_replicas_do_as_one(two_replicas):
    def trained(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            model.compile(CoupledSGD(0.1, 0.9, 0.05), "mse", jit_compile=False)
        x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
        model.fit(x, x[:, :2], batch_size=8, epochs=1, shuffle=False, verbose=0)
        return [weight.numpy() for weight in model.weights]

    one = trained(tf.distribute.get_strategy())
    two = trained(two_replicas())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_refuses_a_negative_weight_decay():
    with pytest.raises(ValueError, match="weight_decay is a number >= 0; received -1"):
        CoupledSGD(0.1, weight_decay=-1)
