"""TensorFlow Datasets: find one on disk or get it, and say plainly why not.

Nothing here imports TensorFlow, so that a missing data set is known before that is loaded.
"""

from __future__ import annotations

import difflib
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
import tensorflow_datasets as tfds

NAMES = ("digits", "cifar10", "cifar100", "imagenet", "folder")
PROBE_SECONDS = 0.8
# TFDS writes them down while it prepares the archives; a copy prepared otherwise is without.
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def check_data_dir(data_dir: str | os.PathLike | None) -> None:
    """Raises ValueError unless it is None or an existing folder."""
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ValueError(f"data_dir is an existing folder, received {os.fspath(data_dir)!r}")


def find(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set, on disk or not.

    Args:
        name: of the data set, ``imagenet`` or as TFDS takes it (``name``, ``name/config``,
            ``name:version``).
        data_dir: where TFDS keeps data sets, None for its default, ``~/tensorflow_datasets``.

    Raises:
        ValueError: for a name TFDS does not know, or a data set without images and labels.
    """
    check_data_dir(data_dir)
    if name == "imagenet":
        name = "imagenet2012"
    try:
        found = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        near = difflib.get_close_matches(name, [*NAMES, *tfds.list_builders()], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"data set is one of {', '.join(NAMES)} or any image-classification name of "
            f"TensorFlow Datasets, received {name!r}{hint}"
        ) from error
    check_features(name, found.info)
    return found


def ensure_prepared(found: tfds.core.DatasetBuilder, download: bool = True) -> None:
    """Downloads and prepares a data set that is not on disk.

    Args:
        found: from :func:`find`.
        download: whether to use the network at all.

    Raises:
        FileNotFoundError: for a data set that is not on disk and cannot be had.
    """
    if found.is_prepared():
        return
    config = found.builder_config
    name = f"{found.name}/{config.name}" if config else found.name
    # ROOT/NAME/VERSION or ROOT/NAME/CONFIG/VERSION
    root = Path(found.data_path).parents[1 + bool(config)]
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
