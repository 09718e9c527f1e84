"""Pictures of an evaluation: accuracy against epsilon and steps, energies of the attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from der_tf import figures
from der_tf.evaluation.results import AttackResult, Evaluation
from der_tf.figures import BLUE, GREEN, GREY, VERMILLION

LINF_UNIT, L2_UNIT = "pixels of [0, 1]", "l2 norm in pixels of [0, 1]"


@figures.style()
def draw(
    folder: Path,
    evaluation: Evaluation,
    targeted: AttackResult,
    curves: dict[str, Any],
    ball: tuple[str, float],
) -> list[str]:
    """Write the three pictures of a suite into a folder; their file names.

    Args:
        folder: made when needed.
        evaluation: of the suite.
        targeted: PGD towards random classes.
        curves: those of :class:`~der_tf.evaluation.diagnosis.Diagnosis`.
        ball: norm and radius of the suite.
    """
    pictures = {
        "accuracy-epsilon.png": _against_epsilon(curves, ball),
        "accuracy-steps.png": _against_steps(curves),
        "energies.png": _energies(evaluation, targeted, curves["images"]),
    }
    for name, figure in pictures.items():
        figures.save(figure, folder / name)
    return list(pictures)


def _against_epsilon(curves: dict[str, Any], ball: tuple[str, float]) -> Figure:
    figure, ((axes,),) = figures.page(width=5.5, height=3.8)
    norm, epsilon = ball
    _accuracy(axes, curves["epsilon"], "epsilon")
    axes.axvline(epsilon, color=GREY, linestyle=":", label="epsilon of the suite")
    unit = LINF_UNIT if norm == "linf" else L2_UNIT
    axes.set(xlabel=f"epsilon ({norm}, {unit})", title=f"PGD-20, {curves['images']:,} images")
    axes.legend()
    return figure


def _against_steps(curves: dict[str, Any]) -> Figure:
    points = curves["steps"]
    figure, ((axes, losses),) = figures.page(1, 2, width=9, height=3.8)
    _accuracy(axes, points, "steps")
    steps = [point["steps"] for point in points]
    losses.plot(steps, [p["cross_entropy"] for p in points], color=VERMILLION, marker="o")
    losses.set_ylabel("mean cross-entropy (nats)")
    figure.suptitle(f"PGD from one uniform start, {curves['images']:,} images")
    for panel in (axes, losses):
        panel.set(xscale="log", xlabel="steps of PGD")
        panel.set_xticks(steps, [str(n) for n in steps])
        panel.minorticks_off()
    axes.legend()
    return figure


def _accuracy(axes: Axes, points: list[dict[str, Any]], along: str) -> None:
    points = sorted(points, key=lambda point: point[along])
    at = [point[along] for point in points]
    low, high = (100 * np.array([point["interval"][end] for point in points]) for end in (0, 1))
    axes.fill_between(at, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    accuracies = [100 * point["accuracy"] for point in points]
    axes.plot(at, accuracies, color=BLUE, marker="o", label="accuracy")
    axes.set(ylabel="accuracy (%)", ylim=(0, 100))


def _energies(evaluation: Evaluation, targeted: AttackResult, images: int) -> Figure:
    """Distributions of four energies, a row an attack, natural images on top."""
    attacks = {**evaluation.attacks, f"pgd-20 targeted\n({images:,} images)": targeted}
    rows = ["natural", *attacks]
    panels = {
        "E(x*)": ("marginal_energy", evaluation.natural.marginal_energy),
        "E(x*, y)": ("joint_energy", evaluation.natural.joint_energy),
        "dE(x) = E(x) - E(x*)": ("delta_marginal_energy", None),
        "dE(x, y) = E(x, y) - E(x*, y)": ("delta_joint_energy", None),
    }
    height = 1.6 + 0.45 * len(rows)
    figure, (every,) = figures.page(1, 4, width=13, height=height, sharey=True)
    for axes, (title, (field, natural)) in zip(every, panels.items(), strict=True):
        if natural is not None:
            axes.axvline(np.median(natural), color=GREY, linewidth=0.8, linestyle=":")
            _distribution(axes, 0, natural, GREY)
        else:
            axes.axvline(0, color=GREY, linewidth=0.8)
        for row, result in enumerate(attacks.values(), start=1):
            _distribution(axes, row, getattr(result, field), GREEN if row == len(attacks) else BLUE)
        axes.set(title=title, xlabel="energy (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    every[0].set_yticks(range(len(rows)), rows)
    every[0].invert_yaxis()
    figure.suptitle(
        f"Energies of the attacks, {evaluation.size:,} images; bars: medians; "
        "dotted: median of the natural images"
    )
    return figure


def _distribution(axes: Axes, row: int, values: np.ndarray, colour: str) -> None:
    if np.ptp(values) > 1e-6:  # else there is no density to estimate
        at = np.linspace(values.min(), values.max(), 200)
        density = stats.gaussian_kde(values)(at)
        half = 0.45 * density / density.max()
        axes.fill_between(at, row - half, row + half, color=colour, alpha=0.45, linewidth=0)
    axes.plot(np.median(values), row, marker="|", markersize=14, markeredgewidth=2, color=colour)
