"""What is done beside the training steps so that a run can stop and go on at any moment."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from der_tf.files import replacing
from der_tf.training.averages import averaged_weights
from der_tf.training.checkpoints import Checkpoints
from der_tf.training.faults import Diverged, Signals, writing
from der_tf.training.optimizers import unwrapped


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends training with Diverged, a RunError, when the loss or a weight is NaN or infinite.

    Put it before what saves: such a network is no best one.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._checkpoints = checkpoints

    def on_train_batch_end(self, batch, logs=None) -> None:
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss became {loss} {self._when()}; {self._checkpoints.kept}; "
                "a lower --learning-rate or --der-weight may help"
            )

    def on_epoch_end(self, epoch, logs=None) -> None:
        # The last loss is that of the weights before the last step.
        self._checkpoints.require_finite(self._when())

    def _when(self) -> str:
        optimizer = unwrapped(self.model.optimizer)
        # The optimizer has counted this step already; its rate was that of the count before.
        step = int(optimizer.iterations.numpy()) - 1
        rate = optimizer._learning_rate
        rate = float(rate(step) if callable(rate) else rate)
        return f"at step {step} with learning rate {rate:.4g}"


class EarlyStopping(keras.callbacks.Callback):
    """Ends ``fit`` when the validation robust accuracy has not risen for some epochs.

    Rice et al., *Overfitting in adversarially robust deep learning* (2020): the epoch is chosen
    on validation images. ``keras.callbacks.EarlyStopping`` forgets its count when a run is
    stopped; here :attr:`variables` belongs to the checkpoint.

    Args:
        patience: epochs in a row without a new best.
    """

    def __init__(self, patience: int) -> None:
        super().__init__()
        self._patience = patience
        self._best = tf.Variable(-1.0, dtype=tf.float64)  # below any accuracy
        self._stale = tf.Variable(0, dtype=tf.int64)

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint has to keep."""
        return [self._best, self._stale]

    @property
    def reached(self) -> bool:
        """Whether training is over."""
        return int(self._stale.numpy()) >= self._patience

    def on_epoch_end(self, epoch, logs=None) -> None:
        value = (logs or {})["val_robust_accuracy"]
        if value > float(self._best.numpy()):
            self._best.assign(value)
            self._stale.assign(0)
        else:
            self._stale.assign_add(1)
        if self.reached:
            self.model.stop_training = True


class SaveBest(keras.callbacks.Callback):
    """Saves the network when the validation robust accuracy is higher than ever before.

    Saved is the network alone, images in [0, 1] -> logits, with averaged weights where the
    optimizer keeps them: it loads without this package's training code.
    """

    def __init__(self, path: Path, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._path = path
        self._checkpoints = checkpoints

    def on_epoch_end(self, epoch, logs=None) -> None:
        value = (logs or {})["val_robust_accuracy"]
        if value > self._checkpoints.best:
            save_network(self.model, self._path)
            self._checkpoints.best = value


def save_network(model: keras.Model, path: Path, averaged: bool = True) -> None:
    """Write ``model.network``, whole or not at all.

    Args:
        averaged: with the moving averages of the optimizer (EMA), where it keeps them.
    """
    weights = averaged_weights(model) if averaged else contextlib.nullcontext()
    with writing(path), replacing(path) as temporary, weights:
        model.network.save(temporary)


class SaveState(keras.callbacks.Callback):
    """Saves the state at the end of every epoch and every few minutes, and asks for signals.

    Put it last in the list: what the other callbacks do at the end of an epoch must be done
    before the state says that the epoch is over. When ``fit`` ends with
    :class:`~der_tf.training.faults.Interrupted`, call :meth:`save_position`.

    Args:
        checkpoints: where the state goes, restored already.
        signals: asked after every batch; ``fit`` runs within its ``deferred()``.
        minutes: save within an epoch when this much time has passed since the last; 0: never.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        signals: Signals,
        minutes: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._signals = signals
        self._seconds = 60 * minutes
        self._clock = clock
        # Keras sets the sums of the metrics to zero when an epoch begins and again when it is
        # validated; an epoch that goes on in the middle goes on with those it had.
        self._sums: list[np.ndarray] | None = None
        self._unsaved = False

    def set_model(self, model) -> None:
        super().set_model(model)
        self._sums = self._metric_sums() if self._checkpoints.step else None

    def on_train_begin(self, logs=None) -> None:
        self._saved_at = self._clock()

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._epoch = epoch
        self._first = self._step = self._checkpoints.step if self._sums else 0
        self._restore_sums()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._step = self._first + batch + 1
        self._unsaved = True
        self._signals.check()
        if self._seconds and self._clock() - self._saved_at >= self._seconds:
            self.save_position()

    def on_test_begin(self, logs=None) -> None:
        self._sums = self._metric_sums()

    def on_test_batch_end(self, batch, logs=None) -> None:
        self._signals.check()

    def on_epoch_end(self, epoch, logs=None) -> None:
        self._sums = None
        self._save(epoch + 1, 0)

    def save_position(self) -> None:
        """Save where training stands: within an epoch, or at the end of one not yet validated."""
        if self._unsaved:
            self._restore_sums()
            self._save(self._epoch, self._step)

    def _save(self, epoch: int, step: int) -> None:
        self._checkpoints.save(epoch, step)
        self._saved_at = self._clock()
        self._unsaved = False

    def _metric_sums(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(v) for v in self.model.metrics_variables]

    def _restore_sums(self) -> None:
        if self._sums is not None:
            for variable, value in zip(self.model.metrics_variables, self._sums, strict=True):
                variable.assign(value)
            self._sums = None
