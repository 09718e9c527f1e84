"""Image folders: ``train/CLASS/*`` and, if there, ``val/CLASS/*``; checked before training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_READABLE = ("JPEG", "MPO", "PNG", "BMP")  # what TensorFlow decodes, by content
_JPEG_END = b"\xff\xd9"
_TAIL = 65536  # bytes at the end of a JPEG in which its end marker is looked for
_CHUNK = 4096
Result = TypeVar("Result")


def find(part: Path, class_names: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The images of one part.

    Args:
        part: a folder of class folders. Files that are not named like images are passed over.
        class_names: of the training part, None for the training part itself.

    Returns:
        paths ``[N]`` of str, class by class and sorted, and labels ``[N]`` int64.
    """
    if not part.is_dir():
        raise ValueError(f"an image folder has its images in train/CLASS/*, {part} is missing")
    folders = classes(part)
    if not folders:
        raise ValueError(f"{part} has no class folder: images lie in {part / 'CLASS'}")
    known = folders if class_names is None else list(class_names)
    paths: list[str] = []
    labels: list[int] = []
    for name in folders:
        if name not in known:
            raise ValueError(f"{part} has a class {name!r} that the training part has not")
        files = sorted(p for p in (part / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"{part / name} holds no image ({', '.join(SUFFIXES)})")
        paths += map(str, files)
        labels += [known.index(name)] * len(files)
    return np.array(paths), np.array(labels, np.int64)


def classes(part: Path) -> list[str]:
    """Names of the class folders, sorted; hidden folders are passed over."""
    return sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))


def common_size(paths: np.ndarray, samples: int = 64) -> int | None:
    """The side of the images if all of an even sample are squares of one size, else None."""
    chosen = paths[np.linspace(0, len(paths) - 1, min(samples, len(paths))).astype(int)]
    sizes = set()
    for path in chosen:
        with _opened(path) as image:
            sizes.add(image.size)
    width, height = sizes.pop()
    return width if not sizes and width == height else None


def read_all(paths: np.ndarray, size: int) -> np.ndarray:
    """Decodes every image, as RGB, its middle square resized to ``size``.

    Returns:
        ``[N, size, size, 3]`` uint8.

    Raises:
        ValueError: naming the first file that does not decode.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def read(path: str) -> np.ndarray:
        try:
            with _opened(path) as image:
                picture = _eight_bits(image).convert("RGB")
            fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
            raise _corrupt(path, error) from error
        return np.asarray(fitted)

    for index, image in enumerate(_in_threads(read, paths)):
        images[index] = image
    return images


def check(paths: np.ndarray) -> None:
    """Looks at head and end of every file, without decoding it.

    Finds files that are no image, empty, cut off, or in a format TensorFlow does not decode;
    not damage in the middle of a JPEG.

    Raises:
        ValueError: naming the first such file.
    """

    def look(path: str) -> None:
        with _opened(path) as image:
            form = image.format
            try:
                if form != "JPEG" and form != "MPO":
                    image.verify()  # checksums of a PNG
            except (OSError, SyntaxError) as error:
                raise _corrupt(path, error) from error
        if form not in _READABLE:
            raise ValueError(f"{path} is a {form} image; accepted are JPEG, PNG and BMP")
        if form in ("JPEG", "MPO"):
            with open(path, "rb") as file:
                file.seek(max(0, os.path.getsize(path) - _TAIL))
                if _JPEG_END not in file.read():
                    raise _corrupt(path, "the JPEG is cut off")

    for _ in _in_threads(look, paths):
        pass


def _opened(path: str) -> Image.Image:
    try:
        return Image.open(str(path))  # an np.str_ would show as such in the error
    except (OSError, SyntaxError) as error:
        raise _corrupt(path, error) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey by its high byte, as TensorFlow decodes it; Pillow would clip it to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _corrupt(path: str, reason: object) -> ValueError:
    return ValueError(f"{path} is not a readable image: {reason}")


def _in_threads(function: Callable[[str], Result], paths: np.ndarray) -> Iterator[Result]:
    """Maps in order; by chunks, so that a failure does not wait for the rest."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(function, paths[start : start + _CHUNK])
