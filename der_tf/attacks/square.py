"""The Square attack (Andriushchenko et al., ECCV 2020): random search, black-box."""

from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from der_tf.attacks import streams
from der_tf.attacks.base import Model
from der_tf.attacks.losses import margin
from der_tf.attacks.stepped import State, SteppedAttack, errs, norms, per_sample, select

_SHRINKS_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


@functools.lru_cache
def window_sizes(
    queries: int, p_init: float, rescale: bool, height: int, width: int, least: int
) -> np.ndarray:
    """int32 ``[queries]``: the side of the window at each query (section 4.1 of the paper).

    The share of the image that is changed is halved after 10, 50, 200 ... queries of a schedule
    made for 10,000. Odd, and at least 3, in l2 (``least`` = 3), where the window has two halves.
    """
    at = np.arange(queries)
    if rescale:
        at = (at / queries * 10_000).astype(int)
    halvings = np.searchsorted(_SHRINKS_AFTER, at, side="left")
    sides = np.rint(np.sqrt(p_init / 2.0**halvings * height * width)).astype(np.int32)
    sides = np.maximum(sides, least)
    if least > 1:
        sides += sides % 2 == 0
    return np.minimum(sides, min(height, width)).astype(np.int32)


@functools.lru_cache
def bump(side: int) -> np.ndarray:
    """float32 ``[side, side]``: the l2 update, a positive and a negative peak, of norm 1."""

    def peak(height: int, width: int) -> np.ndarray:
        values = np.zeros((height, width))
        row, column = height // 2, width // 2
        for ring in range(max(height, width) // 2 + 1):
            rows = slice(max(row - ring, 0), max(row + ring + 1, 0))
            columns = slice(max(column - ring, 0), max(column + ring + 1, 0))
            values[rows, columns] += 1.0 / (ring + 1) ** 2
        return values / max(np.sqrt(np.sum(values**2)), 1e-12)

    halves = [peak(side // 2, side), -peak(side - side // 2, side)]
    values = np.concatenate(halves)
    return (values / np.sqrt(np.sum(values**2))).astype(np.float32)


@keras.saving.register_keras_serializable("der_tf.attacks")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(SteppedAttack):
    """Square attack, ``square``: random squares, kept where they lower the margin of the label.

    It uses no gradient. A sample is finished once it errs.

    Args:
        queries: evaluations of the model a sample. Default 5000.
        p_init: share of the image that the first windows change. Default 0.8.
        rescale_schedule: fit the schedule of window sizes, made for 10,000 queries, to
            ``queries``. Default False, as in AutoAttack.
    """

    queries: int = 5000
    p_init: float = 0.8
    rescale_schedule: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("queries")
        self._require("p_init", "a number in (0, 1]", lambda v: 0 < v <= 1)

    @property
    def settles(self) -> bool:
        return True

    def begin(self, model: Model, x: tf.Tensor, y: tf.Tensor, key: tf.Tensor) -> State:
        if x.shape.rank != 4:
            raise ValueError(f"square takes images [B, H, W, C]; received shape {x.shape}")
        return {
            **{"x": x, "y": y, "key": key, "found": x},
            **self._clock(y, self.queries),
            "loss": tf.fill(tf.shape(y), tf.float32.min),
            "errs": tf.zeros_like(y, tf.bool),
        }

    def advance(self, model: Model, state: State) -> State:
        key = streams.fold_in(state["key"], state["time"])
        first = tf.equal(state["time"], 0)
        change, start = (
            (self._change_linf, self._start_linf)
            if self.norm == "linf"
            else (self._change_l2, self._start_l2)
        )
        candidates = tf.cond(
            tf.reduce_any(first),
            lambda: select(first, start(state["x"], key), change(state, key)),
            lambda: change(state, key),
        )
        logits = tf.cast(model(candidates), tf.float32)
        loss = margin(labels=state["y"], logits=logits)
        loss = -loss if self.targeted else loss
        err = errs(logits, state["y"], self.targeted)
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
        better = finite & ((loss > state["loss"]) | err)
        return {
            "found": select(better, candidates, state["found"]),
            "loss": tf.where(better, loss, state["loss"]),
            "errs": err,
        }

    def _sides(self, state: State) -> tf.Tensor:
        height, width = state["x"].shape[1:3]
        least = 1 if self.norm == "linf" else 3
        sides = window_sizes(self.queries, self.p_init, self.rescale_schedule, height, width, least)
        return tf.gather(tf.constant(sides), tf.minimum(state["time"], self.queries - 1))

    def _start_linf(self, x: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Vertical stripes."""
        stripes = streams.signs(key, (1, *x.shape[2:]))
        return tf.clip_by_value(x + self.epsilon * stripes, 0.0, 1.0)

    def _change_linf(self, state: State, key: tf.Tensor) -> tf.Tensor:
        """A square of one colour, epsilon from x in every channel."""
        x, found = state["x"], state["found"]
        mask = tf.cast(self._window(state, streams.fold_in(key, 0))[0], tf.float32)
        colour = streams.signs(streams.fold_in(key, 1), (1, 1, x.shape[3]))
        # From anywhere in the ball 2 epsilon leads to the side of the colour's sign, once clipped.
        changed = found + 2.0 * self.epsilon * colour * mask
        changed = tf.clip_by_value(changed, x - self.epsilon, x + self.epsilon)
        return tf.clip_by_value(changed, 0.0, 1.0)

    def _start_l2(self, x: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """A grid of bumps, 5 by 5 where the image is square."""
        height, width, channels = x.shape[1:]
        side = max(height // 5, 1)
        down, across = height // side, width // side
        top = (height - side * 5) // 2 if height >= 5 * side else 0
        grid = np.zeros((height, width), np.float32)
        tiled = np.tile(bump(side), (down, across))[: height - top, : width - top]
        grid[top : top + tiled.shape[0], top : top + tiled.shape[1]] = tiled
        signs = streams.signs(key, (down, across, channels))
        signs = tf.repeat(tf.repeat(signs, side, axis=1), side, axis=2)
        signs = signs[:, : tiled.shape[0], : tiled.shape[1]]
        signs = tf.pad(
            signs,
            [
                [0, 0],
                [top, height - top - tiled.shape[0]],
                [top, width - top - tiled.shape[1]],
                [0, 0],
            ],
        )
        return self._onto_sphere(x, grid[None, :, :, None] * signs)

    def _change_l2(self, state: State, key: tf.Tensor) -> tf.Tensor:
        """Moves the mass of one window, and what is left of epsilon, into a bump in another."""
        x = state["x"]
        delta = state["found"] - x
        window, row, column = self._window(state, streams.fold_in(key, 0))
        emptied, _, _ = self._window(state, streams.fold_in(key, 1))
        mask, either = (tf.cast(m, tf.float32) for m in (window, window | emptied))

        def of_channels(values):
            return tf.sqrt(tf.reduce_sum(tf.square(values), [1, 2], keepdims=True))

        unused = tf.maximum(self.epsilon**2 - tf.square(norms(delta, "l2")), 0.0)
        mass = tf.square(of_channels(delta * either)) + per_sample(unused, x) / x.shape[3]
        bumps = self._bumps(state, row, column, streams.fold_in(key, 2))
        bumps *= streams.signs(streams.fold_in(key, 3), (1, 1, x.shape[3]))
        old = delta * mask
        bumps += old / (1e-12 + of_channels(old))
        bumps *= tf.sqrt(mass) / (1e-12 + of_channels(bumps))
        return self._onto_sphere(x, delta * (1.0 - either) + bumps)

    def _window(self, state: State, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """A random square ``[B, H, W, 1]`` bool, its first row and column ``[B]``."""
        height, width = state["x"].shape[1:3]
        side = self._sides(state)
        draws = streams.uniform(key, (2,))

        def place(draw, size):
            first = tf.cast(draw * tf.cast(size - side + 1, tf.float32), tf.int32)
            at = tf.range(size)[None]
            return first, (at >= first[:, None]) & (at < (first + side)[:, None])

        (row, rows), (column, columns) = place(draws[:, 0], height), place(draws[:, 1], width)
        return (rows[:, :, None] & columns[:, None, :])[..., None], row, column

    def _bumps(self, state: State, row: tf.Tensor, column: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Bumps ``[B, H, W, 1]`` at these places, lying or standing by chance."""
        height, width = state["x"].shape[1:3]
        sizes = np.unique(
            window_sizes(self.queries, self.p_init, self.rescale_schedule, height, width, 3)
        )
        largest = int(sizes[-1])
        table = np.zeros((len(sizes), largest + 1, largest + 1), np.float32)  # a rim of zeros
        for index, side in enumerate(sizes):
            table[index, :side, :side] = bump(int(side))
        which = tf.searchsorted(tf.constant(sizes), self._sides(state))
        shapes = tf.gather(tf.constant(table), which)
        stands = streams.uniform(key, ())[:, None, None] < 0.5
        shapes = tf.where(stands, tf.transpose(shapes, [0, 2, 1]), shapes)

        def offsets(first, size):
            at = tf.range(size)[None] - first[:, None]
            return tf.where((at >= 0) & (at < largest), at, largest)

        shapes = tf.gather(shapes, offsets(row, height), axis=1, batch_dims=1)
        shapes = tf.gather(shapes, offsets(column, width), axis=2, batch_dims=1)
        return shapes[..., None]

    def _onto_sphere(self, x: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        scale = tf.math.divide_no_nan(self.epsilon, norms(delta, "l2"))
        return tf.clip_by_value(x + per_sample(scale, x) * delta, 0.0, 1.0)
