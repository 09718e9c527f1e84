"""Writes a trained classifier as a SavedModel version that TensorFlow Serving loads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf.defenses import EnergyDescent
from der_tf.export import model_card, versions, warmup
from der_tf.export.signatures import Batching, Signatures
from der_tf.generation.initialization import BANK_MEGABYTES, LocalClasswisePCA
from der_tf.generation.langevin import LangevinSampler
from der_tf.training.classifier import RobustClassifier


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    version: int | None = None,
    class_names: Sequence[str] | None = None,
    batching: bool = True,
    max_batch_size: int = 64,
    batch_timeout_micros: int = 0,
    allowed_batch_sizes: Sequence[int] | None = None,
    num_batch_threads: int = 1,
    max_enqueued_batches: int = 256,
    defense: EnergyDescent | None = EnergyDescent(),  # noqa: B008 (it is immutable)
    initializer: LocalClasswisePCA | None = None,
    sampling: Mapping[str, Any] | None = None,
    max_num_steps: int = 200,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one SavedModel version, atomically: a server sees it whole or not at all.

    The signatures are ``predict`` (also as ``serving_default``), ``energy``, ``defend``, for models
    of 1 or 3 channels ``predict_bytes``, and with an initializer ``sample``. Beside the graph lie
    ``assets/labels.txt`` (a class name a line), ``assets.extra/model_card.json`` and
    ``assets.extra/tf_serving_warmup_requests``. The version needs neither der_tf nor Keras to run.

    Args:
        model: a Keras model, images float32 ``[B, H, W, C]`` in [0, 1] -> logits ``[B, K]``, with
            known H, W, C and K >= 2; of a :class:`der_tf.RobustClassifier`, its network.
        path: the model's folder, ``saved_models/NAME``; the version goes to ``path/VERSION``.
        version: an integer from 1 to 2^63 - 1. Default None: the next free number.
        class_names: K names. Default None: "0" to "K-1".
        batching: False leaves the batching op out of the graph; each request runs by itself, and
            the five numbers that follow have no effect.
        max_batch_size: most rows the network runs on at once; larger requests are split.
        batch_timeout_micros: how long a batch that is not full waits for more rows once a batch
            thread is free. Default 0: requests join while the threads are busy, and a lone
            request never waits.
        allowed_batch_sizes: sizes that batches are padded to, increasing, the last one equal to
            max_batch_size. Default None: 1, 2, 3, 4, 6, 8, 12, 16, 24 ... max_batch_size, so that
            at most a third of a batch is padding.
        num_batch_threads: batches that run at the same time. Default 1: the largest batches,
            on several cores through TensorFlow's own parallelism; more pay on hosts with more
            cores than a batch can keep busy.
        max_enqueued_batches: full batches that may wait; requests beyond that are refused as
            UNAVAILABLE. One request may hold max_batch_size * max_enqueued_batches rows.
        defense: what ``defend`` does to images before it classifies them. Default: the settings
            of :class:`der_tf.defenses.EnergyDescent`. None leaves that signature out.
        initializer: fitted starts of Langevin chains, which add the signature ``sample``; its
            ``bank()`` of at most 40 MB goes into the version, unless it already is one.
        sampling: keyword arguments of :class:`der_tf.generation.LangevinSampler`.
        max_num_steps: most steps a request to ``sample`` may ask for. Default 200.
        card: keys to add to the model card, such as ``training`` and ``evaluation``.

    Returns:
        The version's folder.

    Raises:
        ValueError: for a model or an argument that does not fit.
        FileExistsError: the version exists; it is left as it was.
        OSError: the folder cannot be written.
    """
    base = Path(path)
    settings = None
    if batching:
        settings = Batching(
            max_batch_size=max_batch_size,
            batch_timeout_micros=batch_timeout_micros,
            allowed_batch_sizes=() if allowed_batch_sizes is None else tuple(allowed_batch_sizes),
            num_batch_threads=num_batch_threads,
            max_enqueued_batches=max_enqueued_batches,
        )
    _check_version(version)
    if not isinstance(defense, EnergyDescent | None):
        raise ValueError(f"defense must be an EnergyDescent or None, received {defense!r}")
    if not isinstance(initializer, LocalClasswisePCA | None):
        raise ValueError(
            f"initializer must be a LocalClasswisePCA or None, received {initializer!r}"
        )
    if base.exists() and not base.is_dir():
        raise NotADirectoryError(f"path must be the model's folder, received the file {base}")
    versions.refuse_existing(base, version)
    network = model.network if isinstance(model, RobustClassifier) else model
    image_shape, num_classes = _check_network(network)
    names = _check_class_names(class_names, num_classes)
    if defense:
        _check_gradient(network, image_shape)

    sampler = _sampler(network, initializer, dict(sampling or {}), max_num_steps)

    module = Signatures(
        network, image_shape, num_classes, settings, defense, sampler, max_num_steps
    )
    signatures = module.by_name()
    contents = model_card.build(
        name=base.resolve().name,
        image_shape=image_shape,
        class_names=names,
        num_parameters=network.count_params(),
        signatures=signatures,
        batching=settings,
        defense=defense.get_config() if defense else None,
        sampling=_describe(sampler, dict(sampling or {}), max_num_steps) if sampler else None,
        extra=card or {},
    )
    try:
        with versions.staging(base) as staged:
            labels = staged / "labels.txt"
            labels.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            module.labels = tf.saved_model.Asset(str(labels))
            tf.saved_model.save(module, str(staged), signatures=signatures)
            labels.unlink()
            model_card.write(staged / "assets.extra" / "model_card.json", contents)
            warmup.write(
                staged / "assets.extra" / "tf_serving_warmup_requests",
                warmup.requests(
                    base.resolve().name,
                    image_shape,
                    signatures,
                    settings.allowed_batch_sizes if settings else [1],
                ),
            )
            return versions.publish(staged, base, version)
    except FileExistsError:
        raise
    except (OSError, tf.errors.OpError) as error:
        raise OSError(f"a SavedModel cannot be written to {base}: {error}") from error


