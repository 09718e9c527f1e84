"""A small convolutional network, for digits and for tests."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from der_tf.models.blocks import (
    batch_norm_relu,
    check_arguments,
    classifier_head,
    conv,
    normalized_input,
)


def convnet(
    input_shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> keras.Model:
    """Four 3x3 convolutions with batch norm and ReLU, of ``width`` to 4 ``width`` filters.

    The second halves the image, so that 8x8 digits keep 4x4 places until the average pooling.

    Args:
        input_shape: (height, width, channels) of the images.
        num_classes: K, at least 2.
        width: filters of the first convolution.
        mean: of the pixels, subtracted inside the network: one number or one a channel;
            default 0.5.
        std: of the pixels, divided by inside the network: likewise; default 0.25.

    Returns:
        A model from float32 images ``[B, H, W, C]`` in [0, 1] to float32 logits ``[B, K]``.

    Raises:
        ValueError: for an argument outside what is said above.
    """
    check_arguments(input_shape, num_classes, width=width)
    images, x = normalized_input(input_shape, mean, std)
    filters_and_strides = [(width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 1)]
    for index, (filters, strides) in enumerate(filters_and_strides, start=1):
        x = conv(x, filters, 3, strides, name=f"block{index}_conv")
        x = batch_norm_relu(x, name=f"block{index}")
    return keras.Model(images, classifier_head(x, num_classes), name="convnet")
