"""EnergyMonitor: the energies of fixed samples over a training, in files that others can read."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf import energy
from der_tf.attacks import Attack, geometry
from der_tf.attacks.gradient import GradientAttack
from der_tf.files import read_table, replacing, write_table
from der_tf.regularizers import GradAlign
from der_tf.training import inputs
from der_tf.training.averages import averaged_weights
from der_tf.training.batch import TrainingBatch
from der_tf.training.classifier import RobustClassifier
from der_tf.training.faults import reading, writing
from der_tf.training.run_directory import RunDirectory

ATTACKS = ("training", "pgd")
BATCH_SIZE = 128
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
_TEXTS = ("split", "attack")
_COUNTS = ("epoch", "step", "images")


class EnergyMonitor(keras.callbacks.Callback):
    """Measures E(x), dE(x) and dE(x, y) of fixed samples at the ends of epochs.

    The mean dE(x) of training images jumps up at catastrophic overfitting and falls without end
    with robust overfitting (arXiv 2505.22486, section 4); this is where to see it. Each sample is
    measured under the training attack and under the evaluation attack (``pgd``), both in the mode
    that they are configured for, the energies in inference mode, with averaged weights where
    the optimizer keeps them. All randomness depends on ``seed`` alone, and nothing of the training
    is touched: it ends with the same weights as without the monitor.

    >>> monitor = EnergyMonitor("runs/mine", (x_train[:128], y_train[:128]), (x_val, y_val))
    >>> robust_classifier.fit(x_train, y_train, callbacks=[monitor])
    >>> read_energies(monitor.table)[-1]["delta_marginal_energy_mean"]

    ``energies.csv`` gets a row for each record, split (``train``, ``validation``) and attack
    (``training``, ``pgd``), with the columns

    * ``epoch`` (epochs done), ``step`` (optimizer steps done), ``split``, ``attack``, ``images``;
    * ``accuracy`` on x*, ``abnormal_fraction``;
    * ``gradient_alignment``: the mean cosine of the gradients of CE at x and at x + u, u uniform in
      the ball of the evaluation attack (or the training attack's, if only that has one; else NaN);
    * ``_mean``, ``_std`` and the quantiles ``_q05 _q25 _q50 _q75 _q95`` of ``marginal_energy`` E(x)
      of the natural images, ``delta_marginal_energy`` and ``delta_joint_energy``.

    ``energies/epoch-0007.npz`` has float32 arrays ``[N]`` of epoch 7, ``SPLIT_labels`` (int32),
    ``SPLIT_marginal_energy`` and ``SPLIT_joint_energy`` of the natural images,
    ``SPLIT_gradient_alignment``, and ``SPLIT_ATTACK_`` with ``marginal_energy`` E(x*),
    ``delta_marginal_energy``, ``delta_joint_energy``, ``abnormal`` and ``correct``. A training that
    is taken up again at an earlier step drops what was written after it.

    Cost of a record: 6 network passes an image and those of the two attacks, 28 for RS-FGSM and
    PGD-10; :func:`affordable_records` says how many images, and how often, a training affords.

    Args:
        directory: folder that gets the files; made if it is missing.
        training: images ``[N, H, W, C]`` float32 in [0, 1] and labels ``[N]`` of the training set,
            unaugmented.
        validation: the same of the validation set.
        every_steps: also record after every so many optimizer steps. Default 0: only after epochs.
        epochs: those at whose ends to record, counted from 1, beside the one that a callback before
            this in the list ends the training at. Default None: all.
        seed: of the attacks and of u. Default 0.

    Raises:
        ValueError: for images or labels that no attack or the network does not take, or a model
            that is no RobustClassifier.
        RunError: when a file cannot be written, or ``energies.csv`` is damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        training: tuple[Any, Any],
        validation: tuple[Any, Any],
        *,
        every_steps: int = 0,
        epochs: Container[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (isinstance(every_steps, int | np.integer) and every_steps >= 0):
            raise ValueError(f"every_steps is an integer >= 0; received {every_steps!r}")
        paths = RunDirectory(Path(directory))
        self.table, self.samples = paths.energies_table, paths.energies
        self.every_steps = every_steps
        self.epochs = epochs
        self.seed = seed
        self.latest: dict[str, np.ndarray] = {}
        self._splits = {
            "train": inputs.sample("training", training),
            "validation": inputs.sample("validation", validation),
        }
        self._measure: Callable[..., dict[str, tf.Tensor]] | None = None

    def set_model(self, model: Any) -> None:
        if not isinstance(model, RobustClassifier):
            raise ValueError(
                f"EnergyMonitor watches a RobustClassifier; received {type(model).__name__}"
            )
        # One trace, however often `fit` is called.
        if self._measure is None or model is not self.model:
            for sample in self._splits.values():
                inputs.check_sample_of(model.network, sample)
            shape = self._splits["train"][0].shape[1:]
            self._measure = tf.function(
                _measurement(model),
                input_signature=[
                    tf.TensorSpec([None, *shape], tf.float32),
                    tf.TensorSpec([None], tf.int32),
                    tf.TensorSpec([2], tf.int32),
                ],
                jit_compile=False,
            )
        super().set_model(model)

    def on_train_begin(self, logs=None) -> None:
        self._step = steps_done(self.model)
        with reading():
            self._rows = read_energies(self.table)
        self._drop(lambda row: row["step"] > self._step)

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None) -> None:
        if not self.every_steps:
            return
        before, self._step = self._step, steps_done(self.model)
        is_due = before // self.every_steps != self._step // self.every_steps
        # The end of the epoch is recorded anyway.
        if is_due and batch + 1 != self.params.get("steps"):
            self._record(self._epoch, self._measured())

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.latest = {}
        is_wanted = self.epochs is None or epoch + 1 in self.epochs
        if not (is_wanted or self.model.stop_training):
            return
        self.latest = self._measured()
        # First: it removes what a process that was killed here has left of this epoch.
        self._record(epoch + 1, self.latest)
        with writing(self.samples):
            self.samples.mkdir(parents=True, exist_ok=True)
            with replacing(self._samples_of(epoch + 1)) as temporary:
                np.savez(temporary, **self.latest)  # type: ignore[arg-type]

    def _measured(self) -> dict[str, np.ndarray]:
        """Arrays ``[N]`` by the names of the npz files."""
        assert self._measure is not None
        found: dict[str, np.ndarray] = {}
        with averaged_weights(self.model):
            for split, (images, labels) in self._splits.items():
                parts = []
                for at in range(0, len(images), BATCH_SIZE):
                    batch = slice(at, at + BATCH_SIZE)
                    seed = tf.constant([self.seed, at], tf.int32)
                    parts.append(self._measure(images[batch], labels[batch], seed))
                found[f"{split}_labels"] = labels.numpy()
                for name in parts[0]:
                    found[f"{split}_{name}"] = np.concatenate([part[name] for part in parts])
        return found

    def _record(self, epoch: int, values: Mapping[str, np.ndarray]) -> None:
        step = steps_done(self.model)
        self._drop(lambda row: row["step"] >= step)
        for split in self._splits:
            for attack in ATTACKS:
                self._rows.append({"epoch": epoch, "step": step, **_summary(values, split, attack)})
        with writing(self.table):
            self.table.parent.mkdir(parents=True, exist_ok=True)
            write_table(self.table, self._rows)

    def _drop(self, is_stale: Callable[[dict[str, Any]], bool]) -> None:
        """Forget rows, and remove the arrays of epochs of which no row is left."""
        stale = [row for row in self._rows if is_stale(row)]
        if not stale:
            return
        self._rows = [row for row in self._rows if not is_stale(row)]
        left = {row["epoch"] for row in self._rows}
        with writing(self.table):
            for epoch in {row["epoch"] for row in stale} - left:
                with contextlib.suppress(FileNotFoundError):
                    self._samples_of(epoch).unlink()
            write_table(self.table, self._rows)

    def _samples_of(self, epoch: int) -> Path:
        return self.samples / f"epoch-{epoch:04d}.npz"


def read_energies(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of an ``energies.csv``; none when there is no such file.

    ``epoch``, ``step`` and ``images`` are ints, ``split`` and ``attack`` strings, all else floats.

    Raises:
        ValueError: when the file is damaged.
    """

    def parse(name: str, cell: str) -> str | int | float:
        return cell if name in _TEXTS else int(cell) if name in _COUNTS else float(cell)

    return read_table(Path(path), parse)


def affordable_records(
    model: RobustClassifier, train_size: int, records: int = 1, share: float = 0.03
) -> tuple[int, int]:
    """Images a split, and epochs, for which an EnergyMonitor takes this share of network passes.

    A forward pass, a backward pass to the images and one to the weights count 1 each. A training
    step takes those of its attack and 3; regularizers, which make it dearer, are not counted.

    Args:
        model: what is trained.
        train_size: training images of an epoch.
        records: an epoch. Default 1: the one at its end.
        share: of the passes of the training steps.

    Returns:
        Images, from 16, below which quantiles say nothing, to 512; and from how many epochs one
        is to be recorded: 1 but for a data set so small that 16 images take more than the share.
    """
    training, evaluation = passes(model.attack), passes(model.evaluation_attack)
    of_steps = train_size * (training + 3)
    an_image = 2 * records * (training + evaluation + 6)  # two splits
    images = int(np.clip(share * of_steps // an_image, 16, 512))
    return images, math.ceil(images * an_image / (share * of_steps))


def passes(attack: Any) -> int:
    """Network passes an image; attacks of other kinds count as PGD-10."""
    if attack is None:
        return 0
    return 2 * attack.gradients * attack.restarts if isinstance(attack, GradientAttack) else 20


def steps_done(model: keras.Model) -> int:
    """Optimizer steps that a model has taken."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def _measurement(model: RobustClassifier) -> Callable[..., dict[str, tf.Tensor]]:
    network = model.network
    attacks = dict(zip(ATTACKS, (model.attack, model.evaluation_attack), strict=True))
    ball = next((a for a in (model.evaluation_attack, model.attack) if isinstance(a, Attack)), None)

    def logits_and_gradient(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = network(x, training=False)
            loss = energy.cross_entropy(logits, y)
        return logits, tape.gradient(loss, x)

    def measure(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        natural, gradient = logits_and_gradient(x, y)
        alignment = tf.fill(tf.shape(y), np.float32(np.nan))
        if ball is not None:
            noise_seed = tf.random.fold_in(seed, 1)
            noise = geometry.random_in_ball(tf.shape(x), ball.epsilon, ball.norm, noise_seed)
            _, neighbour = logits_and_gradient(x + noise, y)
            alignment = 1 - GradAlign().penalties(gradient, neighbour)
        values = {
            "marginal_energy": energy.marginal_energy(natural),
            "joint_energy": energy.joint_energy(natural, y),
            "gradient_alignment": alignment,
        }
        for name, attack in attacks.items():
            batch = TrainingBatch(network, x, y, attack=attack, seed=seed, step=tf.zeros([]))
            batch.run_attack()
            moved = network(batch.adversarial, training=False)
            of_attack = {
                "marginal_energy": energy.marginal_energy(moved),
                "delta_marginal_energy": energy.delta_energy(natural, moved),
                "delta_joint_energy": energy.delta_energy(natural, moved, y),
                "abnormal": energy.abnormal(natural, moved, y),
                "correct": tf.equal(tf.argmax(moved, axis=1, output_type=tf.int32), y),
            }
            values |= {f"{name}_{key}": value for key, value in of_attack.items()}
        return {name: tf.cast(value, tf.float32) for name, value in values.items()}

    return measure


def _summary(values: Mapping[str, np.ndarray], split: str, attack: str) -> dict[str, Any]:
    """The columns of a row but for the first two."""
    # In float64, so that the mean of many samples keeps its digits.
    of = {name: array.astype(np.float64) for name, array in values.items()}
    row: dict[str, Any] = {
        "split": split,
        "attack": attack,
        "images": len(values[f"{split}_labels"]),
        "accuracy": of[f"{split}_{attack}_correct"].mean(),
        "abnormal_fraction": of[f"{split}_{attack}_abnormal"].mean(),
        "gradient_alignment": of[f"{split}_gradient_alignment"].mean(),
    }
    for name, key in (
        ("marginal_energy", f"{split}_marginal_energy"),
        ("delta_marginal_energy", f"{split}_{attack}_delta_marginal_energy"),
        ("delta_joint_energy", f"{split}_{attack}_delta_joint_energy"),
    ):
        row[f"{name}_mean"], row[f"{name}_std"] = of[key].mean(), of[key].std()
        points = np.quantile(of[key], list(QUANTILES.values()))
        row |= {f"{name}_{label}": point for label, point in zip(QUANTILES, points, strict=True)}
    return row
