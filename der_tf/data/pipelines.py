"""From stored examples to batches: what all tf.data pipelines share, and the one over arrays.

A training epoch is a function of (seed, epoch) alone, every draw in it stateless: a run that is
taken up again in the middle sees the batches it would have seen, and skipping to them costs no
decoding and no augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import tensorflow as tf

from der_tf.data import augmentation

AUTOTUNE = tf.data.AUTOTUNE


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image: nothing, or a crop and, with ``flip``, a mirror image."""

    crop: bool
    flip: bool


class Source(Protocol):
    """One part of a data set: train, validation or test."""

    @property
    def size(self) -> int:
        """Number of examples."""

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        """Batches in stored order, unaugmented."""

    def epochs(
        self, plan: tf.data.Dataset, batch_size: int, seed: int, augment: Augmentation
    ) -> tf.data.Dataset:
        """Training batches of the planned epochs, one after the other.

        Args:
            plan: of int64 pairs (epoch, step to start it at).
        """


def finish(dataset: tf.data.Dataset, batches: int) -> tf.data.Dataset:
    """Prefetch, number of batches, and the options every pipeline here has."""
    dataset = dataset.prefetch(AUTOTUNE)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches))
    options = tf.data.Options()
    options.deterministic = True
    # There is no file to give to each worker: every worker reads all and keeps its share.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def steps(size: int, batch_size: int) -> int:
    """Batches in an epoch, the last partial one included."""
    return -(-size // batch_size)


def on_host(values) -> tf.Tensor:
    """A constant in the memory of the host, captured by a graph rather than written into it."""
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(values)


def epoch_seed(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The stateless seed ``[2]`` of an epoch."""
    return tf.stack([tf.constant(seed, tf.int64), epoch])


def folded(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """The stateless seed ``[2]`` of a step or an example within an epoch."""
    return tf.random.experimental.stateless_fold_in(seed, number)


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images held in memory: decoded once, shuffled by index, augmented a batch at a time."""

    images: np.ndarray  # [N, H, W, C] uint8, or float32 in [0, 1]
    labels: np.ndarray  # [N] int64

    @property
    def size(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Arrays:
        return Arrays(self.images[indices], self.labels[indices])

    @cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        return on_host(self.images), on_host(self.labels)

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        images, labels = self._tensors
        dataset = tf.data.Dataset.range(steps(self.size, batch_size)).map(
            lambda step: _slice(images, labels, step * batch_size, batch_size)
        )
        return finish(dataset, steps(self.size, batch_size))

    def epochs(
        self, plan: tf.data.Dataset, batch_size: int, seed: int, augment: Augmentation
    ) -> tf.data.Dataset:
        images, labels = self._tensors
        count = steps(self.size, batch_size)
        pad = (images.shape[1] + 4) // 8  # 4 pixels of 32

        def indices_and_seeds(epoch, first):
            this_epoch = epoch_seed(seed, epoch)
            order = tf.random.experimental.stateless_shuffle(tf.range(self.size), this_epoch)
            return tf.data.Dataset.range(first, count).map(
                lambda step: (
                    order[step * batch_size : (step + 1) * batch_size],
                    folded(this_epoch, step),
                )
            )

        def batch(indices, batch_seed):
            chosen = tf.gather(images, indices)
            if augment.crop:
                chosen = augmentation.pad_crop_flip(chosen, batch_seed, pad=pad, flip=augment.flip)
            return augmentation.unit_range(chosen), tf.gather(labels, indices)

        return plan.flat_map(indices_and_seeds).map(batch, AUTOTUNE, deterministic=True)


def _slice(images, labels, start, count):
    stop = start + count
    return augmentation.unit_range(images[start:stop]), labels[start:stop]
