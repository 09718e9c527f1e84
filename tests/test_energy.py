"""Energies against hand-computed cases and identities."""

import numpy as np
import pytest
import tensorflow as tf

from der_tf import energy

LOGITS = np.array([[0.0, np.log(3.0)], [2.0, 2.0]], np.float32)


def test_hand_computed_energies():
    np.testing.assert_allclose(
        energy.marginal_energy(LOGITS), [-np.log(4), -2 - np.log(2)], rtol=1e-6
    )
    np.testing.assert_allclose(energy.joint_energy(LOGITS, [1, 0]), [-np.log(3), -2], rtol=1e-6)
    np.testing.assert_allclose(energy.joint_energy(LOGITS), -LOGITS)


def test_delta_is_natural_minus_adversarial():
    clean, adversarial = [[1.0, 0.0]], [[3.0, 0.0]]
    expected = np.log(np.exp(3) + 1) - np.log(np.exp(1) + 1)
    np.testing.assert_allclose(energy.delta_energy(clean, adversarial), [expected], rtol=1e-6)
    np.testing.assert_allclose(energy.delta_energy(clean, adversarial, [0]), [2.0])


def test_abnormal_means_the_attack_lowered_the_loss():
    clean = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    adversarial = [[2.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
    assert energy.abnormal(clean, adversarial, [0, 0, 0]).numpy().tolist() == [True, False, False]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_is_joint_minus_marginal(scale):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(64, 10))).astype(np.float64)
    labels = rng.integers(0, 10, 64)
    difference = energy.joint_energy(logits, labels) - energy.marginal_energy(logits)
    np.testing.assert_allclose(energy.cross_entropy(logits, labels), difference, atol=1e-9)


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_logits_stay_exact(sign):
    logits = tf.constant([[sign * 1e4, sign * 1e4, 0.0]])
    expected = -1e4 - np.log(2) if sign > 0 else 0.0
    np.testing.assert_allclose(energy.marginal_energy(logits), [expected], rtol=1e-7)
    for labels in ([0], [2]):
        assert np.isfinite(energy.cross_entropy(logits, labels)).all()
    # Two losses that differ by 1e-3 at energies of 1e4: their difference survives.
    near = tf.constant([[1e4, 1e4 + 7.0]])
    np.testing.assert_allclose(energy.cross_entropy(near, [1]), [np.log1p(np.exp(-7))], rtol=1e-3)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    # The sum of 4,096 equal exponentials overflows float16 and is beyond bfloat16's digits.
    logits = tf.cast(tf.fill([1, 4096], 8.0), dtype)
    result = energy.marginal_energy(logits)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, [-8 - np.log(4096)], rtol=1e-6)


def test_float64_is_kept():
    assert energy.joint_energy(np.zeros([1, 2]), [0]).dtype == tf.float64


def test_gradient_of_marginal_energy_is_minus_softmax():
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(energy.marginal_energy(logits))
    np.testing.assert_allclose(tape.gradient(total, logits), -tf.nn.softmax(logits), rtol=1e-6)


def test_wrong_shape_says_so():
    with pytest.raises(ValueError, match=r"\[B, K\].*received shape \(3,\)"):
        energy.marginal_energy([1.0, 2.0, 3.0])
