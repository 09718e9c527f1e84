"""CatastrophicOverfittingGuard: notices the collapse of single-step training, and acts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf import energy
from der_tf.attacks import Attack
from der_tf.attacks.gradient import PGD
from der_tf.overfitting import catastrophic_overfitting
from der_tf.training import inputs
from der_tf.training.alarms import Alarms, Write, show
from der_tf.training.batch import TrainingBatch
from der_tf.training.classifier import RobustClassifier
from der_tf.training.monitors import passes, steps_done
from der_tf.training.optimizers import unwrapped

ACTIONS = ("warn", "stop", "roll_back")


class CatastrophicOverfittingGuard(Alarms):
    """Detects the onset of catastrophic overfitting within the epoch, and acts.

    Single-step training that overfits catastrophically keeps its accuracy under the training attack
    and loses that under PGD within some hundred steps, while attacks *lower* the loss of more and
    more samples (arXiv 2505.22486, section 4). The rule (ours), at optimizer step t:

    * **Sign**, free of network passes. Every ``look_every`` steps, a_t is the share of abnormal
      samples, CE(x*, y) < CE(x, y), among those that the training steps since the last look have
      measured (the metric ``abnormal_fraction``). It is a sign when

          a_t >= abnormal  and  a_t >= 2 a_s,    s the last probe before t,

      so that a share that stays high, which happens in healthy trainings, calls for one probe.

    * **Probe**, at a sign and every ``probe_every`` steps. On n fixed images and in inference mode,
      p_t is the accuracy under a short PGD, q_t that under the training attack, and b_t the share
      of abnormal samples. DER holds a_t down, which is measured in training mode, and not b_t.
    * **Reference** r_t, the robustness there is to lose: the largest value so far of m, which is p
      of the first probe, then at every probe without an alarm m <- (m + p_t) / 2.
    * **Alarm**, at a probe where robustness is lost, to PGD alone, by more than chance explains:

          p_t < (1 - drop) r_t,    p_t < (1 - drop) q_t,    and one of
          r_t - p_t >= 3 sqrt((r_t (1 - r_t) + p_t (1 - p_t)) / n),
          q_t - p_t >= 3 sqrt((q_t (1 - q_t) + p_t (1 - p_t)) / n)  with
          max(a_t, b_t) >= abnormal.

      The last one is for large radii, where a robust network is right on a tenth of the images,
      and n cannot tell a tenth from nothing: the share of abnormal samples has to confirm it.

    * **Epochs.** A collapse under DER may take two epochs, and leave abnormal samples rare. At the
      end of an epoch there is an alarm when the accuracies of the epochs since the last one are a
      collapse by :data:`der_tf.overfitting.RULES`. It needs validation data in ``fit``.

    One alarm a collapse: the next one is raised after a probe with p >= (1 - drop) r.

    What follows an alarm: ``"warn"`` nothing but the line; ``"stop"`` the end of ``fit``;
    ``"roll_back"`` the weights, batch statistics and optimizer state of the last robust probe come
    back, one without a sign and with p >= (1 - drop / 2) r. A short training may collapse before
    its first probe: until then, the end of an epoch without an alarm is taken for one, with the
    accuracy of the validation images for p and its largest since the last alarm for r. Data,
    learning rate and the count of steps go on, so that the random parts of the steps to come are
    new ones. Where nothing was robust yet, it warns.

    With ``"warn"`` and ``"stop"`` the weights are, bit for bit, those of a training without it.
    :attr:`variables` belongs to the checkpoint of a training that is to be taken up again.

    >>> guard = CatastrophicOverfittingGuard((x_train[:64], y_train[:64]), action="stop")
    >>> robust_classifier.fit(x_train, y_train, callbacks=[guard])

    Cost of a probe: for each image 2 k + 3 network passes and those of the training attack, 15 for
    RS-FGSM and k = 5; :func:`affordable_steps` says how often a training affords that.

    Args:
        sample: images ``[n, H, W, C]`` float32 in [0, 1] and labels ``[n]``, unaugmented.
        action: ``"warn"`` (default), ``"stop"`` or ``"roll_back"``.
        probe_every: steps between probes without a sign. Default 100.
        look_every: steps between looks for signs. Default 10.
        abnormal: least share of abnormal samples that is a sign. Default 0.25.
        drop: share of the robustness whose loss is an alarm. Default 0.5.
        attack: of the probes. Default None: PGD-5 with steps of epsilon / 2 in the ball of the
            evaluation attack; an evaluation attack without a ball serves itself.
        directory: gets ``alarms.csv``. Default None: no file.
        seed: of the probes' attacks. Default 0.
        write: takes a line. Default: prints it.

    Raises:
        ValueError: for an unknown action, a number out of its range, images or labels that no
            attack or the network does not take, or a model that is no RobustClassifier.
        RunError: when the file cannot be written, or is damaged.
    """

    def __init__(
        self,
        sample: tuple[Any, Any],
        action: str = "warn",
        *,
        probe_every: int = 100,
        look_every: int = 10,
        abnormal: float = 0.25,
        drop: float = 0.5,
        attack: Any = None,
        directory: str | os.PathLike[str] | None = None,
        seed: int = 0,
        write: Write = show,
    ) -> None:
        super().__init__(directory, write)
        if action not in ACTIONS:
            raise ValueError(f"action is one of {', '.join(ACTIONS)}; received {action!r}")
        for name, count in (("probe_every", probe_every), ("look_every", look_every)):
            if not (isinstance(count, int | np.integer) and count >= 1):
                raise ValueError(f"{name} is an integer >= 1; received {count!r}")
        for name, share in (("abnormal", abnormal), ("drop", drop)):
            if not 0 < share < 1:
                raise ValueError(f"{name} is a number between 0 and 1; received {share!r}")
        self.action = action
        self._sample = inputs.sample("sample", sample)
        self._probe_every, self._look_every = probe_every, look_every
        self._abnormal, self._drop = abnormal, drop
        self._attack = attack
        self._seed = seed
        # Of the epochs since the last alarm: on validation images under PGD, on those of training
        # under its attack.
        self._accuracies = tf.Variable(np.zeros([0, 2]), shape=[None, 2])
        self._mean = tf.Variable(0.0, dtype=tf.float64)
        self._reference = tf.Variable(-1.0, dtype=tf.float64)  # -1: no probe yet
        self._abnormal_before = tf.Variable(0.0, dtype=tf.float64)
        self._seen = tf.Variable([0.0, 0.0], dtype=tf.float64)  # sum and count of the metric
        self._is_lost = tf.Variable(False)
        self._robust_step = tf.Variable(-1, dtype=tf.int64)  # -1: none yet
        self._robust_state: list[tf.Variable] = []
        self._measure: Callable[..., tuple[tf.Tensor, ...]] | None = None

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint has to keep; complete once :meth:`set_model` was called."""
        probes = [self._mean, self._reference, self._abnormal_before, self._seen]
        return [*probes, self._accuracies, self._is_lost, self._robust_step, *self._robust_state]

    @property
    def reached(self) -> bool:
        """Whether it has ended the training."""
        return self.action == "stop" and bool(self._is_lost.numpy())

    def set_model(self, model: Any) -> None:
        if not isinstance(model, RobustClassifier):
            raise ValueError(
                "CatastrophicOverfittingGuard watches a RobustClassifier; received "
                f"{type(model).__name__}"
            )
        is_new = self._measure is None or model is not self.model
        super().set_model(model)
        if is_new:
            inputs.check_sample_of(model.network, self._sample)
            self._measure = tf.function(_probe(model, self._attack), jit_compile=False)
        if self.action == "roll_back" and not self._robust_state:
            self._robust_state = [
                tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in _state(model)
            ]

    def on_train_batch_end(self, batch, logs=None) -> None:
        before, self._step = self._step, steps_done(self.model)

        def is_due(every: int) -> bool:
            return before // every != self._step // every

        probes = is_due(self._probe_every)
        if not (probes or is_due(self._look_every)):
            return
        share = self._abnormal_since()  # NaN, where nothing was measured, is no sign
        is_sign = share >= max(self._abnormal, 2 * float(self._abnormal_before.numpy()))
        if probes or is_sign:
            self._probe(share, is_sign)

    def _probe(self, share: float, is_sign: bool) -> None:
        assert self._measure is not None
        images, labels = self._sample
        robust, trained, abnormal = (
            float(found)
            for found in self._measure(images, labels, tf.constant([self._seed, 0], tf.int32))
        )
        if not np.isnan(share):
            self._abnormal_before.assign(share)
        share = float(np.fmax(share, abnormal))
        reference = float(self._reference.numpy())
        if self._is_lost.numpy() and robust < (1 - self._drop) * reference:
            return
        if reference >= 0 and self._is_alarm(robust, trained, reference, share):
            self._act(
                f"accuracy under PGD {robust:.1%}, before {reference:.1%}, "
                f"under the training attack {trained:.1%}, abnormal share {share:.1%}"
            )
            return
        self._is_lost.assign(False)
        mean = robust if reference < 0 else (float(self._mean.numpy()) + robust) / 2
        reference = max(reference, mean)
        self._mean.assign(mean)
        self._reference.assign(reference)
        if not is_sign:
            self._keep_if_robust(robust, reference)

    def _keep_if_robust(self, robust: float, reference: float) -> None:
        if self._robust_state and robust >= (1 - self._drop / 2) * reference:
            for kept, variable in zip(self._robust_state, _state(self.model), strict=True):
                kept.assign(keras.ops.convert_to_numpy(variable))
            self._robust_step.assign(self._step)

    def on_epoch_end(self, epoch, logs=None) -> None:
        logs = logs or {}
        if "val_robust_accuracy" not in logs or self._is_lost.numpy():
            return
        seen = [[logs["val_robust_accuracy"], logs["robust_accuracy"]]]
        self._accuracies.assign(np.concatenate([self._accuracies.numpy(), seen]))
        robust, trained = self._accuracies.numpy().T
        found = catastrophic_overfitting(robust, trained)
        if found is not None:
            then = f"in epoch {epoch + 1 - (found.epoch - found.before)}"
            self._act(
                f"accuracy of validation images under PGD {robust[-1]:.1%}, {then} "
                f"{robust[found.before]:.1%}; of training images under the training attack "
                f"{trained[-1]:.1%}, {then} {trained[found.before]:.1%}"
            )
        elif self._reference.numpy() < 0:  # no probe yet
            self._keep_if_robust(robust[-1], robust.max())

    def _is_alarm(self, robust: float, trained: float, reference: float, share: float) -> bool:
        if robust >= (1 - self._drop) * min(reference, trained):
            return False

        def exceeds_chance(before: float) -> bool:
            variance = before * (1 - before) + robust * (1 - robust)
            return bool(before - robust >= 3 * np.sqrt(variance / len(self._sample[1])))

        return exceeds_chance(reference) or (exceeds_chance(trained) and share >= self._abnormal)

    def _act(self, seen: str) -> None:
        self._is_lost.assign(True)
        self._accuracies.assign(np.zeros([0, 2]))
        robust_step = int(self._robust_step.numpy())
        follows = "training goes on"
        if self.action == "stop":
            self.model.stop_training = True
            follows = "training stops"
        elif self.action == "roll_back" and robust_step < 0:
            follows = "no robust weights to roll back to, training goes on"
        elif self.action == "roll_back":
            for kept, variable in zip(self._robust_state, _state(self.model), strict=True):
                variable.assign(kept.numpy())
            self._is_lost.assign(False)
            self._abnormal_before.assign(0.0)
            follows = f"back to the weights of step {robust_step}"
        self.speak_up(self._epoch + 1, self.action, f"catastrophic overfitting: {seen}; {follows}")

    def _abnormal_since(self) -> float:
        """Share of abnormal samples among those measured since the last look; NaN for none."""
        metric = next(m for m in self.model.natural_metrics if m.name == "abnormal_fraction")
        seen = np.array([float(keras.ops.convert_to_numpy(v)) for v in metric.variables])
        before = self._seen.numpy()
        self._seen.assign(seen)
        # An epoch that has begun since has set the sums to zero.
        total, count = seen - before if seen[1] >= before[1] else seen
        return total / count if count else float("nan")


