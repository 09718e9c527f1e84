"""Which epochs are drawn, and where the targeted attack goes."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from der_tf.analysis import distributions, read_run
from tests.analysis.run_files import make_run

CLASSES = 5
_DRAWN = np.random.default_rng(0).normal(size=(64, CLASSES))
WEIGHTS = tf.constant(_DRAWN - _DRAWN.mean(axis=0), tf.float32)  # grey is of no class


def linear(images):
    return tf.reshape(images, [-1, 64]) @ WEIGHTS


@pytest.mark.parametrize(
    ("there", "wanted", "drawn"),
    [
        ((1, 2, 3, 4), None, [1, 2, 3, 4]),
        ((1, 2, 4), None, [1, 2, 4]),
        ((4,), None, [4]),
        ((), None, []),
        ((1, 2, 3, 4), [4, 1, 30], [4, 1]),
    ],
)
def test_epochs_are_first_middle_best_and_last_or_those_wanted(there, wanted, drawn, tmp_path):
    make_run(tmp_path / "run")  # its best epoch is the third
    samples = {epoch: tmp_path / f"{epoch}.npz" for epoch in there}
    run = dataclasses.replace(read_run(tmp_path / "run"), samples=samples)
    assert distributions.chosen_epochs(run, wanted) == drawn


def test_the_targeted_attack_reaches_every_wrong_class_and_never_the_true_one():
    x = tf.fill([64, 8, 8, 1], 0.5)
    y = tf.range(64) % CLASSES
    chosen = distributions.attacks_of_energies(0.2, "linf", CLASSES, seed=0)
    reached = tf.argmax(linear(chosen["targeted PGD"](linear, x, y)), axis=1, output_type=tf.int32)
    assert set(((reached - y) % CLASSES).numpy()) == {1, 2, 3, 4}
