"""Networks whose features and logits the quality of images is measured by."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf.generation import digests

# The tensors of the Inception graph that published scores were computed with
# (classify_image_graph_def.pb of 2015): images of 299x299 in [-1, 1].
INCEPTION_SIZE = 299
INCEPTION_TENSORS = ("Mul:0", "pool_3:0", "logits:0")


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Images float32 ``[B, H, W, C]`` in [0, 1] -> features ``[B, D]`` and logits ``[B, C]``.

    Attributes:
        name: what scores are called by; scores of two names are never compared.
        function: the network.
        channels: C that it takes; None for any.
        digest: of the network; scores of two are never compared, whatever their name. None of a
            callable, which says nothing about itself.
    """

    name: str
    function: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]]
    channels: int | None = None
    digest: str | None = None

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Features and logits of a batch; logits are None where the network has none.

        Raises:
            ValueError: for images that it does not take, or answers of other shapes.
        """
        if images.ndim != 4:
            raise ValueError(
                f"the extractor {self.name} takes images [B, H, W, {self.channels or 'C'}]; "
                f"received shape {images.shape}"
            )
        self.check_channels(images.shape[-1])
        features, logits = self.function(tf.constant(images, tf.float32))
        features = np.asarray(features, np.float32)
        features = features.reshape(len(features), -1) if features.ndim > 1 else features
        if features.shape[:1] != images.shape[:1] or features.ndim != 2:
            raise ValueError(
                f"the extractor {self.name} answers features [B, D]; received shape "
                f"{features.shape} for {len(images)} images"
            )
        return features, None if logits is None else np.asarray(logits, np.float32)

    def check_channels(self, channels: int) -> None:
        """Refuse images of other channels than the network takes.

        Raises:
            ValueError: for these.
        """
        if self.channels not in (None, channels):
            raise ValueError(
                f"the extractor {self.name} takes images of {self.channels} channel(s); received "
                f"images of {channels}"
            )


def load_extractor(source: Any, name: str | None = None) -> Extractor:
    """An extractor from what there is.

    Args:
        source: one of

            * a path or URL (downloaded once into Keras's cache) of a SavedModel ``images`` ->
              ``features``, ``logits``, of a Keras model, or of the standard Inception's frozen
              graph ``.pb`` (images are resized to 299x299, bilinear, inside);
            * a Keras model with outputs ``features`` and ``logits`` (by name, or in this order), or
              a plain classifier: its logits, and what its last layer takes as features;
            * any callable images -> features, or -> (features, logits), or -> a mapping with
              ``features`` and maybe ``logits``.
        name: default None: of the file (``RUN/best.keras`` is RUN-best, ``NAME/3`` is NAME-3), the
            model or the function.

    Raises:
        ValueError: when it is none of these, or has no features.
    """
    if isinstance(source, Extractor):
        return source
    if isinstance(source, str | os.PathLike):
        path = _local(os.fspath(source))
        return _from_path(path, name or _title(path))
    if isinstance(source, keras.Model):
        return _from_keras(source, name or source.name)
    if not callable(source):
        raise ValueError(
            "an extractor is a path, a Keras model or a callable images -> (features, logits); "
            f"received a {type(source).__name__}"
        )
    own_name = str(name or getattr(source, "__name__", type(source).__name__))
    return Extractor(own_name, lambda images: _two(source(images), own_name))


def _two(answer: Any, name: str) -> tuple[Any, Any]:
    if isinstance(answer, Mapping):
        if "features" not in answer:
            raise ValueError(
                f"the extractor {name} has no output `features`; received {', '.join(answer)}"
            )
        return answer["features"], answer.get("logits")
    if isinstance(answer, tuple | list):
        if len(answer) != 2:
            raise ValueError(
                f"the extractor {name} answers (features, logits); received {len(answer)} values"
            )
        return answer[0], answer[1]
    return answer, None


def _title(path: Path) -> str:
    """Of files that are called alike everywhere, with the folder's name in front."""
    path = path.resolve()
    alike = path.name.isdigit() or path.name in ("best.keras", "last.keras", "swa.keras")
    return f"{path.parent.name}-{path.stem}" if alike else path.stem


def _local(source: str) -> Path:
    if source.startswith(("http://", "https://")):
        packed = source.endswith((".tar.gz", ".tgz", ".zip"))
        return Path(keras.utils.get_file(origin=source, extract=packed))
    return Path(source)


def _from_path(path: Path, name: str) -> Extractor:
    if path.is_dir() and not (path / "saved_model.pb").exists():
        # An unpacked archive holds its one model somewhere inside.
        found = [*path.rglob("saved_model.pb"), *path.rglob("*graph_def.pb")]
        if len(found) == 1:
            path = found[0].parent if found[0].name == "saved_model.pb" else found[0]
    try:
        if (path / "saved_model.pb").exists():
            return _from_saved_model(path, name)
        if path.suffix == ".keras" and path.is_file():
            return _from_keras(keras.models.load_model(path, compile=False), name)
        if path.suffix == ".pb" and path.is_file():
            return _from_frozen_graph(path, name)
    except (OSError, KeyError, tf.errors.OpError) as error:
        raise ValueError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    raise ValueError(
        "an extractor on disk is a SavedModel, a .keras file or a frozen graph .pb; received "
        f"{path}: {'it is none of these' if path.exists() else 'there is no such file'}"
    )


def _from_saved_model(path: Path, name: str) -> Extractor:
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures.get("serving_default")
    outputs = signature.structured_outputs if signature else {}
    if "features" not in outputs:
        raise ValueError(
            f"the extractor {path} has no output `features` in its signature serving_default; "
            f"received {', '.join(sorted(outputs)) or 'no such signature'}"
        )
    ((input_name, spec),) = signature.structured_input_signature[1].items()

    def function(images):
        # Only `loaded` keeps the variables alive.
        return _two(loaded.signatures["serving_default"](**{input_name: images}), name)

    channels = spec.shape[-1] if spec.shape.rank == 4 else None
    return Extractor(name, function, channels, digests.of_files(path))


def _from_keras(model: keras.Model, name: str) -> Extractor:
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs, model.outputs[0])
    if not hasattr(model, "output"):
        raise ValueError(
            f"an extractor is a functional or built Sequential Keras model, or any callable; "
            f"{name} is a {type(model).__name__} without fixed inputs and outputs"
        )
    if isinstance(model.output, Mapping):
        if "features" not in model.output:
            raise ValueError(
                f"the extractor {name} has no output `features`; received {', '.join(model.output)}"
            )
    elif not isinstance(model.output, list | tuple):
        # A plain classifier.
        features = model.layers[-1].input
        if isinstance(model.layers[-1], keras.Model):
            raise ValueError(
                f"the extractor {name} ends in a model within the model: give one with outputs "
                "`features` and `logits`, or a callable"
            )
        if not hasattr(features, "shape") or len(model.layers) < 3:
            raise ValueError(f"the extractor {name} has no single layer before its logits")
        model = keras.Model(model.inputs, [features, model.output])
    run = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
    channels, digest = model.inputs[0].shape[-1], digests.of_weights(model)
    return Extractor(name, lambda images: _two(run(images), name), channels, digest)


def _from_frozen_graph(path: Path, name: str) -> Extractor:
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own DecodeError is no ValueError
        raise ValueError(f"{path} cannot be loaded: it is no frozen graph ({error})") from error
    names = {f"{node.name}:0" for node in graph_def.node}
    missing = [tensor for tensor in INCEPTION_TENSORS if tensor not in names]
    if missing:
        raise ValueError(
            f"a frozen graph has the tensors {', '.join(INCEPTION_TENSORS)} of Inception; {path} "
            f"has no {', '.join(missing)}"
        )
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(graph_def, name=""), []
    )
    feed, *fetches = (wrapped.graph.get_tensor_by_name(t) for t in INCEPTION_TENSORS)
    pruned = wrapped.prune(feed, fetches)

    def function(images):
        resized = tf.image.resize(images, [INCEPTION_SIZE] * 2, "bilinear")
        features, logits = pruned(2.0 * resized - 1.0)
        return features, logits

    return Extractor(name, function, 3, digests.of_files(path))
