"""TFDS data sets: the splits that are used, and plain words about what cannot be had."""

import hashlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from der_tf import data
from der_tf.data import tfds_source

Label = tfds.features.ClassLabel


def pictures(count, shape=(8, 8, 3), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % 4


@pytest.fixture
def no_network(monkeypatch):
    """A proxy that nobody answers at."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(name, "" if name == "no_proxy" else closed)


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_images_and_labels_are_those_on_disk(prepare):
    images, labels = pictures(60)
    test_images, test_labels = pictures(9, seed=1)
    folder = prepare(
        "tiny_set",
        image=tfds.features.Image(shape=(8, 8, 3)),
        label=Label(names=["a", "b", "c", "d"]),
        train=(images, labels),
        test=(test_images, test_labels),
    )
    loaded = data.load("tiny_set", folder, validation_size=8, augment=False)
    assert loaded.class_names == ("a", "b", "c", "d")
    assert (loaded.train_size, loaded.validation_size, loaded.test_size) == (52, 8, 9)
    x, y = next(loaded.test.as_numpy_iterator())
    np.testing.assert_array_equal(x, test_images / np.float32(255))
    np.testing.assert_array_equal(y, test_labels)
    validation = next(loaded.validation.as_numpy_iterator())[1]
    assert np.array_equal(np.bincount(validation), [2, 2, 2, 2])


def test_greyscale_characters_are_cropped_but_not_mirrored(prepare):
    # Bright on the left, dark on the right: a mirrored one would be seen.
    images = np.tile(np.linspace(255, 100, 28).astype(np.uint8), (40, 28, 1))[..., np.newaxis]
    folder = prepare(
        "mnist",
        version="3.0.1",
        image=tfds.features.Image(shape=(28, 28, 1)),
        label=Label(num_classes=10),
        train=(images, np.arange(40) % 10),
        test=(images[:10], np.arange(10)),
    )
    loaded = data.load("mnist", folder, batch_size=64)
    x = np.concatenate([x for x, _ in loaded.train.as_numpy_iterator()])
    assert loaded.input_shape == (28, 28, 1)
    assert np.all(x[:, 14, 5] > x[:, 14, 22])
    assert len({image.tobytes() for image in x}) > 5


@pytest.mark.parametrize(
    ("labels_of_test", "splits", "test_size"),
    [
        ("real", ("train", "validation", "test"), 8),
        ("hidden", ("train", "validation", "test"), 12),
        ("real", ("train", "validation"), 12),
        ("real", ("train",), 8),  # 20 % of 40
    ],
)
def test_which_part_is_for_testing(prepare, labels_of_test, splits, test_size):
    parts = {"train": pictures(40), "validation": pictures(12, seed=1), "test": pictures(8, seed=2)}
    if labels_of_test == "hidden":
        parts["test"] = (parts["test"][0], np.full(8, -1))
    folder = prepare(
        "parts_set",
        image=tfds.features.Image(shape=(8, 8, 3)),
        label=Label(num_classes=4),
        **{split: parts[split] for split in splits},
    )
    loaded = data.load("parts_set", folder)
    assert loaded.test_size == test_size
    assert loaded.train_size + loaded.validation_size == (32 if splits == ("train",) else 40)
    assert min(next(loaded.test.as_numpy_iterator())[1]) >= 0


def test_imagenet_streams_as_tfds_has_it(prepare):
    folder = prepare(
        "imagenet2012",
        version="5.1.0",
        image=tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        label=Label(num_classes=1000),
        train=pictures(30, (70, 50, 3)),
        validation=pictures(6, (40, 60, 3), seed=1),
    )
    loaded = data.load("imagenet", folder, batch_size=4, limit_train=10)
    assert loaded.input_shape == (224, 224, 3)
    assert loaded.num_classes == 1000
    assert loaded.class_names[0] == "n01440764"
    assert (loaded.train_size, loaded.validation_size, loaded.test_size) == (10, 3, 6)
    assert loaded.mean == (0.485, 0.456, 0.406)
    batches = list(loaded.train.as_numpy_iterator())
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert batches[0][0].shape == (4, 224, 224, 3)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_what_is_not_on_disk_fails_within_a_second_without_network(tmp_path, no_network, name):
    tfds.builder(name, data_dir=tmp_path)  # the first use of TFDS imports things
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="cannot be reached") as caught:
        data.load(name, tmp_path)
    assert time.monotonic() - start < 1
    message = str(caught.value)
    assert f"data set '{name}' is not in {tmp_path}" in message
    assert f"`tfds build {name} --data_dir {tmp_path}`" in message
    assert "\n" not in message


def test_no_download_means_no_network(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tfds build cifar10 .* allow the download"):
        data.load("cifar10", tmp_path, download=False)


def test_imagenet_says_where_its_archives_belong(tmp_path):
    with pytest.raises(FileNotFoundError, match="by hand") as caught:
        data.load("imagenet", tmp_path)
    assert str(tmp_path / "downloads" / "manual") in str(caught.value)
    assert "\n" not in str(caught.value)


class MadeSet(tfds.core.GeneratorBasedBuilder):
    """Made, not downloaded: for preparing on first use."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(8, 8, 3)), "label": Label(num_classes=4)}
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, (image, label) in enumerate(zip(*pictures(20), strict=True)):
            yield index, {"image": image, "label": label}


class BrokenSet(MadeSet):
    """Fails while it is prepared, as a broken archive does."""

    def _generate_examples(self):
        raise OSError("the archive ends early")
        yield


def test_what_can_be_prepared_is(tmp_path):
    assert data.load("made_set", tmp_path).train_size == 15
    assert data.load("made_set", tmp_path, download=False).train_size == 15


def test_a_failed_preparation_gives_its_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"could not be prepared: .*archive ends early"):
        data.load("broken_set", tmp_path)


