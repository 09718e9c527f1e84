"""Training batches: complete epochs, and the same ones after any interruption."""

import hashlib
import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from der_tf import data, models
from der_tf.data import encoded


def batches(dataset, count=None):
    return [(x.numpy(), y.numpy()) for x, y in itertools.islice(dataset, count)]


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, c) and np.array_equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def rows(arrays):
    return sorted(image.tobytes() for image in arrays)


@pytest.fixture
def in_memory(prepare):
    rng = np.random.default_rng(0)
    folder = prepare(
        "tiny_pictures",
        image=tfds.features.Image(shape=(8, 8, 3)),
        label=tfds.features.ClassLabel(num_classes=4),
        train=(rng.integers(0, 256, (90, 8, 8, 3), np.uint8), np.arange(90) % 4),
        test=(rng.integers(0, 256, (10, 8, 8, 3), np.uint8), np.arange(10) % 4),
    )
    return lambda **kw: data.load("tiny_pictures", folder, batch_size=16, **kw)


@pytest.fixture
def in_files(write_images):
    folder = write_images(count=40, size=(20, 24), suffix="jpg")
    # Above 96 pixels a folder is streamed and takes the ImageNet recipe.
    return lambda **kw: data.load("folder", folder, batch_size=16, image_size=100, **kw)


@pytest.fixture
def in_records(prepare, monkeypatch):
    rng = np.random.default_rng(0)
    folder = prepare(
        "varied_pictures",
        image=tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        label=tfds.features.ClassLabel(num_classes=4),
        train=(
            [rng.integers(0, 256, (20 + i % 5, 30, 3), np.uint8) for i in range(90)],
            np.arange(90) % 4,
        ),
        test=(rng.integers(0, 256, (10, 20, 30, 3), np.uint8), np.arange(10) % 4),
        shards=5,
    )
    monkeypatch.setattr(encoded, "SHUFFLE_WINDOW", 32)  # several windows in 81 records
    return lambda **kw: data.load(
        "varied_pictures", folder, batch_size=16, image_size=100, validation_size=9, **kw
    )


