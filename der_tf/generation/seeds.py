"""The random stream of each sample: a function of its label and seed, never of its batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from der_tf.attacks import streams


def keys(labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Keys uint32 ``[B]`` for :mod:`der_tf.attacks.streams`.

    Args:
        labels: int32 ``[B]``.
        seeds: int64 ``[B]``, any value.
    """
    bits = tf.bitcast(seeds, tf.uint32)  # [B, 2]: both halves count
    start = streams.fold_in(tf.zeros_like(labels, tf.uint32), bits[:, 0])
    return streams.fold_in(streams.fold_in(start, bits[:, 1]), labels)


def checked(labels: Any, seeds: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int32 ``[B]`` and seeds as int64 ``[B]``.

    Raises:
        ValueError: for other shapes or types, or a class that does not exist.
    """
    labels, seeds = np.asarray(labels), np.asarray(seeds)
    whole = np.issubdtype(labels.dtype, np.integer) and np.issubdtype(seeds.dtype, np.integer)
    if labels.size == seeds.size == 0:
        whole = True  # an empty list has no integer type
    if labels.ndim != 1 or seeds.shape != labels.shape or not whole:
        raise ValueError(
            "labels and seeds are integers [B], a seed a label; received "
            f"{labels.dtype} labels of shape {labels.shape} and {seeds.dtype} seeds of shape "
            f"{seeds.shape}"
        )
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"labels are classes in 0..{num_classes - 1}; received {wrong[0]}")
    return labels.astype(np.int32), seeds.astype(np.int64)
