"""Balls, steps and starts in the l-inf and l2 norms.

cleverhans gives the parts: ``optimize_linear`` (the step of a given norm along a gradient) and
``clip_eta`` (the projection). Two things are ours, with the reason:

* ``random_lp_vector`` draws from stateful ops, which a ``seed`` cannot make repeatable inside a
  compiled graph: :func:`random_in_ball` draws the same distributions statelessly.
* clipping in float32 may end one rounding step outside the ball: :func:`into_ball` ends inside.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from cleverhans.tf2.utils import clip_eta, optimize_linear

_ORDERS = {"linf": np.inf, "l2": 2}
NORMS = tuple(_ORDERS)


def _axes(tensor: tf.Tensor) -> list[int]:
    return list(range(1, tensor.shape.rank))


def steepest_step(gradient: tf.Tensor, size: float, norm: str) -> tf.Tensor:
    """The perturbation of norm ``size`` that raises a linear function with this gradient most.

    Args:
        gradient: ``[B, ...]`` float32.
        size: length of the step in pixels of [0, 1].
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        ``[B, ...]`` float32; zero where the gradient is zero.
    """
    if norm == "l2":
        # optimize_linear floors the squared norm at 1e-12, which would shorten the step of a
        # confident sample (gradients below 1e-6): scale such gradients to 1 first.
        squared = tf.reduce_sum(tf.square(gradient), _axes(gradient), keepdims=True)
        largest = tf.reduce_max(tf.abs(gradient), _axes(gradient), keepdims=True)
        scaled = tf.math.divide_no_nan(gradient, largest)
        gradient = tf.where(squared < 1e-12, scaled, gradient)
    return optimize_linear(gradient, size, _ORDERS[norm])


def project(x: tf.Tensor, moved: tf.Tensor, epsilon: float, norm: str) -> tf.Tensor:
    """``moved`` brought back into [0, 1] and the ball around ``x``, up to float32 rounding.

    Clipped before the projection and after it, as cleverhans does: in l2 the order matters.
    """
    eta = clip_eta(tf.clip_by_value(moved, 0.0, 1.0) - x, _ORDERS[norm], epsilon)
    return tf.clip_by_value(x + eta, 0.0, 1.0)


def random_image(x: tf.Tensor, radius: float, norm: str, seed: tf.Tensor) -> tf.Tensor:
    """A uniform draw from the ball of that radius around each of ``x``, clipped to [0, 1]."""
    return tf.clip_by_value(x + random_in_ball(tf.shape(x), radius, norm, seed), 0.0, 1.0)


def random_in_ball(shape: tf.Tensor, epsilon: float, norm: str, seed: tf.Tensor) -> tf.Tensor:
    """Uniform draws from the ball of radius ``epsilon`` around zero.

    Args:
        shape: ``[B, ...]`` as a tensor.
        epsilon: radius in pixels of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        seed: int32 ``[2]``; the same seed gives the same draws.

    Returns:
        float32 of the given shape.
    """
    if norm == "linf":
        return tf.random.stateless_uniform(shape, seed, -epsilon, epsilon)
    seeds = tf.random.split(seed)
    direction = tf.reshape(tf.random.stateless_normal(shape, seeds[0]), [shape[0], -1])
    dimension = tf.cast(tf.shape(direction)[1], tf.float32)
    radius = tf.random.stateless_uniform([shape[0], 1], seeds[1]) ** (1.0 / dimension)
    return tf.reshape(epsilon * radius * tf.math.l2_normalize(direction, axis=1), shape)


def into_ball(x: tf.Tensor, moved: tf.Tensor, epsilon: float, norm: str) -> tf.Tensor:
    """The float32 images nearest to ``moved`` that lie in the ball and in [0, 1] *exactly*.

    The projection is computed in float64; where rounding its result to float32 went away from
    ``x``, the neighbouring float32 on the side of ``x`` is taken.

    Args:
        x: ``[B, ...]`` float32 natural images in [0, 1], the centres.
        moved: ``[B, ...]`` float32 perturbed images.
        epsilon: radius in pixels of [0, 1].
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        ``[B, ...]`` float32.
    """
    centre = tf.cast(x, tf.float64)
    delta = tf.cast(moved, tf.float64) - centre
    if norm == "linf":
        delta = tf.clip_by_value(delta, -epsilon, epsilon)
    else:
        length = tf.sqrt(tf.reduce_sum(tf.square(delta), _axes(x), keepdims=True))
        # The last float64 digits are given up, so that the sum below cannot round outward.
        edge = tf.constant(epsilon * (1 - 1e-12), tf.float64)
        shrunk = delta * tf.math.divide_no_nan(edge, length)
        delta = tf.where(length > epsilon, shrunk, delta)
    target = tf.clip_by_value(centre + delta, 0.0, 1.0)
    rounded = tf.cast(target, tf.float32) + 0.0  # no negative zero: its bits would break the step
    # Floats in [0, 1] are ordered like their bits: one bit up or down is the neighbour.
    bits = tf.bitcast(rounded, tf.int32)
    toward_x = tf.bitcast(tf.where(rounded > x, bits - 1, bits + 1), tf.float32)
    outward = tf.abs(tf.cast(rounded, tf.float64) - centre) > tf.abs(target - centre)
    return tf.where(outward, toward_x, rounded)
