"""A classifier to measure from a run directory, a .keras file or a SavedModel."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import der_tf.training.classifier  # noqa: F401 (registers what a .keras file may hold)
from der_tf.training.recipes import Configuration
from der_tf.training.run_directory import RunDirectory

ACCEPTED = "a run directory, a .keras file or a SavedModel's folder (NAME or NAME/VERSION)"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model on disk, ready to be called.

    Attributes:
        path: the file or folder that was loaded.
        model: images ``[B, H, W, C]`` -> logits ``[B, K]``.
        image_shape: (H, W, C), None for a size that may be any.
        class_names: K names, None when they are not known.
        trained: the configuration of the run that it comes from, None when that is not known.
        run: the run directory that it lies in, None when it lies elsewhere.
    """

    path: Path
    model: Callable[[tf.Tensor], tf.Tensor]
    image_shape: tuple[int | None, ...]
    class_names: tuple[str, ...] | None = None
    trained: Configuration | None = None
    run: RunDirectory | None = None

    @property
    def title(self) -> str:
        """A name for results: saved_models/NAME/3 -> NAME-3, x.keras -> x."""
        path = self.path.resolve()
        return f"{path.parent.name}-{path.name}" if path.name.isdigit() else path.stem

    def check_images(self, dataset: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError where the model takes no images (H, W, C) of this data set."""
        sizes = zip(self.image_shape, shape, strict=True)
        if any(own not in (None, size) for own, size in sizes):
            raise ValueError(
                f"{self.path} takes images of shape {self.image_shape}; received those of "
                f"{dataset}, of shape {shape}"
            )


def load_classifier(path: Path) -> Classifier:
    """Load a classifier; of a run its best network, of a SavedModel NAME its newest version.

    Raises:
        ValueError: when the path is none of these, or cannot be read.
    """
    if path.is_dir():
        run = RunDirectory(path)
        if run.record() is not None:
            return _from_run(run, run.best)
        return _from_saved_model(_version(path))
    if path.suffix == ".keras" and path.is_file():
        run = RunDirectory(path.parent)
        if path in (run.best, run.last, run.swa) and run.record() is not None:
            return _from_run(run, path)
        return _from_keras(path)
    what = "there is no such file or folder" if not path.exists() else "it is neither"
    raise ValueError(f"a classifier is {ACCEPTED}; received {path}: {what}")


def _from_run(run: RunDirectory, path: Path) -> Classifier:
    if not path.exists():
        raise ValueError(f"{run.path} has no {path.name} yet: its first epoch is not done")
    return dataclasses.replace(
        _from_keras(path),
        trained=run.configuration(),
        run=run,
        class_names=tuple((run.record() or {}).get("class_names", ())) or None,
    )


def _from_keras(path: Path) -> Classifier:
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, OSError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    network = getattr(model, "network", model)
    shape = getattr(network, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(f"{path} takes no images [B, H, W, C]; received input shape {shape}")
    return Classifier(path, network, shape[1:])


def _version(path: Path) -> Path:
    if (path / "saved_model.pb").exists():
        return path
    versions = [
        folder for folder in path.iterdir() if folder.name.isascii() and folder.name.isdigit()
    ]
    if not versions:
        raise ValueError(f"a classifier is {ACCEPTED}; {path} holds none of these")
    return max(versions, key=lambda folder: int(folder.name))


def _from_saved_model(path: Path) -> Classifier:
    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    signature_name = "predict" if "predict" in loaded.signatures else "serving_default"
    signature = loaded.signatures.get(signature_name)
    inputs = signature.structured_input_signature[1] if signature else {}
    outputs = signature.structured_outputs if signature else {}
    # That of a plain Keras export has one output, under a name of Keras' own.
    output_name = "logits" if "logits" in outputs else next(iter(outputs), None)
    if len(inputs) != 1 or (output_name != "logits" and len(outputs) != 1):
        raise ValueError(
            f"{path} has no signature `predict` from images to `logits`, nor one with a single "
            "output"
        )
    ((input_name, spec),) = inputs.items()
    if spec.shape.rank != 4:
        raise ValueError(f"{path} takes no images [B, H, W, C]; received input {spec}")

    def model(x: tf.Tensor) -> tf.Tensor:
        # An export of this package has a function beside the checks and the batching op, which
        # has a gradient; of others the signature itself may have one. Only `loaded` keeps the
        # variables alive that either reads.
        if hasattr(loaded, "logits"):
            return loaded.logits(x)
        return loaded.signatures[signature_name](**{input_name: x})[output_name]

    card = _card(path)
    training = card.get("training")
    return Classifier(
        path,
        model,
        tuple(spec.shape[1:]),
        class_names=tuple(card.get("classes", ())) or None,
        trained=Configuration.from_dict(training) if training else None,
    )


def _card(path: Path) -> dict[str, Any]:
    try:
        text = (path / "assets.extra" / "model_card.json").read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, TypeError, ValueError):
        return {}
