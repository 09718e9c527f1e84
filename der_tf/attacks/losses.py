"""Losses that attacks climb: ``loss(labels, logits) -> [B]``, higher is more adversarial.

The argument names are those of cleverhans' ``compute_gradient``. Computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from der_tf import energy

Loss = Callable[..., tf.Tensor]


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """CE(x, y) = E(x, y) - E(x)."""
    return energy.cross_entropy(logits, labels)


def _label_and_best_other(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    is_label = tf.one_hot(labels, tf.shape(logits)[1], on_value=True, off_value=False)
    of_label = tf.reduce_sum(tf.where(is_label, logits, 0.0), axis=1)
    others = tf.where(is_label, logits.dtype.min, logits)
    return of_label, tf.reduce_max(others, axis=1)


def margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """max_{i != y} f_i - f_y, the loss of Carlini & Wagner (2017, f_6); positive once it errs."""
    of_label, best_other = _label_and_best_other(labels, energy.at_least_float32(logits))
    return best_other - of_label


def difference_of_logits_ratio(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """DLR of Croce & Hein (2020), equation 6: the margin over the spread of the top three logits.

    Raises:
        ValueError: with fewer than three classes.
    """
    logits = energy.at_least_float32(logits)
    if logits.shape[1] is not None and logits.shape[1] < 3:
        raise ValueError(
            f"the dlr loss needs at least 3 classes; received logits of {logits.shape[1]}"
        )
    of_label, best_other = _label_and_best_other(labels, logits)
    top = tf.math.top_k(logits, k=3).values
    return (best_other - of_label) / (top[:, 0] - top[:, 2] + 1e-12)


def kl_divergence(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """KL(p(x) || p(x*)) of Zhang et al. (TRADES, 2019), equation 5.

    Args:
        labels: here the *logits* ``[B, K]`` of the natural images.
        logits: ``[B, K]`` of the adversarial ones.
    """
    natural = tf.nn.log_softmax(energy.at_least_float32(labels))
    adversarial = tf.nn.log_softmax(energy.at_least_float32(logits))
    return tf.reduce_sum(tf.exp(natural) * (natural - adversarial), axis=1)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
    "kl": kl_divergence,
}
