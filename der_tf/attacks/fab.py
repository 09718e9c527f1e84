"""FAB, the fast adaptive boundary attack (Croce & Hein, ICML 2020), in its targeted form."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from der_tf.attacks import streams
from der_tf.attacks.base import Model
from der_tf.attacks.stepped import (
    DistanceAttack,
    State,
    errs,
    norms,
    per_sample,
    query,
    ranked_others,
    select,
)


def project_onto_hyperplane(
    x: tf.Tensor, normal: tf.Tensor, level: tf.Tensor, norm: str
) -> tf.Tensor:
    """The shortest step from x to the hyperplane <normal, z> = level within the box [0, 1].

    Each pixel moves towards the hyperplane by min(t v, room to the edge of the box), with v = 1
    in l-inf and abs(normal) in l2. What this gains is concave and piecewise linear in t, so
    Newton's method from t = 0 climbs to the exact t in as many steps as it meets pieces.

    Args:
        x: ``[B, ...]`` float32 in [0, 1].
        normal: ``[B, ...]`` float32.
        level: ``[B]`` float32.
        norm: ``"linf"`` or ``"l2"``, in which the step is shortest.

    Returns:
        ``[B, ...]`` the step; where the box does not reach the hyperplane, the step that comes
        closest; zero where the normal is zero.
    """
    axes = list(range(1, x.shape.rank))
    gap = level - tf.reduce_sum(normal * x, axes)
    direction = tf.sign(normal) * per_sample(tf.sign(gap), x)
    weight = tf.abs(normal)
    pace = tf.ones_like(x) if norm == "linf" else weight
    room = tf.where(direction > 0, 1.0 - x, x)
    gap = tf.abs(gap)

    def newton(t, _):
        way = per_sample(t, x) * pace
        free = way < room
        gained = tf.reduce_sum(weight * tf.where(free, way, room), axes)
        slope = tf.reduce_sum(tf.where(free, weight * pace, 0.0), axes)
        # Nothing free is left: the box ends before the hyperplane.
        further = tf.where(slope > 0, tf.math.divide_no_nan(gap - gained, slope), 0.0)
        return t + tf.maximum(further, 0.0), further > 1e-6 * t

    zeros = tf.zeros_like(level)
    t = tf.while_loop(
        lambda t, goes_on: tf.reduce_any(goes_on),
        newton,
        (zeros, tf.ones_like(zeros, tf.bool)),
        maximum_iterations=50,
    )[0]
    return direction * tf.minimum(per_sample(t, x) * pace, room)


@keras.saving.register_keras_serializable("der_tf.attacks")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FABT(DistanceAttack):
    """Targeted FAB, ``fab_t``: steps onto the linearised boundary to each target class, drawn to x.

    y are the true labels; a result errs when its class is any other than y.

    Args:
        steps: steps a run. Default 100.
        restarts: runs a target; the first starts at x, the others at random. Default 1.
        targets: likeliest other classes to try, at most K - 1. Default 9.
        alpha_max: largest weight of the step from x itself. Default 0.1.
        eta: overshoot over the hyperplane. Default 1.05.
        beta: an adversarial point is drawn back to this share of its perturbation. Default 0.9.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("steps", "restarts", "targets")
        self._require("alpha_max", "a number in [0, 1]", lambda v: 0 <= v <= 1)
        self._require("eta", "a number >= 1", lambda v: v >= 1)
        self._require("beta", "a number in (0, 1]", lambda v: 0 < v <= 1)
        self._refuse_targeted()

    def begin(self, model: Model, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> State:
        logits = tf.cast(model(x), tf.float32)
        targets = ranked_others(logits, y, self.targets)
        already = errs(logits, y)
        clock = self._clock(y, self.steps * self.restarts * targets.shape[1])
        return {
            **{"x": x, "y": y, "key": key, "targets": targets, "moved": x},
            **clock,
            "end": tf.where(already, 0, clock["end"]),
            **self._nothing_found(x, already),
        }

    def advance(self, model: Model, state: State) -> State:
        x, y = state["x"], state["y"]
        run, step = state["time"] // self.steps, state["time"] % self.steps
        moved = self._start(state, run, first=tf.equal(step, 0))
        turn = tf.minimum(run // self.restarts, state["targets"].shape[1] - 1)
        target = tf.gather(state["targets"], turn, axis=1, batch_dims=1)

        def difference(logits):
            return tf.gather(logits, target, axis=1, batch_dims=1) - tf.gather(
                logits, y, axis=1, batch_dims=1
            )

        _, value, gradient = query(model, difference, moved)
        # The hyperplane's scale is free; scaled to 1, small gradients keep their digits.
        scale = norms(gradient, "linf")
        normal = tf.math.divide_no_nan(gradient, per_sample(scale, x))
        level = tf.reduce_sum(normal * moved, list(range(1, x.shape.rank)))
        level -= tf.math.divide_no_nan(value, scale)
        both = project_onto_hyperplane(
            tf.concat([moved, x], 0),
            tf.tile(normal, [2] + [1] * (x.shape.rank - 1)),
            tf.tile(level, [2]),
            self.norm,
        )
        from_moved, from_x = tf.split(both, 2)
        length, length_from_x = (
            tf.maximum(norms(step, self.norm), 1e-8) for step in (from_moved, from_x)
        )
        alpha = per_sample(tf.minimum(length / (length + length_from_x), self.alpha_max), x)
        moved = (1.0 - alpha) * (moved + self.eta * from_moved) + alpha * (x + self.eta * from_x)
        moved = tf.clip_by_value(moved, 0.0, 1.0)

        adversarial = errs(tf.cast(model(moved), tf.float32), y)
        return {
            "moved": select(adversarial, x + self.beta * (moved - x), moved),
            **self._record(state, moved, adversarial),
        }

    def _start(self, state: State, run: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        x = state["x"]
        start = x
        if self.restarts > 1:
            # Half of the radius, or of the distance found; half of the box where neither is known.
            radius = tf.minimum(state["distance"], self.epsilon)
            radius = 0.5 * tf.where(tf.math.is_finite(radius), radius, 1.0)
            somewhere = self._on_sphere(x, streams.fold_in(state["key"], run), radius)
            start = select(run % self.restarts > 0, somewhere, x)
        return select(first, start, state["moved"])