class ServedSet(MadeSet):
    """Its images come from a server."""

    def _split_generators(self, dl_manager):
        (url,) = self.url_infos
        return {"train": self._generate_examples(dl_manager.download(url))}

    def _generate_examples(self, path):
        for index, image in enumerate(np.load(path)):
            yield index, {"image": image, "label": index % 4}


@pytest.fixture
def served(tmp_path, monkeypatch, no_proxy):
    """Serves the archive of ``served_set``; returns its images and the server."""
    images, _ = pictures(20)
    (tmp_path / "www").mkdir()
    archive = tmp_path / "www" / "images.npy"
    np.save(archive, images)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(archive.parent))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        info = tfds.download.checksums.UrlInfo(
            size=archive.stat().st_size,
            checksum=hashlib.sha256(archive.read_bytes()).hexdigest(),
            filename=archive.name,
        )
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setattr(ServedSet, "url_infos", {url: info})
        yield images, server
        server.shutdown()
        thread.join()


def test_with_network_a_data_set_is_downloaded_once(tmp_path, served):
    images, server = served
    loaded = data.load("served_set", tmp_path, augment=False)
    parts = (loaded.train, loaded.validation, loaded.test)
    found = np.concatenate([x for part in parts for x, _ in part.as_numpy_iterator()])
    assert sorted(x.tobytes() for x in found) == sorted(
        x.tobytes() for x in images / np.float32(255)
    )
    server.shutdown()
    server.server_close()
    assert data.load("served_set", tmp_path).train_size == loaded.train_size


def test_a_server_that_is_gone_is_named(tmp_path, served):
    _, server = served
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match=r"127\.0\.0\.1 cannot be reached"):
        data.load("served_set", tmp_path)


def test_reachable_hosts_and_others(no_proxy):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/archive.tar"
        assert tfds_source.reachable(url)
    assert not tfds_source.reachable(url)


def test_unknown_names_get_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match=r"digits, cifar10.*'cifr10' \(did you mean 'cifar10'\?\)"):
        data.load("cifr10", tmp_path)
    with pytest.raises(ValueError, match="received ''"):
        data.load("", tmp_path)


def test_a_set_without_class_labels_is_refused(prepare):
    folder = prepare(
        "scalar_set",
        image=tfds.features.Image(shape=(8, 8, 3)),
        label=tfds.features.Scalar(np.int64),
        train=pictures(8),
    )
    with pytest.raises(ValueError, match=r"'image' and 'label'.*scalar_set"):
        data.load("scalar_set", folder)


def test_a_set_of_texts_is_refused_before_any_download(tmp_path):
    with pytest.raises(ValueError, match=r"'image' and 'label', 'glue/cola' has 'sentence'"):
        data.load("glue/cola", tmp_path)


def test_cifar10_has_its_class_names_also_without_the_file_of_them(prepare):
    folder = prepare(
        "cifar10",
        version="3.0.2",
        image=tfds.features.Image(shape=(32, 32, 3)),
        label=Label(num_classes=10),
        train=pictures(20, (32, 32, 3)),
        test=pictures(4, (32, 32, 3)),
    )
    names = data.load("cifar10", folder).class_names
    assert (len(names), names[0], names[3], names[9]) == (10, "airplane", "cat", "truck")


def test_deeper_pixels_are_refused(prepare):
    folder = prepare(
        "deep_set",
        image=tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png"),
        label=Label(num_classes=4),
        train=(np.ones((8, 8, 8, 1), np.uint16), np.arange(8) % 4),
    )
    with pytest.raises(ValueError, match="'deep_set' are uint16"):
        data.load("deep_set", folder)


def test_a_set_without_training_part_is_refused(prepare):
    folder = prepare(
        "test_set",
        image=tfds.features.Image(shape=(8, 8, 3)),
        label=Label(num_classes=4),
        test=pictures(8),
    )
    with pytest.raises(ValueError, match="no part 'train', only test"):
        data.load("test_set", folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit_train": 1296}, "between 1 and 1295, .*143 for validation; received 1296"),
        ({"limit_train": 0}, "limit_train is between 1 and 1295.*received 0"),
        ({"limit_train": -5}, "received -5"),
        ({"validation_size": 0}, "validation_size is between 1 and 1437.*received 0"),
        ({"validation_size": 1438}, "received 1438"),
        ({"batch_size": 0}, "batch_size is at least 1, received 0"),
        ({"seed": -1}, "seed is at least 0, received -1"),
        ({"image_size": 16}, "8 x 8 pixels, received image_size 16"),
        ({"data_dir": "/nowhere"}, "data_dir is an existing folder, received '/nowhere'"),
    ],
)
def test_unusable_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **arguments)
