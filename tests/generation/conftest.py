"""Small classes of images, a network, and an energy whose stationary law is known."""

import numpy as np
import pytest
import tensorflow as tf

from der_tf import models


def clusters(per_class=30, classes=3, shape=(4, 4, 1), seed=0):
    """Each class around a mean of its own, along a few directions."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    images = []
    for _ in range(classes):
        mean = rng.uniform(0.4, 0.6, size)
        directions = rng.normal(size=(4, size)) * np.array([[0.04], [0.025], [0.015], [0.01]])
        images.append(mean + rng.normal(size=(per_class, 4)) @ directions)
    images = np.clip(np.concatenate(images), 0, 1).astype(np.float32)
    return images.reshape(-1, *shape), np.repeat(np.arange(classes), per_class)


class GaussianEnergy:
    """E(x, y) = sum_d a (x - mean_y)**2 / 2 as logits."""

    def __init__(self, means, curvature):
        self.means = tf.constant(means, tf.float32)
        self.curvature = curvature

    def __call__(self, images):
        flat = tf.reshape(images, [-1, 1, int(np.prod(images.shape[1:]))])
        return -self.curvature / 2 * tf.reduce_sum((flat - self.means) ** 2, axis=-1)


@pytest.fixture(scope="session")
def data():
    return clusters()


@pytest.fixture(scope="session")
def network():
    """A convnet with moving statistics as after training."""
    model = models.convnet((4, 4, 1), 3, width=4)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(-0.5, 1.0, w.shape) ** 2 for w in model.get_weights()])
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([rng.normal(size=kernel.shape), bias])
    return model
