"""Carlini & Wagner (*Towards evaluating the robustness of neural networks*, S&P 2017).

Own code, as cleverhans' ``carlini_wagner_l2`` fails on Keras 3.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import keras
import tensorflow as tf

from der_tf.attacks.base import Model
from der_tf.attacks.gradient import PGD
from der_tf.attacks.losses import margin
from der_tf.attacks.stepped import (
    DistanceAttack,
    State,
    norms,
    per_sample,
    query,
    ranked_others,
    select,
)

_CLASSES = 9  # likeliest other classes among which an untargeted attack looks for the nearest

register = keras.saving.register_keras_serializable("der_tf.attacks")


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class CW(DistanceAttack):
    """Carlini & Wagner's l2 attack, ``cw``: the smallest perturbation that errs.

    Minimises |x* - x|^2 + c max(0, confidence - margin(x*)) by Adam over w with
    x* = (tanh(w) + 1) / 2, and searches the constant c of each sample: up tenfold until the
    attack succeeds, then by bisection. Untargeted, the margin is not that to the likeliest other
    class but to the nearest: the one of the nine likeliest with the smallest gap of the logits
    over the norm of the gap's gradient at x. On a linear model that one, and not always the
    likeliest, is the class of the smallest perturbation.

    Args:
        epsilon: ``math.inf`` (default): the closest adversarial image found, however far; a
            radius: that image where it lies within, and x itself elsewhere.
        norm: ``"l2"``.
        confidence: margin in logits that a result must reach. Default 0.
        search_steps: constants tried a sample. Default 9.
        steps: Adam steps a constant. Default 1000.
        learning_rate: of Adam, whose state is fresh for each constant. Default 0.01. It falls
            tenfold when a tenth of the steps has not lowered the objective by 0.01 %, as its
            steps would overshoot small perturbations.
        initial_constant: the first c. Default 0.001.
        abort_early: leave a constant when that happens a third time. Default True.
    """

    epsilon: float = math.inf
    norm: str = "l2"
    confidence: float = 0.0
    search_steps: int = 9
    steps: int = 1000
    learning_rate: float = 0.01
    initial_constant: float = 1e-3
    abort_early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("norm", "'l2' (cw_linf is the attack of the l-inf ball)", lambda v: v == "l2")
        self._require_not_negative("confidence")
        self._require_count("search_steps", "steps")
        self._require("learning_rate", "a number > 0", lambda v: v > 0)
        self._require("initial_constant", "a number > 0", lambda v: v > 0)

    def begin(self, model: Model, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> State:
        logits = tf.cast(model(x), tf.float32)
        already = self._succeeds(logits, y)
        clock = self._clock(y, self.search_steps * self.steps)
        zeros = tf.zeros_like(y, tf.float32)
        return {
            **{"x": x, "y": y, "key": key},
            **clock,
            "end": tf.where(already, 0, clock["end"]),
            **{"w": self._to_w(x), "mean": tf.zeros_like(x), "variance": tf.zeros_like(x)},
            **{"constant": zeros + self.initial_constant, "lower": zeros, "upper": zeros + 1e10},
            **{"objective": zeros, "rate": zeros, "succeeded": tf.zeros_like(y, tf.bool)},
            **self._nothing_found(x, already),
            **({} if self.targeted else self._nearby_classes(model, x, y, logits)),
        }

    def advance(self, model: Model, state: State) -> State:
        step = state["time"] % self.steps
        first = tf.equal(step, 0)
        w = select(first, self._to_w(state["x"]), state["w"])
        images = (tf.tanh(w) + 1.0) / 2.0

        logits, shortfall, slope = query(
            model, lambda logits: self._shortfall(logits, state), images
        )
        success = self._succeeds(logits, state["y"])
        record = self._record(state, images, success)

        delta = images - state["x"]
        square = tf.reduce_sum(tf.square(delta), list(range(1, delta.shape.rank)))
        objective = square + state["constant"] * shortfall
        gradient = 2.0 * delta + per_sample(state["constant"], delta) * slope
        gradient *= 0.5 * (1.0 - tf.square(tf.tanh(w)))

        mean = 0.1 * gradient + select(first, tf.zeros_like(w), 0.9 * state["mean"])
        variance = 0.001 * tf.square(gradient) + select(
            first, tf.zeros_like(w), 0.999 * state["variance"]
        )
        count = per_sample(tf.cast(step + 1, tf.float32), w)
        root = tf.sqrt(variance / (1.0 - 0.999**count)) + 1e-8
        rate = tf.where(first, self.learning_rate, state["rate"])
        w -= per_sample(rate, w) * mean / (1.0 - 0.9**count) / root

        succeeded = success | (state["succeeded"] & ~first)
        check = tf.equal(step % max(self.steps // 10, 1), 0)
        stalls = check & ~first & (objective > 0.9999 * state["objective"])
        rate = tf.where(stalls, 0.1 * rate, rate)
        aborts = stalls & (rate < 0.005 * self.learning_rate) & self.abort_early
        ends = aborts | tf.equal(step, self.steps - 1)
        return {
            **record,
            **{"w": w, "mean": mean, "variance": variance},
            # Success counts for the search only since the last check: whatever the constant,
            # Adam's first steps may overshoot a boundary that is near.
            "succeeded": succeeded & ~check,
            **{"objective": tf.where(check, objective, state["objective"]), "rate": rate},
            "time": tf.where(ends, state["time"] - step + self.steps, state["time"] + 1),
            **self._next_constant(state, succeeded, ends),
        }

    def _next_constant(self, state: State, succeeded: tf.Tensor, ends: tf.Tensor) -> State:
        constant = state["constant"]
        upper = tf.where(succeeded, tf.minimum(state["upper"], constant), state["upper"])
        lower = tf.where(succeeded, state["lower"], tf.maximum(state["lower"], constant))
        following = tf.where(upper < 1e9, (lower + upper) / 2.0, 10.0 * constant)
        return {
            "constant": tf.where(ends, following, constant),
            "lower": tf.where(ends, lower, state["lower"]),
            "upper": tf.where(ends, upper, state["upper"]),
        }

    def _nearby_classes(self, model: Model, x: tf.Tensor, y: tf.Tensor, logits: tf.Tensor) -> State:
        """The likeliest other classes ``[B, T]`` and how steeply their gaps close at x."""
        classes = ranked_others(logits, y, _CLASSES)
        slopes = [
            norms(query(model, functools.partial(_gap, y, other), x)[2], "l2")
            for other in tf.unstack(classes, axis=1)
        ]
        return {"classes": classes, "slopes": tf.maximum(tf.stack(slopes, axis=1), 1e-12)}

    def _shortfall(self, logits: tf.Tensor, state: State) -> tf.Tensor:
        """``[B]``, what the margin lacks to the confidence; 0 where it reaches it."""
        y = state["y"]
        if self.targeted:
            return tf.maximum(self.confidence + margin(labels=y, logits=logits), 0.0)
        gaps = tf.gather(logits, y, axis=1, batch_dims=1)[:, None] + self.confidence
        gaps -= tf.gather(logits, state["classes"], axis=1, batch_dims=1)
        nearest = tf.argmin(gaps / state["slopes"], axis=1)
        return tf.maximum(tf.gather(gaps, nearest, axis=1, batch_dims=1), 0.0)

    def _succeeds(self, logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
        reached = margin(labels=y, logits=logits)
        return finite & ((-reached if self.targeted else reached) > self.confidence)

    @staticmethod
    def _to_w(x: tf.Tensor) -> tf.Tensor:
        # Black and white would lie at infinity. Drawn in by an 80th of a grey level; the authors'
        # hundredth of that leaves such pixels so far out that 500 steps hardly move them.
        return tf.atanh((2.0 * x - 1.0) * (1.0 - 1e-4))


def _gap(y: tf.Tensor, other: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    of = functools.partial(tf.gather, logits, axis=1, batch_dims=1)
    return of(y) - of(other)


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class CWLinf(PGD):
    """PGD on Carlini & Wagner's margin loss, ``cw_linf``: C&W of the l-inf literature.

    Args:
        loss: default ``"margin"``.
    """

    loss: str = "margin"
