"""E(x, y) on the way of the training attack: where a collapsing network hides its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from der_tf import attacks, energy, figures
from der_tf.attacks.base import clean_logits
from der_tf.attacks.gradient import GradientAttack
from der_tf.training.batch import TrainingBatch

SHARES = np.linspace(0.0, 1.0, 21)  # of the way
PEAK = 0.1  # nats above the end, from which an energy inside counts as a peak


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """Joint energies of N images, in inference mode.

    Attributes:
        from_start: ``[len(SHARES), N]``, on the straight line from the attack's start to x*.
        from_natural: the same from x to x*.
        pgd: ``[N]``, of x* of PGD-10.
    """

    from_start: np.ndarray
    from_natural: np.ndarray
    pgd: np.ndarray

    @property
    def peaked(self) -> float:
        """Share of images whose energy, from the start on, is highest inside, by :data:`PEAK`."""
        return float(np.mean(self.from_start[1:-1].max(axis=0) > self.from_start[-1] + PEAK))


def way(
    model: Callable, attack: GradientAttack, images: np.ndarray, labels: np.ndarray, seed: int
) -> Way:
    """Energies on the way of an attack, taken as in training: its first run, its mode.

    Args:
        model: Keras model images ``[B, H, W, C]`` -> logits ``[B, K]``.
        attack: the training attack.
        images: ``[N, H, W, C]`` float32 in [0, 1], one batch.
        labels: ``[N]``.
        seed: of the start, and of PGD's.
    """
    batch = TrainingBatch(
        model,
        tf.constant(images),
        tf.constant(labels, tf.int32),
        attack=attack,
        seed=tf.constant([seed, 0], tf.int32),
        step=tf.zeros([]),
    )
    batch.run_attack()
    pgd = attacks.get("pgd", epsilon=attack.epsilon, norm=attack.norm, seed=seed)

    def energies(points: np.ndarray) -> np.ndarray:
        return energy.joint_energy(clean_logits(model, points, 128), labels).numpy()

    def line(origin: np.ndarray) -> np.ndarray:
        moved = batch.adversarial.numpy() - origin
        return np.stack([energies(origin + np.float32(share) * moved) for share in SHARES])

    return Way(
        from_start=line(batch.start.numpy()),
        from_natural=line(images),
        pgd=energies(np.asarray(pgd(model, images, labels))),
    )


@figures.style()
def energy_along_the_step(networks: Mapping[str, Way]) -> Figure:
    """How far energies lie above those of x over :data:`SHARES`, a panel a network.

    Lines are means over the images, bands hold the middle half of them.

    Args:
        networks: by their names.
    """
    figure, axes = figures.page(
        1, len(networks), height=3.2, width=max(4.5, 3.5 * len(networks)), sharey=True
    )
    for panel, (name, found) in zip(axes[0], networks.items(), strict=True):
        natural = found.from_natural[0]
        for energies, colour, style, label in (
            (found.from_start, figures.BLUE, "-", "from the attack's start to x*"),
            (found.from_natural, figures.VERMILLION, "--", "from x to x*"),
        ):
            values = energies - natural
            low, high = np.quantile(values, (0.25, 0.75), axis=1)
            panel.fill_between(SHARES, low, high, color=colour, alpha=0.15, lw=0)
            panel.plot(SHARES, values.mean(axis=1), style, color=colour, label=label)
        panel.axhline(
            (found.pgd - natural).mean(), color=figures.GREY, ls=":", label="x* of PGD-10"
        )
        panel.set(
            xlabel="share of the way",
            title=f"{name}: {100 * found.peaked:.0f} % with a peak inside",
        )
    axes[0, 0].set_ylabel("energy E(·, y) above that of x (nats)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
