"""Small real data sets, made on the spot: prepared by TFDS, or a folder of image files."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image


@pytest.fixture
def prepare(tmp_path):
    """Writes a data set as TFDS would, into ``tmp_path``; returns that folder."""

    def write(name, *, image, label, version="1.0.0", shards=1, **splits):
        features = tfds.features.FeaturesDict(
            {"image": image, "label": label, "note": tfds.features.Text()}
        )

        def examples(images, labels):
            for picture, number in zip(images, labels, strict=True):
                yield {"image": picture, "label": number, "note": "beside the point"}

        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version=version,
            features=features,
            split_datasets={
                split: tf.data.Dataset.from_generator(
                    lambda parts=parts: examples(*parts),
                    output_signature={
                        "image": tf.TensorSpec(image.shape, image.np_dtype),
                        "label": tf.TensorSpec((), tf.int64),
                        "note": tf.TensorSpec((), tf.string),
                    },
                )
                for split, parts in splits.items()
            },
            data_dir=tmp_path,
            download_config=tfds.download.DownloadConfig(num_shards=shards),
            disable_shuffling=True,
        )
        return tmp_path

    return write


@pytest.fixture
def write_images(tmp_path):
    """Writes ``PART/CLASS/NUMBER.SUFFIX`` files; returns the folder."""

    def write(part="train", classes=("cat", "dog"), count=6, size=(16, 16), suffix="png", seed=0):
        rng = np.random.default_rng(seed)
        for name in classes:
            folder = tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
        return tmp_path

    return write
