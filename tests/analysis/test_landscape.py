"""Loss surfaces against direct evaluation."""

import numpy as np
import tensorflow as tf

from der_tf.analysis import landscape

SHAPE = (4, 4, 1)
WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def linear(images):
    return tf.reshape(images, [-1, 16]) @ WEIGHTS


def loss(image, label):
    """Cross-entropy of one image, by numpy in float64."""
    logits = image.reshape(16).astype(np.float64) @ WEIGHTS.astype(np.float64)
    return np.log(np.exp(logits - logits[label]).sum())


def images(low, high, count=3):
    x = np.random.default_rng(1).uniform(low, high, size=(count, *SHAPE)).astype(np.float32)
    return x, np.arange(count, dtype=np.int32) % 3


def test_a_surface_along_the_gradient_is_the_loss_there():
    x, y = images(0.3, 0.7)
    along, across = np.array([0.0, 0.25, 1.0]), np.array([0.0])
    for plane in landscape.planes(linear, x, y, 0.1, "linf", seed=0):
        probabilities = np.exp(plane.image.reshape(16) @ WEIGHTS)
        probabilities /= probabilities.sum()
        gradient = (WEIGHTS @ (probabilities - np.eye(3)[plane.label])).reshape(SHAPE)
        np.testing.assert_allclose(plane.attack, 0.1 * np.sign(gradient), atol=1e-6)
        found = landscape.surface(linear, plane, along, across)
        direct = [loss(plane.image + a * 0.1 * np.sign(gradient), plane.label) for a in along]
        assert found.shape == (1, 3)
        np.testing.assert_allclose(found[0], direct, rtol=1e-4)


def test_rows_go_along_the_random_direction_and_columns_along_the_attack():
    x, y = images(0.3, 0.7, count=1)
    (plane,) = landscape.planes(linear, x, y, 0.05, "linf", seed=3)
    found = landscape.surface(linear, plane, np.array([-0.5, 1.5]), np.array([-1.0, 0.5, 1.0]))
    direct = [
        [loss(plane.image + a * plane.attack + b * plane.random, plane.label) for a in (-0.5, 1.5)]
        for b in (-1.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(found, direct, rtol=1e-4)


def test_directions_have_the_radius_and_depend_on_the_seed_alone():
    x, y = images(0.4, 0.6)
    for norm, order in (("linf", np.inf), ("l2", 2)):
        once = landscape.planes(linear, x, y, 0.1, norm, seed=1)
        again = landscape.planes(linear, x, y, 0.1, norm, seed=1)
        other = landscape.planes(linear, x, y, 0.1, norm, seed=2)
        for plane, same, different in zip(once, again, other, strict=True):
            for direction in (plane.attack, plane.random):
                length = np.linalg.norm(direction.ravel(), order)
                np.testing.assert_allclose(length, 0.1, rtol=1e-4)
            np.testing.assert_array_equal(plane.random, same.random)
            assert (plane.random != different.random).any()


def test_points_outside_of_the_pixels_are_clipped_and_ends_are_what_the_attack_gives():
    x, y = images(0.0, 1.0)
    x[:, 0] = 0.0
    x[:, 1] = 1.0
    for plane in landscape.planes(linear, x, y, 0.2, "linf", seed=0):
        end = plane.image + plane.attack
        assert end.min() >= 0
        assert end.max() <= 1
        found = landscape.surface(linear, plane, np.array([1.0, 10.0]), np.array([0.0]))
        np.testing.assert_allclose(found[0, 0], loss(end, plane.label), rtol=1e-4)
        beyond = np.clip(plane.image + 10 * plane.attack, 0, 1)
        np.testing.assert_allclose(found[0, 1], loss(beyond, plane.label), rtol=1e-4)
