"""Outer losses against numpy, and what gradients flow where."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import objectives


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 5, 16), rng.normal(size=(16, 5)), 2 * rng.normal(size=(16, 5))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def reference(name, labels, natural, adversarial, beta):
    p, q = softmax(natural), softmax(adversarial)
    rows = np.arange(len(labels))
    divergence = np.sum(p * (np.log(p) - np.log(q)), axis=1)
    if name == "madry":
        return -np.log(q[rows, labels])
    if name == "trades":
        return -np.log(p[rows, labels]) + beta * divergence
    if name == "mart":
        others = q.copy()
        others[rows, labels] = 0
        boosted = -np.log(q[rows, labels]) - np.log(1 - others.max(axis=1))
        return boosted + beta * divergence * (1 - p[rows, labels])
    marginal = -np.log(np.sum(np.exp(natural), axis=1))
    weight = 1 / np.log1p(np.exp(np.abs(marginal)))
    return weight * (-np.log(p[rows, labels]) + beta * divergence)


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        (objectives.get("madry"), None),
        (objectives.get("trades", beta=3.0), 3.0),
        (objectives.get("mart", beta=4.0), 4.0),
        (objectives.get("weat", objective=objectives.get("trades", beta=2.0)), 2.0),
    ],
)
def test_equals_the_published_formula(objective, beta, batch):
    labels, natural, adversarial = batch
    expected = reference(type(objective).__name__.lower(), *batch, beta)
    given = natural.astype(np.float32) if objective.needs_natural else None
    losses = objective(labels, given, adversarial.astype(np.float32))
    assert losses.shape == (16,)
    np.testing.assert_allclose(losses, expected, rtol=2e-3 if beta == 4.0 else 1e-4)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target(batch):
    labels, _, adversarial = batch
    smoothed = 0.9 * np.eye(5)[labels] + 0.1 / 5
    expected = -np.sum(smoothed * np.log(softmax(adversarial)), axis=1)
    losses = objectives.get("madry", label_smoothing=0.1)(labels, None, adversarial)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_no_gradient_flows_through_the_weights_of_weat(batch):
    labels, natural, adversarial = (tf.constant(part) for part in batch)
    natural, adversarial = tf.cast(natural, tf.float32), tf.cast(adversarial, tf.float32)
    inner = objectives.get("trades", beta=2.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(natural)
        weighted = objectives.get("weat", objective=inner)(labels, natural, adversarial)
        plain = inner(labels, natural, adversarial)
    weight = (weighted / plain)[:, None]
    np.testing.assert_allclose(
        tape.gradient(weighted, natural), weight * tape.gradient(plain, natural), atol=1e-6
    )


@pytest.mark.parametrize("name", objectives.names())
def test_configuration_survives_serialization(name):
    objective = objectives.get(name)
    config = keras.saving.serialize_keras_object(objective)
    assert keras.saving.deserialize_keras_object(config) == objective


def test_bad_names_and_values_say_what_is_accepted():
    with pytest.raises(ValueError, match="madry, mart, trades, weat; received 'madri'"):
        objectives.get("madri")
    with pytest.raises(ValueError, match=r"label_smoothing is a number in \[0, 1\); received 1"):
        objectives.get("madry", label_smoothing=1)
    for beta in (-1.0, float("nan"), "6"):
        with pytest.raises(ValueError, match="TRADES: beta is a finite number >= 0; received"):
            objectives.TRADES(beta)


def test_what_an_objective_is_about_is_its_first_argument():
    assert objectives.TRADES(3.0) == objectives.get("trades", beta=3.0)
    assert objectives.MART(3.0) == objectives.get("mart", beta=3.0)
    assert objectives.WEAT(objectives.MART(3.0)).objective.beta == 3.0
