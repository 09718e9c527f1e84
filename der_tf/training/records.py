"""What a training leaves to look at: metrics.csv, TensorBoard, lines of progress, a figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from der_tf.files import read_table, write_table
from der_tf.training.faults import reading, writing

if TYPE_CHECKING:
    from der_tf.training.monitors import EnergyMonitor


class Pace(keras.callbacks.Callback):
    """Adds ``learning_rate``, ``seconds`` and ``images_per_second`` of training to an epoch's logs.

    Put it first in the list.

    Args:
        images: a step, on average: the last batch of a pass may be a partial one.
    """

    def __init__(self, images: float) -> None:
        super().__init__()
        self._images = images

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._began = self._trained = time.perf_counter()
        self._batches = 0

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._batches = batch + 1
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None) -> None:
        if logs is None:
            return
        seconds = self._trained - self._began
        logs["learning_rate"] = float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
        logs["seconds"] = time.perf_counter() - self._began
        logs["images_per_second"] = self._batches * self._images / seconds if seconds else 0.0


class MetricsFile(keras.callbacks.Callback):
    """Keeps ``metrics.csv``: a row an epoch, counted from 1; the file is replaced as a whole.

    Args:
        path: the file.
        epoch: epochs done so far; rows beyond them are of a process that was killed.

    Raises:
        RunError: when the file is damaged.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        super().__init__()
        self._path = path
        with reading():
            self.rows = [row for row in read_metrics(path) if row["epoch"] <= epoch]

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.rows.append({"epoch": epoch + 1, **{k: float(v) for k, v in (logs or {}).items()}})
        with writing(self._path):
            write_table(self._path, self.rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; none when there is no such file.

    Raises:
        ValueError: when the file is damaged.
    """
    return read_table(path, lambda name, cell: int(cell) if name == "epoch" else float(cell))


class TensorBoard(keras.callbacks.Callback):
    """Scalars of every epoch, and the distribution of dE(x) on fixed validation images.

    Written directly rather than by ``keras.callbacks.TensorBoard``, which cannot take part in an
    epoch that is resumed after its last batch and has no place for histograms of energies.

    Args:
        directory: gets the folders ``train`` and ``validation``, so that curves overlay.
        monitor: gives the delta energies of its validation images under the evaluation attack;
            put it before this in the list. Default None: no histograms.
    """

    def __init__(self, directory: Path, monitor: EnergyMonitor | None = None) -> None:
        super().__init__()
        self._monitor = monitor
        with writing(directory):
            self._train = tf.summary.create_file_writer(str(directory / "train"))
            self._validation = tf.summary.create_file_writer(str(directory / "validation"))

    def on_epoch_end(self, epoch, logs=None) -> None:
        for name, value in (logs or {}).items():
            validated = name.startswith("val_")
            with (self._validation if validated else self._train).as_default(step=epoch + 1):
                tf.summary.scalar(name.removeprefix("val_"), value)
        if self._monitor and self._monitor.latest:
            with self._validation.as_default(step=epoch + 1):
                for name in ("marginal", "joint"):
                    values = self._monitor.latest[f"validation_pgd_delta_{name}_energy"]
                    tf.summary.histogram(f"delta_{name}_energies", values)
        self._train.flush()
        self._validation.flush()


class ProgressLines(keras.callbacks.Callback):
    """Progress where there is no terminal to draw a bar on: a line an epoch, more if it is long.

    Args:
        epochs: of the whole run.
        seconds: at most this much time without a line.
        write: takes a line.
    """

    def __init__(
        self,
        epochs: int,
        seconds: float = 30.0,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        super().__init__()
        self._epochs = epochs
        self._seconds = seconds
        self._write = write

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._epoch = epoch
        self._spoke = time.monotonic()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._speak(f"batch {batch + 1} of {self.params['steps']}, {_summary(logs or {}, '')}")

    def on_test_batch_end(self, batch, logs=None) -> None:
        self._speak(f"validating, batch {batch + 1}")

    def on_epoch_end(self, epoch, logs=None) -> None:
        logs = logs or {}
        self._write(
            f"{self._title} {_summary(logs, '')} | validation {_summary(logs, 'val_')} | "
            f"{logs['seconds']:.1f} s, {logs['images_per_second']:.0f} images/s"
        )
        self._spoke = time.monotonic()

    @property
    def _title(self) -> str:
        return f"epoch {self._epoch + 1}/{self._epochs}:"

    def _speak(self, text: str) -> None:
        if time.monotonic() - self._spoke >= self._seconds:
            self._write(f"{self._title} {text}")
            self._spoke = time.monotonic()


def _summary(logs: Mapping[str, float], prefix: str) -> str:
    parts = []
    for name, title in (("clean_accuracy", "clean"), ("robust_accuracy", "robust")):
        if prefix + name in logs:
            parts.append(f"{title} {100 * float(logs[prefix + name]):.1f} %")
    return ", ".join([f"loss {float(logs[prefix + 'loss']):.3f}", *parts])
