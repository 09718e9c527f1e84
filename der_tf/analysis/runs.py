"""A run as its files tell of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from der_tf import data
from der_tf.evaluation.report import describe
from der_tf.files import read_arrays
from der_tf.overfitting import (
    ABOVE_CHANCE,
    Collapse,
    catastrophic_overfitting,
    robust_overfitting,
)
from der_tf.training.monitors import read_energies
from der_tf.training.recipes import Configuration
from der_tf.training.records import read_metrics
from der_tf.training.run import load_data
from der_tf.training.run_directory import RunDirectory

MOST_RUNS = 7  # the colours that everybody can tell apart
# What is read here of the columns and arrays that der-tf train writes.
_METRICS = (
    *("epoch", "robust_accuracy", "abnormal_fraction", "delta_marginal_energy", "learning_rate"),
    *("val_clean_accuracy", "val_robust_accuracy", "val_abnormal_fraction"),
)
_ENERGIES = (
    *("epoch", "step", "split", "attack", "abnormal_fraction", "gradient_alignment"),
    *(f"delta_marginal_energy_{kind}" for kind in ("mean", "q25", "q75")),
)
_SAMPLES = (
    "train_marginal_energy",
    "train_training_delta_marginal_energy",
    "train_training_abnormal",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """What evaluation.json tells.

    Attributes:
        images: of the test set.
        accuracies: with the ends of their intervals, ``"clean"`` and by what
            :func:`~der_tf.evaluation.report.describe` calls the attacks.
    """

    images: int
    accuracies: dict[str, tuple[float, float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run with at least one finished epoch.

    Attributes:
        name: to call it by among the runs that it is shown with.
        directory: where it lies.
        config: its configuration.
        class_names: K names.
        metrics: rows of metrics.csv, one an epoch.
        energies: rows of energies.csv; none for a run without an EnergyMonitor.
        samples: arrays of single samples by their names in the files of ``energies/``, by epoch.
        tested: the content of evaluation.json; None while there is none.
    """

    name: str
    directory: RunDirectory
    config: Configuration
    class_names: tuple[str, ...]
    metrics: list[dict[str, float]]
    energies: list[dict[str, Any]]
    samples: dict[int, dict[str, np.ndarray]]
    tested: Tested | None

    def curve(self, metric: str) -> np.ndarray:
        """``[T]``: a column of metrics.csv."""
        return np.array([row[metric] for row in self.metrics])

    @property
    def epochs(self) -> np.ndarray:
        """``[T]``: the finished epochs, counted from 1."""
        return self.curve("epoch").astype(int)

    @property
    def best(self) -> int:
        """Index of the epoch of best.keras: the first of the highest robust validation accuracy."""
        return int(np.argmax(self.curve("val_robust_accuracy")))

    def energy_curve(
        self, column: str, attack: str = "training"
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Epochs (fractions for records within one) and a column for the training samples.

        Args:
            column: of energies.csv.
            attack: ``"training"`` (default) or ``"pgd"``.

        Returns:
            Two arrays, or None when there is no energies.csv.
        """
        rows = self._of_training(attack)
        if not rows:
            return None
        epochs = np.array([row["step"] for row in rows]) / _steps_per_epoch(rows)
        return epochs, np.array([row[column] for row in rows])

    @property
    def every_epoch_recorded(self) -> bool:
        """Whether energies.csv has the end of each epoch, or the verdict asks metrics.csv."""
        return set(self.epochs) <= self._ends().keys()

    def training_signal(self, column: str, metric: str) -> np.ndarray:
        """``[T]``, a column of energies.csv at the ends of the epochs; else a metric over them."""
        if not self.every_epoch_recorded:
            return self.curve(metric)
        ends = self._ends()
        return np.array([ends[epoch][column] for epoch in self.epochs])

    def _of_training(self, attack: str) -> list[dict[str, Any]]:
        return [r for r in self.energies if (r["split"], r["attack"]) == ("train", attack)]

    def _ends(self) -> dict[int, dict[str, Any]]:
        """The records at the ends of epochs under the training attack, by epoch."""
        rows = self._of_training("training")
        if not rows:
            return {}
        last, steps = self.epochs[-1], _steps_per_epoch(rows)
        return {
            row["epoch"]: row
            for row in rows
            # That of the last epoch is written at its end alone, which may have come early.
            if row["epoch"] == last or row["step"] == round(row["epoch"] * steps)
        }

    def collapse(self) -> Collapse | None:
        """Catastrophic overfitting, if there was any."""
        return catastrophic_overfitting(
            self.curve("val_robust_accuracy"), self.curve("robust_accuracy")
        )

    def verdict(self) -> str:
        """CO, RO or neither, with the numbers that say so."""
        collapse = self.collapse()
        if collapse is not None:
            return self._told(collapse)
        robust = self.curve("val_robust_accuracy")
        chance = 1 / len(self.class_names)
        if robust.max() < ABOVE_CHANCE * chance:
            return f"never robust: at best {100 * robust.max():.1f} %, chance {100 * chance:.1f} %"
        gap = robust_overfitting(robust, self.curve("robust_accuracy"), self.curve("learning_rate"))
        if gap is not None:
            return f"RO: {100 * gap:.1f} points below the best epoch"
        return "neither CO nor RO"

    def _told(self, collapse: Collapse) -> str:
        """A collapse with the numbers before and after it, and what the energies show of it."""
        before, epoch = collapse.before, collapse.epoch
        robust, trained = self.curve("val_robust_accuracy"), self.curve("robust_accuracy")
        abnormal = self.training_signal("abnormal_fraction", "abnormal_fraction")
        delta = self.training_signal("delta_marginal_energy_mean", "delta_marginal_energy")
        # What is averaged over an epoch shows a collapse at its end only in the next one.
        seen = slice(epoch, epoch + (1 if self.every_epoch_recorded else 2))
        return (
            f"CO in epoch {self.epochs[epoch]}: since epoch {self.epochs[before]} robust "
            f"validation accuracy {_change(robust[before], robust[epoch])}, under the training "
            f"attack {_change(trained[before], trained[epoch])}, abnormal samples "
            f"{_change(abnormal[before], abnormal[seen].max())}, mean dE(x) "
            f"{delta[before]:+.3f} → {delta[seen].max():+.3f}"
        )


def _steps_per_epoch(rows: Sequence[Mapping[str, Any]]) -> float:
    # Only the records at the ends of epochs have no step more than their epochs took; the last
    # epoch may have ended early, by the guard.
    ratios = {row["epoch"]: row["step"] / row["epoch"] for row in reversed(rows) if row["epoch"]}
    return min([ratio for epoch, ratio in ratios.items() if epoch < max(ratios)] or ratios.values())


def read_run(path: Path, name: str | None = None) -> Run:
    """Read the files of a run.

    Raises:
        ValueError: when the path is no run directory, no epoch of it is finished, or a file
            cannot be understood.
    """
    directory = RunDirectory(path)
    config, record = directory.configuration(), directory.record()
    if config is None or record is None:
        what = "it has no config.json" if path.is_dir() else "there is no such folder"
        raise ValueError(f"analyze takes run directories of der-tf train; received {path}: {what}")
    if not record.get("class_names"):
        raise ValueError(f"{directory.config} names no classes; der-tf train writes class_names")
    metrics = read_metrics(directory.metrics)
    if not metrics:
        raise ValueError(f"{path} has no finished epoch yet")
    _check_columns(directory.metrics, metrics, _METRICS)
    energies = read_energies(directory.energies_table)
    _check_columns(directory.energies_table, energies, _ENERGIES)
    return Run(
        name=name or path.resolve().name,
        directory=directory,
        config=config,
        class_names=tuple(record["class_names"]),
        metrics=metrics,
        energies=energies,
        samples={
            int(found[1]): read_arrays(file, _SAMPLES)
            for file in sorted(directory.energies.glob("epoch-*.npz"))
            if (found := re.fullmatch(r"epoch-(\d+)\.npz", file.name))
        },
        tested=_tested(directory),
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs that are to be shown side by side.

    Raises:
        ValueError: when one of them cannot be read, they are too many, one is given twice, or
            they are of different data sets.
    """
    if len(paths) > MOST_RUNS:
        raise ValueError(f"analyze shows up to {MOST_RUNS} runs; received {len(paths)}")
    resolved = [path.resolve() for path in paths]
    for path, real in zip(paths, resolved, strict=True):
        if resolved.count(real) > 1:
            raise ValueError(f"analyze takes each run once; received {path} more than once")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    first = runs[0]
    for run in runs[1:]:
        if _data(run.config) != _data(first.config):
            raise ValueError(
                "runs side by side are of one data set and image size; received "
                f"{first.directory.path} ({_data(first.config)}) and {run.directory.path} "
                f"({_data(run.config)})"
            )
    return runs


def shared_split(runs: Sequence[Run], data_dir: Path | None = None) -> data.ImageData:
    """The data set of the runs, its validation images those of every run.

    Args:
        runs: from :func:`read_runs`.
        data_dir: where it lies; None: where it lay for the training of the first run.

    Raises:
        ValueError, FileNotFoundError: for a data set that cannot be used.
    """
    place = str(data_dir) if data_dir else runs[0].config.data_dir
    by_size = {run.config.validation_size: run.config for run in runs}
    splits = [load_data(dataclasses.replace(c, data_dir=place)) for c in by_size.values()]
    # A larger validation part holds the smaller ones, whatever the runs' seeds and limit_train.
    return min(splits, key=lambda split: split.validation_size)


def _data(config: Configuration) -> str:
    place = f" in {config.data_dir}" if config.dataset == "folder" else ""
    size = f" of {config.image_size} pixels" if config.image_size else ""
    return f"{config.dataset}{place}{size}"


def _check_columns(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    missing = [name for name in columns if rows and name not in rows[0]]
    if missing:
        raise ValueError(f"{path} cannot be read: it has no column {', '.join(missing)}")


def _tested(directory: RunDirectory) -> Tested | None:
    report = directory.tested()
    if report is None:
        return None
    path = directory.evaluation
    try:
        accuracies = {}
        for name, result in {"clean": report["natural"], **report["attacks"]}.items():
            low, high = result["interval"]
            title = describe(name, result.get("config", {}))
            accuracies[title] = (float(result["accuracy"]), float(low), float(high))
        return Tested(images=int(report["images"]), accuracies=accuracies)
    except KeyError as error:
        raise ValueError(f"{path} cannot be read: it has no {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _change(before: float, after: float) -> str:
    return f"{100 * before:.1f} → {100 * after:.1f} %"
