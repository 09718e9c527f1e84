"""Images and labels as batches, refused in one sentence where they cannot be measured on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from der_tf.attacks.checks import check_pixels

Batch = tuple[np.ndarray, np.ndarray]


def batches_of(images: Any, labels: Any, batch_size: int) -> tuple[Iterator[Batch], int | None]:
    """Checked batches (float32 images, int32 labels), and the number of images (data set: None).

    Raises:
        ValueError: for images that are not ``[N, H, W, C]`` in [0, 1], labels that are not ``[N]``
            integers, or no images at all; from a data set, when that batch is reached.
    """
    if isinstance(images, tf.data.Dataset):
        if labels is not None:
            raise ValueError("a data set brings its own labels; received labels beside it")
        return _checked(images.as_numpy_iterator()), None
    images, labels = np.asarray(images), np.asarray(labels)
    _check(images, labels)
    if batch_size < 1:
        raise ValueError(f"batch_size is an integer >= 1; received {batch_size}")
    starts = range(0, len(images), batch_size)
    slices = ((images[i : i + batch_size], labels[i : i + batch_size]) for i in starts)
    return _checked(slices), len(images)


def check_finite(logits: Any, where: str) -> np.ndarray:
    """Logits as float32.

    Raises:
        ValueError: for values that are not finite.
    """
    logits = np.asarray(logits).astype(np.float32)
    if not np.isfinite(logits).all():
        raise ValueError(f"a model answers finite logits; received NaN or infinity {where}")
    return logits


def drawn(size: int, count: int, seed: int) -> np.ndarray:
    """bool ``[size]``: ``count`` positions without regard to order, in which classes may come."""
    mask = np.zeros(size, bool)
    mask[np.random.default_rng(seed).choice(size, count, replace=False)] = True
    return mask


def chosen(dataset: tf.data.Dataset, mask: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """The images of a batched data set where ``mask`` is true, in their order."""
    keep = tf.constant(mask)
    return (
        dataset.unbatch()
        .enumerate()
        .filter(lambda index, _: keep[index])
        .map(lambda _, pair: pair)
        .batch(batch_size)
    )


def _checked(batches: Any) -> Iterator[Batch]:
    found = False
    for images, labels in batches:
        _check(images, labels)
        found = True
        yield images.astype(np.float32), labels.astype(np.int32)
    if not found:
        raise ValueError("an evaluation takes at least one image; received none")


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    if (
        images.ndim != 4
        or labels.ndim != 1
        or len(images) != len(labels)
        or len(images) == 0
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise ValueError(
            "an evaluation takes images [N, H, W, C] and integer labels [N], at least one; "
            f"received images of shape {images.shape} and {labels.dtype} labels of shape "
            f"{labels.shape}"
        )
    check_pixels(images)