def _sampler(
    network: Any,
    initializer: LocalClasswisePCA | None,
    options: dict[str, Any],
    max_num_steps: int,
) -> LangevinSampler | None:
    if initializer is None:
        if options:
            raise ValueError(f"sampling needs an initializer, received {options} without one")
        return None
    if isinstance(max_num_steps, bool) or not isinstance(max_num_steps, int) or max_num_steps < 1:
        raise ValueError(
            f"max_num_steps must be an integer of at least 1, received {max_num_steps}"
        )
    if initializer.megabytes > BANK_MEGABYTES or not initializer.is_bank:
        initializer = initializer.bank()
    try:
        return LangevinSampler(network, initializer, **options)
    except TypeError as error:
        raise ValueError(
            f"sampling must be keyword arguments of LangevinSampler: {error}"
        ) from error


def _describe(
    sampler: LangevinSampler, options: dict[str, Any], max_num_steps: int
) -> dict[str, Any]:
    """How ``sample`` draws, for the model card."""
    initializer, references = sampler.initializer, sampler.reference_energies
    return {
        "initializer": {
            "mode": initializer.mode,
            "neighbors": initializer.neighbors,
            "variance": initializer.variance,
            "sigma": initializer.sigma,
            "megabytes": round(initializer.megabytes, 3),
        },
        "options": {name: value for name, value in options.items() if name != "reference_energies"},
        "reference_energies": None if references is None else references.tolist(),
        "max_num_steps": max_num_steps,
    }


def _check_version(version: int | None) -> None:
    if version is None:
        return
    whole = isinstance(version, int | np.integer) and not isinstance(version, bool)
    if not whole or not 1 <= version <= versions.MAX_VERSION:
        raise ValueError(
            f"version must be an integer from 1 to {versions.MAX_VERSION}, or None for the next, "
            f"received {version!r}"
        )


def _check_network(network: Any) -> tuple[tuple[int, int, int], int]:
    """The image shape (H, W, C) and the number of classes of a model that can be served."""
    if not isinstance(network, keras.Model):
        raise ValueError(f"model must be a Keras model, received a {type(network).__name__}")
    wanted = "model must map float32 [B, H, W, C] with known H, W, C to logits [B, K]"
    shape = getattr(network, "input_shape", None)
    if not (isinstance(shape, tuple) and len(shape) == 4 and all(map(_is_size, shape[1:]))):
        raise ValueError(f"{wanted}, received a model of input shape {shape}")
    if network.inputs[0].dtype != "float32":
        raise ValueError(f"{wanted}, received a model of {network.inputs[0].dtype} input")
    output = network.output_shape
    if not (isinstance(output, tuple) and len(output) == 2 and _is_size(output[1])):
        raise ValueError(f"{wanted}, received a model of output shape {output}")
    if output[1] < 2:
        raise ValueError(f"{wanted} and K of at least 2, received a model of K = {output[1]}")
    image_shape = shape[1:]
    noise = np.random.default_rng(0).uniform(size=(2, *image_shape)).astype(np.float32)
    logits = np.asarray(keras.ops.convert_to_numpy(network(noise, training=False)), np.float32)
    if not np.isfinite(logits).all():
        raise ValueError("model must answer finite logits, received NaN or infinity for noise")
    if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, atol=1e-3):
        raise ValueError(
            "model must answer logits, received probabilities (rows that add up to 1): the "
            "energies need the values before the softmax"
        )
    return image_shape, output[1]


def _check_gradient(network: Any, image_shape: tuple[int, int, int]) -> None:
    grey = tf.fill([1, *image_shape], 0.5)
    try:
        with tf.GradientTape() as tape:
            tape.watch(grey)
            logits = network(grey, training=False)
        tape.gradient(logits, grey)
    except LookupError as error:  # an operation without a gradient
        raise ValueError(
            "model must have a gradient for the signature defend, which defense=None leaves out; "
            f"received one that has none: {error}"
        ) from error


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _check_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    if class_names is None:
        return [str(index) for index in range(num_classes)]
    names = [str(name) for name in class_names]
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ValueError(
            f"class_names must be {num_classes} different names, received {len(names)} "
            f"of which {len(set(names))} differ"
        )
    odd = [name for name in names if not name.strip() or len(name.splitlines()) != 1]
    if odd:
        raise ValueError(f"class_names must be one line of text each, received {odd[0]!r}")
    return names
