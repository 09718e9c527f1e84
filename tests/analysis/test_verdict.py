"""Verdicts on curves whose answer is known."""

import numpy as np
import pytest

from der_tf.analysis import catastrophic_overfitting, robust_overfitting

RISING = np.array([0.2, 0.28, 0.33, 0.36, 0.38, 0.4])
COLLAPSING = np.array([0.2, 0.3, 0.35, 0.02, 0.01, 0.0])
FEW = np.full(6, 0.03)
MANY = np.array([0.03, 0.03, 0.04, 0.6, 0.7, 0.8])
CALM = np.array([0.02, 0.03, 0.02, 0.03, 0.02, 0.03])
JUMPING = np.array([0.02, 0.03, 0.02, 0.3, 0.35, 0.3])


@pytest.mark.parametrize(("abnormal", "delta"), [(MANY, CALM), (FEW, JUMPING), (MANY, JUMPING)])
def test_a_collapse_with_either_sign_is_catastrophic_overfitting(abnormal, delta):
    found = catastrophic_overfitting(COLLAPSING, abnormal, delta)
    assert found is not None
    assert found.epoch == 3
    assert found.robust == (0.35, 0.02)
    assert found.abnormal == (abnormal[2], max(abnormal[3:5]))
    assert found.delta == (delta[2], max(delta[3:5]))


def test_signs_averaged_over_the_epoch_may_come_one_epoch_later():
    late = np.roll(MANY, 1)
    late[0] = 0.03
    found = catastrophic_overfitting(COLLAPSING, late, CALM)
    assert found is not None
    assert found.epoch == 3


@pytest.mark.parametrize(
    ("robust", "abnormal", "delta", "why"),
    [
        (RISING, MANY, JUMPING, "robustness rises"),
        (COLLAPSING, FEW, CALM, "no sign of a collapse beside the accuracy"),
        (np.array([0.2, 0.3, 0.35, 0.13, 0.2, 0.3]), MANY, JUMPING, "more than a third is left"),
        (np.array([0.3, 0.24, 0.18, 0.12, 0.09, 0.08]), MANY, JUMPING, "it falls over epochs"),
        (COLLAPSING[:1], MANY[:1], JUMPING[:1], "one epoch has nothing before it"),
    ],
)
def test_what_is_no_catastrophic_overfitting(robust, abnormal, delta, why):
    assert catastrophic_overfitting(robust, abnormal, delta) is None, why


def test_the_first_collapse_counts_even_when_the_network_recovers():
    robust = np.array([0.3, 0.35, 0.02, 0.3, 0.01, 0.0])
    abnormal = np.array([0.03, 0.03, 0.7, 0.05, 0.8, 0.8])
    found = catastrophic_overfitting(robust, abnormal, CALM)
    assert found is not None
    assert found.epoch == 2


def test_a_collapse_from_below_chance_is_one():
    # Strong attacks leave networks in their first epochs less than guessing would get.
    weak = np.array([0.07, 0.08, 0.08, 0.01, 0.01, 0.0])
    found = catastrophic_overfitting(weak, MANY, CALM)
    assert found is not None
    assert found.epoch == 3


DECAY = np.array([0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
TRAINING = np.array([0.2, 0.3, 0.35, 0.5, 0.6, 0.7])


def test_robust_overfitting_is_the_gap_after_the_decay():
    robust = np.array([0.2, 0.3, 0.35, 0.5, 0.47, 0.43])
    assert robust_overfitting(robust, TRAINING, DECAY) == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("robust", "training", "rate", "why"),
    [
        ([0.2, 0.3, 0.35, 0.5, 0.49, 0.47], TRAINING, DECAY, "3 points are within noise"),
        ([0.2, 0.3, 0.5, 0.45, 0.44, 0.43], TRAINING, np.full(6, 0.1), "the rate never fell"),
        ([0.2, 0.3, 0.5, 0.45, 0.44, 0.43], TRAINING[::-1], DECAY, "training accuracy falls too"),
        (RISING, TRAINING, DECAY, "the last epoch is the best"),
    ],
)
def test_what_is_no_robust_overfitting(robust, training, rate, why):
    assert robust_overfitting(np.array(robust), training, rate) is None, why
