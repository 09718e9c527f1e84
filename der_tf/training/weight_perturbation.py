"""Adversarial weight perturbation (AWP): a training step at weights w + v, with w untouched.

Source: Wu et al., *Adversarial Weight Perturbation Helps Robust Generalization*
(arXiv 2004.05884), the two-way perturbation of section 4 with one step for v. The authors' code
adds v to the weights and subtracts it again, which rounds; here the weights are never written:
a ``keras.StatelessScope`` has the network read w + v. The weight decay of the optimizer is
therefore that of w, in the authors' code that of w + v.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


def worst_weights(
    weights: Sequence[Any], gradients: Sequence[tf.Tensor | None], gamma: tf.Tensor | float
) -> list[tf.Tensor]:
    """w + gamma |w| g / |g| for weights of more than one dimension, w itself for all others.

    So biases and the scales of normalisation are not perturbed. Nor is a weight whose gradient
    is zero, missing or not finite (an overflow in float16).

    Args:
        weights: trainable variables.
        gradients: of the loss to climb, one a variable; the replicas' are summed.
        gamma: size of the perturbation relative to the weight, in l2.

    Returns:
        One tensor a variable, in its shape and dtype.
    """
    chosen = [i for i, g in enumerate(gradients) if g is not None and len(weights[i].shape) > 1]
    directions = [tf.convert_to_tensor(gradients[i]) for i in chosen]
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        directions = context.all_reduce(tf.distribute.ReduceOp.SUM, directions)
    values = [tf.identity(weight.value) for weight in weights]
    for i, direction in zip(chosen, directions, strict=True):
        # The squares of small gradients would be zero in float32.
        direction = tf.math.divide_no_nan(direction, tf.reduce_max(tf.abs(direction)))
        length = tf.cast(gamma, values[i].dtype) * tf.norm(values[i])
        step = length * tf.math.divide_no_nan(direction, tf.norm(direction))
        values[i] += tf.where(tf.reduce_all(tf.math.is_finite(step)), step, tf.zeros_like(step))
    return values


@contextlib.contextmanager
def weights_read_as(
    network: keras.Model, weights: Sequence[Any], values: Sequence[tf.Tensor]
) -> Iterator[None]:
    """Within, ``weights`` of the network have these values; no variable is written.

    What the passes within update (moving statistics, random states) is written at the end.
    """
    mapping = list(zip(weights, values, strict=True))
    with keras.StatelessScope(mapping, collect_losses=True) as scope:
        yield
    for variable in network.non_trainable_variables:
        updated = scope.get_current_value(variable)
        if updated is not None:
            variable.assign(updated)
