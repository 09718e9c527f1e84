"""A small network for digits, compiled and trained: shared by the tests of RobustClassifier."""

import keras
import numpy as np

from der_tf import RobustClassifier


def small_network(batch_norm=True, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3),
            *([keras.layers.BatchNormalization()] if batch_norm else []),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, dtype="float32"),
        ]
    )


def compiled(*args, optimizer=None, steps_per_execution=1, **kwargs):
    model = RobustClassifier(*args, **kwargs)
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, steps_per_execution=steps_per_execution)
    return model


def fit(model, x, y, **kwargs):
    return model.fit(x, y, batch_size=64, shuffle=False, verbose=0, **kwargs).history


def assert_same_weights(one, other, tolerance=0.0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
