"""Lazy regularization: penalties whose gradient is taken on some steps alone.

Source: Karras et al., *Analyzing and improving the image quality of StyleGAN* (arXiv 1912.04958,
section 4.1), where the penalty is the path length or R1 and the step one of 4 to 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from der_tf.regularizers import Regularizer
from der_tf.training.batch import TrainingBatch


def interval_of(regularizers: Sequence[Regularizer]) -> int:
    """The interval of the lazy ones; 1 where all are differentiated on every step.

    Raises:
        ValueError: for two intervals beside 1.
    """
    intervals = {regularizer.interval for regularizer in regularizers} - {1}
    if len(intervals) > 1:
        received = " and ".join(map(str, sorted(intervals)))
        raise ValueError(f"regularizers have one interval beside 1; received {received}")
    return intervals.pop() if intervals else 1


def penalties_of(
    regularizers: Sequence[Regularizer], batch: TrainingBatch, losses: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """``losses`` with the penalties of every step, and the sum of the lazy ones, if there are any.

    Args:
        regularizers: of the model.
        batch: which they read.
        losses: ``[B]``, the outer losses without a penalty.

    Returns:
        ``[B]`` and ``[B]``, or None.
    """
    lazy: tf.Tensor | None = None
    for regularizer in regularizers:
        penalties = regularizer(batch)
        if regularizer.interval == 1:
            losses += penalties
        else:
            lazy = penalties if lazy is None else lazy + penalties
    return losses, lazy


def gradients(
    tape: tf.GradientTape, due: tf.Tensor, loss: tf.Tensor, loss_between: tf.Tensor, weights: Any
) -> list[tf.Tensor]:
    """Gradients of one loss on the steps that are due, of the other on those between.

    Only the passes that the chosen loss has come through are gone back through.

    Args:
        tape: persistent; it has seen both losses.
        due: bool, the same on all replicas.
        loss: of the steps that are due.
        loss_between: of the others.
        weights: what to differentiate with respect to.
    """
    return tf.cond(
        due,
        lambda: tape.gradient(loss, weights),
        lambda: tape.gradient(loss_between, weights),
    )