def _probe(model: RobustClassifier, attack: Any) -> Callable[..., tuple[tf.Tensor, ...]]:
    """(images, labels, seed) -> shares of the images, all in inference mode.

    Those right under the probe's attack, those right under the training attack, and those that the
    latter makes abnormal.
    """
    if attack is None:
        attack = model.evaluation_attack
        if isinstance(attack, Attack):
            attack = PGD(
                epsilon=attack.epsilon, norm=attack.norm, steps=5, step_size=attack.epsilon / 2
            )

    def logits_under(attack: Any, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        batch = TrainingBatch(model.network, x, y, attack=attack, seed=seed, step=tf.zeros([]))
        batch.run_attack()
        return model.network(batch.adversarial, training=False)

    def share(is_one: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(is_one, tf.float32))

    def measure(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        robust, trained = (logits_under(a, x, y, seed) for a in (attack, model.attack))
        natural = model.network(x, training=False)
        right = (
            share(tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y))
            for logits in (robust, trained)
        )
        return (*right, share(energy.abnormal(natural, trained, y)))

    return measure


def _state(model: RobustClassifier) -> list[Any]:
    """What is rolled back: all weights, and the optimizer's but for its count and its rate."""
    optimizer = unwrapped(model.optimizer)
    stays = (id(optimizer._iterations), id(optimizer._learning_rate))
    return [*model.weights, *(v for v in optimizer.variables if id(v) not in stays)]


def affordable_steps(
    model: RobustClassifier, batch_size: int, images: int, share: float = 0.015
) -> int:
    """Steps between probes for which a guard takes this share of a training's network passes.

    Counted as by :func:`~der_tf.training.monitors.affordable_records`; a sign, which happens a few
    times a training, adds a probe.

    Args:
        model: what is trained.
        batch_size: images a step.
        images: n, in the guard's sample.
        share: of the passes of the training steps.

    Returns:
        At least 10.
    """
    of_training = passes(model.attack)
    of_probe = images * (of_training + 13)
    return max(10, int(np.ceil(of_probe / (share * batch_size * (of_training + 3)))))
