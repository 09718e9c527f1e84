"""Diff-PGD: what it shares with PGD, its gradient, its prior."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from der_tf import attacks, diffusion, models


@pytest.fixture(scope="module")
def digits():
    """An undefended linear classifier of digits, 200 of them, and their pixels' Gaussian prior."""
    data = load_digits()
    pixels, labels = (data.data / 16).astype(np.float32), data.target.astype(np.int32)
    fitted = LogisticRegression(max_iter=500).fit(pixels[200:], labels[200:])
    weights, bias = fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)
    mean = (2 * pixels.mean(axis=0) - 1).reshape(8, 8, 1)
    variance = (4 * pixels.var(axis=0) + 1e-3).reshape(8, 8, 1)
    signal = tf.constant(diffusion.cosine_schedule(), tf.float32)

    def classifier(images):
        return tf.reshape(images, [-1, 64]) @ weights + bias

    def prior(x, t):
        a = tf.reshape(tf.gather(signal, t), [-1, 1, 1, 1])
        return tf.sqrt(1 - a) * (x - tf.sqrt(a) * mean) / (a * variance + 1 - a)

    return classifier, pixels[:200].reshape(-1, 8, 8, 1), labels[:200], prior


@pytest.fixture(scope="module")
def mixing():
    """A denoiser that mixes pixels, and a classifier, both smooth."""
    rng = np.random.default_rng(0)
    kernel = tf.constant(0.4 * rng.normal(size=(3, 3, 1, 1)).astype(np.float32))
    weights = tf.constant(rng.normal(size=(64, 5)).astype(np.float32))

    def denoiser(x, t):
        level = tf.reshape(tf.cast(t, tf.float32) / 1000, [-1, 1, 1, 1])
        return tf.tanh(tf.nn.conv2d(x, kernel, 1, "SAME") + level)

    return denoiser, lambda images: tf.tanh(tf.reshape(images, [-1, 64]) @ weights) * 3


def small_denoiser():
    """A Keras model from images and levels to noise: what a U-Net is, in one convolution."""
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 1))
    levels = keras.Input((), dtype="int32")
    shift = keras.layers.Reshape((1, 1, 2))(keras.layers.Embedding(1001, 2)(levels))
    features = keras.layers.Add()([keras.layers.Conv2D(2, 3, padding="same")(images), shift])
    features = keras.layers.BatchNormalization()(features)
    return keras.Model([images, levels], keras.layers.Conv2D(1, 3, padding="same")(features))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_levels_it_is_pgd_from_the_same_start(norm, digits):
    classifier, x, y, prior = digits
    common = {"epsilon": 0.2, "norm": norm, "steps": 5, "random_start": True, "seed": 4}
    diff = attacks.get("diff_pgd", denoiser=prior, noise_level=0, denoising_steps=1, **common)
    pgd = attacks.get("pgd", **common)
    # Two graphs may round differently.
    np.testing.assert_allclose(diff(classifier, x, y), pgd(classifier, x, y), atol=1e-6)


def test_the_basic_gradient_is_that_of_the_loss_through_the_chain(mixing):
    denoiser, classifier = mixing
    rng = np.random.default_rng(1)
    x = tf.constant(rng.uniform(0.3, 0.7, (3, 8, 8, 1)).astype(np.float32))
    direction = tf.constant(rng.normal(size=x.shape).astype(np.float32))
    labels, seed = tf.constant([0, 1, 2]), tf.constant([3, 4])
    attack = attacks.get("diff_pgd", denoiser=denoiser, noise_level=60)

    def loss(images):
        logits = classifier(attack.purified(images, seed))
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()

    slope = (loss(x + 1e-3 * direction) - loss(x - 1e-3 * direction)) / 2e-3
    gradient = attack.gradient(classifier, x, labels, seed)
    np.testing.assert_allclose(
        tf.reduce_sum(gradient * direction, [1, 2, 3]), slope, rtol=0.02, atol=0.01
    )
    # The accelerated one is the gradient at the purified image, which is another.
    accelerated = attacks.get("diff_pgd", denoiser=denoiser, noise_level=60, accelerated=True)
    pure = tf.Variable(attack.purified(x, seed))
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, classifier(pure))
    at_pure = accelerated.gradient(classifier, x, labels, seed)
    np.testing.assert_allclose(at_pure, tape.gradient(losses, pure), atol=1e-5)
    assert np.abs(at_pure - gradient).max() > 0.01


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ball_range_and_reproducibility(norm, accelerated, digits, distance):
    classifier, x, y, prior = digits
    epsilon = {"linf": 0.1, "l2": 0.7}[norm]
    config = {"denoiser": prior, "norm": norm, "epsilon": epsilon, "accelerated": accelerated}
    first, second, other = (
        attacks.get("diff_pgd", steps=4, restarts=2, seed=s, **config)(classifier, x, y).numpy()
        for s in (1, 1, 2)
    )
    assert distance(x, first, norm).max() <= epsilon
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0.01


