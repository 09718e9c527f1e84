"""Image operations of the training and evaluation pipelines, random ones by stateless seeds."""

from __future__ import annotations

import tensorflow as tf


def unit_range(images: tf.Tensor) -> tf.Tensor:
    """uint8 0..255 -> float32 [0, 1]; float32 in [0, 1] passes."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / 255.0
    return images


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """float32 [0, 1] -> the nearest uint8 0..255."""
    return tf.cast(tf.round(images * 255.0), tf.uint8)


def pad_crop_flip(images: tf.Tensor, seed: tf.Tensor, *, pad: int, flip: bool) -> tf.Tensor:
    """Random crops of the zero-padded images and random mirror images, one draw an image.

    The whole batch in one gather: an order of magnitude faster than image by image.

    Args:
        images: ``[B, H, W, C]`` of any type.
        seed: ``[2]`` integers.
        pad: pixels of black added on every side before cropping back to H x W.
        flip: whether half of the images are mirrored left to right.

    Returns:
        ``[B, H, W, C]``, the type of ``images``.
    """
    _, height, width, channels = images.shape
    count = tf.shape(images)[0]
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    top, left = tf.unstack(
        tf.random.stateless_uniform([2, count, 1], crop_seed, 0, 2 * pad + 1, tf.int32)
    )
    rows = top + tf.range(height)
    columns = tf.range(width)[tf.newaxis]
    if flip:
        mirrored = tf.random.stateless_uniform([count, 1], flip_seed, 0, 2, tf.int32)
        columns = tf.where(mirrored == 1, width - 1 - columns, columns)
    columns += left
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    row_starts = (tf.range(count)[:, tf.newaxis] * (height + 2 * pad) + rows) * (width + 2 * pad)
    pixels = row_starts[:, :, tf.newaxis] + columns[:, tf.newaxis, :]
    return tf.gather(tf.reshape(padded, [-1, channels]), pixels)


def random_resized_crop_flip(
    encoded: tf.Tensor, seed: tf.Tensor, *, size: int, channels: int, flip: bool
) -> tf.Tensor:
    """A random part of the image, resized, and mirrored half of the time: the ImageNet recipe.

    The part covers 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3. Of a JPEG only that
    part is decoded.

    Args:
        encoded: scalar string, the bytes of a JPEG, PNG or BMP.
        seed: ``[2]`` integers.
        size: of the result in pixels.
        channels: of the result, 1 or 3.
        flip: whether to mirror at all.

    Returns:
        ``[size, size, channels]`` float32 in [0, 1].
    """
    is_jpeg = tf.io.is_jpeg(encoded)
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))

    def window(shape):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            crop_seed,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return begin, extent

    def crop_jpeg():
        begin, extent = window(tf.io.extract_jpeg_shape(encoded))
        box = tf.concat([begin[:2], extent[:2]], axis=0)
        return tf.io.decode_and_crop_jpeg(encoded, box, channels=channels)

    def crop_other():
        image = decode(encoded, channels)
        begin, extent = window(tf.shape(image))
        # The window's own channel extent is -1 ("all").
        return tf.slice(image, begin, extent)

    image = tf.cond(is_jpeg, crop_jpeg, crop_other)
    image = _resize(image, [size, size])
    if flip:
        mirror = tf.random.stateless_uniform([], flip_seed) < 0.5
        image = tf.cond(mirror, lambda: image[:, ::-1], lambda: image)
    return tf.ensure_shape(image, [size, size, channels])


def decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """The bytes of a JPEG, PNG or BMP -> ``[H, W, channels]`` uint8."""
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def center_crop(image: tf.Tensor, *, size: int, fraction: float = 224 / 256) -> tf.Tensor:
    """Resizes the shorter side to ``size / fraction`` and cuts out the middle.

    Args:
        image: ``[H, W, C]`` uint8.
        size: of the result in pixels.
        fraction: of the shorter side that is kept.

    Returns:
        ``[size, size, C]`` float32 in [0, 1].
    """
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = round(size / fraction) / tf.reduce_min(shape)
    resized = tf.cast(tf.round(shape * scale), tf.int32)
    image = _resize(image, resized)
    top, left = tf.unstack((resized - size) // 2)
    return tf.ensure_shape(image[top : top + size, left : left + size], [size, size, None])


def _resize(image: tf.Tensor, size) -> tf.Tensor:
    """uint8 -> float32 in [0, 1], low-pass filtered where it shrinks."""
    resized = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
    return tf.clip_by_value(resized / 255.0, 0.0, 1.0)
