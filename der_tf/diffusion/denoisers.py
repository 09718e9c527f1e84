"""Denoisers ``eps(x_t, t)``: Keras models, files of them, any callables."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import der_tf.diffusion.unet  # noqa: F401 (registers what a .keras file may hold)

Denoiser = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def load_denoiser(path: str | os.PathLike[str]) -> keras.Model:
    """The denoiser in a .keras file; a file that has not changed is read once.

    Raises:
        ValueError: when there is none, or it cannot be read.
    """
    path = os.fspath(path)
    if not path.endswith(".keras") or not os.path.isfile(path):
        raise ValueError(f"a denoiser is a .keras file; received {path}: no such file")
    return _load(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: str, modified: int) -> keras.Model:
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    if len(model.inputs) != 2 or model.inputs[0].shape != model.output_shape:
        raise ValueError(
            f"{path} is no denoiser: that takes images and levels and gives noise of the images' "
            f"shape; received inputs {[i.shape for i in model.inputs]} and output "
            f"{model.output_shape}"
        )
    return model


def as_function(denoiser: Any) -> Denoiser:
    """A denoiser as a function of two arguments; a Keras model runs in inference mode.

    The function raises ValueError for images that the Keras model does not take.
    """
    if not isinstance(denoiser, keras.Model):
        return denoiser

    def predict(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        wanted = denoiser.inputs[0].shape[1:]
        if not x.shape[1:].is_compatible_with(wanted):
            raise ValueError(
                f"the denoiser takes images of shape {wanted}; received {tuple(x.shape[1:])}"
            )
        return denoiser([x, t], training=False)

    return predict
