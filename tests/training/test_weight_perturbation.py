"""AWP: the perturbation and the step by hand, and weights that are never written."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.regularizers import AbnormalExamples, DeltaEnergy, GradAlign
from der_tf.training.weight_perturbation import worst_weights


def small_network(dropout=False):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            *([keras.layers.Dropout(0.3)] if dropout else []),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )


def images_and_labels(size=12):
    rng = np.random.default_rng(0)
    return rng.random((size, 4, 4, 1), dtype=np.float32), rng.integers(0, 3, size).astype(np.int32)


def softmax_residual(logits, labels):
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)


def test_one_step_is_that_of_the_paper():
    """w <- w - gradient at (w + gamma |w| g / |g|), worked in numpy for one dense layer."""
    images, labels = images_and_labels()
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    kernel, bias = (w.astype(np.float64) for w in network.get_weights())
    model = RobustClassifier(network, lambda model, x, y: 1 - x, awp_gamma=0.5)
    model.compile(keras.optimizers.SGD(1.0))
    model.train_on_batch(images, labels)

    moved = 1 - images.reshape(12, -1).astype(np.float64)
    climb = moved.T @ softmax_residual(moved @ kernel + bias, labels)
    worst = kernel + 0.5 * np.linalg.norm(kernel) * climb / np.linalg.norm(climb)
    residual = softmax_residual(moved @ worst + bias, labels)
    np.testing.assert_allclose(network.get_weights()[0], kernel - moved.T @ residual, atol=1e-6)
    np.testing.assert_allclose(network.get_weights()[1], bias - residual.sum(0), atol=1e-6)
    plain = softmax_residual(moved @ kernel + bias, labels)
    assert np.abs(residual - plain).max() > 1e-3


def test_each_matrix_moves_by_its_own_length_and_nothing_else_moves():
    weights = small_network().trainable_variables  # kernel, bias, gamma, beta, kernel, bias
    rng = np.random.default_rng(1)
    gradients = [tf.constant(rng.normal(size=w.shape), tf.float32) for w in weights]
    gradients[4] *= 1e-25  # its square is zero in float32
    values = worst_weights(weights, gradients, 0.01)
    for weight, value, gradient in zip(weights, values, gradients, strict=True):
        moved = value.numpy().astype(np.float64) - weight.numpy()
        if len(weight.shape) == 1:
            np.testing.assert_array_equal(moved, 0)
            continue
        length = np.linalg.norm(weight.numpy())
        assert np.linalg.norm(moved) == pytest.approx(0.01 * length, rel=1e-3)
        cosine = (moved * gradient.numpy().astype(np.float64)).sum() / np.linalg.norm(moved)
        assert cosine / np.linalg.norm(gradient.numpy().astype(np.float64)) > 0.9999


@pytest.mark.parametrize("bad", [None, 0.0, np.nan, np.inf])
def test_a_gradient_without_direction_moves_nothing(bad):
    weights = small_network().trainable_variables
    gradients = [None if bad is None else tf.fill(w.shape, np.float32(bad)) for w in weights]
    for weight, value in zip(weights, worst_weights(weights, gradients, 0.01), strict=True):
        np.testing.assert_array_equal(value, weight.numpy())


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize(
    "regularizers",
    [(), (DeltaEnergy(1.0), GradAlign()), (AbnormalExamples(),)],
    ids=["plain", "der_grad_align", "aaer"],
)
def test_weights_are_the_same_bit_for_bit_after_a_step_of_rate_zero(policy, regularizers):
    keras.config.set_dtype_policy(policy)
    try:
        network = small_network(dropout=True)
        attack = attacks.get("fgsm", epsilon=0.1, training=True)
        model = RobustClassifier(network, attack, "madry", regularizers, awp_gamma=0.01)
        model.compile(keras.optimizers.SGD(0.0))
    finally:
        keras.config.set_dtype_policy("float32")
    before = [w.numpy() for w in network.trainable_variables]
    statistics = network.layers[1].moving_mean.numpy()
    for _ in range(3):
        model.train_on_batch(*images_and_labels())
    for old, weight in zip(before, network.trainable_variables, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    assert (network.layers[1].moving_mean.numpy() != statistics).all()


def test_moving_statistics_follow_the_outer_pass_alone():
    """One update by the features of the perturbed kernel: the climbing pass leaves no trace."""
    images, labels = images_and_labels()
    network = small_network()
    with tf.GradientTape() as tape, keras.StatelessScope():
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, network(images, training=True), from_logits=True
        )
        loss = tf.reduce_mean(losses)
    conv, norm = network.layers[:2]
    climb = tape.gradient(loss, conv.kernel.value).numpy()
    kernel = conv.kernel.numpy()
    worst = kernel + 0.2 * np.linalg.norm(kernel) * climb / np.linalg.norm(climb)
    features = tf.nn.conv2d(images, worst, 1, "VALID") + conv.bias.numpy()
    model = RobustClassifier(network, lambda model, x, y: x, awp_gamma=0.2)
    model.compile(keras.optimizers.SGD(0.0))
    model.train_on_batch(images, labels)
    expected = 0.01 * np.mean(features, axis=(0, 1, 2))  # Keras' momentum of 0.99, from zero
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4)


def test_the_warm_up_is_plain_training():
    def train(steps, **options):
        model = RobustClassifier(small_network(), attacks.get("fgsm", epsilon=0.1), **options)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        for _ in range(steps):
            model.train_on_batch(*images_and_labels())
        return np.concatenate([w.ravel() for w in model.get_weights()])

    warming = {"awp_gamma": 0.1, "awp_warmup_steps": 2}
    np.testing.assert_allclose(train(2, **warming), train(2), atol=1e-7)
    assert np.abs(train(3, **warming) - train(3)).max() > 1e-4


@pytest.mark.parametrize("objective", ["madry", "trades"])
def test_two_replicas_perturb_like_one(objective, two_replicas):
    """5 steps of 8, the last one of 3 images: 2 on one replica and 1 on the other."""
    images, labels = images_and_labels(35)

    def train(strategy, gamma=0.1):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            conv = keras.layers.Conv2D(4, 3, activation="tanh")
            network = keras.Sequential(
                [keras.Input((4, 4, 1)), conv, keras.layers.Flatten(), keras.layers.Dense(3)]
            )
            model = RobustClassifier(
                network,
                attacks.get("fgsm", epsilon=0.1, training=True),
                objective,
                [DeltaEnergy(1.0)],
                awp_gamma=gamma,
            )
            model.compile(keras.optimizers.SGD(0.1))
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
        loss = model.fit(dataset, shuffle=False, verbose=0).history["loss"]
        return model.get_weights(), loss

    one, loss = train(tf.distribute.get_strategy())
    plain, _ = train(tf.distribute.get_strategy(), 0.0)
    assert max(np.abs(a - b).max() for a, b in zip(one, plain, strict=True)) > 1e-3
    two, loss_of_two = train(two_replicas())
    np.testing.assert_allclose(loss_of_two, loss, rtol=1e-5)
    for a, b in zip(two, one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gamma_survives_saving_and_is_checked(tmp_path):
    model = RobustClassifier(small_network(), awp_gamma=0.005, awp_warmup_steps=7)
    model.compile("sgd")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.awp_gamma, loaded.awp_warmup_steps) == (0.005, 7)
    with pytest.raises(ValueError, match=r"awp_gamma is a number >= 0; received -0\.1"):
        RobustClassifier(small_network(), awp_gamma=-0.1)