KINDS = ["in_memory", "in_files", "in_records"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_stream_is_the_uninterrupted_one_bit_for_bit(kind, request):
    load = request.getfixturevalue(kind)
    whole = load(seed=3)
    steps = whole.steps_per_epoch
    uninterrupted = batches(whole.training_stream(), 3 * steps)
    for epoch, step in [(0, 1), (1, 0), (1, steps - 1), (2, 2)]:
        at = epoch * steps + step
        tf.random.set_seed(at)  # the state of the process must not matter
        resumed = load(seed=3).training_stream(epoch, step)
        assert same(batches(resumed, 3 * steps - at), uninterrupted[at:]), (epoch, step)


STREAM_IN_A_NEW_PROCESS = """
import hashlib, sys
import tensorflow as tf
tf.keras.utils.set_random_seed(99)
tf.config.experimental.enable_op_determinism()
from der_tf import data
for size in (16, 100):
    loaded = data.load("folder", sys.argv[1], batch_size=16, image_size=size, seed=3)
    digest = hashlib.sha256()
    for x, y in loaded.training_stream(1, 2).take(5):
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    print(digest.hexdigest())
"""


def test_another_process_with_deterministic_ops_sees_the_same_batches(write_images):
    folder = write_images(count=40, size=(20, 24), suffix="jpg")
    done = subprocess.run(
        [sys.executable, "-c", STREAM_IN_A_NEW_PROCESS, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    digests = []
    for size in (16, 100):
        loaded = data.load("folder", folder, batch_size=16, image_size=size, seed=3)
        digest = hashlib.sha256()
        for x, y in batches(loaded.training_stream(1, 2), 5):
            digest.update(x.tobytes() + y.tobytes())
        digests.append(digest.hexdigest())
    assert done.stdout.split() == digests


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_are_complete_and_differ(kind, request):
    loaded = request.getfixturevalue(kind)(augment=False)
    steps = loaded.steps_per_epoch
    assert steps == -(-loaded.train_size // 16)
    stream = batches(loaded.training_stream(), 2 * steps)
    epochs = [stream[:steps], stream[steps:]]
    once = batches(loaded.train)
    twice = batches(loaded.train)
    assert int(loaded.train.cardinality()) == steps == len(once)
    for epoch in (*epochs, once, twice):
        assert [len(labels) for _, labels in epoch[:-1]] == [16] * (steps - 1)
        assert sum(len(labels) for _, labels in epoch) == loaded.train_size
        # The same images with the same labels, whatever the order.
        pairs = sorted(
            (image.tobytes(), int(label))
            for x, y in epoch
            for image, label in zip(x, y, strict=True)
        )
        assert pairs == sorted(
            (image.tobytes(), int(label))
            for x, y in epochs[0]
            for image, label in zip(x, y, strict=True)
        )
        assert len({image for image, _ in pairs}) == loaded.train_size
    assert not same(*epochs)
    assert not same(once, twice)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_augmentation_change_the_batches(kind, request):
    load = request.getfixturevalue(kind)
    first, other, plain = (
        batches(load(**kw).training_stream(), 2)
        for kw in ({"seed": 1}, {"seed": 2}, {"seed": 1, "augment": False})
    )
    assert not same(first, other)
    # Augmentation does not change which examples come when.
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, plain, strict=True))
    assert not any(np.array_equal(a[0], b[0]) for a, b in zip(first, plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_is_drawn_anew_each_epoch(kind, request):
    loaded = request.getfixturevalue(kind)(limit_train=16)
    (first, labels), (second, other_labels) = batches(loaded.training_stream(), 2)
    assert loaded.steps_per_epoch == 1
    assert sorted(labels) == sorted(other_labels)
    # The padding of 8 x 8 images is one pixel: 18 ways to come out, so that a few agree.
    assert len(set(rows(first)) & set(rows(second))) < 8


@pytest.mark.parametrize("kind", KINDS)
def test_validation_and_test_are_fixed_and_in_range(kind, request):
    loaded, again = (request.getfixturevalue(kind)(seed=seed) for seed in (0, 1))
    for part, size in (("validation", loaded.validation_size), ("test", loaded.test_size)):
        examples = batches(getattr(loaded, part))
        assert same(examples, batches(getattr(again, part)))
        assert sum(len(labels) for _, labels in examples) == size
        for x, y in (*examples, *batches(loaded.train, 1)):
            assert x.dtype == np.float32
            assert y.dtype == np.int64
            assert x.shape[1:] == loaded.input_shape
            assert x.min() >= 0
            assert 0.5 < x.max() <= 1
            assert set(y) <= set(range(loaded.num_classes))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_do_not_share_an_image(kind, request):
    loaded = request.getfixturevalue(kind)(augment=False)
    parts = [
        {image.tobytes() for x, _ in batches(part) for image in x}
        for part in (loaded.train, loaded.validation, loaded.test)
    ]
    sizes = (loaded.train_size, loaded.validation_size, loaded.test_size)
    assert tuple(map(len, parts)) == sizes
    assert len(set.union(*parts)) == sum(sizes)


def test_digits_are_those_of_scikit_learn():
    loaded = data.load("digits", batch_size=100)
    assert loaded.input_shape == (8, 8, 1)
    assert loaded.class_names == tuple("0123456789")
    parts = [batches(part) for part in (loaded.train, loaded.validation, loaded.test)]
    images = np.concatenate([x for part in parts for x, _ in part])
    labels = np.concatenate([y for part in parts for _, y in part])
    x, y = load_digits(return_X_y=True)
    order, expected = np.argsort(rows_key(images[..., 0] * 16)), np.argsort(rows_key(x))
    np.testing.assert_array_equal(images[order].reshape(-1, 64) * 16, x[expected])
    np.testing.assert_array_equal(labels[order], y[expected])
    for part in parts:  # stratified: every digit within one of its share
        shares = np.bincount(np.concatenate([y for _, y in part])) / np.bincount(y)
        assert np.ptp(shares) < 0.03
    pixels = np.concatenate([x for x, _ in parts[0]])
    assert loaded.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), rel=1e-5)
    assert loaded.std == pytest.approx(pixels.std(axis=(0, 1, 2)), rel=1e-5)


def rows_key(images):
    return np.array([bytes(row) for row in images.reshape(len(images), -1).astype(np.uint8)])


def test_limit_keeps_classes_in_balance_and_follows_the_seed():
    labels = {}
    for seed in (0, 0, 1):
        loaded = data.load("digits", limit_train=200, seed=seed, batch_size=200)
        x, y = batches(loaded.training_stream(), 1)[0]
        assert loaded.train_size == len(y) == 200
        assert np.ptp(np.bincount(y)) <= 2
        labels.setdefault(seed, []).append(rows(x))
    assert labels[0][0] == labels[0][1]
    assert labels[0][0] != labels[1][0]


def test_statistics_of_bytes_are_those_of_the_pixels(in_memory):
    loaded = in_memory(augment=False)
    pixels = np.concatenate([x for x, _ in batches(loaded.train)])
    assert loaded.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), rel=1e-5)
    assert loaded.std == pytest.approx(pixels.std(axis=(0, 1, 2)), rel=1e-5)


