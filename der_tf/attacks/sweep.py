"""Runs an attack over a set of any size in batches that stay full.

A sample leaves its batch as soon as it is finished and the next waiting one takes its place, at
its own first step. At the end, when none is waiting, the batch shrinks through a few sizes (each
half the one before), so that little is computed in vain and devices meet few shapes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from der_tf.attacks import geometry, streams
from der_tf.attacks.base import Model, logits_function
from der_tf.attacks.stepped import State, SteppedAttack, errs

_SEGMENT = 50  # steps between two looks at the batch, at most
_SMALLEST = 8


@dataclasses.dataclass(frozen=True)
class Finished:
    """Samples that have left the batch, and how far the sweep is.

    ``rows`` ``[n]`` are positions in the set, ``images`` ``[n, H, W, C]`` the results, inside the
    ball and [0, 1] exactly, ``errs`` ``[n]`` whether the model errs on them (asked once more);
    ``share`` is the part of the work that is done, from 0 to 1.
    """

    rows: np.ndarray
    images: np.ndarray
    errs: np.ndarray
    share: float


def bucket(count: int, largest: int) -> int:
    """The smallest batch size of ``largest``, ``largest / 2``, ... that holds ``count`` samples."""
    size = largest
    while size // 2 >= max(count, min(_SMALLEST, largest)):
        size //= 2
    return size


def sweep(
    attack: SteppedAttack,
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    seed: np.ndarray,
    batch_size: int,
) -> Iterator[Finished]:
    """Attacks samples of a set until each errs or is at the end of the attack.

    Args:
        attack: what to run.
        model: images -> logits.
        x: ``[N, H, W, C]`` float32, the set.
        y: ``[N]`` int32.
        rows: ``[n]`` positions of the samples to attack.
        seed: int32 ``[2]``; a sample's random draws depend on it and on the sample's position.
        batch_size: samples a batch.
    """
    run = _compiled(attack, model, tuple(x.shape[1:]))
    waiting, inside, state = np.asarray(rows), np.zeros(0, np.int64), None
    total, finished = len(waiting), 0
    while len(inside) or len(waiting):
        coming, waiting = np.split(waiting, [batch_size - len(inside)])
        if len(coming):
            asked = _padded(coming, bucket(len(coming), batch_size))
            begun = run.begin(x[asked], y[asked], asked.astype(np.int32), seed)
            begun = {name: value[: len(coming)] for name, value in begun.items()}
            if state is None:
                state = begun
            else:
                state = {name: tf.concat([state[name], begun[name]], 0) for name in state}
            inside = np.concatenate([inside, coming])
        assert state is not None
        count = len(inside)
        state = _resized(state, count, bucket(count, batch_size))
        state, done = run.proceed(state, tf.constant(max(count // 8, 1)))
        done = done.numpy()[:count]
        finished += int(np.count_nonzero(done))
        left = np.flatnonzero(~done)
        under_way = np.sum(state["time"].numpy()[left] / state["end"].numpy()[left])
        images, erring = run.results(state)
        yield Finished(
            inside[done],
            images.numpy()[:count][done],
            erring.numpy()[:count][done],
            (finished + under_way) / total,
        )
        inside = inside[left]
        state = {name: tf.gather(value, left) for name, value in state.items()}


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[:1], size - len(values))])


def _resized(state: State, count: int, size: int) -> State:
    """``count`` samples padded to ``size`` by copies of the first that are already at their end."""
    if count == size:
        return state
    state = {name: tf.gather(v, _padded(np.arange(count), size)) for name, v in state.items()}
    return {**state, "end": tf.where(np.arange(size) < count, state["end"], 0)}


@dataclasses.dataclass(frozen=True)
class _Compiled:
    begin: Callable[..., State]
    proceed: Callable[..., tuple[State, tf.Tensor]]
    results: Callable[[State], tuple[tf.Tensor, tf.Tensor]]


@functools.lru_cache(maxsize=16)
def _compiled(attack: SteppedAttack, model: Model, image_shape: tuple[int, ...]) -> _Compiled:
    """One trace each for an attack, a model and an image shape; the batch size is left open."""
    logits_of = logits_function(model, False)
    images = tf.TensorSpec([None, *image_shape], tf.float32)
    integers = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[images, integers, integers, tf.TensorSpec([2], tf.int32)])
    def begin(x, y, samples, seed):
        return attack.begin(logits_of, x, y, streams.keys(seed, samples))

    # A state of the attack, with the batch size open, is what both others take.
    begun = begin.get_concrete_function().structured_outputs
    spec = {name: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for name, v in begun.items()}

    @tf.function(input_signature=[spec, tf.TensorSpec([], tf.int32)])
    def proceed(state, quota):
        state = attack.proceed(logits_of, state, settle=True, quota=quota, steps=_SEGMENT)
        return state, attack.finished(state, settle=True)

    @tf.function(input_signature=[spec])
    def results(state):
        inside = geometry.into_ball(state["x"], state["found"], attack.radius, attack.norm)
        return inside, errs(tf.cast(logits_of(inside), tf.float32), state["y"], attack.targeted)

    return _Compiled(begin, proceed, results)
