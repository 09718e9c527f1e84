"""RobustOverfittingMonitor: notices that validation falls behind after the rate has decayed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from der_tf.training.alarms import Alarms, Write, show


class RobustOverfittingMonitor(Alarms):
    """Warns once when a training overfits robustly, after its learning rate has decayed.

    Robust overfitting (Rice et al., arXiv 2002.11569): after the first decay the robust accuracy on
    the training set goes on rising while that on other images falls; the mean dE(x) on training
    images falls without end (arXiv 2505.22486, section 4). The rule (ours): let v_e be the
    validation robust accuracy, m_e the mean dE(x) under the training attack (the metric
    ``delta_marginal_energy``) and l_e the learning rate of epoch e. Epoch e is one after the decay
    when l_e <= max_{s <= e} l_s / 2. The alarm is raised at the end of epoch e when the last
    ``window`` epochs are all after the decay and

        max_{s <= e} v_s - mean(v over the window) >= gap    and
        the least-squares line through m over the window falls.

    It costs nothing. Epochs without validation or ``natural_metrics_every`` are left out; where all
    of a training are, it says so at the end.

    Args:
        gap: in accuracy. Default 0.03.
        window: epochs, at least 2. Default 5.
        directory: gets ``alarms.csv``. Default None: no file.
        rows: epochs trained before, as :func:`~der_tf.training.records.read_metrics` gives them.
        write: takes a line. Default: prints it.

    Raises:
        ValueError: for a number out of its range.
        RunError: when the file cannot be written, or is damaged.
    """

    def __init__(
        self,
        *,
        gap: float = 0.03,
        window: int = 5,
        directory: str | os.PathLike[str] | None = None,
        rows: Sequence[Mapping[str, float]] = (),
        write: Write = show,
    ) -> None:
        super().__init__(directory, write)
        if not 0 <= gap < 1:
            raise ValueError(f"gap is a number in [0, 1); received {gap!r}")
        if not (isinstance(window, int | np.integer) and window >= 2):
            raise ValueError(f"window is a number of epochs >= 2; received {window!r}")
        self._gap, self._window = gap, window
        self._rates = [row["learning_rate"] for row in rows]
        self._robust = [row["val_robust_accuracy"] for row in rows]
        self._deltas = [row["delta_marginal_energy"] for row in rows]
        self._has_warned = self._is_alarm(range(1, len(rows) + 1))

    def on_epoch_end(self, epoch, logs=None) -> None:
        logs = logs or {}
        if not {"val_robust_accuracy", "delta_marginal_energy"} <= logs.keys():
            return  # validation_freq, or natural_metrics_every=0
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self._rates.append(float(rate))
        self._robust.append(float(logs["val_robust_accuracy"]))
        self._deltas.append(float(logs["delta_marginal_energy"]))
        if self._has_warned or not self._is_alarm([len(self._robust)]):
            return
        self._has_warned = True
        recent = np.mean(self._robust[-self._window :])
        self.speak_up(
            epoch + 1,
            "warn",
            f"robust overfitting: validation robust accuracy {recent:.1%} on average over "
            f"{self._window} epochs, at best {max(self._robust):.1%}, while dE(x) of training "
            "images falls; training goes on",
        )

    def on_train_end(self, logs=None) -> None:
        if not self._robust:
            self._write(
                "RobustOverfittingMonitor compares val_robust_accuracy and delta_marginal_energy, "
                "and received no validation data or natural_metrics_every=0: nothing was watched"
            )

    def _is_alarm(self, counts: Iterable[int]) -> bool:
        """Whether the rule holds at the end of one of these epochs, counted from 1."""
        return any(self._holds(count) for count in counts)

    def _holds(self, count: int) -> bool:
        window = slice(count - self._window, count)
        if count < self._window:
            return False
        highest = np.maximum.accumulate(self._rates[:count])
        has_decayed = np.all(np.array(self._rates[window]) <= highest[window] / 2)
        lost = max(self._robust[:count]) - np.mean(self._robust[window])
        slope = np.polyfit(np.arange(self._window), self._deltas[window], 1)[0]
        return bool(has_decayed and lost >= self._gap and slope < 0)