def test_step_past_the_end_of_an_epoch_lies_in_the_next():
    loaded = data.load("digits")
    past = loaded.training_stream(0, loaded.steps_per_epoch + 2)
    assert same(batches(past, 2), batches(loaded.training_stream(1, 2), 2))


@pytest.mark.parametrize("at", [(-1, 0), (0, -1)])
def test_streams_start_at_zero(at):
    with pytest.raises(ValueError, match="received epoch"):
        data.load("digits").training_stream(*at)


def test_two_replicas_share_the_batches_of_one(two_replicas):
    loaded = data.load("digits", batch_size=100)
    strategy = two_replicas()
    distributed = strategy.experimental_distribute_dataset(loaded.training_stream(0, 11))
    alone = batches(loaded.training_stream(0, 11), 4)
    for (x, y), (images, labels) in zip(alone, distributed, strict=False):
        local = [v.numpy() for v in strategy.experimental_local_results(images)]
        assert len(local) == 2
        np.testing.assert_array_equal(np.concatenate(local), x)
        local = [v.numpy() for v in strategy.experimental_local_results(labels)]
        np.testing.assert_array_equal(np.concatenate(local), y)


@pytest.mark.parametrize("steps_per_execution", [1, 5])
def test_fit_takes_an_epoch_and_a_stream(steps_per_execution):
    loaded = data.load("digits", limit_train=300, batch_size=32)
    model = models.convnet(loaded.input_shape, loaded.num_classes, width=4)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
    )
    common = {"verbose": 0, "shuffle": False, "validation_data": loaded.validation, "epochs": 2}
    model.fit(loaded.train, **common)
    assert model.optimizer.iterations == 20
    model.fit(loaded.training_stream(), steps_per_epoch=loaded.steps_per_epoch, **common)
    assert model.optimizer.iterations == 40


@pytest.mark.parametrize("kind", ["in_memory", "in_files"])
def test_samples_are_unaugmented_of_all_classes_and_the_same_again(kind, request):
    load = request.getfixturevalue(kind)
    loaded, plain = load(validation_size=8), load(validation_size=8, augment=False)
    for name, dataset in (("training", plain.train), ("validation", plain.validation)):
        images, labels = getattr(loaded, f"{name}_sample")(4)
        again, _ = getattr(loaded, f"{name}_sample")(4)
        np.testing.assert_array_equal(images, again)
        assert images.shape == (4, *loaded.input_shape)
        assert len(set(labels)) > 1
        pairs = {
            (x.tobytes(), int(y)) for batch in batches(dataset) for x, y in zip(*batch, strict=True)
        }
        assert {(x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)} <= pairs
