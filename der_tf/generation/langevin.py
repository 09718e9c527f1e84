"""Chains down the joint energy of a wanted class: a robust classifier as a generative model.

Source: Mirza et al., *Understanding Adversarial Training with Energy-based Models* (arXiv
2505.22486), section 5; stochastic gradient Langevin dynamics are Welling and Teh (ICML 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from der_tf import energy
from der_tf.attacks import streams
from der_tf.attacks.base import logits_function
from der_tf.generation import seeds as sample_seeds
from der_tf.generation.initialization import LocalClasswisePCA


class Chains(NamedTuple):
    """Where chains end; tensors from :meth:`LangevinSampler.chain`, arrays from ``run``."""

    images: Any  # float32 [B, H, W, C] in [0, 1]
    joint_energy: Any  # float32 [B], E(x, y) of the images
    steps_taken: Any  # int32 [B], at most num_steps


class Traces(NamedTuple):
    """The ways of chains, T the most steps that one took; after its last step a chain rests."""

    frames: np.ndarray  # float32 [T + 1, B, H, W, C] in [0, 1]
    joint_energy: np.ndarray  # float32 [T + 1, B]
    steps_taken: np.ndarray  # int32 [B]


class LangevinSampler:
    """Samples of classes: Langevin chains with momentum on E(x, y) = -f(x)[y].

    With step size e, momentum m and noise level s a step is

        v <- m v - (e / 2) grad_x E(x, y);  x <- clip(x + v + sqrt(2 e) s n, 0, 1),  n ~ N(0, I).

    Without momentum and clipping, for small e, the chain samples exp(-E / (2 s**2)): s**2 is half
    the temperature. Equal (label, seed, num_steps) give equal images, whatever else is sampled
    beside them (exactly but for rounding in the network, which may depend on the batch's size);
    with more steps the same chain goes on.

    >>> sampler = LangevinSampler(model, LocalClasswisePCA().fit(images, labels))
    >>> sampler.sample(labels=[0, 1, 1], seeds=[0, 0, 1], num_steps=50)  # [3, H, W, C]

    Args:
        model: images ``[B, H, W, C]`` -> logits ``[B, K]``, any differentiable callable; a Keras
            model runs in inference mode.
        initializer: where chains start.
        step_size: e, in pixels of [0, 1] squared. Default 0.5.
        momentum: m in [0, 1). Default 0.5.
        noise: s, a standard deviation in pixels of [0, 1]. Default 0.001.
        heun: take the gradient's mean over the step's two ends (Heun's method, two gradients a
            step) in place of the one at its start. Default False.
        candidates: energy guidance; so many starts are drawn for each sample, and the one of
            lowest joint energy is taken. Default 1: none.
        adaptive: a chain stops as soon as its joint energy is at or below the reference energy of
            its class. Default True, which has an effect where there are reference energies.
        reference_energies: float ``[K]``. Default None: those of the initializer, if it has any.
        batch_size: chains at a time in :meth:`sample`, :meth:`run` and :meth:`trace`. Default 64.

    Raises:
        ValueError: for a value out of its range, a model that does not fit the initializer's images
            and classes, or one that has no gradient.
    """

    def __init__(
        self,
        model: Any,
        initializer: LocalClasswisePCA,
        *,
        step_size: float = 0.5,
        momentum: float = 0.5,
        noise: float = 0.001,
        heun: bool = False,
        candidates: int = 1,
        adaptive: bool = True,
        reference_energies: Any = None,
        batch_size: int = 64,
    ) -> None:
        _require("step_size", "a finite number > 0", step_size, 0 < step_size < np.inf)
        _require("momentum", "a number in [0, 1)", momentum, 0 <= momentum < 1)
        _require("noise", "a finite number >= 0", noise, 0 <= noise < np.inf)
        for name, number in (("candidates", candidates), ("batch_size", batch_size)):
            whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
            _require(name, "an integer >= 1", number, whole)
        if not initializer.num_classes:
            raise ValueError("the initializer is not fitted yet: call its fit(images, labels)")
        self.initializer = initializer
        self.batch_size = batch_size
        self._logits = logits_function(model, training=False)
        self._check_model(model)
        self._step_size, self._momentum, self._noise = step_size, momentum, noise
        self._heun, self._candidates = heun, candidates
        if reference_energies is None:
            reference_energies = initializer.reference_energies
        self.reference_energies = self._checked_references(reference_energies, adaptive)
        self._traced: dict[bool, Callable] = {}

    def sample(self, labels: Any, seeds: Any, num_steps: Any) -> np.ndarray:
        """Images of the given classes, float32 ``[B, H, W, C]`` in [0, 1]; see :meth:`run`."""
        return self.run(labels, seeds, num_steps).images

    def run(self, labels: Any, seeds: Any, num_steps: Any) -> Chains:
        """Chains of the given classes, ``batch_size`` at a time.

        Args:
            labels: ``[B]`` integers in 0..K-1.
            seeds: ``[B]`` integers; see the class.
            num_steps: most steps of a chain, an integer >= 0 for all or ``[B]``. 0 gives starts.

        Raises:
            ValueError: for a class that does not exist, other shapes, or a model that answers NaN.
        """
        parts = [self._call(False, *batch) for batch in self._batches(labels, seeds, num_steps)]
        if not parts:
            return Chains(np.zeros((0, *self.initializer.image_shape), np.float32), *_no_chains())
        return Chains(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def trace(self, labels: Any, seeds: Any, num_steps: Any) -> Traces:
        """As :meth:`run`, with all images on the way and their energies, in memory.

        Raises:
            ValueError: as :meth:`run`, or for more than ``batch_size`` chains.
        """
        batches = list(self._batches(labels, seeds, num_steps))
        if len(batches) != 1:
            raise ValueError(
                f"traces are of 1 to {self.batch_size} chains (batch_size); received "
                f"{sum(len(batch[0]) for batch in batches)}"
            )
        images, energies, taken, frames, on_the_way = self._call(True, *batches[0])
        last = int(taken.max()) + 1
        # A chain out of steps is no longer evaluated: its energy is the final one.
        resting = np.arange(last)[:, None] >= taken
        frames = np.where(resting[..., None, None, None], images, frames[:last])
        return Traces(frames, np.where(resting, energies, on_the_way[:last]), taken)

    def chain(self, labels: tf.Tensor, seeds: tf.Tensor, num_steps: tf.Tensor) -> Chains:
        """:meth:`run` as graph code: labels int32, seeds int64, num_steps int32, each ``[B]``."""
        return Chains(*self._chain(False, labels, seeds, num_steps)[:3])

    def _chain(
        self, traced: bool, labels: tf.Tensor, seeds: tf.Tensor, num_steps: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Ends of the chains; traced also what they were before each round and at the end."""
        count = tf.shape(labels)[0]
        keys = sample_seeds.keys(labels, seeds)
        x = self._starts(labels, keys)
        # Rounds run on all rows, or a half, a quarter, ... of them: few shapes, little idle work.
        sizes = (count - 1) // 2 ** tf.range(20) + 1
        record = [
            tf.TensorArray(tf.float32, size=0, dynamic_size=True, element_shape=shape)
            for shape in (([None, *self.initializer.image_shape], [None]) if traced else ())
        ]

        def moving(taken: tf.Tensor, stopped: tf.Tensor) -> tf.Tensor:
            return ~stopped & (taken < num_steps)

        def unfinished(t, x, velocity, energies, taken, stopped, *record):
            return tf.reduce_any(moving(taken, stopped))

        def round_(t, x, velocity, energies, taken, stopped, *record):
            active = moving(taken, stopped)
            wanted = tf.math.count_nonzero(active, dtype=tf.int32)
            size = tf.reduce_min(tf.where(sizes >= wanted, sizes, count))
            order = tf.argsort(tf.cast(active, tf.int32), direction="DESCENDING", stable=True)
            rows = order[:size]
            at, speed, own_labels, own_keys, own_active = (
                tf.gather(values, rows) for values in (x, velocity, labels, keys, active)
            )
            here, gradient = self._energy_and_gradient(at, own_labels)
            reached = own_active & self._at_reference(here, own_labels)
            moves = (own_active & ~reached)[:, None, None, None]
            step_keys = streams.fold_in(streams.fold_in(own_keys, 5), t)
            new, new_speed = self._step(at, speed, gradient, own_labels, step_keys)

            places = rows[:, None]
            update = tf.tensor_scatter_nd_update
            energies = update(
                energies, places, tf.where(own_active, here, tf.gather(energies, rows))
            )
            if record:
                record = (record[0].write(t, x), record[1].write(t, energies))
            x = update(x, places, tf.where(moves, new, at))
            velocity = update(velocity, places, tf.where(moves, new_speed, speed))
            stopped = update(stopped, places, tf.gather(stopped, rows) | reached)
            taken += tf.cast(active & ~stopped, tf.int32)
            return t + 1, x, velocity, energies, taken, stopped, *record

        nothing = tf.zeros_like(labels)
        state = (tf.constant(0), x, tf.zeros_like(x), tf.cast(nothing, tf.float32), nothing)
        state = (*state, tf.cast(nothing, tf.bool), *record)
        t, x, _, energies, taken, stopped, *record = tf.while_loop(unfinished, round_, state)
        # Chains that ran out of steps have moved since their energy was last taken.
        final = energy.joint_energy(self._logits(x), labels)
        energies = tf.where(stopped, energies, tf.cast(final, tf.float32))
        ends = zip(record, (x, energies), strict=False)  # none where nothing is traced
        return (x, energies, taken, *(values.write(t, end).stack() for values, end in ends))

    def _starts(self, labels: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """The candidates of lowest joint energy; the first one is the initializer's sample."""
        best = self.initializer.draw(labels, keys)
        if self._candidates == 1:
            return best
        lowest = energy.joint_energy(self._logits(best), labels)

        def try_another(index, best, lowest):
            other_keys = streams.fold_in(streams.fold_in(keys, 4), index)
            other = self.initializer.draw(labels, other_keys)
            energies = energy.joint_energy(self._logits(other), labels)
            better = energies < lowest
            best = tf.where(better[:, None, None, None], other, best)
            return index + 1, best, tf.where(better, energies, lowest)

        start = (tf.constant(1), best, lowest)
        return tf.while_loop(lambda index, *_: index < self._candidates, try_another, start)[1]

    def _step(self, x, velocity, gradient, labels, keys) -> tuple[tf.Tensor, tf.Tensor]:
        noise = 0.0
        if self._noise:
            scale = self._noise * float(np.sqrt(2 * self._step_size))
            noise = scale * streams.normal(keys, self.initializer.image_shape)

        def moved(gradient):
            speed = self._momentum * velocity - self._step_size / 2 * gradient
            return tf.clip_by_value(x + speed + noise, 0.0, 1.0), speed

        new, speed = moved(gradient)
        if self._heun:
            _, gradient_there = self._energy_and_gradient(new, labels)
            new, speed = moved((gradient + gradient_there) / 2)
        return new, speed

    def _energy_and_gradient(self, x: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            energies = energy.joint_energy(self._logits(x), labels)
        return tf.cast(energies, tf.float32), tape.gradient(energies, x)

    def _at_reference(self, energies: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        if self.reference_energies is None:
            return tf.zeros_like(energies, tf.bool)
        return energies <= tf.gather(self.reference_energies, labels)

    def _call(self, traced: bool, *batch: np.ndarray) -> list[np.ndarray]:
        if traced not in self._traced:
            function = tf.function(
                lambda labels, seeds, num_steps: self._chain(traced, labels, seeds, num_steps),
                input_signature=[
                    tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.int64, tf.int32)
                ],
                jit_compile=False,  # on CPU, XLA makes a convolution in a loop 11 times slower
            )
            self._traced[traced] = function
        values = [value.numpy() for value in self._traced[traced](*batch)]
        if not np.isfinite(values[1]).all():
            raise ValueError(
                "the model answers NaN or infinity on the way of "
                f"{np.count_nonzero(~np.isfinite(values[1]))} of {len(values[1])} chains"
            )
        return values

    def _batches(self, labels: Any, seeds: Any, num_steps: Any):
        labels, seeds = sample_seeds.checked(labels, seeds, self.initializer.num_classes)
        num_steps = np.asarray(num_steps)
        fits = num_steps.shape in ((), labels.shape) and (
            np.issubdtype(num_steps.dtype, np.integer) or num_steps.size == 0
        )
        if not fits or (num_steps < 0).any():
            raise ValueError(
                "num_steps is an integer >= 0, or one a label; received "
                f"{num_steps.dtype} {num_steps.tolist()}"
            )
        num_steps = np.broadcast_to(num_steps, labels.shape).astype(np.int32)
        for start in range(0, len(labels), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield labels[rows], seeds[rows], num_steps[rows]

    def _check_model(self, model: Any) -> None:
        shape, classes = self.initializer.image_shape, self.initializer.num_classes
        wanted = getattr(model, "input_shape", (None, *shape))
        if isinstance(wanted, tuple) and tuple(wanted[1:]) != tuple(shape):
            taken = [a if a is not None else b for a, b in zip(wanted[1:], shape, strict=False)]
            if taken != list(shape):
                raise ValueError(
                    f"the model takes images {tuple(wanted[1:])}; received an initializer of "
                    f"images {tuple(shape)}"
                )
        grey = tf.fill([1, *shape], 0.5)
        with tf.GradientTape() as tape:
            tape.watch(grey)
            logits = self._logits(grey)
        if tuple(logits.shape) != (1, classes):
            raise ValueError(
                f"the model answers logits [B, {classes}], one a class of the initializer; "
                f"received shape {logits.shape} for one image"
            )
        reason = "its logits do not depend on the images"
        try:
            gradient = tape.gradient(logits, grey)
        except LookupError as error:  # an operation without a gradient
            gradient, reason = None, str(error)
        if gradient is None:
            raise ValueError(
                f"sampling needs the gradient of the model, and this one has none: {reason}"
            )

    def _checked_references(self, energies: Any, adaptive: bool) -> np.ndarray | None:
        if energies is None or not adaptive:
            return None
        energies = np.asarray(energies, np.float32)
        if energies.shape != (self.initializer.num_classes,) or np.isnan(energies).any():
            raise ValueError(
                f"reference_energies are numbers [{self.initializer.num_classes}], one a class; "
                f"received {energies.tolist()}"
            )
        return energies


def _require(name: str, accepted: str, value: Any, fits: bool) -> None:
    if not fits:
        raise ValueError(f"{name} is {accepted}; received {value!r}")


def _no_chains() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.float32), np.zeros(0, np.int32)
