"""Wide residual networks: WRN-28-10, WRN-34-10 and any other depth and width."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from der_tf.models.blocks import check_arguments, preactivation_network


def wide_resnet(
    depth: int,
    width: int,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> keras.Model:
    """WRN-depth-width without dropout (Zagoruyko and Komodakis, arXiv 1605.07146).

    Three stages of ``(depth - 4) / 6`` pre-activation blocks with 16, 32 and 64 times ``width``
    filters. With 3 channels and 10 classes, WRN-28-10 has 36,479,194 and WRN-34-10 46,160,474
    trainable parameters.

    Args:
        depth: number of convolutions, 6 n + 4: 10, 16, 22, 28, 34, ...
        width: widening factor k.
        input_shape: (height, width, channels) of the images.
        num_classes: K, at least 2.
        mean: of the pixels, subtracted inside the network: one number or one a channel;
            default 0.5.
        std: of the pixels, divided by inside the network: likewise; default 0.25.

    Returns:
        A model from float32 images ``[B, H, W, C]`` in [0, 1] to float32 logits ``[B, K]``.

    Raises:
        ValueError: for an argument outside what is said above.
    """
    check_arguments(input_shape, num_classes, depth=depth, width=width)
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(
            f"the depth of a wide ResNet is 6 n + 4 (10, 16, 22, 28, 34, ...), received {depth}"
        )
    return preactivation_network(
        input_shape,
        num_classes,
        stem=16,
        stages=[(16 * width, 1), (32 * width, 2), (64 * width, 2)],
        blocks=(depth - 4) // 6,
        mean=mean,
        std=std,
        name=f"wide_resnet_{depth}_{width}",
    )
