"""PreActResNet-18, the network of most adversarial-training results on CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from der_tf.models.blocks import check_arguments, preactivation_network


def preact_resnet18(
    input_shape: Sequence[int],
    num_classes: int,
    width: int = 64,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> keras.Model:
    """PreActResNet-18 for small images, with its final batch norm (He et al., arXiv 1603.05027).

    Four stages of two pre-activation blocks with 1, 2, 4 and 8 times ``width`` filters; the first
    convolution is 3x3 with stride 1 and there is no max pooling. At width 64, 3 channels and 10
    classes it has 11,172,170 trainable parameters.

    Args:
        input_shape: (height, width, channels) of the images.
        num_classes: K, at least 2.
        width: filters of the first stage.
        mean: of the pixels, subtracted inside the network: one number or one a channel;
            default 0.5.
        std: of the pixels, divided by inside the network: likewise; default 0.25.

    Returns:
        A model from float32 images ``[B, H, W, C]`` in [0, 1] to float32 logits ``[B, K]``.

    Raises:
        ValueError: for an argument outside what is said above.
    """
    check_arguments(input_shape, num_classes, width=width)
    return preactivation_network(
        input_shape,
        num_classes,
        stem=width,
        stages=[(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)],
        blocks=2,
        mean=mean,
        std=std,
        name="preact_resnet18",
    )
