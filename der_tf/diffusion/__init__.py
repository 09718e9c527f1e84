"""A diffusion prior: the schedule of noise levels, steps along it, and a small denoiser.

Images are float32 ``[B, H, W, C]`` in [-1, 1] here, twice those of the rest of the package less 1.
A denoiser is any callable ``eps(x_t, t)``: noisy images and their levels, int ``[B]`` in
1..:data:`LEVELS`, to the noise in them, standard normal, ``[B, H, W, C]``.
"""

from der_tf.diffusion.denoisers import Denoiser, as_function, load_denoiser
from der_tf.diffusion.schedule import (
    LEVELS,
    add_noise,
    cosine_schedule,
    ddim,
    levels_down,
    purify,
)
from der_tf.diffusion.unet import unet

__all__ = [
    "LEVELS",
    "Denoiser",
    "add_noise",
    "as_function",
    "cosine_schedule",
    "ddim",
    "levels_down",
    "load_denoiser",
    "purify",
    "unet",
]
