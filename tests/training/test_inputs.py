"""What RobustClassifier refuses: data and arguments, each in one sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier
from der_tf.regularizers import DeltaEnergy
from tests.training.small_classifiers import assert_same_weights, compiled, fit, small_network


def test_errors_say_what_was_received(digits):
    x, y = digits[0][:16], digits[1][:16]
    model = compiled(small_network(), "fgsm")
    with pytest.raises(ValueError, match=r"shape \[B\]; received labels of shape \(None, 10\)"):
        fit(model, x, keras.utils.to_categorical(y, 10))
    with pytest.raises(ValueError, match=r"shape \[B\]; received labels of float"):
        fit(model, x, y.astype(np.float32))
    with pytest.raises(ValueError, match=r"images are one tensor of floats .*received uint8"):
        fit(model, (x * 255).astype(np.uint8), y)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match=r"objective=.*received loss='mse'"):
        fit(model, x, y)
    model.compile("sgd")
    fit(model, x, y)
    with pytest.raises(ValueError, match="attack is one of"):
        RobustClassifier(small_network(), attack="pdg")


@pytest.mark.parametrize("step", ["fit", "evaluate"])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (lambda x: 255 * x, None, r"in \[0, 1\]; received values from.*\[0\] \[to\] \[255\]"),
        (lambda x: x - 1, None, r"in \[0, 1\]; received values from.*\[-1\] \[to\] \[0\]"),
        (lambda x: np.where(x > 0, x, np.nan), None, r"finite and in \[0, 1\]; received values"),
        (None, lambda y: y + 1, r"0\.\.9, as the network gives 10.*\[1\] \[to\] \[10\]"),
        (None, lambda y: y - 1, r"0\.\.9, as the network gives 10.*\[-1\] \[to\] \[8\]"),
    ],
)
def test_values_out_of_range_are_refused_in_the_first_batch(step, images, labels, message, digits):
    x, y = digits[0][:32], digits[1][:32]
    model = compiled(small_network(), "fgsm")
    before = model.get_weights()
    x, y = (images(x) if images else x), (labels(y) if labels else y)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        getattr(model, step)(x, y, verbose=0)
    assert_same_weights(model.get_weights(), before)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("network", lambda x: x, "network is a Keras model"),
        ("attack", 0.1, r"attack is a name, an Attack or a callable; received 0\.1"),
        ("evaluation_attack", 3, "evaluation_attack is a name, an Attack or a callable"),
        ("objective", None, "objective is a name or an Objective; received None"),
        ("regularizers", DeltaEnergy(1.0), r"regularizers is a list .*received DeltaEnergy\("),
        ("regularizers", ["der"], r"regularizers is a list .*received \['der'\]"),
        ("natural_metrics_every", -1, "natural_metrics_every is a number >= 0; received -1"),
        ("seed", 2**31, "seed is an integer from .*; received 2147483648"),
        ("seed", 1.5, "seed is an integer from .*; received 1.5"),
    ],
)
def test_arguments_of_another_kind_are_refused(argument, value, message):
    with pytest.raises(ValueError, match=message):
        RobustClassifier(**{"network": small_network(), argument: value})
