"""Image files to arrays and back, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from serve.client.signatures import Metadata

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TILE = 64  # smaller images are enlarged to about this many pixels in a grid


def read(paths: Sequence[Path], metadata: Metadata, signature: str) -> np.ndarray:
    """Files as ``[B, H, W, C]`` float32 in [0, 1], resized (bilinear) to the model's images.

    Raises:
        ValueError: the model takes no such images.
    """
    entry = metadata.signatures.get(signature)
    spec = entry.inputs.get("images") if entry else None
    if spec is None or spec.shape is None or len(spec.shape) != 4:
        raise ValueError(
            f"model {metadata.model} has no signature {signature!r} that takes images "
            f"[B, H, W, C]; its signatures are {', '.join(metadata.signatures)}"
        )
    _, height, width, channels = spec.shape
    if channels is None or channels not in _MODES:
        raise ValueError(f"model {metadata.model} takes {spec}: not the channels of image files")
    arrays = []
    for path in paths:
        with Image.open(path) as image:
            picture = _eight_bits(image).convert(_MODES[channels])
        if height and width and picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, np.float32) / 255
        arrays.append(pixels.reshape(*pixels.shape[:2], -1))
    return np.stack(arrays)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey by its high byte, as the server decodes it; Pillow would clip it to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _to_image(pixels: np.ndarray) -> Image.Image:
    values = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def write_grid(path: Path, images: np.ndarray, columns: int | None) -> None:
    """Write ``[B, H, W, C]`` images as one picture, ``columns`` wide or near square."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    scale = max(1, _TILE // max(height, width))
    gap = 2
    cell_height, cell_width = height * scale + gap, width * scale + gap
    grid = np.ones((rows * cell_height + gap, columns * cell_width + gap, channels), np.float32)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * cell_height + gap, column * cell_width + gap
        tile = image.repeat(scale, 0).repeat(scale, 1)
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    _to_image(grid).save(path)


def write_each(folder: Path, sources: Sequence[Path], images: np.ndarray) -> list[Path]:
    """Write each image as ``NAME.png`` after its source; a repeated name gets a number."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for source, image in zip(sources, images, strict=True):
        path = folder / f"{source.stem}.png"
        number = 2
        while path in written:
            path = folder / f"{source.stem}-{number}.png"
            number += 1
        _to_image(image).save(path)
        written.append(path)
    return written
