"""Pictures of a training."""

from __future__ import annotations

from pathlib import Path

from der_tf import figures
from der_tf.training.faults import writing


@figures.style()
def training_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Accuracies and delta energies over the epochs.

    A jump of the mean dE(x) in training together with a robust validation accuracy near zero is
    catastrophic overfitting; a steady fall while that accuracy falls is robust overfitting.

    Args:
        rows: of metrics.csv.
        path: a ``.png`` file; its folder is made.
    """
    epochs = [row["epoch"] for row in rows]
    figure, ((accuracies, energies),) = figures.page(1, 2, width=10, height=3.8)
    colours = {"": figures.BLUE, "val_": figures.VERMILLION}
    names = {"": "training", "val_": "validation"}
    for prefix in ("", "val_"):
        for axes, measure, style, label, factor in (
            (accuracies, "clean_accuracy", "--", "clean", 100),
            (accuracies, "robust_accuracy", "-", "robust", 100),
            (energies, "delta_marginal_energy", "-", "dE(x)", 1),
            (energies, "delta_joint_energy", "--", "dE(x, y)", 1),
        ):
            values = [factor * row[prefix + measure] for row in rows]
            axes.plot(
                epochs,
                values,
                style,
                color=colours[prefix],
                marker="." if len(rows) < 3 else None,
                label=f"{label}, {names[prefix]}",
            )
    accuracies.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100))
    energies.set(xlabel="epoch", ylabel="mean delta energy (nats)")
    energies.axhline(0, color="grey", linewidth=0.5)
    for axes in (accuracies, energies):
        axes.legend()
    with writing(path):
        figures.save(figure, path)
