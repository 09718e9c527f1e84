"""Energies on the way of the training attack, where they are known in closed form."""

import keras
import numpy as np
import pytest

from der_tf import attacks
from der_tf.analysis import along_step

EPSILON = 0.1


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((6, 4, 4, 1), dtype=np.float32), rng.integers(0, 3, 6)


def linear():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])


@pytest.mark.parametrize("name", ["rs_fgsm", "pgd"])
def test_energies_of_a_linear_network_are_linear_on_the_way(name, images):
    network = linear()
    found = along_step.way(network, attacks.get(name, epsilon=EPSILON), *images, seed=1)
    shares = along_step.SHARES[:, None]
    for values in (found.from_start, found.from_natural):
        between = (1 - shares) * values[0] + shares * values[-1]
        np.testing.assert_allclose(values, between, atol=1e-5)
    natural = -network(images[0]).numpy()[np.arange(6), images[1]]
    np.testing.assert_allclose(found.from_natural[0], natural, atol=1e-6)
    np.testing.assert_allclose(found.from_start[-1], found.from_natural[-1], atol=1e-5)
    assert found.peaked == 0


def test_the_start_is_that_of_the_attack(images):
    """FGSM starts at x; RS-FGSM within the ball, so that the energy differs by a bounded amount."""
    network = linear()
    fgsm = along_step.way(network, attacks.get("fgsm", epsilon=EPSILON), *images, seed=1)
    np.testing.assert_array_equal(fgsm.from_start, fgsm.from_natural)
    random = along_step.way(network, attacks.get("rs_fgsm", epsilon=EPSILON), *images, seed=1)
    moved = np.abs(random.from_start[0] - random.from_natural[0])
    most = EPSILON * np.abs(network.get_weights()[0]).sum(axis=0)[images[1]]
    assert (moved > 0).all()
    assert (moved <= most + 1e-5).all()


def test_a_peak_stands_clearly_above_the_end():
    from_start = np.array([[0.0, 0.0, 0.9], [0.6, 0.55, 0.4], [0.4, 0.5, 0.5]])
    found = along_step.Way(from_start=from_start, from_natural=from_start, pgd=np.zeros(3))
    assert found.peaked == pytest.approx(1 / 3)
