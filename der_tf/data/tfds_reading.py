"""TensorFlow Datasets: read a split whole, or as a stream of encoded images."""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from der_tf.data import augmentation
from der_tf.data.encoded import Records


def labelled_test_split(source: tfds.core.DatasetBuilder) -> str | None:
    """``test``, or ``validation`` where that is missing or comes without labels, or None."""
    for split in ("test", "validation"):
        if split in source.info.splits:
            first = source.as_dataset(
                split=f"{split}[:1]", decoders=tfds.decode.PartialDecoding({"label": True})
            )
            if next(first.as_numpy_iterator())["label"] >= 0:
                return split
    return None


def read_all(
    source: tfds.core.DatasetBuilder, split: str, image_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a split in stored order.

    Args:
        image_size: to resize the middle of each image to, None for images of one fixed shape.

    Returns:
        images ``[N, H, W, C]`` uint8 and labels ``[N]`` int64.
    """
    dataset = source.as_dataset(
        split=split,
        decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    if image_size is not None:

        def resize(example):
            image = augmentation.center_crop(example["image"], size=image_size, fraction=1.0)
            return {**example, "image": augmentation.to_uint8(image)}

        dataset = dataset.map(resize, num_parallel_calls=-1, deterministic=True)
    batches = list(dataset.batch(1024).as_numpy_iterator())
    return (
        np.concatenate([batch["image"] for batch in batches]),
        np.concatenate([batch["label"] for batch in batches]).astype(np.int64),
    )


def records(source: tfds.core.DatasetBuilder, split: str, image_size: int) -> Records:
    """A split, or a slice such as ``train[1000:]``, as a stream of encoded images."""
    info = source.info
    if info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"{info.name} does not fit in memory and streams from TFRecord files, received "
            f"{info.file_format.value}: prepare it with --file_format=tfrecord"
        )
    files = info.splits[split].file_instructions
    return Records(
        image_size,
        info.features["image"].shape[-1] or 3,
        filenames=[str(file.filename) for file in files],
        skips=[file.skip for file in files],
        takes=[
            file.examples_in_shard - file.skip if file.take == -1 else file.take for file in files
        ],
        features=tfds.features.FeaturesDict({k: info.features[k] for k in ("image", "label")}),
    )
