"""Images and labels of fit and its monitors, refused in one sentence where nothing takes them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from der_tf.attacks.base import checked

Sample = tuple[tf.Tensor, tf.Tensor]


def unpack(data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """Images and labels of a batch as Keras hands it over, and sample weights or None.

    Raises:
        ValueError: for images that are not floats, or labels that are not ``[B]`` (or ``[B, 1]``)
            integers.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if not (hasattr(x, "dtype") and x.dtype.is_floating):
        received = x.dtype.name if hasattr(x, "dtype") else f"a {type(x).__name__}"
        raise ValueError(f"images are one tensor of floats in [0, 1]; received {received}")
    if y is None or (y.shape.rank == 2 and y.shape[1] != 1) or y.shape.rank not in (1, 2):
        received = "no labels" if y is None else f"labels of shape {tuple(y.shape)}"
        raise ValueError(f"labels are integers of shape [B]; received {received}")
    if not y.dtype.is_integer:
        raise ValueError(f"labels are integers of shape [B]; received labels of {y.dtype.name}")
    return x, y, sample_weight


def in_range(
    x: tf.Tensor, y: tf.Tensor, classes: int | None, is_due: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The images and labels; in the graph, an InvalidArgumentError for values out of range.

    XLA leaves such checks out.

    Args:
        x: ``[B, H, W, C]`` float32, accepted where finite and in [0, 1].
        y: ``[B]`` int32, accepted in 0..classes - 1.
        classes: as :func:`num_classes` says; None: not known, labels are not looked at.
        is_due: bool, whether this batch is looked at.
    """

    def assert_within(values: tf.Tensor, high: float, accepted: str) -> None:
        fits = tf.reduce_all((values >= 0) & (values <= high))  # false for NaN too
        least, most = tf.reduce_min(values), tf.reduce_max(values)
        tf.debugging.Assert(fits, [f"{accepted}; received values from", least, "to", most])

    def check() -> tf.Tensor:
        assert_within(x, 1, "images are finite and in [0, 1]")
        if classes is not None:
            assert_within(y, classes - 1, _labels_of(classes))
        return tf.constant(True)

    # Nothing may run on the batch before it is checked.
    with tf.control_dependencies([tf.cond(is_due, check, lambda: tf.constant(True))]):
        return tf.identity(x), tf.identity(y)


def num_classes(network: keras.Model, images: tf.Tensor) -> int | None:
    """Logits that a network gives for such images; None where their number is not known."""
    return network.compute_output_spec(keras.KerasTensor(images.shape)).shape[-1]


def sample(name: str, value: Any) -> Sample:
    """Images float32 ``[N, H, W, C]`` and labels int32 ``[N]`` of an argument of this name.

    Raises:
        ValueError: for anything else than a pair of these, or no image.
    """
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise ValueError(
            f"{name} is a pair of images [N, H, W, C] and labels [N]; received {type(value)}"
        )
    images, labels = checked(*value)
    if len(images) == 0:
        raise ValueError(f"{name} has at least one image; received none")
    return images, labels


def check_sample_of(network: keras.Model, sample: Sample) -> None:
    """ValueError for images that the network does not take, or labels that are no class of it."""
    images, labels = sample
    classes = num_classes(network, images)
    least, most = int(tf.reduce_min(labels)), int(tf.reduce_max(labels))
    if classes is not None and not 0 <= least <= most < classes:
        raise ValueError(f"{_labels_of(classes)}; received labels from {least} to {most}")


def _labels_of(classes: int) -> str:
    return f"labels are in 0..{classes - 1}, as the network gives {classes} logits"
