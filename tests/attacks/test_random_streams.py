"""Per-sample random streams: the distributions, and independence of the batch."""

import numpy as np
import tensorflow as tf
from scipy import stats

from der_tf.attacks import streams


def test_draws_have_their_distributions():
    keys = streams.keys(tf.constant([3, 0]), tf.range(2000))
    assert stats.kstest(streams.uniform(keys, (50,)).numpy().ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(streams.normal(keys, (50,)).numpy().ravel(), "norm").pvalue > 1e-3
    signs = streams.signs(keys, (50,)).numpy()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.02


def test_samples_positions_steps_and_seeds_are_independent():
    ids = tf.range(4000)
    keys = streams.keys(tf.constant([3, 0]), ids)
    draws = streams.uniform(keys, (3,)).numpy()
    others = [
        draws[1:, 0],  # the neighbouring sample
        draws[:-1, 1],  # the neighbouring position
        streams.uniform(streams.fold_in(keys, 1), (3,)).numpy()[:-1, 0],
        streams.uniform(streams.keys(tf.constant([4, 0]), ids), (3,)).numpy()[:-1, 0],
        streams.uniform(streams.keys(tf.constant([3, 1]), ids), (3,)).numpy()[:-1, 0],
    ]
    for other in others:
        assert abs(np.corrcoef(draws[:-1, 0], other)[0, 1]) < 0.06  # 4 deviations of chance


def test_a_sample_draws_the_same_in_any_batch():
    whole = streams.uniform(streams.keys(tf.constant([3, 0]), tf.range(10)), (2, 3)).numpy()
    some = streams.uniform(streams.keys(tf.constant([3, 0]), tf.constant([7, 2])), (2, 3)).numpy()
    np.testing.assert_array_equal(some, whole[[7, 2]])
