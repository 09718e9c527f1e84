"""Samples as files to look at: PNGs, a labelled grid, energies on the way, an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from der_tf.files import replacing

FRAME_MILLISECONDS = 80


def to_picture(image: np.ndarray) -> Image.Image:
    """``[H, W, C]`` in [0, 1] with C of 1 or 3 as 8 bits.

    Raises:
        ValueError: for other channels, which PNG does not have.
    """
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; received an image of {image.shape}")
    levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if image.shape[-1] == 1 else levels)


def save_png(path: Path, image: np.ndarray) -> None:
    """Write one picture, whole or not at all."""
    picture = to_picture(image)
    with replacing(path) as temporary:
        picture.save(temporary)


def load_png(path: Path) -> np.ndarray:
    """float32 ``[H, W, C]`` in [0, 1] of what :func:`save_png` wrote."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture, np.float32) / np.float32(255)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def tiled(images: np.ndarray) -> np.ndarray:
    """``[rows, columns, H, W, C]`` as one image, white lines between; enlarged if small."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    rows, columns, height, width, channels = padded.shape
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    zoom = max(1, 64 // images.shape[2])
    return whole.repeat(zoom, axis=0).repeat(zoom, axis=1)


def save_grid(path: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """A row of images a class, ``[K, columns, H, W, C]``, with the class's name before it."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(0.9 * columns + 1.6, 0.9 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for y, row in enumerate(axes):
        for x, axis in enumerate(row):
            axis.imshow(np.asarray(to_picture(images[y, x])), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(names[y], rotation=0, ha="right", va="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def save_traces(
    path: Path,
    joint_energy: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    reference_energies: np.ndarray | None,
) -> None:
    """Joint energies of chains against steps, ``[T + 1, B]``, and the references dashed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for place, label in enumerate(np.unique(labels)):
        chains = joint_energy[:, labels == label]
        color = f"C{place % 10}"
        # A chain of no steps is one point, which no line shows.
        lines = axis.plot(chains, color=color, lw=1, marker="." if len(chains) == 1 else "")
        lines[0].set_label(names[label])
        if reference_energies is not None:
            axis.axhline(reference_energies[label], color=color, ls="--", lw=0.7)
    references = "" if reference_energies is None else " (dashed: where chains stop)"
    axis.set(xlabel="step", ylabel=f"joint energy E(x, y){references}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(fontsize="small", ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def save_animation(path: Path, frames: np.ndarray) -> None:
    """A GIF of grids, ``[T, rows, columns, H, W, C]``; the last one stays a second."""
    pictures = [to_picture(tiled(frame)) for frame in frames]
    durations = [FRAME_MILLISECONDS] * (len(pictures) - 1) + [1000]
    with replacing(path) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
