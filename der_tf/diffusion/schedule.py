"""The cosine schedule of noise levels, and steps along it: up by noise, down by DDIM.

Level t of x is x_t = sqrt(a_t) x + sqrt(1 - a_t) eps with eps ~ N(0, I); level 0 is x itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

LEVELS = 1000


def cosine_schedule(levels: int = LEVELS) -> np.ndarray:
    """a_t of Nichol and Dhariwal (2021), equation 17: the share of the signal at every level.

    a_t = f(t) / f(0) with f(t) = cos^2((t / T + s) / (1 + s) * pi / 2) and s = 0.008; the betas
    1 - a_t / a_(t-1) are at most 0.999, as theirs.

    Args:
        levels: T. Default :data:`LEVELS`.

    Returns:
        float64 ``[T + 1]``, from 1 at level 0 down to almost 0.
    """
    f = np.cos((np.arange(levels + 1) / levels + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


_SIGNAL = cosine_schedule()


def add_noise(x: tf.Tensor, noise: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """x_t, from images and noise ``[B, ...]`` and levels int ``[B]``."""
    shape = [-1] + [1] * (x.shape.rank - 1)
    signal = tf.reshape(tf.gather(tf.constant(_SIGNAL), t), shape)
    return tf.cast(tf.sqrt(signal), x.dtype) * x + tf.cast(tf.sqrt(1 - signal), x.dtype) * noise


def levels_down(level: int, steps: int) -> list[int]:
    """``steps + 1`` levels from ``level`` to 0, in equal steps up to rounding."""
    return [int(t) for t in np.round(np.linspace(level, 0, steps + 1))]


def ddim(
    denoiser: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, levels: Sequence[int]
) -> tf.Tensor:
    """Deterministic DDIM steps (Song et al., 2021, equation 12 with sigma = 0).

    Args:
        denoiser: ``eps(x_t, t)``.
        x: ``[B, ...]`` at the first of the levels.
        levels: decreasing.

    Returns:
        ``[B, ...]`` at the last of the levels.
    """
    for t, s in itertools.pairwise(levels):
        noise = tf.cast(denoiser(x, tf.fill([tf.shape(x)[0]], t)), x.dtype)
        clean = (x - np.sqrt(1 - _SIGNAL[t]) * noise) / np.sqrt(_SIGNAL[t])
        x = np.sqrt(_SIGNAL[s]) * clean + np.sqrt(1 - _SIGNAL[s]) * noise
    return x


def purify(
    denoiser: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    noise: tf.Tensor,
    level: int,
    steps: int,
) -> tf.Tensor:
    """SDEdit (Meng et al., 2022): images taken up to a level by noise and back down by DDIM.

    Args:
        denoiser: ``eps(x_t, t)``.
        images: ``[B, H, W, C]`` float32 in [0, 1].
        noise: ``[B, H, W, C]`` standard normal.
        level: K in 0..:data:`LEVELS`; at 0 images stay as they are.
        steps: DDIM steps, at most K.

    Returns:
        ``[B, H, W, C]`` float32 in [0, 1].
    """
    if level == 0:
        return images
    noisy = add_noise(2 * images - 1, noise, tf.fill([tf.shape(images)[0]], level))
    return tf.clip_by_value((ddim(denoiser, noisy, levels_down(level, steps)) + 1) / 2, 0.0, 1.0)
