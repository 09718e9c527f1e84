"""Random numbers with one stream a sample, so that a sample's draws do not depend on its batch.

TensorFlow's stateless ops take one seed a tensor: a sample would draw differently when survivors
are gathered into other batches, and an interrupted run could not go on as if it had not been
interrupted. Here every number is a hash (the finalizer of MurmurHash3) of a sample's key and the
number's position, so all streams of a batch are drawn by a few elementwise operations.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """A bijection of uint32 whose output bits all depend on all input bits."""
    shift = tf.bitwise.right_shift
    bits = tf.bitwise.bitwise_xor(bits, shift(bits, tf.constant(16, tf.uint32)))
    bits *= tf.constant(0x85EBCA6B, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, shift(bits, tf.constant(13, tf.uint32)))
    bits *= tf.constant(0xC2B2AE35, tf.uint32)
    return tf.bitwise.bitwise_xor(bits, shift(bits, tf.constant(16, tf.uint32)))


def fold_in(keys: tf.Tensor, numbers: tf.Tensor | int) -> tf.Tensor:
    """Keys of new streams, from keys uint32 ``[B]`` and integers ``[B]`` (or one for all)."""
    numbers = tf.cast(numbers, tf.uint32) + tf.constant(0x9E3779B9, tf.uint32)
    return _mix(tf.bitwise.bitwise_xor(_mix(keys), _mix(numbers)))


def keys(seed: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
    """The stream of each sample.

    Args:
        seed: int32 ``[2]``.
        samples: ``[B]`` integers that tell the samples apart.

    Returns:
        uint32 ``[B]``.
    """
    start = fold_in(tf.zeros_like(samples, tf.uint32), seed[0])
    return fold_in(fold_in(start, seed[1]), samples)


def uniform(keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """float32 ``[B, *shape]`` in [0, 1), from keys uint32 ``[B]``."""
    positions = _mix(tf.cast(tf.range(1, int(np.prod(shape)) + 1), tf.uint32))
    bits = _mix(tf.bitwise.bitwise_xor(_mix(keys)[:, None], positions[None]))
    fractions = tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32)
    return tf.reshape(fractions * 2.0**-24, [-1, *shape])


def normal(keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Standard normal float32 ``[B, *shape]`` (Box and Muller), from keys uint32 ``[B]``."""
    radius = tf.sqrt(-2.0 * tf.math.log(1.0 - uniform(fold_in(keys, 1), shape)))
    return radius * tf.cos(2.0 * np.pi * uniform(fold_in(keys, 2), shape))


def signs(keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """-1 or 1 with equal chances, float32 ``[B, *shape]``, from keys uint32 ``[B]``."""
    return tf.where(uniform(keys, shape) < 0.5, -1.0, 1.0)
