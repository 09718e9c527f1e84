"""Shared by tests of attacks: a small robust network, linear models whose answers are known."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from der_tf import attacks, models

ORDERS = {"linf": np.inf, "l2": 2}


@pytest.fixture(scope="session")
def robust_network():
    """A network trained on digits against PGD of radius 0.1, and 96 digits it has not seen."""
    data = load_digits()
    x, y = (data.images[..., None] / 16).astype(np.float32), data.target.astype(np.int32)
    keras.utils.set_random_seed(0)
    network = models.convnet((8, 8, 1), 10, width=4)
    optimizer = keras.optimizers.Adam(5e-3)
    optimizer.build(network.trainable_variables)
    attack = attacks.get("pgd", epsilon=0.1, steps=3, step_size=0.05)

    @tf.function
    def step(images, labels):
        moved = attack(network, images, labels)
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(
                labels, network(moved, training=True), from_logits=True
            )
        gradients = tape.gradient(losses, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))

    for index in np.random.default_rng(0).permuted(np.tile(np.arange(1200), (8, 1)), axis=1):
        for at in range(0, 1200, 100):
            step(x[index[at : at + 100]], y[index[at : at + 100]])
    return network, x[1200:1296], y[1200:1296]


@dataclasses.dataclass(frozen=True)
class Linear:
    """Logits W x + b on 4x4x3 images well inside [0, 1]; labels are the predictions."""

    weights: np.ndarray
    bias: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def __call__(self, images):
        return tf.reshape(images, [-1, len(self.weights)]) @ self.weights + self.bias

    # Used as the key of compiled attacks.
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def distances(self, norm):
        """float64 ``[B]``: gap of the logits over the dual norm of their gradients' difference."""
        logits = self.x.reshape(len(self.x), -1).astype(np.float64) @ self.weights + self.bias
        slopes = self.weights.T[None] - self.weights.T[self.y][:, None]
        dual = np.linalg.norm(slopes, ord={"linf": 1, "l2": 2}[norm], axis=2)
        gaps = logits[np.arange(len(self.y)), self.y][:, None] - logits
        with np.errstate(invalid="ignore"):
            return np.nanmin(gaps / dual, axis=1)


@pytest.fixture(scope="session")
def linear():
    """Makes a :class:`Linear` of so many classes."""

    def make(num_classes, samples=48):
        rng = np.random.default_rng(num_classes)
        weights = rng.normal(size=(48, num_classes)).astype(np.float32)
        bias = 0.1 * rng.normal(size=num_classes).astype(np.float32)
        x = rng.uniform(0.35, 0.65, (samples, 4, 4, 3)).astype(np.float32)
        y = np.argmax(x.reshape(samples, 48) @ weights + bias, axis=1).astype(np.int32)
        return Linear(weights, bias, x, y)

    return make


@pytest.fixture(scope="session")
def distance():
    """Norms ``[B]`` of perturbations, in float64."""

    def of(x, moved, norm):
        delta = (np.asarray(moved, np.float64) - np.asarray(x, np.float64)).reshape(len(x), -1)
        return np.linalg.norm(delta, ord=ORDERS[norm], axis=1)

    return of


@pytest.fixture(scope="session")
def errs():
    """bool ``[B]``: the model's class is not y."""

    def of(model, x, y):
        return np.argmax(model(tf.convert_to_tensor(x)), axis=1) != y

    return of
