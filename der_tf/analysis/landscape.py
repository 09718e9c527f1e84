"""The cross-entropy around images, along the attack's direction and a random one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from der_tf import attacks, energy, figures
from der_tf.attacks import geometry
from der_tf.attacks.base import clean_logits

# Coordinates in steps of the attack: x is 0, its x* is 1.
ALONG = np.linspace(-0.5, 1.5, 41)
ACROSS = np.linspace(-1.0, 1.0, 21)
LINES = 8  # of equal loss
PIXELS_AT_A_TIME = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """The plane through an image that is spanned by an attack and a random direction.

    Attributes:
        image: ``[H, W, C]`` in [0, 1].
        label: its class.
        attack: ``[H, W, C]``, x* - x of FGSM.
        random: ``[H, W, C]``, x + random is a random corner of the l-inf ball (point of the l2
            sphere) clipped to [0, 1].
    """

    image: np.ndarray
    label: int
    attack: np.ndarray
    random: np.ndarray


def planes(
    model: Callable, images: np.ndarray, labels: np.ndarray, epsilon: float, norm: str, seed: int
) -> list[Plane]:
    """A plane an image.

    FGSM from x itself is the direction in which single-step training walks, and needs no draw.

    Args:
        model: images ``[B, H, W, C]`` -> logits ``[B, K]``.
        images: ``[N, H, W, C]`` float32 in [0, 1].
        labels: ``[N]``.
        epsilon: radius in pixels of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        seed: of the random directions.
    """
    moved = attacks.get("fgsm", epsilon=epsilon, norm=norm)(model, images, labels)
    draws = tf.random.stateless_normal(tf.shape(images), [seed, 0])
    elsewhere = tf.clip_by_value(images + geometry.steepest_step(draws, epsilon, norm), 0.0, 1.0)
    return [
        Plane(image=image, label=int(label), attack=attack, random=random)
        for image, label, attack, random in zip(
            images, labels, moved.numpy() - images, elsewhere.numpy() - images, strict=True
        )
    ]


def surface(
    model: Callable, plane: Plane, along: np.ndarray = ALONG, across: np.ndarray = ACROSS
) -> np.ndarray:
    """Cross-entropy at clip(x + a attack + b random, 0, 1) for a in ``along`` and b in ``across``.

    Between x and x* nothing is clipped.

    Returns:
        ``[len(across), len(along)]`` float32, in nats.
    """
    b, a = np.meshgrid(across, along, indexing="ij")
    points = plane.image + (
        a[..., None, None, None] * plane.attack + b[..., None, None, None] * plane.random
    )
    points = np.clip(points, 0, 1).astype(np.float32).reshape(-1, *plane.image.shape)
    logits = clean_logits(model, points, max(1, PIXELS_AT_A_TIME // plane.image.size))
    losses = energy.cross_entropy(logits, np.full(len(points), plane.label)).numpy()
    return losses.reshape(len(across), len(along))


@figures.style()
def loss_landscape(
    surfaces: Mapping[str, list[np.ndarray]], labels: list[str], epsilon: str
) -> Figure:
    """Surfaces over :data:`ALONG` and :data:`ACROSS`, and their profiles along the attack.

    Args:
        surfaces: of the same images for each network, by the networks' names.
        labels: of the images.
        epsilon: the radius as text.
    """
    networks = list(surfaces)
    images = len(labels)
    figure, axes = figures.page(
        len(networks) + 1, images, height=2.0 * len(networks) + 2.9, sharex=True, sharey="row"
    )
    largest = max(float(np.max(found)) for every in surfaces.values() for found in every)
    for row, network in zip(axes, networks, strict=False):
        for panel, found in zip(row, surfaces[network], strict=True):
            drawn = panel.pcolormesh(
                ALONG, ACROSS, found, cmap=figures.SURFACE, vmin=0, vmax=largest, shading="gouraud"
            )
            panel.contour(ALONG, ACROSS, found, LINES, colors="white", linewidths=0.4)
            panel.plot([0, 1], [0, 0], color="white", lw=1)
            panel.plot(0, 0, "o", color="white", mec="black", ms=5)
            panel.plot(1, 0, "s", color="white", mec="black", ms=5)
        row[0].set_ylabel(f"{network}\nrandom direction (ε)")
    figure.colorbar(drawn, ax=axes[:-1, :], label="cross-entropy (nats)", pad=0.01)
    middle = len(ACROSS) // 2
    for place, (panel, label) in enumerate(zip(axes[-1], labels, strict=True)):
        for number, network in enumerate(networks):
            panel.plot(
                ALONG,
                surfaces[network][place][middle],
                color=figures.COLOURS[number],
                ls=("-", "--")[number % 2],
                label=network,
            )
        for x, marker in ((0, "o"), (1, "s")):
            panel.axvline(x, color="grey", ls=":", lw=1)
            panel.plot(x, 0, marker, color="white", mec="black", ms=5, clip_on=False, zorder=3)
        panel.set(xlabel=f"attack direction (ε = {epsilon})", xticks=[0, 0.5, 1])
        axes[0, place].set_title(label)
    axes[-1, 0].set(ylabel="cross-entropy (nats)\nalong the attack")
    axes[-1, 0].set_ylim(bottom=0)
    lines: list[Any] = axes[-1, 0].get_legend_handles_labels()[0]
    points = axes[0, 0].lines[1:]
    names = [*networks, "natural image x", "x* of FGSM, at ε"]
    figure.legend([*lines, *points], names, loc="outside lower center", ncols=4)
    return figure
