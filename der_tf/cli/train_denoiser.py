"""``der-tf train-denoiser``: the diffusion prior of Diff-PGD."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from der_tf.cli import next_steps
from der_tf.cli.console import (
    Count,
    Debug,
    NotNegative,
    Seed,
    find_dataset,
    load_tensorflow,
    preparing,
    say,
)
from der_tf.training.denoiser_configuration import DenoiserConfiguration
from der_tf.training.faults import Interrupted, Signals, writing
from der_tf.training.run_directory import RunDirectory, agreed, default_path

if TYPE_CHECKING:
    from der_tf.data import ImageData
    from der_tf.training.denoising import NoisePredictor


def train_denoiser(
    *,
    dataset: Annotated[
        str | None,
        Parameter(
            help="digits, cifar10, cifar100, folder, or any image-classification data set of TFDS. "
            "Default: digits."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        Parameter(
            help="Where the prepared data sets lie; for folder, the folder with train/CLASS/*. "
            "Default: that of TFDS."
        ),
    ] = None,
    width: Annotated[
        Count | None,
        Parameter(help="Filters of the U-Net at the full resolution. Default: 32."),
    ] = None,
    epochs: Annotated[
        Count | None, Parameter(help="Passes over the training images. Default: 60.")
    ] = None,
    batch_size: Annotated[Count | None, Parameter(help="Images a step. Default: 64.")] = None,
    learning_rate: Annotated[
        NotNegative | None,
        Parameter(help="Peak of Adam's rate; a cosine takes it to 0. Default: 0.002."),
    ] = None,
    limit_train: Annotated[
        Count | None, Parameter(help="Train on this many images only. Default: all.")
    ] = None,
    seed: Annotated[
        Seed | None, Parameter(help="Of first weights, order, levels and noise. Default: 0.")
    ] = None,
    run_dir: Annotated[
        Path | None,
        Parameter(
            help="Gets denoiser.keras, config.json, metrics.csv and checkpoints; a run that lies "
            "there goes on. Default: runs/DATASET-denoiser-TIME."
        ),
    ] = None,
    no_resume: Annotated[
        bool,
        Parameter(
            help="Set a run that lies there aside and begin another. Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Train a small U-Net to tell the noise in noisy images: the prior that diff_pgd needs.

    Without arguments: on the digits that come with scikit-learn, in a few minutes. A run that was
    stopped goes on from the end of its last epoch with `der-tf train-denoiser --run-dir RUN`.
    """
    given = {
        "dataset": dataset,
        "data_dir": None if data_dir is None else str(data_dir),
        "width": width,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "limit_train": limit_train,
        "seed": seed,
    }
    with Signals() as signals, contextlib.ExitStack() as held:
        with preparing():
            directory = RunDirectory(run_dir) if run_dir else None
            config = _configure(given, None if no_resume else directory)
            find_dataset(config.dataset, config.data_dir, debug)
            directory = directory or RunDirectory(default_path(config))
            held.enter_context(directory.held())
        say("Loading TensorFlow ...")
        load_tensorflow(debug)
        with preparing():
            images, model = _prepared(config)
            if no_resume and (old := directory.set_aside()):
                say(f"The run in {directory.path} is now {old}")
                held.enter_context(directory.held())
        # Data that moved are nowhere kept.
        place = [] if data_dir is None else [f"--data-dir={data_dir}"]
        go_on = next_steps.go_on(directory.path, "train-denoiser", place)
        _train(config, directory, images, model, signals, go_on)
        say(f"Written to {directory.denoiser}")


def _configure(given: dict[str, Any], directory: RunDirectory | None) -> DenoiserConfiguration:
    """The configuration of a new run, or that of the run to go on with."""
    record = directory.record() if directory else None
    if directory is None or record is None:
        if directory is not None:
            directory.require_config()
        return DenoiserConfiguration(**{k: v for k, v in given.items() if v is not None})
    try:
        config = DenoiserConfiguration(**record["configuration"])
    except (KeyError, TypeError):
        raise ValueError(f"{directory.path} holds a run of another command") from None
    return agreed(given, config, directory.path)


def _prepared(config: DenoiserConfiguration) -> tuple[ImageData, NoisePredictor]:
    """All that can still be refused, before a file of the run is touched."""
    from der_tf import data
    from der_tf.training.denoising import build

    images = data.load(
        config.dataset,
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        seed=config.seed,
        limit_train=config.limit_train,
        augment=False,  # a prior of the images as they are, without the borders of crops
    )
    return images, build(config, images)


def _train(
    config: DenoiserConfiguration,
    directory: RunDirectory,
    images: ImageData,
    model: NoisePredictor,
    signals: Signals,
    go_on: str,
) -> None:
    """Train what is left to train; ``go_on`` is the command that goes on where it is stopped."""
    from der_tf.training.denoising import DenoiserTraining

    training = DenoiserTraining(config, directory, images, model, signals)
    if training.finished:
        say(f"The run in {directory.path} is finished: nothing is trained again")
        return
    if directory.record() is None:
        with writing(directory.config):
            directory.write_record(config, sys.argv[1:], images.class_names)
    shape = " x ".join(map(str, images.input_shape))
    say(
        f"{images.name}: {images.train_size:,} training, {images.validation_size:,} validation "
        f"images of {shape}; U-Net of {model.network.count_params():,} parameters"
    )
    say(
        f"{config.epochs} epochs of {images.steps_per_epoch} steps, {training.checkpoints.epoch} "
        f"done; run directory {directory.path}"
    )
    try:
        training.run()
    except Interrupted as interrupted:
        raise interrupted.add(f"{training.checkpoints.kept}; go on with {go_on}") from None
