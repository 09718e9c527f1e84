"""Attacks that advance sample by sample: each sample carries its own clock and its own state.

An attack of this kind is a state machine: :meth:`SteppedAttack.begin` makes the state of a batch,
:meth:`SteppedAttack.advance` takes every sample one step further, whatever its own step is. So a
batch may hold samples at different steps: one loop runs all restarts and targets in a compiled
graph, and AutoAttack replaces finished samples by waiting ones while the others go on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from der_tf.attacks import checks, streams
from der_tf.attacks.base import Attack, Model

State = dict[str, tf.Tensor]


def per_sample(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """``[B]`` values shaped ``[B, 1, ...]``, to go with images."""
    return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))


def select(mask: tf.Tensor, yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
    """``tf.where`` with a ``[B]`` mask over values ``[B, ...]``."""
    return tf.where(per_sample(mask, no), yes, no)


def norms(delta: tf.Tensor, norm: str) -> tf.Tensor:
    """``[B]`` l-inf or l2 norms of ``[B, ...]``."""
    axes = list(range(1, delta.shape.rank))
    if norm == "linf":
        return tf.reduce_max(tf.abs(delta), axes)
    return tf.sqrt(tf.reduce_sum(tf.square(delta), axes))


def errs(logits: tf.Tensor, y: tf.Tensor, targeted: bool = False) -> tf.Tensor:
    """``[B]`` bool: the attack has reached its aim. Logits that are not finite never have."""
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
    reached = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y) == targeted
    return finite & reached


def query(
    model: Model, loss: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Logits ``[B, K]``, loss ``[B]`` and the gradient of the loss at the images.

    Where the logits are not finite the loss is the lowest float and the gradient zero, so that
    an attack turns back from there.

    Raises:
        ValueError: when the logits do not depend on the images by differentiable operations.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = tf.cast(model(images), tf.float32)
        values = loss(logits)
    gradient = checks.require_gradient(tape.gradient(values, images))
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
    values = tf.where(finite, values, tf.float32.min)
    usable = per_sample(finite, images) & tf.math.is_finite(gradient)
    return logits, values, tf.where(usable, gradient, 0.0)


def ranked_others(logits: tf.Tensor, y: tf.Tensor, count: int) -> tf.Tensor:
    """``[B, T]`` int32: the classes other than ``y``, the likeliest first; T = min(count, K - 1).

    Raises:
        ValueError: when the number of classes is not static, or below 2.
    """
    classes = num_classes(logits)
    is_label = tf.one_hot(y, classes, on_value=True, off_value=False)
    others = tf.where(is_label, -math.inf, logits)
    return tf.math.top_k(others, k=min(count, classes - 1)).indices


def num_classes(logits: tf.Tensor) -> int:
    """K of logits ``[B, K]``.

    Raises:
        ValueError: when it is not static, or below 2.
    """
    if logits.shape.rank != 2 or (logits.shape[1] or 0) < 2:
        raise ValueError(
            "a model gives logits [B, K] of K >= 2 classes, K known when it is traced; received "
            f"logits of shape {logits.shape}"
        )
    return int(logits.shape[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteppedAttack(Attack):
    """Base of the attacks that advance sample by sample.

    A state is a dict of tensors ``[B, ...]``. These entries every attack has: ``x``, ``y``,
    ``key`` (random stream), ``time`` (steps taken) and ``end`` (steps to take), ``found`` (the
    result) and ``errs`` (whether the result is adversarial).
    """

    @property
    def settles(self) -> bool:
        """Whether a sample is finished once it errs: nothing better is looked for."""
        return False

    def begin(self, model: Model, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> State:
        """The state of samples before their first step."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it begins")

    def advance(self, model: Model, state: State) -> State:
        """The entries of the state that one step changes."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it advances")

    def finished(self, state: State, settle: bool) -> tf.Tensor:
        """``[B]`` bool: at the end, or erring when that settles it."""
        done = state["time"] >= state["end"]
        return done | state["errs"] if settle or self.settles else done

    def proceed(
        self,
        model: Model,
        state: State,
        *,
        settle: bool = False,
        quota: tf.Tensor | int | None = None,
        steps: int | None = None,
    ) -> State:
        """Takes samples further in a compiled loop; those that are finished stay as they are.

        Args:
            model: images -> logits.
            state: of the batch.
            settle: finish a sample once it errs.
            quota: stop when so many more samples are finished. Default None: when all are.
            steps: stop after so many steps. Default None: no limit.
        """
        already = tf.math.count_nonzero(self.finished(state, settle), dtype=tf.int32)
        size = tf.shape(state["time"])[0]
        enough = size if quota is None else tf.minimum(size, already + quota)

        def goes_on(state):
            finished = self.finished(state, settle)
            return tf.math.count_nonzero(finished, dtype=tf.int32) < enough

        def step(state):
            active = ~self.finished(state, settle)
            changes = {"time": state["time"] + 1, **self.advance(model, state)}
            changed = {
                name: tf.ensure_shape(select(active, value, state[name]), state[name].shape)
                for name, value in changes.items()
            }
            return ({**state, **changed},)

        return tf.while_loop(goes_on, step, (state,), maximum_iterations=steps)[0]

    def _search(self, model: Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        key = streams.keys(seed, tf.range(tf.shape(x)[0]))
        return self.proceed(model, self.begin(model, x, y, key))["found"]

    def _on_sphere(self, x: tf.Tensor, key: tf.Tensor, radius: tf.Tensor | float) -> tf.Tensor:
        """Random points at this distance (a number or ``[B]``) from x, then clipped to [0, 1]."""
        shape = tuple(x.shape[1:])
        if self.norm == "linf":
            noise = 2.0 * streams.uniform(key, shape) - 1.0
        else:
            noise = streams.normal(key, shape)
        noise *= per_sample(tf.math.divide_no_nan(radius, norms(noise, self.norm)), x)
        return tf.clip_by_value(x + noise, 0.0, 1.0)

    def _clock(self, y: tf.Tensor, end: int) -> State:
        return {"time": tf.zeros_like(y), "end": tf.fill(tf.shape(y), end)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistanceAttack(SteppedAttack):
    """Base of the attacks that look for the *smallest* adversarial perturbation.

    The state holds its norm as ``distance`` (infinite while none is found). The result is the
    closest adversarial image where it lies in the ball, and x itself where none does.

    Args:
        epsilon: radius of the ball; ``math.inf`` for no bound: then the closest adversarial image
            is returned, however far it is.
    """

    def _check_epsilon(self) -> None:
        self._require("epsilon", "a number >= 0, or infinity", lambda v: v >= 0)

    def _record(self, state: State, images: tf.Tensor, adversarial: tf.Tensor) -> State:
        """The changes when these images are the next candidates."""
        distance = norms(images - state["x"], self.norm)
        closer = adversarial & (distance < state["distance"])
        within = closer & (distance <= self.epsilon)
        return {
            "distance": tf.where(closer, distance, state["distance"]),
            "found": select(within, images, state["found"]),
            "errs": state["errs"] | within,
        }

    def _nothing_found(self, x: tf.Tensor, already: tf.Tensor) -> State:
        """Entries at the start: samples that err ``already`` are at distance 0."""
        distance = tf.where(already, 0.0, math.inf)
        return {"distance": distance, "found": x, "errs": already}
