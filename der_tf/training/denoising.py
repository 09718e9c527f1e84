"""The training of a denoiser: noise of random levels is predicted from noisy images.

The simple loss of Ho et al. (2020, equation 14), the mean squared error of the noise, with levels
drawn uniformly from 1..LEVELS. Predicting no noise at all costs 1.
"""

from __future__ import annotations

import sys

import keras
import tensorflow as tf

from der_tf import data, diffusion
from der_tf.training.averages import ValidateAverages
from der_tf.training.callbacks import SaveState, save_network
from der_tf.training.checkpoints import Checkpoints
from der_tf.training.denoiser_configuration import DenoiserConfiguration
from der_tf.training.faults import Signals
from der_tf.training.records import MetricsFile, Pace, ProgressLines
from der_tf.training.run_directory import RunDirectory


class NoisePredictor(keras.Model):
    """The denoiser as what is compiled and trained; what is saved is its ``network`` alone."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.network = network

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)


def with_noise(batches: tf.data.Dataset, seed: int, first: int = 0) -> tf.data.Dataset:
    """Batches (images, labels) as ((noisy images, levels), noise).

    What is drawn for a batch depends on (seed, number of the batch) alone.

    Args:
        batches: images float32 ``[B, H, W, C]`` in [0, 1].
        seed: of levels and noise.
        first: number of the first batch.
    """

    def draw(number, batch):
        images, _ = batch
        seeds = tf.random.split(tf.stack([tf.constant(seed, tf.int64), number]))
        levels = tf.random.stateless_uniform(
            tf.shape(images)[:1], seeds[0], 1, diffusion.LEVELS + 1, tf.int32
        )
        noise = tf.random.stateless_normal(tf.shape(images), seeds[1])
        return (diffusion.add_noise(2 * images - 1, noise, levels), levels), noise

    return batches.enumerate(first).map(draw).prefetch(tf.data.AUTOTUNE)


def build(config: DenoiserConfiguration, dataset: data.ImageData) -> NoisePredictor:
    """The compiled model with a built optimizer.

    Raises:
        ValueError: for images or a width that the U-Net refuses.
    """
    keras.utils.set_random_seed(config.seed)
    steps = config.epochs * dataset.steps_per_epoch
    model = NoisePredictor(diffusion.unet(dataset.input_shape, config.width))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=config.learning_rate, warmup_steps=max(1, steps // 20)
    )
    # The average reaches back over the last tenth of the steps, however many they are.
    optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=max(0.0, 1 - 10 / steps))
    model.compile(optimizer, loss="mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


class DenoiserTraining:
    """The epochs of a run.

    Args:
        config: what to train.
        directory: the run directory, made and held by the caller.
        dataset: the images, of any labels.
        model: from :func:`build`.
        signals: SIGTERM and SIGINT.

    Raises:
        RunError: when there are states to go on from, and none can be restored.
    """

    def __init__(
        self,
        config: DenoiserConfiguration,
        directory: RunDirectory,
        dataset: data.ImageData,
        model: NoisePredictor,
        signals: Signals,
    ) -> None:
        self.config = config
        self.directory = directory
        self.dataset = dataset
        self.model = model
        self._signals = signals
        self.checkpoints = Checkpoints(directory.checkpoints, self.model)
        self.checkpoints.restore()

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left to train."""
        return self.checkpoints.epoch >= self.config.epochs

    def run(self) -> None:
        """Train the epochs that are left; each leaves ``denoiser.keras`` with averaged weights.

        Raises:
            Interrupted: after a signal; the state at the end of the last epoch is saved.
            RunError: when a weight is not finite or a file cannot be written.
        """
        first = self.checkpoints.epoch
        verbose = 1 if sys.stdout.isatty() else 0
        callbacks = [
            Pace(self.dataset.train_size / self.dataset.steps_per_epoch),
            *([] if verbose else [ProgressLines(self.config.epochs)]),
            ValidateAverages(),
            SaveDenoiser(self.directory),
            MetricsFile(self.directory.metrics, first),
            SaveState(self.checkpoints, self._signals, minutes=0),
        ]
        steps = self.dataset.steps_per_epoch
        with self._signals.deferred():
            self.model.fit(
                with_noise(self.dataset.training_stream(first), self.config.seed, first * steps),
                validation_data=with_noise(self.dataset.validation, -1 - self.config.seed),
                initial_epoch=first,
                epochs=self.config.epochs,
                steps_per_epoch=steps,
                callbacks=callbacks,
                verbose=verbose,
                shuffle=False,  # the stream is shuffled
            )


class SaveDenoiser(keras.callbacks.Callback):
    """Saves the denoiser with averaged weights at the end of every epoch."""

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__()
        self._directory = directory

    def on_epoch_end(self, epoch, logs=None) -> None:
        save_network(self.model, self._directory.denoiser)
