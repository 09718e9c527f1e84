"""Images and labels as batches, refused in one sentence where they cannot be measured on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

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


def check_logits(logits: Any, labels: np.ndarray) -> np.ndarray:
    """Logits ``[B, K]`` as float32.

    Raises:
        ValueError: for another shape, values that are not finite, or labels outside 0..K-1.
    """
    logits = np.asarray(logits).astype(np.float32)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"a model answers logits [B, K]; received shape {logits.shape} for {len(labels)} images"
        )
    if not np.isfinite(logits).all():
        raise ValueError("a model answers finite logits; received NaN or infinity")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels are in 0..{logits.shape[1] - 1} for a model of {logits.shape[1]} classes; "
            f"received {labels.min()}..{labels.max()}"
        )
    return logits


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
    if not (images.min() >= 0 and images.max() <= 1):  # false for NaN too
        raise ValueError(
            "images are finite and in [0, 1]; received values from "
            f"{np.nanmin(images):g} to {np.nanmax(images):g}"
            + (" and NaN" if np.isnan(images).any() else "")
        )
