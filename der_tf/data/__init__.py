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

from der_tf.data.datasets import ImageData, load, names

__all__ = ["ImageData", "load", "names"]
