"""A training from its configuration: built, resumed where it stood, and kept in a run directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from der_tf import attacks, data, models, objectives
from der_tf.regularizers import AbnormalExamples, DeltaEnergy, GradAlign, Regularizer
from der_tf.training import schedules, workers
from der_tf.training.averages import EpochAverages, ValidateAverages
from der_tf.training.callbacks import (
    EarlyStopping,
    SaveBest,
    SaveState,
    StopOnNonFinite,
    save_network,
)
from der_tf.training.catastrophic_overfitting import (
    CatastrophicOverfittingGuard,
    affordable_steps,
)
from der_tf.training.checkpoints import Checkpoints
from der_tf.training.classifier import RobustClassifier
from der_tf.training.faults import Interrupted, Signals, reading
from der_tf.training.figures import training_curves
from der_tf.training.monitors import EnergyMonitor, affordable_records
from der_tf.training.optimizers import CoupledSGD
from der_tf.training.recipes import Configuration
from der_tf.training.records import MetricsFile, Pace, ProgressLines, TensorBoard, read_metrics
from der_tf.training.robust_overfitting import RobustOverfittingMonitor
from der_tf.training.run_directory import RunDirectory

# Training images that the guard probes: a loss of 25 % is more than three standard errors.
GUARD_IMAGES = 64


def choose_strategy() -> tf.distribute.Strategy:
    """Several workers if TF_CONFIG names them, all GPUs if there are several, else one device.

    Call it before any other TensorFlow operation: the links between workers are set up first.
    """
    if workers.several():
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def training_attack(config: Configuration) -> attacks.Attack:
    """The attack of the training steps."""
    given = {"steps": config.steps, "step_size": config.step_size}
    return attacks.get(
        config.attack,
        epsilon=config.epsilon,
        norm=config.norm,
        training=config.attack_batch_norm == "train",
        **{name: value for name, value in given.items() if value is not None},
    )


def outer_objective(config: Configuration) -> objectives.Objective:
    """The outer loss; the options belong to the innermost objective of WEAT."""
    given: dict[str, Any] = {"label_smoothing": config.label_smoothing}
    if config.beta is not None:
        given["beta"] = config.beta
    if config.objective == "weat":
        return objectives.get("weat", objective=objectives.get("trades", **given))
    return objectives.get(config.objective, **given)


def regularizers(config: Configuration, steps_per_epoch: int) -> list[Regularizer]:
    """Those whose weight is not 0."""
    chosen: list[Regularizer] = []
    if config.der_weight:
        chosen.append(
            DeltaEnergy(
                config.der_weight,
                marginal=config.der_marginal,
                joint=config.der_joint,
                penalty=config.der_penalty,
                reference=config.der_reference,
                reference_gradient=not config.der_detached,
                warmup_steps=round(config.der_warmup_epochs * steps_per_epoch),
                interval=config.der_interval,
            )
        )
    if config.grad_align_weight:
        chosen.append(
            GradAlign(config.grad_align_weight, full_gradient=config.grad_align_full_gradient)
        )
    if config.aaer_weight:
        chosen.append(
            AbnormalExamples(
                config.aaer_weight,
                loss=config.aaer_loss,
                logits=config.aaer_logits,
                full_gradient=config.aaer_full_gradient,
                warmup_steps=round(config.aaer_warmup_epochs * steps_per_epoch),
            )
        )
    return chosen


def steps_per_epoch(config: Configuration, dataset: data.ImageData) -> int:
    """Steps of an epoch: a pass over the images, filled up from the next to whole executions.

    Keras runs no part of an execution.
    """
    return -(-dataset.steps_per_epoch // config.steps_per_execution) * config.steps_per_execution


def build(
    config: Configuration, dataset: data.ImageData, strategy: tf.distribute.Strategy
) -> RobustClassifier:
    """The compiled classifier with a built optimizer.

    Raises:
        ValueError: for a name or value that an attack, objective, network or schedule refuses.
    """
    keras.utils.set_random_seed(config.seed)
    keras.mixed_precision.set_global_policy(
        "mixed_float16" if config.mixed_precision else "float32"
    )
    steps = steps_per_epoch(config, dataset)
    rate = schedules.get(
        config.schedule, config.learning_rate, config.epochs, steps, config.milestones
    )
    averaging = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    with strategy.scope():
        model = RobustClassifier(
            models.get(
                config.model,
                dataset.input_shape,
                dataset.num_classes,
                width=config.width,
                mean=dataset.mean,
                std=dataset.std,
            ),
            attack=training_attack(config),
            objective=outer_objective(config),
            regularizers=regularizers(config, steps),
            evaluation_attack=attacks.get(
                "pgd", epsilon=config.epsilon, norm=config.norm, steps=config.validation_steps
            ),
            awp_gamma=config.awp_gamma,
            awp_warmup_steps=round(config.awp_warmup_epochs * steps),
            seed=config.seed,
        )
        model.compile(
            optimizer=CoupledSGD(rate, config.momentum, config.weight_decay, **averaging),
            steps_per_execution=config.steps_per_execution,
            # "auto" would turn XLA on for one GPU alone, so that one and two would differ.
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
    return model


def load_data(config: Configuration) -> data.ImageData:
    """The data set of a configuration.

    Raises:
        ValueError, FileNotFoundError: for an unknown name or a data set that cannot be used.
    """
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        seed=config.seed,
        validation_size=config.validation_size,
        limit_train=config.limit_train,
        image_size=config.image_size,
    )


class Training:
    """The epochs of a run.

    Args:
        config: what to train.
        directory: the run directory, made and held by the caller.
        dataset: from :func:`load_data`.
        model: from :func:`build`.
        signals: SIGTERM and SIGINT.
        checkpoint_minutes: save within an epoch after this much time; 0: at its end only.
        restore_from: checkpoints to go on from, where they are not this directory's: those of
            the chief of several workers.

    Raises:
        RunError: when there are states to go on from, and none can be restored.
    """

    def __init__(
        self,
        config: Configuration,
        directory: RunDirectory,
        dataset: data.ImageData,
        model: RobustClassifier,
        signals: Signals,
        checkpoint_minutes: float = 10.0,
        restore_from: Path | None = None,
    ) -> None:
        self.config = config
        self.directory = directory
        self.dataset = dataset
        self.steps = steps_per_epoch(config, dataset)
        self.model = model
        self._signals = signals
        # Saving is work of all workers together, and neither clocks nor signals are common.
        self._minutes = 0.0 if workers.several() else checkpoint_minutes
        # Epoch averages, early stopping and so on, for the runs that ask for them.
        self.swa = EpochAverages(self.model, config.swa_start) if config.swa_start else None
        self.stopping = EarlyStopping(config.early_stopping) if config.early_stopping else None
        self.monitor = self._energy_monitor()
        self.guard = self._guard()
        parts = (self.swa, self.stopping, self.guard)
        others = [v for part in parts if part for v in part.variables]
        self.checkpoints = Checkpoints(directory.checkpoints, self.model, restore_from, others)
        self.resumed = self.checkpoints.restore()

    def run(self) -> None:
        """Train the epochs that are left, then leave the last networks and the figure.

        Raises:
            Interrupted: after a signal, with the state saved.
            RunError: when the loss is not finite, a file cannot be written, or one of the run's is
                damaged.
        """
        while not self.finished:
            self._run_from(self.checkpoints.epoch, self.checkpoints.step)
            if not self.finished:
                # Keras ends a `fit` by overwriting the weights with their moving averages.
                self.checkpoints.restore()
        with reading():
            rows = read_metrics(self.directory.metrics)
        training_curves(rows, self.directory.figures / "training.png")
        if self.swa and self.swa.count:
            with self.swa.applied(self.model, self._training_images()):
                save_network(self.model, self.directory.swa, averaged=False)
        save_network(self.model, self.directory.last)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation robust accuracy ended the training."""
        return self.stopping is not None and self.stopping.reached

    @property
    def stopped_by_guard(self) -> bool:
        """Whether catastrophic overfitting ended the training."""
        return self.guard is not None and self.guard.reached

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left to train."""
        is_stopped = self.stopped_early or self.stopped_by_guard
        return is_stopped or self.checkpoints.epoch >= self.config.epochs

    def _training_images(self) -> Iterator[tf.Tensor]:
        """The images of one more pass: the same in a run that was resumed."""
        stream = self.dataset.training_stream(self.config.epochs)
        return (images for images, _ in stream.take(self.dataset.steps_per_epoch))

    def _run_from(self, epoch: int, step: int) -> None:
        """Train to the end of the epoch that a step was done of, else to the end of the run."""
        averages = ValidateAverages()
        metrics = MetricsFile(self.directory.metrics, epoch)
        state = SaveState(self.checkpoints, self._signals, self._minutes)
        guards = self._guards(metrics.rows)
        # What ends the training comes before what records its last epoch, but what rolls back comes
        # after: the weights that were validated are recorded.
        is_end = self.config.overfitting_guard == "stop"
        callbacks = [
            Pace(self.dataset.train_size / self.dataset.steps_per_epoch),
            StopOnNonFinite(self.checkpoints),
            averages,
            *([self.stopping] if self.stopping else []),
            *(guards if is_end else []),
            *([self.monitor] if self.monitor else []),
            TensorBoard(self.directory.tensorboard, self.monitor),
            *([] if is_end else guards),
            *([self.swa] if self.swa else []),
            SaveBest(self.directory.best, self.checkpoints),
            metrics,
            state,
        ]
        verbose = 1 if sys.stdout.isatty() else 0
        if not verbose:
            callbacks.insert(1, ProgressLines(self.config.epochs))
        try:
            with self._signals.deferred():
                if step < self.steps:
                    self.model.fit(
                        self.dataset.training_stream(step=epoch * self.steps + step),
                        validation_data=self.dataset.validation,
                        initial_epoch=epoch,
                        epochs=epoch + 1 if step else self.config.epochs,
                        steps_per_epoch=self.steps - step,
                        callbacks=callbacks,
                        verbose=verbose,
                        shuffle=False,  # the stream is shuffled
                    )
                else:
                    self._validate_epoch(epoch, callbacks)
        except Interrupted:
            if not workers.several():
                averages.on_test_end()
                state.save_position()
            raise

    def _validate_epoch(self, epoch: int, callbacks: list[keras.callbacks.Callback]) -> None:
        """The end of an epoch that was left after its last step."""
        every = keras.callbacks.CallbackList(callbacks, model=self.model, epochs=self.config.epochs)
        every.on_train_begin()
        every.on_epoch_begin(epoch)
        logs = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        validated = self.model.evaluate(
            self.dataset.validation, callbacks=every, return_dict=True, verbose=0
        )
        logs |= {f"val_{name}": value for name, value in validated.items()}
        every.on_epoch_end(epoch, logs)

    def _energy_monitor(self) -> EnergyMonitor | None:
        config, dataset = self.config, self.dataset
        images, every = config.energy_images, 1
        if images is None:
            records = 1
            if config.energy_every:
                records += self.steps // config.energy_every
            trained = dataset.train_size * self.steps // dataset.steps_per_epoch
            images, every = affordable_records(self.model, trained, records)
        if not images:
            return None
        return EnergyMonitor(
            self.directory.path,
            dataset.training_sample(images),
            dataset.validation_sample(images),
            every_steps=config.energy_every,
            # With the last one in any case. Who asks for more than epochs gets every epoch.
            epochs=None if config.energy_every else range(config.epochs, 0, -every),
            seed=config.seed,
        )

    def _guard(self) -> CatastrophicOverfittingGuard | None:
        config = self.config
        if config.overfitting_guard == "off":
            return None
        guard = CatastrophicOverfittingGuard(
            self.dataset.training_sample(GUARD_IMAGES),
            config.overfitting_guard.replace("-", "_"),
            probe_every=affordable_steps(self.model, config.batch_size, GUARD_IMAGES),
            directory=self.directory.path,
            seed=config.seed,
        )
        guard.set_model(self.model)  # its state is part of the checkpoint
        return guard

    def _guards(self, rows: list[dict[str, float]]) -> list[keras.callbacks.Callback]:
        if self.guard is None:
            return []
        return [self.guard, RobustOverfittingMonitor(directory=self.directory.path, rows=rows)]