def test_the_accelerated_one_breaks_an_undefended_model(digits, errs):
    classifier, x, y, prior = digits
    assert errs(classifier, x, y).mean() < 0.1
    common = {"denoiser": prior, "epsilon": 0.3, "noise_level": 60, "seed": 0}
    only_purified = attacks.get("diff_pgd", steps=0, **common)(classifier, x, y)
    assert errs(classifier, only_purified, y).mean() < 0.2  # the prior alone does not do it
    moved = attacks.get("diff_pgd", steps=20, accelerated=True, **common)(classifier, x, y)
    assert errs(classifier, moved, y).mean() > 0.95


def test_the_result_is_the_projection_of_a_purified_image(digits):
    classifier, x, y, prior = digits
    attack = attacks.get("diff_pgd", denoiser=prior, epsilon=1.0, steps=0, seed=5)
    noise_seed = tf.random.fold_in(tf.constant([5, 0]), 0)
    expected = attack.purified(tf.constant(x), noise_seed)
    np.testing.assert_allclose(attack(classifier, x, y), expected, atol=1e-6)


def test_traced_once_and_nothing_in_the_model_moves(digits):
    _, x, y, _ = digits
    denoiser = small_denoiser()
    network = models.convnet((8, 8, 1), 10, width=4)
    variables = [*network.variables, *denoiser.variables]
    before = [v.numpy() for v in variables]
    calls = []

    def counted(images, t):
        calls.append(1)
        return diffusion.as_function(denoiser)(images, t)

    attack = attacks.get("diff_pgd", denoiser=counted, steps=3, training=True)
    attack(network, x[:8], y[:8])
    traced = len(calls)
    assert traced <= 12  # three DDIM steps, in the loop and at its end; not once a PGD step
    for size in (8, 3, 1):
        attack(network, x[:size], y[:size])
    assert len(calls) == traced
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_denoiser_by_its_path_is_loaded_and_saved_with_the_attack(digits, tmp_path):
    classifier, x, y, _ = digits
    denoiser = small_denoiser()
    path = tmp_path / "denoiser.keras"
    denoiser.save(path)
    config = {"epsilon": 0.1, "steps": 2, "seed": 0}
    by_path = attacks.get("diff_pgd", denoiser=path, **config)
    in_memory = attacks.get("diff_pgd", denoiser=denoiser, **config)
    np.testing.assert_allclose(
        by_path(classifier, x[:4], y[:4]), in_memory(classifier, x[:4], y[:4]), atol=1e-6
    )
    assert by_path == attacks.get("diff_pgd", denoiser=str(path), **config)
    saved = keras.saving.serialize_keras_object(by_path)
    assert keras.saving.deserialize_keras_object(saved) == by_path
    with pytest.raises(ValueError, match="path of its denoiser; received Functional in memory"):
        in_memory.get_config()
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\); received \(4, 4, 1\)"):
        by_path(lambda images: tf.reshape(images, [-1, 16]), np.zeros((2, 4, 4, 1)), y[:2])


def test_a_model_without_a_gradient_is_refused(digits):
    classifier, x, y, prior = digits
    attack = attacks.get("diff_pgd", denoiser=prior, steps=1)
    with pytest.raises(ValueError, match="needs the gradient of the model"):
        attack(lambda images: classifier(tf.round(images)), x[:2], y[:2])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"denoiser": None}, r"denoiser is the path of a \.keras file or .*; received None"),
        ({"denoiser": "nowhere.keras"}, "received nowhere.keras: no such file"),
        ({"noise_level": 1001}, r"noise_level is an integer in 0\.\.1000; received 1001"),
        ({"noise_level": 2.5}, "received 2.5"),
        ({"noise_level": 2}, r"denoising_steps is an integer in 1\.\.2.*; received 3"),
        ({"denoising_steps": 0}, "received 0"),
    ],
)
def test_bad_configuration_says_what_is_accepted(config, message):
    with pytest.raises(ValueError, match=message):
        attacks.get("diff_pgd", **{"denoiser": lambda x, t: x, **config})
