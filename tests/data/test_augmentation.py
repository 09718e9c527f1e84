"""Image operations, eagerly and inside tf.data, against slow and obvious versions."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from der_tf.data import augmentation


def every_crop(image, pad):
    """All results a crop and mirror may give, by (top, left, mirrored)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return {
        (top, left, mirrored): padded[top : top + height, left : left + width][
            :, :: -1 if mirrored else 1
        ]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
        for mirrored in (False, True)
    }


def identify(image, result, pad):
    found = [key for key, crop in every_crop(image, pad).items() if np.array_equal(crop, result)]
    assert len(found) == 1
    return found[0]


def images(count=200, shape=(7, 9, 3)):
    return np.random.default_rng(0).integers(1, 256, (count, *shape), np.uint8)


def test_each_image_has_its_own_crop_and_mirror():
    x = images()
    y = augmentation.pad_crop_flip(tf.constant(x), tf.constant([1, 2]), pad=2, flip=True).numpy()
    drawn = np.array([identify(a, b, 2) for a, b in zip(x, y, strict=True)])
    # 200 draws of 5 x 5 x 2: every offset comes up, about half the images are mirrored.
    assert set(drawn[:, 0]) == set(drawn[:, 1]) == set(range(5))
    assert 70 < drawn[:, 2].sum() < 130
    assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.25


def test_without_flip_nothing_is_mirrored():
    x = images(50)
    y = augmentation.pad_crop_flip(tf.constant(x), tf.constant([1, 2]), pad=1, flip=False).numpy()
    assert not any(identify(a, b, 1)[2] for a, b in zip(x, y, strict=True))


def test_same_seed_same_crops_eagerly_and_in_a_pipeline():
    x = tf.constant(images(20))

    def crop(seed):
        return augmentation.pad_crop_flip(x, tf.stack([seed, seed]), pad=2, flip=True)

    dataset = tf.data.Dataset.range(4).map(crop, num_parallel_calls=4)
    results = [batch.numpy() for batch in dataset]
    for seed, batch in enumerate(results):
        np.testing.assert_array_equal(batch, crop(tf.constant(seed, tf.int64)))
    assert not np.array_equal(results[0], results[1])


def encoded(array, form):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return tf.constant(buffer.getvalue())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
def test_resized_crop_is_a_part_of_the_image(form):
    # Red grows to the right and green downward: a result tells where it was cut out.
    rows, columns = np.mgrid[0:200, 0:240]
    ramp = np.stack([columns, rows, np.full_like(rows, 128)], axis=-1).astype(np.uint8)
    data = encoded(ramp, form)
    mirrored, areas = [], []
    for seed in range(40):
        image = augmentation.random_resized_crop_flip(
            data, tf.constant([3, seed]), size=32, channels=3, flip=True
        ).numpy()
        assert image.shape == (32, 32, 3)
        assert image.min() >= 0
        assert image.max() <= 1
        red, green = 255 * image[:, :, 0].mean(axis=0), 255 * image[:, :, 1].mean(axis=1)
        assert np.all(np.diff(green) > -2.5)
        mirrored.append(red[0] > red[-1])
        width, height = abs(red[-1] - red[0]) * 32 / 31, abs(green[-1] - green[0]) * 32 / 31
        assert 0.68 < width / height < 1.47
        areas.append(width * height / (200 * 240))
    assert 8 < sum(mirrored) < 32
    assert min(areas) > 0.06
    assert max(areas) > 0.6


def test_resized_crop_follows_its_seed():
    data = encoded(images(1, (64, 64, 3))[0], "JPEG")

    def crop(seed):
        return augmentation.random_resized_crop_flip(
            data, tf.stack([7, seed]), size=16, channels=3, flip=True
        )

    dataset = tf.data.Dataset.from_tensor_slices(tf.range(5)).map(crop)
    first, second = ([image.numpy() for image in dataset] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    np.testing.assert_array_equal(first[4], crop(tf.constant(4)))
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("shape", [(300, 512), (512, 300), (256, 256), (90, 100)])
def test_center_crop_shows_the_middle_of_the_shorter_side(shape):
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    ramp = np.stack([columns / shape[1], rows / shape[0]], axis=-1)
    uint8 = np.round(255 * ramp).astype(np.uint8)
    image = augmentation.center_crop(tf.constant(uint8), size=224).numpy()
    assert image.shape == (224, 224, 2)
    kept = 0.875 * min(shape)
    for axis, extent in ((0, shape[1]), (1, shape[0])):
        profile = image[..., axis].mean(axis=axis)
        assert profile[[0, -1]].mean() == pytest.approx(0.5, abs=0.01)
        assert profile[-1] - profile[0] == pytest.approx(kept / extent, abs=0.02)


def test_bytes_to_unit_range_and_back_lose_nothing():
    values = tf.range(256)
    pixels = tf.cast(values, tf.uint8)
    unit = augmentation.unit_range(pixels)
    assert unit.numpy().min() == 0
    assert unit.numpy().max() == 1
    np.testing.assert_array_equal(augmentation.to_uint8(unit), pixels)
