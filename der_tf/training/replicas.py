"""What each replica sees of a global batch, and contributes to its loss."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Whether replicas are in processes of their own, of which Keras asks for other results."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def of_one_replica(spec: Any) -> tf.TensorSpec:
    """A specification of per-replica tensors as that of the first replica's."""
    return getattr(spec, "_value_specs", (spec,))[0]


def share_of(layer_losses: list[tf.Tensor]) -> tf.Tensor | float:
    """Losses of layers (kernel regularizers and such); each replica adds its share."""
    if not layer_losses:
        return 0.0
    return tf.add_n(layer_losses) / tf.distribute.get_strategy().num_replicas_in_sync


def mean_over_replicas(losses: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """This replica's share of the mean over the global batch.

    Keras sums gradients over replicas. Dividing by the global count, not by the local one and the
    number of replicas, keeps an uneven last batch exact.
    """
    if sample_weight is not None:
        losses *= tf.cast(tf.reshape(sample_weight, [-1]), losses.dtype)
    count = tf.cast(tf.shape(losses)[0], losses.dtype)
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync > 1:
        count = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
    return tf.reduce_sum(losses) / count
