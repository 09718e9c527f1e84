"""Averaged weights (EMA): used in validation and in what is saved, never in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """The model's weights are the optimizer's moving averages within this block.

    Does nothing when the optimizer keeps none. ``keras.callbacks.SwapEMAWeights`` exchanges them
    by additions and subtractions, which rounds at every exchange; this puts back the very same
    weights, so that validating or saving does not change a training.
    """
    # LossScaleOptimizer wraps the optimizer that keeps the averages.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
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
