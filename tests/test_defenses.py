"""The descent of the energy at test time, and the gradients of attacks through it."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import der_tf
from der_tf import attacks
from der_tf.attacks import base
from der_tf.attacks.losses import LOSSES
from der_tf.defenses import EnergyDescent

SHAPE = (5, 4, 2)


class Bowl:
    """Two equal logits whose energy is slope |x - centre|^2 / 2, up to a constant."""

    def __init__(self, centre, slope=1.0):
        self.centre, self.slope = centre, slope

    def __call__(self, images):
        squared = tf.reduce_sum(tf.square(images - self.centre), axis=[1, 2, 3])
        return tf.tile(-0.5 * self.slope * squared[:, None], [1, 2])


def smooth_network(shape=SHAPE, classes=4, scale=3.0):
    keras.utils.set_random_seed(3)
    images = keras.Input(shape)
    x = keras.layers.Conv2D(6, 3, activation="tanh")(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(6, 2, activation="tanh")(x)
    network = keras.Model(images, keras.layers.Dense(classes)(keras.layers.Flatten()(x)))
    network.set_weights([scale * w for w in network.get_weights()])
    return network


@pytest.fixture(scope="module")
def network():
    return smooth_network()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(7, *SHAPE)).astype(np.float32)


def lengths(delta):
    return np.sqrt((np.asarray(delta, np.float64) ** 2).sum(axis=(1, 2, 3)))


def energies(model, x):
    return -np.asarray(tf.reduce_logsumexp(model(tf.constant(x)), axis=1), np.float64)


@pytest.mark.parametrize("slope", [1.0, 1e-9])
def test_one_step_goes_straight_to_the_bottom_of_a_bowl(images, slope):
    """The step has its length whatever the slope, and the ball cuts it off."""
    x, centre = 0.25 + images / 2, 0.5
    away = lengths(x - centre)[:, None, None, None]
    for step_size, radius in [(0.2, 0.3), (0.3, 0.2)]:
        moved = EnergyDescent(step_size=step_size, radius=radius).transform(Bowl(centre, slope), x)
        np.testing.assert_allclose(moved, x - 0.2 * (x - centre) / away, atol=1e-6)
    # A bottom outside of [0, 1]: projected onto the ball first, clipped then.
    x = np.full((1, *SHAPE), 0.9, np.float32)
    x[0, 0] = 0.1
    distance = np.sqrt(x[0].size) * 1.0
    moved = EnergyDescent(step_size=5.0, radius=0.8).transform(Bowl(x + 1.0), x)
    np.testing.assert_allclose(moved, np.minimum(x + 0.8 / distance, 1.0), atol=1e-6)


def test_steps_reach_the_bottom_and_rest_at_the_edge(images):
    x, centre = 0.25 + images / 2, 0.5
    away = lengths(x - centre)
    free = EnergyDescent(step_size=0.01, radius=9.0, steps=30).transform(Bowl(centre), x)
    np.testing.assert_allclose(lengths(free - centre), away - 0.3, atol=1e-5)
    tied = EnergyDescent(step_size=0.01, radius=0.2, steps=30).transform(Bowl(centre), x)
    np.testing.assert_allclose(lengths(tied - x), 0.2, atol=1e-5)
    np.testing.assert_allclose(lengths(tied - centre), away - 0.2, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 6])
def test_stays_in_the_ball_and_in_range_alone_or_together(network, images, steps):
    x = np.clip(2 * images - 0.5, 0, 1)  # many pixels at the ends
    defense = EnergyDescent(step_size=0.4, radius=0.7, steps=steps)
    moved = defense.transform(network, x).numpy()
    assert moved.dtype == np.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (lengths(moved - x) <= 0.7 * (1 + 1e-6)).all()
    assert lengths(moved - x).min() > 0.1
    for row in range(len(x)):
        alone = defense.transform(network, x[row : row + 1])
        np.testing.assert_allclose(alone, moved[row : row + 1], atol=1e-5)
    assert defense.transform(network, x[:0]).shape == (0, *SHAPE)


def test_small_steps_lower_the_energy(network, images):
    x, before = images, energies(network, images)
    for _ in range(10):
        x = EnergyDescent(step_size=0.01, radius=1.0).transform(network, x).numpy()
        after = energies(network, x)
        assert (after < before).all()
        before = after


def test_images_on_a_plateau_stay_and_have_gradients(network, images):
    """A zero gradient, in a batch with others, leaves no NaN in images or derivatives."""
    lit = tf.constant(np.arange(len(images)) % 2, tf.float32)

    def model(x):
        return network(x) * lit[:, None]

    wrapped = EnergyDescent(step_size=0.4, radius=0.7, steps=2).wrap(model)
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        moved = wrapped.defense.transform(model, x)
        logits = wrapped(x)[:, 0]
    gradient = tape.gradient(logits, x)
    np.testing.assert_array_equal(moved[::2], images[::2])
    assert (lengths(moved - x)[1::2] > 0.1).all()
    assert np.isfinite(gradient).all()
    assert (lengths(gradient)[1::2] > 0).all()
    np.testing.assert_array_equal(EnergyDescent().transform(lambda x: tf.zeros([7, 3]), x), x)


@pytest.mark.parametrize(
    "defense",
    [
        EnergyDescent(step_size=0.4, radius=0.9),
        EnergyDescent(step_size=0.4, radius=0.3),
        EnergyDescent(step_size=0.2, radius=0.5, steps=4),
    ],
    ids=["free", "cut off", "steps"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_through_the_descent_are_those_of_finite_differences(
    network, images, defense, compiled
):
    x = 0.3 + 0.4 * images
    wrapped = defense.wrap(network)

    def loss(x):
        return LOSSES["ce"](labels=tf.range(len(x)) % 4, logits=wrapped(x))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = loss(x)
        return tape.gradient(losses, x)

    value = (tf.function(gradient) if compiled else gradient)(tf.constant(x)).numpy()
    loss = tf.function(loss)
    for direction in np.random.default_rng(1).normal(size=(4, *x.shape)).astype(np.float32):
        direction /= lengths(direction)[:, None, None, None]
        ahead, behind = loss(x + 5e-3 * direction), loss(x - 5e-3 * direction)
        slopes = (value * direction).sum(axis=(1, 2, 3))
        np.testing.assert_allclose((ahead - behind) / 1e-2, slopes, rtol=0.02, atol=3e-3)
    # The descent is no identity: gradients that ignore it are others.
    ignorant = defense.wrap(network, bpda=True)
    with tf.GradientTape() as tape:
        tape.watch(at := tf.constant(x))
        losses = LOSSES["ce"](labels=tf.range(len(x)) % 4, logits=ignorant(at))
    np.testing.assert_allclose(losses, loss(x), atol=1e-5)
    assert np.abs(tape.gradient(losses, at) - value).max() > 0.05


def test_bpda_takes_the_gradient_at_the_moved_image(network, images):
    defense = EnergyDescent(step_size=0.4, radius=0.7, steps=2)
    moved = defense.transform(network, images)

    def gradient(model, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = model(x)[:, 1]
        return tape.gradient(logits, x)

    expected = gradient(network, moved)
    for call in (gradient, tf.function(gradient)):
        received = call(defense.wrap(network, bpda=True), tf.constant(images))
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


def test_an_attack_that_knows_the_defence_beats_one_that_does_not(network, images):
    defense = EnergyDescent(step_size=0.3, radius=0.6)
    wrapped = defense.wrap(network)
    y = np.argmax(wrapped(images), axis=1)
    attack = attacks.get("pgd", epsilon=0.05, steps=10, seed=0)

    def loss(x):
        return float(tf.reduce_mean(LOSSES["ce"](labels=y, logits=wrapped(x))))

    unaware = loss(attack(network, images, y))
    adaptive = attack(wrapped, images, y)
    assert np.abs(adaptive - images).max() <= 0.05
    assert loss(adaptive) > unaware > loss(images)
    # Wrapped anew, it is the same model: nothing is compiled again.
    missed = base._compiled.cache_info().misses
    np.testing.assert_array_equal(attack(defense.wrap(network), images, y), adaptive)
    assert base._compiled.cache_info().misses == missed


@pytest.mark.parametrize("name", ["apgd_t", "fab_t"])
def test_other_attacks_go_through_it(network, images, name):
    wrapped = EnergyDescent(step_size=0.3, radius=0.6).wrap(network)
    y = np.argmax(wrapped(images), axis=1)
    moved = attacks.get(name, epsilon=0.3, seed=0, steps=4)(wrapped, images, y)
    assert (np.argmax(wrapped(moved), axis=1) != y).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step_size": -1.0}, "step_size is a finite number >= 0; received -1.0"),
        ({"radius": float("inf")}, "radius is a finite number >= 0; received inf"),
        ({"radius": "far"}, "radius is a finite number >= 0; received 'far'"),
        ({"steps": 0}, "steps is an integer >= 1; received 0"),
        ({"steps": float("nan")}, "steps is an integer >= 1; received nan"),
    ],
)
def test_settings_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        EnergyDescent(**options)


def test_whole_numbers_do_for_others(network, images):
    whole, others = (
        EnergyDescent(step_size=a, radius=r, steps=s) for a, r, s in ((1, 2, 2.0), (1.0, 2.0, 2))
    )
    assert [type(value) for value in dataclasses.astuple(whole)] == [float, float, int]
    np.testing.assert_array_equal(
        whole.transform(network, images), others.transform(network, images)
    )


def test_is_reached_from_the_package():
    # Asked of the function: the imports above have made it an attribute.
    assert der_tf.__getattr__("defenses").EnergyDescent is EnergyDescent


def test_images_out_of_range_and_saved_settings(network, images):
    with pytest.raises(ValueError, match="images are in"):
        EnergyDescent().transform(network, images + 0.5)
    defense = EnergyDescent(step_size=0.3, radius=0.6, steps=2)
    saved = keras.saving.serialize_keras_object(defense)
    assert keras.saving.deserialize_keras_object(saved) == defense
