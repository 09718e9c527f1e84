"""Figures of single samples: E(x) beside dE(x), and energies of natural and attacked images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from der_tf import figures
from der_tf.analysis.runs import Run
from der_tf.attacks import FGSM, PGD, Attack
from der_tf.evaluation import Evaluation
from der_tf.evaluation.diagnosis import RandomTargetPGD

# Names in the order of the legend: what is drawn how.
_STYLES = {
    "natural": (figures.BLACK, "-"),
    "FGSM": (figures.BLUE, "--"),
    "PGD": (figures.VERMILLION, "-."),
    "targeted PGD": (figures.GREEN, ":"),
}
ATTACKS = tuple(_STYLES)[1:]


def chosen_epochs(run: Run, wanted: Sequence[int] | None) -> list[int]:
    """Epochs of a run whose samples are to be drawn.

    Args:
        wanted: epochs that are drawn where the run has them; None: its first, middle, best and
            last one.
    """
    there = sorted(run.samples)
    if wanted is not None:
        return [epoch for epoch in wanted if epoch in run.samples]
    middle = there[(len(there) - 1) // 2] if there else 0
    best = int(run.epochs[run.best])
    return [e for e in there if e in (there[0], middle, best, there[-1])]


@figures.style()
def joint_distribution(run: Run, epochs: Sequence[int]) -> Figure:
    """E(x) against dE(x) of the training samples under the training attack, a panel an epoch.

    Args:
        epochs: from :func:`chosen_epochs`, at least one.
    """
    columns = min(len(epochs), 4)
    rows = -(-len(epochs) // columns)
    figure, axes = figures.page(rows, columns, height=2.5 * rows + 0.7, sharex=True, sharey=True)
    panels = axes.flatten()
    for spare in panels[len(epochs) :]:
        spare.set_axis_off()
    for epoch, panel in zip(epochs, panels, strict=False):
        arrays = run.samples[epoch]
        energy = arrays["train_marginal_energy"]
        delta = arrays["train_training_delta_marginal_energy"]
        abnormal = arrays["train_training_abnormal"].astype(bool)
        for chosen, colour, marker, label in (
            (~abnormal, figures.BLUE, "o", "normal: the attack raised the loss"),
            (abnormal, figures.VERMILLION, "^", "abnormal: the attack lowered the loss"),
        ):
            panel.scatter(
                energy[chosen],
                delta[chosen],
                s=10,
                c=colour,
                marker=marker,
                alpha=0.55,
                lw=0,
                label=label,
            )
        panel.axhline(0, color="grey", lw=0.6)
        best = ", best" if epoch == run.epochs[run.best] else ""
        panel.set(
            title=f"epoch {epoch}{best}\n{100 * abnormal.mean():.0f} % abnormal",
            xlabel="E(x) (nats)",
        )
    for row in axes:
        row[0].set_ylabel("dE(x) (nats)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def attacks_of_energies(epsilon: float, norm: str) -> dict[str, Attack]:
    """FGSM, PGD-10 and PGD-10 towards a wrong class drawn at random, by their names in figures."""
    kinds: tuple[type[Attack], ...] = (FGSM, PGD, RandomTargetPGD)
    return {
        name: kind(epsilon=epsilon, norm=norm) for name, kind in zip(ATTACKS, kinds, strict=True)
    }


@figures.style()
def energies_under_attack(networks: Mapping[str, Evaluation]) -> Figure:
    """Distributions of E(x) and E(x, y) of natural and attacked images, a column a network.

    Args:
        networks: evaluations under :func:`attacks_of_energies`, by the networks' names.
    """
    figure, axes = figures.page(
        2,
        len(networks),
        height=4.8,
        width=max(4.5, 3.5 * len(networks)),
        sharex="row",
        sharey="row",
    )
    kinds = (("marginal_energy", "E(x)"), ("joint_energy", "E(x, y)"))
    for row, (field, symbol) in zip(axes, kinds, strict=True):
        found = {
            name: {"natural": result.natural, **result.attacks} for name, result in networks.items()
        }
        every = np.concatenate(
            [getattr(part, field) for parts in found.values() for part in parts.values()]
        )
        size = len(every) // sum(map(len, found.values()))
        edges = np.histogram_bin_edges(every, int(1.5 * np.sqrt(size)) + 1)
        for panel, (network, parts) in zip(row, found.items(), strict=True):
            for name, part in parts.items():
                colour, style = _STYLES[name]
                panel.hist(
                    getattr(part, field),
                    edges,
                    density=True,
                    histtype="step",
                    color=colour,
                    ls=style,
                    lw=1.3,
                )
            panel.set(xlabel=f"{symbol} (nats)", title=network if field == kinds[0][0] else "")
        row[0].set_ylabel(f"density of {symbol} (1/nat)")
    handles = [Line2D([], [], color=colour, ls=style) for colour, style in _STYLES.values()]
    figure.legend(handles, _STYLES, loc="outside lower center", ncols=4)
    return figure
