"""Data sets: images float32 [B, H, W, C] in [0, 1], labels int64 [B].

Example:
    >>> from der_tf import data
    >>> digits = data.load("digits", batch_size=100)
    >>> digits.input_shape, digits.num_classes, digits.train_size
    ((8, 8, 1), 10, 1295)
    >>> images, labels = next(iter(digits.train))
    >>> images.shape
    TensorShape([100, 8, 8, 1])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from der_tf.data.datasets import ImageData as ImageData
    from der_tf.data.datasets import load as load

__all__ = ["ImageData", "load"]


def __getattr__(name: str) -> Any:
    # On first use: whether a data set is there can be asked of tfds_source without TensorFlow.
    if name in __all__:
        return getattr(importlib.import_module("der_tf.data.datasets"), name)
    raise AttributeError(f"module 'der_tf.data' has no attribute {name!r}")
