"""What pictures share: colours that everybody can tell apart, sizes for print, how to save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from der_tf.files import replacing

# Okabe and Ito (2008), without the yellow that is faint on white.
BLUE, VERMILLION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY = "#666666"  # of what is there to compare with
COLOURS = (BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY, BLACK)
SURFACE = "cividis"  # of matplotlib's maps, the one made for colour-blind eyes
WIDTH = 7.0  # inches: the text width of a page, so that letters are printed at their size
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sizes of letters, for the block or (as ``@style()``) the function that draws."""
    with mpl.rc_context(_STYLE):
        yield


def page(
    rows: int = 1, columns: int = 1, *, height: float, width: float = WIDTH, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with ``[rows, columns]`` axes.

    Args:
        height: inches.
        width: inches. Default: that of a page.
        options: of ``Figure.subplots``, such as ``sharey=True``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all, at 150 dots an inch; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
