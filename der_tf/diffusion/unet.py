"""A small U-Net that predicts noise (Ho et al., *Denoising diffusion*, 2020), in plain Keras."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from der_tf.models.blocks import check_arguments


@keras.saving.register_keras_serializable("der_tf.diffusion")
class LevelEmbedding(layers.Layer):
    """Levels int ``[B]`` as sines and cosines ``[B, size]`` of geometric frequencies."""

    def __init__(self, size: int, **config) -> None:
        super().__init__(**config)
        self.size = size

    def call(self, levels):
        frequencies = np.exp(-np.log(10_000) * np.arange(self.size // 2) / (self.size // 2))
        angles = keras.ops.cast(levels, "float32")[:, None] * frequencies[None].astype("float32")
        return keras.ops.concatenate([keras.ops.sin(angles), keras.ops.cos(angles)], axis=1)

    def get_config(self) -> dict:
        return {**super().get_config(), "size": self.size}


def unet(input_shape: Sequence[int], width: int = 32) -> keras.Model:
    """A residual U-Net over three resolutions of ``width``, ``2 width`` and ``2 width`` filters.

    At width 32 it has about 500,000 parameters.

    Args:
        input_shape: (height, width, channels) of the images; the first two are multiples of 4.
        width: filters at the full resolution. Default 32.

    Returns:
        A model from noisy images ``[B, H, W, C]`` (images in [-1, 1] plus noise) and their levels
        int32 ``[B]`` to the noise in them, float32 ``[B, H, W, C]``.

    Raises:
        ValueError: for an argument outside what is said above.
    """
    check_arguments(input_shape, 2, width=width)
    if input_shape[0] % 4 or input_shape[1] % 4:
        raise ValueError(
            "a U-Net takes images whose sides are multiples of 4; received images of shape "
            f"{tuple(input_shape)}"
        )
    images = keras.Input(tuple(input_shape), dtype="float32", name="images")
    levels = keras.Input((), dtype="int32", name="levels")
    embedding = layers.Dense(4 * width, "silu", name="embedding_1")(
        LevelEmbedding(2 * width, name="embedding")(levels)
    )
    embedding = layers.Dense(4 * width, "silu", name="embedding_2")(embedding)

    x = _conv(width, name="stem")(images)
    kept = []
    for number, filters in enumerate([width, 2 * width], start=1):
        x = _residual_block(x, embedding, filters, name=f"down{number}")
        kept.append(x)
        x = _conv(filters, strides=2, name=f"down{number}_halve")(x)
    x = _residual_block(x, embedding, 2 * width, name="bottom_1")
    x = _residual_block(x, embedding, 2 * width, name="bottom_2")
    for number, filters in [(2, 2 * width), (1, width)]:
        x = layers.UpSampling2D(name=f"up{number}_double")(x)
        x = layers.Concatenate(name=f"up{number}_concatenate")([x, kept.pop()])
        x = _residual_block(x, embedding, filters, name=f"up{number}")
    x = _norm_silu(x, name="final")
    noise = _conv(input_shape[-1], kernel_initializer="zeros", name="noise")(x)
    return keras.Model([images, levels], noise, name="unet")


def _conv(filters: int, **config) -> layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", **config)


def _norm_silu(x, *, name: str):
    # One group: Keras takes three times as long for several, longer than for the convolutions.
    x = layers.GroupNormalization(1, name=f"{name}_norm")(x)
    return layers.Activation("silu", name=f"{name}_silu")(x)


def _residual_block(x, embedding, filters: int, *, name: str):
    shortcut = x
    if x.shape[-1] != filters:
        shortcut = layers.Conv2D(filters, 1, name=f"{name}_shortcut")(x)
    out = _conv(filters, name=f"{name}_1_conv")(_norm_silu(x, name=f"{name}_1"))
    shift = layers.Dense(filters, name=f"{name}_level")(embedding)
    out = layers.Add(name=f"{name}_shifted")([out, layers.Reshape((1, 1, filters))(shift)])
    # Each block begins as the identity, which makes deep stacks train from the first step.
    out = _conv(filters, kernel_initializer="zeros", name=f"{name}_2_conv")(
        _norm_silu(out, name=f"{name}_2")
    )
    return layers.Add(name=f"{name}_add")([out, shortcut])
