"""What the networks are built from: input normalisation, convolutions, pre-activation blocks.

Conventions follow the PyTorch networks of the adversarial-training literature, so that weights can
be carried over: convolutions have no bias, batch norm has momentum 0.9 (PyTorch's 0.1) and epsilon
1e-5, and a 3x3 convolution pads one pixel on *every* side. With stride 2 and an even size,
TensorFlow's ``padding="same"`` pads only below and to the right, which would shift every feature
map by a pixel: these convolutions pad explicitly instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

NORMALIZATION_MEAN = 0.5
NORMALIZATION_STD = 0.25  # about those of natural images; data sets bring their own


def check_arguments(input_shape: Sequence[int], num_classes: int, **positive: int) -> None:
    """Raises ValueError, in one sentence, for what no network can be built with."""
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(
            f"input_shape is (height, width, channels) in positive integers, received {shape}"
        )
    for name, value, least in [("num_classes", num_classes, 2)] + [
        (name, value, 1) for name, value in positive.items()
    ]:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is an integer of at least {least}, received {value!r}")


def normalized_input(
    input_shape: Sequence[int],
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
):
    """The images [B, H, W, C] in [0, 1] and their normalised form, (images - mean) / std.

    The normalisation stays in float32 under mixed precision: a perturbation of a pixel is smaller
    than what half precision resolves.

    Returns:
        The pair (input tensor, normalised tensor).
    """
    channels = input_shape[-1]
    means = _per_channel("mean", NORMALIZATION_MEAN if mean is None else mean, channels)
    stds = _per_channel("std", NORMALIZATION_STD if std is None else std, channels)
    if min(stds) <= 0:
        raise ValueError(f"std is positive for every channel, received {stds}")
    images = keras.Input(tuple(input_shape), dtype="float32", name="images")
    normalize = layers.Rescaling(
        scale=[1 / s for s in stds],
        offset=[-m / s for m, s in zip(means, stds, strict=True)],
        dtype="float32",
        name="normalization",
    )
    return images, normalize(images)


def _per_channel(name: str, values: Sequence[float] | float, channels: int) -> list[float]:
    if isinstance(values, int | float):
        return [float(values)] * channels
    values = [float(value) for value in values]
    if len(values) != channels:
        raise ValueError(
            f"{name} is one number or one for each of the {channels} channels, received {values}"
        )
    return values


def conv(x, filters: int, kernel_size: int, strides: int = 1, *, name: str):
    """A convolution without bias, padded by ``kernel_size // 2`` on every side."""
    # An initializer is made for each layer: one instance draws the same values at every call.
    initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    padding = "same"
    if strides > 1:
        padding = "valid"
        if kernel_size > 1:
            x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding,
        use_bias=False,
        kernel_initializer=initializer,
        name=name,
    )(x)


def batch_norm_relu(x, *, name: str):
    """Batch norm and ReLU, named ``{name}_bn`` and ``{name}_relu``."""
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def classifier_head(x, num_classes: int):
    """Global average pooling and a dense layer; float32 logits also under mixed precision.

    Weights start uniform in +-1/sqrt(features), biases at zero.
    """
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return layers.Dense(
        num_classes, kernel_initializer=initializer, dtype="float32", name="logits"
    )(x)


def preactivation_network(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    stem: int,
    stages: Sequence[tuple[int, int]],
    blocks: int,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    name: str,
) -> keras.Model:
    """A residual network of pre-activation blocks (He et al., arXiv 1603.05027).

    Args:
        stem: filters of the first convolution.
        stages: (filters, stride of the first block) of each stage.
        blocks: blocks in a stage.
    """
    images, x = normalized_input(input_shape, mean, std)
    x = conv(x, stem, 3, name="stem_conv")
    for stage, (filters, strides) in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            x = _preactivation_block(
                x, filters, strides if block == 1 else 1, name=f"stage{stage}_block{block}"
            )
    x = batch_norm_relu(x, name="final")
    return keras.Model(images, classifier_head(x, num_classes), name=name)


def _preactivation_block(x, filters: int, strides: int, *, name: str):
    activated = batch_norm_relu(x, name=f"{name}_1")
    if strides != 1 or x.shape[-1] != filters:
        shortcut = conv(activated, filters, 1, strides, name=f"{name}_shortcut")
    else:
        shortcut = x
    out = conv(activated, filters, 3, strides, name=f"{name}_1_conv")
    out = batch_norm_relu(out, name=f"{name}_2")
    out = conv(out, filters, 3, name=f"{name}_2_conv")
    return layers.Add(name=f"{name}_add")([out, shortcut])
