"""Pipelines over images that stay encoded: files of a folder, records of a large TFDS data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from der_tf.data import augmentation
from der_tf.data.pipelines import (
    AUTOTUNE,
    Augmentation,
    epoch_seed,
    finish,
    folded,
    on_host,
    steps,
)

# Records shuffled together. ImageNet: about 0.5 GB of encoded images, drawn from 16 files at once.
SHUFFLE_WINDOW = 4096
FILES_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images read, decoded and augmented one by one, for the second time in the second epoch."""

    image_size: int
    channels: int

    @property
    def size(self) -> int:
        raise NotImplementedError

    def examples(self, seed: tf.Tensor | None) -> tf.data.Dataset:
        """All examples as stored, in the random order of that seed ``[2]``, in order for None."""
        raise NotImplementedError

    def read(self, example) -> tuple[tf.Tensor, tf.Tensor]:
        """An example as stored -> encoded image and int64 label."""
        raise NotImplementedError

    def in_order(self, batch_size: int) -> tf.data.Dataset:
        dataset = self.examples(None).map(self._evaluated, AUTOTUNE, deterministic=True)
        return finish(dataset.batch(batch_size), steps(self.size, batch_size))

    def epochs(
        self, plan: tf.data.Dataset, batch_size: int, seed: int, augment: Augmentation
    ) -> tf.data.Dataset:
        def one_epoch(epoch, first):
            this_epoch = epoch_seed(seed, epoch)

            def augmented(position, example):
                if not augment.crop:
                    return self._evaluated(example)
                encoded, label = self.read(example)
                image = augmentation.random_resized_crop_flip(
                    encoded,
                    folded(this_epoch, position),
                    size=self.image_size,
                    channels=self.channels,
                    flip=augment.flip,
                )
                return image, label

            examples = self.examples(this_epoch).enumerate().skip(first * batch_size)
            return examples.map(augmented, AUTOTUNE, deterministic=True).batch(batch_size)

        return plan.flat_map(one_epoch)

    def _evaluated(self, example):
        encoded, label = self.read(example)
        image = augmentation.decode(encoded, self.channels)
        return augmentation.center_crop(image, size=self.image_size), label


@dataclass(frozen=True, eq=False)
class Files(Encoded):
    """One image a file."""

    paths: np.ndarray = field(kw_only=True)  # [N] of str
    labels: np.ndarray = field(kw_only=True)  # [N] int64

    @property
    def size(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Files:
        return replace(self, paths=self.paths[indices], labels=self.labels[indices])

    def examples(self, seed: tf.Tensor | None) -> tf.data.Dataset:
        indices = tf.range(self.size)
        if seed is not None:
            indices = tf.random.experimental.stateless_shuffle(indices, seed)
        return tf.data.Dataset.from_tensor_slices(indices)

    def read(self, example) -> tuple[tf.Tensor, tf.Tensor]:
        path = tf.gather(on_host(self.paths.tolist()), example)
        return tf.io.read_file(path), tf.gather(on_host(self.labels), example)


@dataclass(frozen=True, eq=False)
class Records(Encoded):
    """TFRecord files, of each the range of records that belongs to this part."""

    filenames: Sequence[str] = field(kw_only=True)
    skips: Sequence[int] = field(kw_only=True)
    takes: Sequence[int] = field(kw_only=True)
    features: tfds.features.FeaturesDict = field(kw_only=True)  # "image" and "label"

    @property
    def size(self) -> int:
        return sum(self.takes)

    def examples(self, seed: tf.Tensor | None) -> tf.data.Dataset:
        files = tf.range(len(self.filenames))
        if seed is None:
            return tf.data.Dataset.from_tensor_slices(files).flat_map(self._records)
        files = tf.random.experimental.stateless_shuffle(files, seed)
        records = tf.data.Dataset.from_tensor_slices(files).interleave(
            self._records,
            cycle_length=FILES_AT_ONCE,
            block_length=16,
            num_parallel_calls=AUTOTUNE,
            deterministic=True,
        )
        # Dataset.shuffle would mix in the global seed: an epoch depends on its own seed alone.
        windows = records.batch(SHUFFLE_WINDOW).enumerate()
        return windows.map(
            lambda number, window: tf.random.experimental.stateless_shuffle(
                window, folded(seed, number)
            )
        ).unbatch()

    def _records(self, file: tf.Tensor) -> tf.data.Dataset:
        filename = tf.gather(on_host(list(self.filenames)), file)
        skip = tf.gather(on_host(np.array(self.skips, np.int64)), file)
        take = tf.gather(on_host(np.array(self.takes, np.int64)), file)
        return tf.data.TFRecordDataset(filename).skip(skip).take(take)

    def read(self, example) -> tuple[tf.Tensor, tf.Tensor]:
        decoders = {"image": tfds.decode.SkipDecoding()}
        values = self.features.deserialize_example(example, decoders=decoders)
        return values["image"], values["label"]
