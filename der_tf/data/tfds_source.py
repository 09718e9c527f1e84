"""TensorFlow Datasets: find one on disk or get it, and say plainly why not."""

from __future__ import annotations

import difflib
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
import tensorflow_datasets as tfds

from der_tf.data import augmentation
from der_tf.data.encoded import Records

PROBE_SECONDS = 0.8
# TFDS writes them down while it prepares the archives; a copy prepared otherwise is without.
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def builder(
    name: str, data_dir: str | os.PathLike | None, *, download: bool, known: Sequence[str]
) -> tfds.core.DatasetBuilder:
    """The builder of a data set that lies prepared on disk, after downloading it if need be.

    Args:
        name: of the data set, as TFDS takes it (``name``, ``name/config``, ``name:version``).
        data_dir: where TFDS keeps data sets, None for its default, ``~/tensorflow_datasets``.
        download: whether to use the network at all.
        known: the names of this package, for the message about an unknown one.

    Raises:
        ValueError: for a name TFDS does not know, or a data set without images and labels.
        FileNotFoundError: for a data set that is not on disk and cannot be had.
    """
    try:
        found = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        near = difflib.get_close_matches(name, [*known, *tfds.list_builders()], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"data set is one of {', '.join(known)} or any image-classification name of "
            f"TensorFlow Datasets, received {name!r}{hint}"
        ) from error
    check_features(name, found.info)
    if not found.is_prepared():
        _obtain(found, name, download)
    return found


def _obtain(found: tfds.core.DatasetBuilder, name: str, download: bool) -> None:
    # ROOT/NAME/VERSION or ROOT/NAME/CONFIG/VERSION
    root = Path(found.data_path).parents[1 + bool(found.builder_config)]
    missing = f"data set {name!r} is not in {root}"
    command = f"tfds build {name} --data_dir {root}"
    manual = found.MANUAL_DOWNLOAD_INSTRUCTIONS
    if manual:
        archives = root / "downloads" / "manual"
        if not (archives.is_dir() and any(archives.iterdir())):
            raise FileNotFoundError(
                f"{missing} and has to be fetched by hand: put its archives into {archives}, then "
                f"run `{command}` ({' '.join(manual.split())})"
            )
    else:
        if not download:
            raise FileNotFoundError(f"{missing}: run `{command}`, or allow the download")
        for url in list(found.url_infos or ())[:1]:
            if not reachable(url):
                raise FileNotFoundError(
                    f"{missing} and {urlsplit(url).hostname} cannot be reached: run `{command}` on "
                    f"a machine with network and copy {root / found.name} here"
                )
    try:
        found.download_and_prepare()
    except Exception as error:  # anything between a broken connection and a broken archive
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{missing} and could not be prepared: {reason}") from error


def reachable(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether the host of a URL, or the proxy that leads to it, accepts a connection."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answers: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname or "", port), timeout=seconds):
                answers.append(True)
        except OSError:
            answers.append(False)

    # In a thread, for looking up a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers == [True]


def check_features(name: str, info: tfds.core.DatasetInfo) -> None:
    """Raises ValueError unless the data set has uint8 images and class labels."""
    names = list(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else []
    image, label = (info.features[n] if n in names else None for n in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(
            "an image-classification data set has the features 'image' and 'label', "
            f"{name!r} has {', '.join(map(repr, names)) or 'none by name'}"
        )
    if image.np_dtype != np.uint8:
        raise ValueError(f"the images of {name!r} are {image.np_dtype}, accepted is uint8")


def class_names(info: tfds.core.DatasetInfo) -> tuple[str, ...]:
    """Names of the classes, or their numbers where the data set on disk has no names."""
    label = info.features["label"]
    # A label feature made from a number of classes names them "0", "1", ...
    named = label.names and list(label.names) != [str(i) for i in range(label.num_classes)]
    if not named and info.name == "cifar10":
        return CIFAR10_CLASSES
    return tuple(label.names or map(str, range(label.num_classes)))


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
