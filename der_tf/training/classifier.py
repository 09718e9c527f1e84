"""RobustClassifier: adversarial training as a Keras model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf import attacks, energy, objectives
from der_tf.attacks import Attack
from der_tf.attacks.base import logits_function
from der_tf.attacks.gradient import FGSM, PGD, GradientAttack
from der_tf.objectives import Objective
from der_tf.regularizers import Regularizer
from der_tf.training import inputs
from der_tf.training import lazy as lazily
from der_tf.training.batch import TrainingBatch
from der_tf.training.optimizers import unwrapped
from der_tf.training.replicas import is_multi_worker, mean_over_replicas, of_one_replica, share_of
from der_tf.training.weight_perturbation import weights_read_as, worst_weights


@keras.saving.register_keras_serializable("der_tf")
class RobustClassifier(keras.Model):
    """A classifier trained on adversarial images, with its energies as metrics.

    >>> model = RobustClassifier(network, attack="rs_fgsm", regularizers=[DeltaEnergy(10.0)])
    >>> model.compile(optimizer="sgd")
    >>> model.fit(train_dataset, validation_data=validation_dataset)

    The loss is ``objective + sum of regularizers`` (give none to ``compile``). Its metrics, each
    also as ``val_``: ``loss``, ``clean_accuracy``, ``robust_accuracy``, and the means of
    ``delta_marginal_energy`` dE(x), ``delta_joint_energy`` dE(x, y) and ``abnormal_fraction``
    (arXiv 2505.22486). In training, ``robust_accuracy`` is measured on the training attack in
    training mode; those that compare with natural images are measured on every batch whose
    natural pass the loss takes anyway, else on the first batch of an epoch and every
    ``natural_metrics_every``-th optimizer step. In ``evaluate``, all are measured on every batch
    in inference mode under ``evaluation_attack``, and ``loss`` is the objective and the losses of
    the network's own layers, without the regularizers.

    With adversarial weight perturbation (``awp_gamma``; AWP, Wu et al., arXiv 2004.05884), the loss
    and its gradients are those at weights w + v, the step is taken from w. v climbs the objective
    (the penalties are no part of that), of length ``awp_gamma |w|`` for each weight of more than
    one dimension; the metrics of the training steps, too, are measured at w + v.

    All randomness of a training step is a function of (seed, number of the batch, replica).

    Args:
        network: Keras model, images float32 ``[B, H, W, C]`` in [0, 1] -> logits ``[B, K]``.
        attack: training attack: a name, an :class:`~der_tf.attacks.Attack`, any callable
            ``attack(model, x, y) -> x*``, or None (default) for natural training.
        objective: outer loss: a name (default ``"madry"``) or an
            :class:`~der_tf.objectives.Objective`.
        regularizers: penalties such as :class:`~der_tf.regularizers.DeltaEnergy`.
        evaluation_attack: as ``attack``. Default None: PGD-10 in the ball of the training attack,
            in that of l-inf 8/255 for natural training and an attack without a radius; a callable
            of your own serves for both.
        awp_gamma: relative size of the weight perturbation, 0.005 in the paper. Default 0: off.
        awp_warmup_steps: optimizer steps before the perturbation begins. Default 0.
        natural_metrics_every: see above; 0 leaves the natural metrics out of training. Default 10.
        seed: of all random parts of training, an integer from -2^31 to 2^31 - 1. Default 0.

    Raises:
        ValueError: for an unknown name, an argument of another kind, or a negative number; in
            training and evaluation for images that are not floats, or labels that are not ``[B]``
            integers.
        InvalidArgumentError: (of TensorFlow) for images that are not in [0, 1], or labels that are
            no classes of the network, in the first batch of an epoch or evaluation.
    """

    def __init__(
        self,
        network: keras.Model,
        attack: Any = None,
        objective: str | Objective = "madry",
        regularizers: Sequence[Regularizer] = (),
        evaluation_attack: Any = None,
        *,
        awp_gamma: float = 0.0,
        awp_warmup_steps: int = 0,
        natural_metrics_every: int = 10,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_kinds(network, attack, objective, regularizers, evaluation_attack)
        self.network = network
        self.attack = attacks.get(attack) if isinstance(attack, str) else attack
        self.objective = objectives.get(objective) if isinstance(objective, str) else objective
        self.regularizers = tuple(regularizers)
        self._interval = lazily.interval_of(self.regularizers)
        if isinstance(evaluation_attack, str):
            evaluation_attack = attacks.get(evaluation_attack)
        if evaluation_attack is None:
            evaluation_attack = self.attack or PGD()
            if isinstance(self.attack, Attack):
                evaluation_attack = PGD()
                if math.isfinite(self.attack.epsilon):
                    evaluation_attack = PGD(epsilon=self.attack.epsilon, norm=self.attack.norm)
        self.evaluation_attack = evaluation_attack
        for name, value in (
            ("awp_gamma", awp_gamma),
            ("awp_warmup_steps", awp_warmup_steps),
            ("natural_metrics_every", natural_metrics_every),
        ):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is a number >= 0; received {value!r}")
        if not (isinstance(seed, int | np.integer) and -(2**31) <= seed < 2**31):
            raise ValueError(f"seed is an integer from -2^31 to 2^31 - 1; received {seed!r}")
        self.awp_gamma = awp_gamma
        self.awp_warmup_steps = awp_warmup_steps
        self.natural_metrics_every = natural_metrics_every
        self.seed = int(seed)
        self.robust_accuracy = keras.metrics.Mean(name="robust_accuracy")
        self.natural_metrics = [
            keras.metrics.Mean(name=name)
            for name in (
                "clean_accuracy",
                "delta_marginal_energy",
                "delta_joint_energy",
                "abnormal_fraction",
            )
        ]
        if network.built:
            self.built = True

    def build(self, input_shape: Any) -> None:
        """Build the network for images of this shape, the batch first."""
        if not self.network.built:
            self.network.build(input_shape)
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Logits ``[B, K]`` of images ``[B, H, W, C]`` in [0, 1]."""
        return self.network(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step on the outer loss of a batch (x, y[, sample_weight])."""
        x, y, sample_weight = self._unpack(data)
        batch = TrainingBatch(
            self.network,
            x,
            y,
            attack=self.attack,
            # The count of batches: that of updates stands still while gradients are accumulated.
            seed=self._seed(unwrapped(self.optimizer)._iterations, training=True),
            step=self.optimizer.iterations,
        )
        shares_start, shares_gradient = self._shares_start(), self._shares_gradient()
        if not (shares_start or shares_gradient):
            batch.run_attack()
        weights = self.trainable_variables
        with contextlib.ExitStack() as perturbed:
            read: Sequence[Any] = weights
            if self.awp_gamma:
                read = self._worst_weights(batch, sample_weight)
                perturbed.enter_context(weights_read_as(self.network, weights, read))
            with tf.GradientTape(persistent=shares_start or self._interval > 1) as tape:
                if self.awp_gamma:
                    tape.watch(read)
                if shares_gradient:
                    batch.run_attack_along(tf.stop_gradient(batch.natural_gradient))
                elif shares_start:
                    batch.run_attack_on(tape)
                natural = batch.natural_logits if self._needs_natural() else None
                losses = self.objective(y, natural, batch.adversarial_logits)
                losses, lazy = lazily.penalties_of(self.regularizers, batch, losses)
                layer_losses = self.losses
                scaled = self._scaled(losses, sample_weight, layer_losses)
                if lazy is not None:
                    scaled_between = scaled
                    due_losses = losses + self._interval * lazy
                    scaled = self._scaled(due_losses, sample_weight, layer_losses)
                    losses += lazy  # what is shown: the mean over the steps
        if lazy is None:
            gradients = tape.gradient(scaled, read)
        else:
            due = tf.equal(self.optimizer.iterations % self._interval, 0)
            gradients = lazily.gradients(tape, due, scaled, scaled_between, read)
        del tape
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))

        self._update_loss(losses, sample_weight, layer_losses)
        self.robust_accuracy.update_state(_correct(y, batch.adversarial_logits))
        if batch.has("natural_logits"):
            self._update_natural_metrics(y, batch.natural_logits, batch.adversarial_logits)
        elif self.natural_metrics_every:
            self._sample_natural_metrics(batch)
        results = self._results(
            y, batch.natural_logits if self._user_metrics() else None, sample_weight
        )
        if not (self.natural_metrics_every or batch.has("natural_logits")):
            for metric in self.natural_metrics:
                del results[metric.name]
        return results

    def test_step(self, data: Any) -> dict[str, Any]:
        """Metrics of a batch (x, y[, sample_weight]) under the evaluation attack."""
        x, y, sample_weight = self._unpack(data)
        seed = self._seed(0, training=False)
        batch = TrainingBatch(
            self.network, x, y, attack=self.evaluation_attack, seed=seed, step=tf.zeros([])
        )
        batch.run_attack()
        natural = self(x, training=False)
        adversarial = self(batch.adversarial, training=False)
        losses = self.objective(y, natural, adversarial)
        self._update_loss(losses, sample_weight, self.losses)
        self.robust_accuracy.update_state(_correct(y, adversarial))
        self._update_natural_metrics(y, natural, adversarial)
        return self._results(y, natural, sample_weight)

    def export(self, filepath: str, *args: Any, **kwargs: Any) -> Any:
        """Keras' export of the network, images -> logits; :mod:`der_tf.export` adds signatures."""
        return self.network.export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs; objects in Keras' serialized form."""
        config = super().get_config()
        for name in ("network", "attack", "objective", "regularizers", "evaluation_attack"):
            config[name] = keras.saving.serialize_keras_object(getattr(self, name))
        return {
            **config,
            "awp_gamma": self.awp_gamma,
            "awp_warmup_steps": self.awp_warmup_steps,
            "natural_metrics_every": self.natural_metrics_every,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RobustClassifier:
        """Rebuild from :meth:`get_config`."""
        config = dict(config)
        for name in ("network", "attack", "objective", "regularizers", "evaluation_attack"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras finds the input shape by averaging a first batch over the replicas, which fails
        # where these have different numbers of images, and across workers; and the iterator that
        # it then drops may still prefetch, which TensorFlow 2.21 answers with a segmentation
        # fault now and then. The specification of the data says as much.
        if iterator is not None and self._distribute_strategy is not None:
            specification = iterator._get_iterator().element_spec
            data_batch, iterator = tf.nest.map_structure(of_one_replica, specification), None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _unpack(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        received: Any = getattr(self, "loss", None)
        if received is not None:
            # Keras keeps a loss through later compiles: forget it, so that one without it works.
            self.loss = None
            raise ValueError(
                "RobustClassifier takes its loss from objective=; compile it without a loss "
                f"(received loss={received!r})"
            )
        x, y, sample_weight = inputs.unpack(data)
        if not self.network.built:
            self.build(x.shape)
        x, y = tf.cast(x, tf.float32), tf.cast(tf.reshape(y, [-1]), tf.int32)
        is_first = tf.equal(self._loss_tracker.count, 0)
        classes = inputs.num_classes(self.network, x)
        return *inputs.in_range(x, y, classes, is_first), sample_weight

    def _seed(self, step: Any, *, training: bool) -> tf.Tensor:
        seed = tf.constant([self.seed, int(training)], tf.int32)
        seed = tf.random.fold_in(seed, tf.cast(step, tf.int32))
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.random.fold_in(seed, replica)

    def _shares_start(self) -> bool:
        """Whether the attack's first pass can serve the loss too (pilot: 7 passes, not 8).

        That takes a single step from one start, climbing a loss of logits alone, in the mode
        of the outer pass.
        """
        return (
            any(regularizer.reads_start for regularizer in self.regularizers)
            and isinstance(self.attack, GradientAttack)
            and self.attack.gradients == 1
            and self.attack.restarts == 1
            and self.attack.loss != "kl"
            and self.attack.training
            # The loss is then taken at other weights than the attack's.
            and not self.awp_gamma
        )

    def _shares_gradient(self) -> bool:
        """Whether the input gradient that a regularizer reads is the very one FGSM climbs."""
        return (
            any(regularizer.reads_natural_gradient for regularizer in self.regularizers)
            and isinstance(self.attack, FGSM)
            and self.attack.loss == "ce"
            and not self.attack.targeted
            and self.attack.training
            and not self.awp_gamma
        )

    def _worst_weights(
        self, batch: TrainingBatch, sample_weight: tf.Tensor | None
    ) -> list[tf.Tensor]:
        """w + v of every trainable variable, v climbing the objective on this batch."""
        weights = self.trainable_variables
        # Nothing but the gradient is left of this pass: no moving statistics, no random states.
        network = logits_function(self.network, training=True)
        with tf.GradientTape() as tape:
            natural = network(batch.x) if self.objective.needs_natural else None
            losses = self.objective(batch.y, natural, network(batch.adversarial))
            # In float16, small gradients vanish without the scale; the direction is the same.
            scaled = self.optimizer.scale_loss(mean_over_replicas(losses, sample_weight))
        gradients = tape.gradient(scaled, weights)
        gamma = tf.where(self.optimizer.iterations >= self.awp_warmup_steps, self.awp_gamma, 0.0)
        return worst_weights(weights, gradients, gamma)

    def _scaled(self, losses: tf.Tensor, sample_weight: Any, layer_losses: Any) -> tf.Tensor:
        loss = mean_over_replicas(losses, sample_weight) + share_of(layer_losses)
        return self.optimizer.scale_loss(loss)

    def _user_metrics(self) -> bool:
        return self._compile_metrics is not None

    def _needs_natural(self) -> bool:
        # Without an attack the natural logits are those of x*: they cost nothing.
        return self.objective.needs_natural or self._user_metrics() or self.attack is None

    def _update_loss(
        self, losses: tf.Tensor, sample_weight: tf.Tensor | None, layer_losses: list[tf.Tensor]
    ) -> None:
        if sample_weight is not None:
            losses *= tf.cast(tf.reshape(sample_weight, [-1]), losses.dtype)
        if layer_losses:
            losses += tf.add_n(layer_losses)
        self._loss_tracker.update_state(losses)

    def _update_natural_metrics(self, y: tf.Tensor, natural: tf.Tensor, adv: tf.Tensor) -> None:
        values = (
            _correct(y, natural),
            energy.delta_energy(natural, adv),
            energy.delta_energy(natural, adv, y),
            energy.abnormal(natural, adv, y),
        )
        for metric, value in zip(self.natural_metrics, values, strict=True):
            metric.update_state(tf.cast(value, tf.float32))

    def _sample_natural_metrics(self, batch: TrainingBatch) -> None:
        """Measure on some batches: a pass for the metrics alone on every one costs up to 20 %."""
        due = tf.equal(self.optimizer.iterations % self.natural_metrics_every, 0)
        none_yet = tf.equal(self.natural_metrics[0].count, 0)
        adversarial = tf.stop_gradient(batch.adversarial_logits)

        def measure() -> tf.Tensor:
            network = logits_function(self.network, training=True)
            # Under a weight perturbation the logits at hand are those of other weights.
            moved = network(batch.adversarial) if self.awp_gamma else adversarial
            self._update_natural_metrics(batch.y, network(batch.x), moved)
            return tf.constant(True)

        tf.cond(due | none_yet, measure, lambda: tf.constant(False))

    def _results(self, y: Any, natural: Any, sample_weight: Any) -> dict[str, Any]:
        if natural is not None and self._user_metrics():
            self._compile_metrics.update_state(y, natural, sample_weight)
        results = self.get_metrics_result()
        if is_multi_worker(self.distribute_strategy):
            # Keras averages over the 0th dimension of each worker's results there.
            results = {name: tf.reshape(value, [1]) for name, value in results.items()}
        return results


def _check_kinds(
    network: Any, attack: Any, objective: Any, regularizers: Any, evaluation_attack: Any
) -> None:
    if not isinstance(network, keras.Model):
        raise ValueError(f"network is a Keras model, images -> logits; received {network!r}")
    for name, value in (("attack", attack), ("evaluation_attack", evaluation_attack)):
        if not (value is None or isinstance(value, str) or callable(value)):
            raise ValueError(f"{name} is a name, an Attack or a callable; received {value!r}")
    if not isinstance(objective, str | Objective):
        raise ValueError(f"objective is a name or an Objective; received {objective!r}")
    if not isinstance(regularizers, Sequence) or not all(
        isinstance(regularizer, Regularizer) for regularizer in regularizers
    ):
        raise ValueError(
            f"regularizers is a list of such as DeltaEnergy(10.0); received {regularizers!r}"
        )


def _correct(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y), tf.float32)
