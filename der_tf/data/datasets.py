"""Data sets by name: split, shuffled, augmented and batched, the same way at every call."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sklearn.datasets
import tensorflow as tf

from der_tf.data import folder, tfds_reading, tfds_source
from der_tf.data.encoded import Files
from der_tf.data.pipelines import Arrays, Augmentation, Source, finish, steps
from der_tf.data.splits import Sizes, split_by_class, split_by_position

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that are kept; above it they are streamed
SMALL = 96  # pixels up to which variable images are resized once and kept
LARGE_IMAGE_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP, CROP_AND_FLIP = Augmentation(crop=True, flip=False), Augmentation(crop=True, flip=True)
NO_AUGMENTATION = Augmentation(crop=False, flip=False)
# Characters: their mirror images are other characters, or none.
NOT_MIRRORED = ("mnist", "emnist", "kmnist", "svhn_cropped", "omniglot")


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set ready for training; made by :func:`load`.

    ``train``, ``validation`` and ``test`` are batched ``tf.data.Dataset`` of (images, labels):
    float32 ``[B, H, W, C]`` in [0, 1] and int64 ``[B]``. ``train`` is one epoch, shuffled and
    augmented anew at each iteration, the last partial batch included; the others are in fixed
    order, unaugmented. ``mean`` and ``std`` are those of the training pixels, one a channel, for
    the normalisation inside a network.
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    train_size: int
    validation_size: int
    test_size: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    seed: int
    _source: Source = field(repr=False)
    _augmentation: Augmentation = field(repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in ``train``, the last partial one included."""
        return steps(self.train_size, self.batch_size)

    def training_stream(self, epoch: int = 0, step: int = 0) -> tf.data.Dataset:
        """Training batches without end, from batch ``step`` of ``epoch`` on.

        The batches, augmentation included, depend on (seed, epoch, step) alone: a run resumed here
        sees bit for bit what it would have seen. Skipped batches are neither decoded nor augmented.
        Every epoch has ``steps_per_epoch`` batches, the last of them maybe partial. For
        ``fit(..., steps_per_epoch=data.steps_per_epoch)``.

        Raises:
            ValueError: for a negative epoch or step.
        """
        if epoch < 0 or step < 0:
            raise ValueError(f"epoch and step start at 0, received epoch {epoch}, step {step}")
        epoch, step = epoch + step // self.steps_per_epoch, step % self.steps_per_epoch
        plan = tf.data.Dataset.range(epoch, tf.int64.max).map(
            lambda e: (e, tf.where(e == epoch, tf.constant(step, tf.int64), 0))
        )
        batches = self._source.epochs(plan, self.batch_size, self.seed, self._augmentation)
        return finish(batches, tf.data.INFINITE_CARDINALITY)

    def training_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of (at most) ``count`` training examples, drawn by the seed.

        Unaugmented, the same at every call.
        """
        first = tf.data.Dataset.from_tensors((tf.constant(0, tf.int64), tf.constant(0, tf.int64)))
        return _first(self._source.epochs(first, count, self.seed, NO_AUGMENTATION))

    def validation_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of validation examples, spread evenly: they may be stored class by class."""
        apart = max(1, self.validation_size // count)
        return _first(self.validation.unbatch().shard(apart, 0).batch(count))


def _first(batches: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    return next(batches.take(1).as_numpy_iterator())


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    batch_size: int = 128,
    seed: int = 0,
    validation_size: int | None = None,
    limit_train: int | None = None,
    augment: bool = True,
    image_size: int | None = None,
    download: bool = True,
) -> ImageData:
    """Loads a data set.

    ============  ====================================================================
    name          what
    ============  ====================================================================
    ``digits``    1,797 digits of 8x8 pixels that come with scikit-learn; 20 % are for
                  testing; never augmented
    ``cifar10``   CIFAR-10 through TFDS; zero-padded random crop (4 pixels), mirror
    ``cifar100``  CIFAR-100, likewise
    ``imagenet``  TFDS ``imagenet2012``; random resized crop, mirror; test is its
                  ``validation`` part, shorter side to 256 pixels and the middle 224
    ``folder``    ``data_dir/train/CLASS/*`` (JPEG, PNG, BMP; greyscale becomes RGB);
                  test is ``data_dir/val/CLASS/*`` or, without it, 20 % of the images
    any other     an image-classification data set of TFDS, ``test`` (or ``validation``,
                  or 20 % of ``train``) for testing
    ============  ====================================================================

    Images of one fixed size, and any with ``image_size`` up to 96, are decoded once, kept in memory
    and augmented as CIFAR (padding of an eighth of the height; no mirror images of characters such
    as MNIST's). Others, and what would take more than 2 GiB, are streamed and augmented as
    ImageNet.

    The validation images are taken off the training part, stratified by class, and the same for
    every ``seed``. A streamed TFDS data set (ImageNet) is too large to sort by class: its
    validation images are its first ones and ``limit_train`` takes a run of records at a random
    place; TFDS has shuffled the records when it prepared them.

    Args:
        name: see above.
        data_dir: the folder; or where TFDS keeps its data sets, default ``~/tensorflow_datasets``.
        batch_size: global, over all replicas.
        seed: of shuffling, augmentation and ``limit_train``; at least 0.
        validation_size: number of images, default 2 % of the training part, at least 500 or 10 %
            of it (the smaller), at most 5,000: 1,000 of CIFAR's 50,000.
        limit_train: number of training images to keep, classes in their shares; default all.
        augment: False for training images as they are.
        image_size: side in pixels of square images of a folder or TFDS data set. Default: the
            images' own size where all have one (a folder: squares of up to 96), else 224.
        download: False to never use the network.

    Raises:
        ValueError: for an unknown name or an argument outside what is said above, a folder without
            images where they are expected, an image file that cannot be read.
        FileNotFoundError: for a TFDS data set that is not on disk and cannot be downloaded.
    """
    for what, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("image_size", image_size, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{what} is at least {least}, received {value}")
    tfds_source.check_data_dir(data_dir)
    sizes = Sizes(validation_size, limit_train, seed)
    if name == "digits":
        parts = _digits(sizes, image_size)
    elif name == "folder":
        parts = _folder(sizes, data_dir, image_size)
    else:
        parts = _tfds(sizes, name, data_dir, image_size, download)
    train, validation, test = parts.sources
    mean, std = _statistics(train, parts.input_shape[-1])
    augmentation = parts.augmentation if augment else NO_AUGMENTATION
    # A new random number at each iteration stands in for the number of the epoch.
    epochs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    plan = epochs.map(lambda epoch: (epoch, tf.constant(0, tf.int64)))
    return ImageData(
        name=name,
        train=finish(
            train.epochs(plan, batch_size, seed, augmentation), steps(train.size, batch_size)
        ),
        validation=validation.in_order(batch_size),
        test=test.in_order(batch_size),
        train_size=train.size,
        validation_size=validation.size,
        test_size=test.size,
        input_shape=parts.input_shape,
        class_names=parts.class_names,
        mean=mean,
        std=std,
        batch_size=batch_size,
        seed=seed,
        _source=train,
        _augmentation=augmentation,
    )


@dataclass(frozen=True)
class _Parts:
    sources: tuple[Source, Source, Source]  # train, validation, test
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    augmentation: Augmentation


def _digits(sizes: Sizes, image_size: int | None) -> _Parts:
    if image_size is not None:
        raise ValueError(f"digits are images of 8 x 8 pixels, received image_size {image_size}")
    digits = sklearn.datasets.load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    pool = Arrays(images, digits.target.astype(np.int64))
    class_names = tuple(map(str, digits.target_names))
    return _Parts(split_by_class(pool, None, sizes), (8, 8, 1), class_names, NO_AUGMENTATION)


def _folder(sizes: Sizes, data_dir: str | os.PathLike | None, image_size: int | None) -> _Parts:
    if data_dir is None:
        raise ValueError("an image folder needs data_dir, the folder that holds train/CLASS/*")
    train, val = Path(data_dir) / "train", Path(data_dir) / "val"
    paths, labels = folder.find(train)
    class_names = folder.classes(train)
    parts = [(paths, labels)]
    if val.is_dir():
        parts.append(folder.find(val, class_names))
    if image_size is None:
        own = folder.common_size(paths)
        image_size = own if own is not None and own <= SMALL else LARGE_IMAGE_SIZE
    shape = (image_size, image_size, 3)
    count = sum(len(labels) for _, labels in parts)
    sources: list[Arrays] | list[Files]
    if image_size <= SMALL and count * math.prod(shape) <= MEMORY_LIMIT:
        sources = [Arrays(folder.read_all(paths, image_size), labels) for paths, labels in parts]
    else:
        for paths, _ in parts:
            folder.check(paths)
        sources = [Files(image_size, 3, paths=paths, labels=labels) for paths, labels in parts]
    test = sources[1] if len(sources) > 1 else None
    return _Parts(split_by_class(sources[0], test, sizes), shape, tuple(class_names), CROP_AND_FLIP)


def _tfds(
    sizes: Sizes,
    name: str,
    data_dir: str | os.PathLike | None,
    image_size: int | None,
    download: bool,
) -> _Parts:
    builder = tfds_source.find(name, data_dir)
    tfds_source.ensure_prepared(builder, download)
    info = builder.info
    if "train" not in info.splits:
        raise ValueError(f"{name!r} has no part 'train', only {', '.join(info.splits)}")
    test_split = tfds_reading.labelled_test_split(builder)
    height, width, channels = info.features["image"].shape
    channels = channels or 3
    if image_size is None and None in (height, width):
        image_size = LARGE_IMAGE_SIZE
    if image_size is not None and (height, width) != (image_size, image_size):
        small = image_size <= SMALL
        height = width = image_size
    else:
        small, image_size = True, None
    count = sum(info.splits[split].num_examples for split in ("train", test_split) if split)
    sources: tuple[Source, Source, Source]
    if small and count * height * width * channels <= MEMORY_LIMIT:
        pool = Arrays(*tfds_reading.read_all(builder, "train", image_size))
        test = test_split and Arrays(*tfds_reading.read_all(builder, test_split, image_size))
        sources = split_by_class(pool, test or None, sizes)
    else:
        height = width = min(height, width)
        total = info.splits["train"].num_examples
        train, validation, held_out = split_by_position(total, test_split, sizes)
        sources = (
            tfds_reading.records(builder, train, height),
            tfds_reading.records(builder, validation, height),
            tfds_reading.records(builder, held_out, height),
        )
    return _Parts(
        sources,
        (height, width, channels),
        tfds_source.class_names(info),
        CROP if info.name in NOT_MIRRORED else CROP_AND_FLIP,
    )


def _statistics(train: Source, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the training pixels, a channel; of streamed images the usual ones."""
    if not isinstance(train, Arrays):
        return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.25,))
    whole = train.images.dtype == np.uint8
    total, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, train.size, 256):
        # Integers: exact, and several times as fast as floats.
        pixels = train.images[start : start + 256].astype(np.uint32 if whole else np.float64)
        total += pixels.sum(axis=0).sum(axis=(0, 1))
        squares += np.square(pixels).sum(axis=0).sum(axis=(0, 1))
    count, scale = train.images[..., 0].size, 255.0 if whole else 1.0
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0)) / scale
    mean /= scale
    std[std == 0] = 1.0  # a channel that is the same everywhere
    return tuple(mean.tolist()), tuple(std.tolist())
