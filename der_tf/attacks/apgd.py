"""Auto-PGD (Croce & Hein, *Reliable evaluation of adversarial robustness...*, ICML 2020).

Gradient ascent with momentum and a step size that no one has to tune: it starts at 2 epsilon, and
at checkpoints it is halved, with a return to the best point, where the loss rose too rarely.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from der_tf.attacks import geometry, streams
from der_tf.attacks.base import Model
from der_tf.attacks.losses import LOSSES
from der_tf.attacks.stepped import (
    State,
    SteppedAttack,
    errs,
    num_classes,
    per_sample,
    query,
    ranked_others,
    select,
)

register = keras.saving.register_keras_serializable("der_tf.attacks")


@functools.lru_cache
def checkpoint_windows(steps: int) -> np.ndarray:
    """int32 ``[steps + 1]``: at each checkpoint (a step, from 1) the steps since the last, else 0.

    The first window is 22 % of the steps; each is 3 % shorter than the one before, but 6 % at
    least (section 3.1 of the paper, in whole steps as the authors' code counts them).
    """
    shortest, shrinks = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    windows = np.zeros(steps + 1, np.int32)
    window = max(int(0.22 * steps), 1)
    at = window
    while at <= steps:
        windows[at] = window
        window = max(window - shrinks, shortest)
        at += window
    return windows


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(SteppedAttack):
    """Auto-PGD, untargeted or towards given targets; ``apgd_ce`` with its default loss.

    The result is the worst point seen: an error beats none, then the higher loss.

    Args:
        loss: ``"ce"`` (default), ``"dlr"`` (needs 3 classes) or ``"margin"``.
        steps: steps a run. Default 100.
        restarts: runs from random starts. Default 1.
        rho: the step size is halved where fewer than this share of steps raised the loss.
            Default 0.75.
        eot: evaluations of the model whose mean gradient and loss are taken, for randomised
            models (expectation over transformation). Default 1.
    """

    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    eot: int = 1

    _LOSSES: ClassVar[tuple[str, ...]] = ("ce", "dlr", "margin")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("loss", f"one of {', '.join(self._LOSSES)}", lambda v: v in self._LOSSES)
        self._require_count("steps", "restarts", "eot")
        self._require("rho", "a number in [0, 1]", lambda v: 0 <= v <= 1)

    def begin(self, model: Model, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> State:
        return self._begin(x, y, key, runs=self.restarts)

    def _begin(self, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor, runs: int) -> State:
        zeros, lowest = tf.zeros_like(y, tf.float32), tf.fill(tf.shape(y), tf.float32.min)
        return {
            **{"x": x, "y": y, "key": key},
            **self._clock(y, runs * (self.steps + 1)),  # a run evaluates its start and each step
            **{"moved": x, "previous": x, "gradient": tf.zeros_like(x), "loss": zeros},
            **{"best": x, "best_gradient": tf.zeros_like(x), "best_loss": zeros},
            **{"step_size": zeros, "rises": zeros, "loss_at_checkpoint": zeros},
            "halved": tf.zeros_like(y, tf.bool),
            **{"found": x, "found_loss": lowest, "errs": tf.zeros_like(y, tf.bool)},
        }

    def advance(self, model: Model, state: State) -> State:
        run, step = state["time"] // (self.steps + 1), state["time"] % (self.steps + 1)
        first = tf.equal(step, 0)
        moved = self._move(state, step)
        moved = tf.cond(
            tf.reduce_any(first),
            lambda: select(
                first, self._start(state["x"], streams.fold_in(state["key"], run)), moved
            ),
            lambda: moved,
        )
        logits, loss, gradient = self._query(model, state, run, moved)

        rises = tf.where(first, 0.0, state["rises"] + tf.cast(loss > state["loss"], tf.float32))
        better = first | (loss > state["best_loss"])
        new = {
            "previous": select(first, moved, state["moved"]),
            "best": select(better, moved, state["best"]),
            "best_gradient": select(better, gradient, state["best_gradient"]),
            "best_loss": tf.where(better, loss, state["best_loss"]),
            "loss": loss,
        }
        reference = tf.where(first, loss, state["loss_at_checkpoint"])
        step_size = tf.where(first, 2.0 * self.epsilon, state["step_size"])

        window = tf.gather(tf.constant(checkpoint_windows(self.steps)), step)
        checkpoint = window > 0
        oscillates = rises <= self.rho * tf.cast(window, tf.float32)
        stalls = ~state["halved"] & (new["best_loss"] <= reference)
        halve = checkpoint & (oscillates | stalls)
        return {
            **new,
            "moved": select(halve, new["best"], moved),
            "gradient": select(halve, new["best_gradient"], gradient),
            "step_size": tf.where(halve, step_size / 2, step_size),
            "rises": tf.where(checkpoint, 0.0, rises),
            "loss_at_checkpoint": tf.where(checkpoint, new["best_loss"], reference),
            "halved": first | tf.where(checkpoint, halve, state["halved"]),
            **self._worst(state, moved, loss, errs(logits, state["y"], self.targeted)),
        }

    def _start(self, x: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Random points on the sphere of radius epsilon, as in the authors' code."""
        return self._on_sphere(x, key, self.epsilon)

    def _move(self, state: State, step: tf.Tensor) -> tf.Tensor:
        """The next point: a projected step, mixed with the last move (equation 2)."""
        x, moved = state["x"], state["moved"]
        direction = geometry.steepest_step(state["gradient"], 1.0, self.norm)
        stepped = geometry.project(
            x, moved + per_sample(state["step_size"], x) * direction, self.epsilon, self.norm
        )
        share = per_sample(tf.where(tf.equal(step, 1), 1.0, 0.75), x)
        mixed = moved + share * (stepped - moved) + (1.0 - share) * (moved - state["previous"])
        return geometry.project(x, mixed, self.epsilon, self.norm)

    def _query(
        self, model: Model, state: State, run: tf.Tensor, images: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Logits of one evaluation; loss and gradient as means over ``eot`` evaluations."""
        loss = self._objective(state, run)
        if self.eot == 1:
            return query(model, loss, images)

        def another(logits, total, gradients):
            logits, values, gradient = query(model, loss, images)
            return logits, total + values / self.eot, gradients + gradient / self.eot

        first = query(model, loss, images)
        totals = (first[0], first[1] / self.eot, first[2] / self.eot)
        return tf.while_loop(lambda *totals: True, another, totals, maximum_iterations=self.eot - 1)

    def _objective(self, state: State, run: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        sign = -1.0 if self.targeted else 1.0
        return lambda logits: sign * LOSSES[self.loss](labels=state["y"], logits=logits)

    def _worst(self, state: State, moved: tf.Tensor, loss: tf.Tensor, err: tf.Tensor) -> State:
        worse = (err & ~state["errs"]) | (
            tf.equal(err, state["errs"]) & (loss > state["found_loss"])
        )
        return {
            "found": select(worse, moved, state["found"]),
            "found_loss": tf.where(worse, loss, state["found_loss"]),
            "errs": state["errs"] | err,
        }


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGDDLR(APGD):
    """Auto-PGD on the difference-of-logits-ratio loss, ``apgd_dlr``.

    Args:
        loss: default ``"dlr"``.
    """

    loss: str = "dlr"


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class APGDT(APGD):
    """Auto-PGD towards each of the likeliest other classes in turn, ``apgd_t``.

    y are the true labels; a result errs when its class is any other than y.

    Args:
        loss: ``"dlr"`` (default; the targeted form, equation 7, needs 4 classes) or ``"margin"``,
            f_t - f_y, for fewer.
        targets: classes to try, at most K - 1. Default 9.
    """

    loss: str = "dlr"
    targets: int = 9

    _LOSSES: ClassVar[tuple[str, ...]] = ("dlr", "margin")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("targets")
        self._refuse_targeted()

    def begin(self, model: Model, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> State:
        logits = tf.cast(model(x), tf.float32)
        if self.loss == "dlr" and num_classes(logits) < 4:
            raise ValueError(
                "the targeted dlr loss needs at least 4 classes (loss='margin' takes fewer); "
                f"received logits of {num_classes(logits)}"
            )
        targets = ranked_others(logits, y, self.targets)
        return {**self._begin(x, y, key, self.restarts * targets.shape[1]), "targets": targets}

    def _objective(self, state: State, run: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        turn = tf.minimum(run // self.restarts, state["targets"].shape[1] - 1)
        target = tf.gather(state["targets"], turn, axis=1, batch_dims=1)

        def loss(logits: tf.Tensor) -> tf.Tensor:
            of = functools.partial(tf.gather, logits, axis=1, batch_dims=1)
            margin = of(target) - of(state["y"])
            if self.loss == "margin":
                return margin
            top = tf.math.top_k(logits, k=4).values
            return margin / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

        return loss
