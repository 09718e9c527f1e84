"""Figures over the epochs: dE(x) against robust error, abnormal samples, gradient alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from der_tf import figures
from der_tf.analysis.runs import Run

PANELS = 3  # side by side


@figures.style()
def energy_and_error(runs: Sequence[Run]) -> Figure:
    """The mean dE(x) of training samples and the robust validation error, a panel a run.

    Both axes have one scale over the runs, without the first twentieth of the epochs: an untrained
    network's delta energies can be a hundred times those to come. Where energies.csv has single
    samples' quantiles, the band is the middle half of them; older runs show metrics.csv's mean over
    training batches.
    """
    columns = min(len(runs), PANELS)
    rows = -(-len(runs) // columns)
    figure, axes = figures.page(rows, columns, height=2.7 * rows + 0.5, sharex=True, sharey=True)
    panels = axes.flatten()
    for spare in panels[len(runs) :]:
        spare.set_axis_off()
    named: dict[Any, Any] = {}
    errors = [100 * (1 - run.curve("val_robust_accuracy")) for run in runs]
    error_scale = _scale(errors)
    drawn: list[Any] = []
    for place, (run, error, left) in enumerate(zip(runs, errors, panels, strict=False)):
        curve = run.energy_curve("delta_marginal_energy_mean")
        if curve is not None:
            _, low = run.energy_curve("delta_marginal_energy_q25")  # type: ignore[misc]
            _, high = run.energy_curve("delta_marginal_energy_q75")  # type: ignore[misc]
            left.fill_between(
                curve[0],
                low,
                high,
                color=figures.BLUE,
                alpha=0.2,
                lw=0,
                label="middle half of dE(x)",
            )
            drawn += [low, high]
        else:
            curve = run.epochs, run.curve("delta_marginal_energy")
        drawn.append(curve[1])
        left.plot(*curve, color=figures.BLUE, marker=_marker(curve[0]), label="mean dE(x)")
        left.axhline(0, color="grey", lw=0.6)
        right = left.twinx()
        right.plot(
            run.epochs,
            error,
            color=figures.VERMILLION,
            ls="--",
            marker=_marker(run.epochs),
            label="robust validation error (PGD)",
        )
        right.set_ylim(error_scale)
        best = right.axvline(run.epochs[run.best], color="grey", ls=":", lw=1, label="best epoch")
        last_column = place % columns == columns - 1 or place == len(runs) - 1
        left.set(xlabel="epoch", title=run.name)
        left.tick_params(axis="y", labelcolor=figures.BLUE, labelleft=place % columns == 0)
        right.tick_params(axis="y", labelcolor=figures.VERMILLION, labelright=last_column)
        if place % columns == 0:
            left.set_ylabel("dE(x) on the training set (nats)", color=figures.BLUE)
        if last_column:
            right.set_ylabel("robust validation error (%)", color=figures.VERMILLION)
        for handle in (*left.get_legend_handles_labels()[0], right.lines[0], best):
            named[handle.get_label()] = handle
    panels[0].set_ylim(_scale([[0.0], *drawn]))
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
    return figure


def _scale(curves: Sequence[Any]) -> tuple[float, float]:
    """Limits that hold the curves but for the first twentieth of each, with a margin."""
    values = np.concatenate([np.asarray(curve)[len(curve) // 20 :] for curve in curves])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


@figures.style()
def abnormality(runs: Sequence[Run]) -> Figure:
    """Share of abnormal samples, and alignment of gradients, over the epochs; a colour a run."""
    aligned = any(run.energies for run in runs)
    figure, axes = figures.page(1, 2 if aligned else 1, height=3.2)
    shares = axes[0, 0]
    for run, colour in zip(runs, figures.COLOURS, strict=False):
        curves = [run.energy_curve("abnormal_fraction", attack) for attack in ("training", "pgd")]
        if None in curves:
            curves = [
                (run.epochs, run.curve(name))
                for name in ("abnormal_fraction", "val_abnormal_fraction")
            ]
        for curve, style, attack in zip(
            curves, ("-", "--"), ("training attack", "PGD"), strict=True
        ):
            epochs, values = curve  # type: ignore[misc]
            shares.plot(
                epochs,
                100 * values,
                style,
                color=colour,
                marker=_marker(epochs),
                label=f"{run.name}, {attack}",
            )
        alignment = run.energy_curve("gradient_alignment")
        if alignment is not None:
            axes[0, 1].plot(*alignment, color=colour, marker=_marker(alignment[0]), label=run.name)
    shares.set(xlabel="epoch", ylabel="abnormal samples (%)", ylim=(-2, 102))
    if aligned:
        axes[0, 1].set(
            xlabel="epoch", ylabel="gradient alignment (mean cosine)", ylim=(-0.05, 1.05)
        )
        axes[0, 1].axhline(0, color="grey", lw=0.6)
    for panel in axes.flatten():
        panel.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = shares.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _marker(epochs: np.ndarray) -> str | None:
    """Points where there are so few that lines would not show them."""
    return "." if len(epochs) <= 20 else None
