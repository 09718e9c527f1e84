"""Averaged weights (EMA, SWA): used in validation and in what is saved, never in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from der_tf.training.optimizers import unwrapped


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """The model's weights are the optimizer's moving averages within this block.

    Does nothing when the optimizer keeps none. ``keras.callbacks.SwapEMAWeights`` exchanges them
    by additions and subtractions, which rounds at every exchange; this puts back the very same
    weights, so that validating or saving does not change a training.
    """
    optimizer = unwrapped(model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    weights = optimizer._trainable_variables
    trained = [keras.ops.convert_to_numpy(weight) for weight in weights]
    for weight, average in zip(weights, optimizer._model_variables_moving_average, strict=True):
        weight.assign(keras.ops.convert_to_numpy(average))
    try:
        yield
    finally:
        for weight, value in zip(weights, trained, strict=True):
            weight.assign(value)


class ValidateAverages(keras.callbacks.Callback):
    """Validation within ``fit`` measures the averaged weights."""

    def __init__(self) -> None:
        super().__init__()
        self._swapped = contextlib.ExitStack()

    def on_test_begin(self, logs=None) -> None:
        self._swapped.enter_context(averaged_weights(self.model))

    def on_test_end(self, logs=None) -> None:
        self._swapped.close()


class EpochAverages(keras.callbacks.Callback):
    """SWA: the mean of the weights at the ends of epochs (Izmailov et al., arXiv 1803.05407).

    Every epoch end from ``first_epoch`` on weighs the same. Kept by :attr:`variables`, so that a
    checkpoint taken after this callback holds the mean, too.

    Args:
        model: the model being trained, built.
        first_epoch: the first epoch whose end counts, from 1.
    """

    def __init__(self, model: keras.Model, first_epoch: int) -> None:
        super().__init__()
        self._first_epoch = first_epoch
        self._count = tf.Variable(0, dtype=tf.int64)
        self._means = [tf.Variable(tf.zeros(w.shape, w.dtype)) for w in model.trainable_variables]

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint has to keep."""
        return [self._count, *self._means]

    @property
    def count(self) -> int:
        """Epoch ends in the mean."""
        return int(self._count.numpy())

    def on_epoch_end(self, epoch, logs=None) -> None:
        if epoch + 1 < self._first_epoch:
            return
        self._count.assign_add(1)
        for mean, weight in zip(self._means, self.model.trainable_variables, strict=True):
            value = keras.ops.convert_to_numpy(weight)
            mean.assign_add((value - mean) / self.count)

    @contextlib.contextmanager
    def applied(self, model: keras.Model, images: Iterable) -> Iterator[None]:
        """Within, the model has the mean weights and the batch-norm statistics that fit them.

        Args:
            model: the trained model, with a ``network``.
            images: batches ``[B, H, W, C]`` of training images.
        """
        kept = [(w, keras.ops.convert_to_numpy(w)) for w in model.network.variables]
        try:
            for weight, mean in zip(model.trainable_variables, self._means, strict=True):
                weight.assign(mean.numpy())
            recompute_batch_statistics(model.network, images)
            yield
        finally:
            for weight, value in kept:
                weight.assign(value)


def recompute_batch_statistics(network: keras.Model, images: Iterable) -> None:
    """Set batch norm's moving statistics to their means over natural images.

    Averaged weights have activations of their own (Izmailov et al., 2018, section 3.2). Each
    batch counts by its size; the variance is the mean of the variances within batches.

    Args:
        network: images -> logits; nothing happens when it has no batch norm.
        images: batches ``[B, H, W, C]`` float32 in [0, 1].
    """
    layers = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    statistics = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    sums = [np.zeros(v.shape, np.float64) for v in statistics]
    total = 0
    try:
        for layer in layers:
            layer.momentum = 0.0  # the moving statistics are then those of the last batch
        forward = tf.function(lambda batch: network(batch, training=True), reduce_retracing=True)
        for batch in images:
            forward(batch)
            total += len(batch)
            for i, variable in enumerate(statistics):
                sums[i] += len(batch) * np.float64(keras.ops.convert_to_numpy(variable))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for variable, value in zip(statistics, sums, strict=True):
        variable.assign(value / total)
