"""Callbacks that speak up: a line, and a row of ``alarms.csv``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from der_tf.files import read_table, write_table
from der_tf.training.faults import reading, writing
from der_tf.training.monitors import steps_done
from der_tf.training.run_directory import RunDirectory

Write = Callable[[str], None]


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


class Alarms(keras.callbacks.Callback):
    """Base of those callbacks.

    Args:
        directory: gets ``alarms.csv``; None: no file.
        write: takes a line.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, write: Write) -> None:
        super().__init__()
        self._path = RunDirectory(Path(directory)).alarms if directory is not None else None
        self._write = write
        self._epoch = 0

    def on_train_begin(self, logs=None) -> None:
        self._step = steps_done(self.model)
        rows = self._rows()
        kept = [row for row in rows if row["step"] <= self._step]
        if self._path and len(kept) < len(rows):
            self._keep(kept)

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._epoch = epoch

    def speak_up(self, epoch: int, action: str, message: str) -> None:
        """Raise an alarm during or after this epoch, counted from 1."""
        step, monitor = steps_done(self.model), type(self).__name__
        self._write(f"{monitor}: epoch {epoch}, step {step}: {message}")
        if self._path is None:
            return
        row = {
            "epoch": epoch,
            "step": step,
            "monitor": monitor,
            "action": action,
            "message": message,
        }
        # A process that was killed here may have written this row before.
        rows = [r for r in self._rows() if (r["step"], r["monitor"]) != (step, monitor)]
        self._keep([*rows, row])

    def _rows(self) -> list[dict[str, Any]]:
        with reading():
            return read_alarms(self._path) if self._path else []

    def _keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        assert self._path is not None
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_table(self._path, rows)


def read_alarms(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of an ``alarms.csv``; none when there is no such file.

    ``epoch`` (from 1, the one during or after which the alarm was raised) and ``step`` (optimizer
    steps done) are ints, ``monitor``, ``action`` and ``message`` strings.

    Raises:
        ValueError: when the file is damaged.
    """
    return read_table(
        Path(path), lambda name, cell: int(cell) if name in ("epoch", "step") else cell
    )
