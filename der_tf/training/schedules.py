"""Learning rates of the recipes, a value a step: piecewise, cyclic, one-cycle, constant."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf

NAMES = ("cyclic", "piecewise", "one_cycle", "constant")


@keras.saving.register_keras_serializable("der_tf.training")
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that moves in straight lines through (step, rate) points.

    Before the first point and after the last the rate stays at theirs.

    Args:
        steps: increasing steps of the points.
        rates: their learning rates.

    Raises:
        ValueError: when the steps do not increase or the two differ in length.
    """

    def __init__(self, steps, rates) -> None:
        self.steps = [float(step) for step in steps]
        self.rates = [float(rate) for rate in rates]
        if len(self.steps) != len(self.rates) or len(self.steps) < 2:
            raise ValueError(
                "a schedule takes as many rates as steps, at least 2; received "
                f"{len(self.steps)} steps and {len(self.rates)} rates"
            )
        if min(np.diff(self.steps)) <= 0:
            raise ValueError(f"the steps of a schedule increase; received {self.steps}")

    def __call__(self, step) -> tf.Tensor:
        steps = tf.constant(self.steps)
        rates = tf.constant(self.rates)
        step = tf.clip_by_value(tf.cast(step, tf.float32), steps[0], steps[-1])
        # The segment that holds the step: its left point is the last one not after it.
        left = tf.reduce_sum(tf.cast(steps[1:-1] <= step, tf.int32))
        share = (step - steps[left]) / (steps[left + 1] - steps[left])
        return rates[left] + share * (rates[left + 1] - rates[left])

    def get_config(self) -> dict:
        return {"steps": self.steps, "rates": self.rates}


def get(
    name: str,
    peak: float,
    epochs: int,
    steps_per_epoch: int,
    milestones: tuple[float, ...] = (0.5, 0.75),
) -> keras.optimizers.schedules.LearningRateSchedule | float:
    """The learning rate of a whole training, step by step.

    Args:
        name: ``"cyclic"``: 0 -> peak -> 0 in straight lines (fast adversarial training, Wong et
            al., 2020). ``"piecewise"``: the peak, divided by 10 at each milestone.
            ``"one_cycle"``: peak/25 -> peak over the first 30 % of the steps, then -> peak/25e4
            (Smith and Topin, 2018, in straight lines). ``"constant"``: the peak.
        peak: the highest learning rate.
        epochs: length of the training.
        steps_per_epoch: batches an epoch.
        milestones: for ``piecewise``, shares of the epochs, increasing in (0, 1).

    Raises:
        ValueError: for an unknown name or milestones out of their range.
    """
    total = epochs * steps_per_epoch
    if name == "constant" or (name == "piecewise" and not milestones):
        return float(peak)
    if name == "cyclic":
        return PiecewiseLinear([0, total / 2, total], [0.0, peak, 0.0])
    if name == "one_cycle":
        return PiecewiseLinear([0, 0.3 * total, total], [peak / 25, peak, peak / 25e4])
    if name == "piecewise":
        if not all(0 < m < 1 for m in milestones) or list(milestones) != sorted(set(milestones)):
            raise ValueError(
                f"milestones are increasing shares of the epochs in (0, 1); received {milestones}"
            )
        # A drop falls on the first step of an epoch; Keras keeps a value up to and including its
        # boundary, hence the 1. Inner rounding: 0.55 * 100 is 55.00000000000001.
        drops = [math.ceil(round(m * epochs, 6)) for m in milestones]
        boundaries = [drop * steps_per_epoch - 1 for drop in drops]
        values = [peak / 10**drop for drop in range(len(milestones) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    raise ValueError(f"a schedule is one of {', '.join(NAMES)}; received {name!r}")
