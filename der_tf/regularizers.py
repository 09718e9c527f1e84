"""Penalties added to the outer loss: ``regularizer(batch) -> [B]``.

A regularizer reads what it needs from the :class:`~der_tf.training.batch.TrainingBatch`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from der_tf import energy
from der_tf.configurable import Configurable

if TYPE_CHECKING:
    from der_tf.training.batch import TrainingBatch

register = keras.saving.register_keras_serializable("der_tf.regularizers")

PENALTIES = {
    "squared": tf.square,
    "absolute": tf.abs,
    # Quadratic within one nat of zero, linear beyond.
    "huber": lambda d: tf.where(tf.abs(d) <= 1, 0.5 * tf.square(d), tf.abs(d) - 0.5),
    # Positive delta energies alone: the sign that jumps at catastrophic overfitting.
    "hinge": tf.nn.relu,
    "squared_hinge": lambda d: tf.square(tf.nn.relu(d)),
    # The square hardly sees small positive ones, which a collapsing network has many of: the
    # hinge pulls at each with the same force, however small.
    "squared_plus_hinge": lambda d: tf.square(d) + tf.nn.relu(d),
}
REFERENCES = ("natural", "start", "interior", "path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularizer(Configurable):
    """Base of the regularizers."""

    @property
    def interval(self) -> int:
        """Its gradient is taken on one optimizer step in so many, with so many times its weight."""
        return 1

    @property
    def reads_start(self) -> bool:
        """Whether the logits at the attack's start are read."""
        return False

    @property
    def reads_natural_gradient(self) -> bool:
        """Whether the gradient of the loss at the natural images is read."""
        return False

    def __call__(self, batch: TrainingBatch) -> tf.Tensor:
        """``[B]`` float32 penalties, added to the outer loss of each sample."""
        raise NotImplementedError(f"{type(self).__name__} does not define its penalty")


def _warmed_up(penalties: tf.Tensor, batch: TrainingBatch, warmup_steps: int) -> tf.Tensor:
    """Penalties that rise linearly from 0 over the first optimizer steps."""
    if not warmup_steps:
        return penalties
    risen = tf.cast(batch.step, penalties.dtype) / warmup_steps
    return penalties * tf.minimum(tf.ones([], penalties.dtype), risen)


@register
@dataclasses.dataclass(frozen=True)
class DeltaEnergy(Regularizer):
    """DER, the Delta Energy Regularizer (Mirza et al., arXiv 2505.22486).

    weight (marginal rho(dE(x)) + joint rho(dE(x, y))) for each sample, where dE is the energy at
    the reference point minus the energy at x*. The defaults are what our measurements ended with
    for single-step attacks (docs/results.md). The paper's form, ``penalty="squared",
    reference="natural"``, is the one for multi-step attacks.

    Args:
        weight: beta, the weight of the whole penalty.
        marginal: weight of the delta marginal energy. Default 0.
        joint: weight of the delta joint energy. Default 1.
        penalty: rho: ``"squared"``, ``"absolute"``, ``"huber"`` (quadratic to 1), ``"hinge"``
            (max(0, dE), default), ``"squared_hinge"``, or ``"squared_plus_hinge"``:
            dE^2 + max(0, dE).
        reference: what x* is compared with. ``"natural"``: x. ``"start"`` (default): the attack's
            noisy start, which single-step attacks in training mode have passed through the
            network anyhow. ``"interior"``: x + u (x* - x) with u uniform in [0, 1]. ``"path"``:
            start + u (x* - start); a network can raise the energy there and keep both ends as
            the reference ``"start"`` wants them (docs/results.md).
        reference_gradient: whether gradients flow through the reference pass too. Default True.
        warmup_steps: the weight rises linearly from 0 over this many optimizer steps. Default 0:
            constant.
        interval: the gradient of the penalty is taken on one optimizer step in so many, with so
            many times the weight (lazy regularization, Karras et al., arXiv 1912.04958, section
            4.1). The steps between go back through the pass of x* alone: with the reference
            ``"start"`` these are the passes of the attack without DER. Default 1: on every step.

    Raises:
        ValueError: for an unknown penalty or reference, a negative weight, or an interval below 1.
    """

    weight: float = dataclasses.field(kw_only=False)
    marginal: float = 0.0
    joint: float = 1.0
    penalty: str = "hinge"
    reference: str = "start"
    reference_gradient: bool = True
    warmup_steps: int = 0
    interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("weight", "marginal", "joint", "warmup_steps")
        self._require_count("interval")
        for name, accepted in (("penalty", PENALTIES), ("reference", REFERENCES)):
            value = getattr(self, name)
            if value not in accepted:
                raise ValueError(
                    f"DeltaEnergy: {name} is one of {', '.join(accepted)}; received {value!r}"
                )

    @property
    def reads_start(self) -> bool:
        return self.reference == "start"

    def penalties(
        self, labels: tf.Tensor, reference_logits: tf.Tensor, adversarial_logits: tf.Tensor
    ) -> tf.Tensor:
        """marginal rho(dE(x)) + joint rho(dE(x, y)), without the weight.

        Args:
            labels: ``[B]`` integers.
            reference_logits: ``[B, K]`` logits at the reference point.
            adversarial_logits: ``[B, K]`` logits at x*.

        Returns:
            ``[B]`` float32 (float64 for float64 logits).
        """
        if not self.reference_gradient:
            reference_logits = tf.stop_gradient(reference_logits)
        rho = PENALTIES[self.penalty]
        marginal = energy.delta_energy(reference_logits, adversarial_logits)
        joint = energy.delta_energy(reference_logits, adversarial_logits, labels)
        return self.marginal * rho(marginal) + self.joint * rho(joint)

    def __call__(self, batch: TrainingBatch) -> tf.Tensor:
        reference_logits = getattr(batch, f"{self.reference}_logits")
        penalties = self.penalties(batch.y, reference_logits, batch.adversarial_logits)
        return self.weight * _warmed_up(penalties, batch, self.warmup_steps)


@register
@dataclasses.dataclass(frozen=True)
class GradAlign(Regularizer):
    """GradAlign (Andriushchenko and Flammarion, arXiv 2007.02617).

    weight (1 - cos(grad_x CE(x, y), grad_x CE(x + u, y))), u uniform in the ball of the training
    attack: the loss is to be linear around x, so that one step finds its maximum. Gradients with
    respect to the weights flow through the input gradients (double backpropagation).

    Args:
        weight: lambda. Default 0.2, the authors' for CIFAR-10 at 8/255.
        full_gradient: which input gradients are differentiated. False (default): the second one
            alone, as in the authors' code, with which they chose lambda; the first is the
            direction that FGSM takes. True: both, as the equation reads.

    Raises:
        ValueError: for a negative weight; in training, for an attack without a ball.
    """

    weight: float = dataclasses.field(default=0.2, kw_only=False)
    full_gradient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("weight")

    @property
    def reads_natural_gradient(self) -> bool:
        return True

    def penalties(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        """1 - cosine of two gradients, without the weight.

        Args:
            first: ``[B, ...]`` floats.
            second: the same.

        Returns:
            ``[B]``, in [0, 2]; 0, without a gradient, where one of the two is zero.
        """
        (a, a_is_some), (b, b_is_some) = _directions(first), _directions(second)
        penalties = 1 - tf.reduce_sum(a * b, axis=1)
        return tf.where(a_is_some & b_is_some, penalties, tf.zeros_like(penalties))

    def __call__(self, batch: TrainingBatch) -> tf.Tensor:
        first = batch.natural_gradient
        if not self.full_gradient:
            first = tf.stop_gradient(first)
        return self.weight * self.penalties(first, batch.neighbour_gradient)


def _directions(vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``[B, N]`` unit vectors, and ``[B]`` whether there is one (else the zero vector)."""
    flat = tf.reshape(vectors, [tf.shape(vectors)[0], -1])
    # The gradients of well-fitted samples are small: their squares would be zero in float32.
    # The direction does not depend on the scale, so that a constant one changes no gradient.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(flat), axis=1))
    is_some = largest > 0
    scaled = tf.math.divide_no_nan(flat, largest[:, None])
    squared = tf.reduce_sum(tf.square(scaled), axis=1)
    squared = tf.where(is_some, squared, tf.ones_like(squared))
    return scaled * tf.math.rsqrt(squared)[:, None], is_some


@register
@dataclasses.dataclass(frozen=True)
class AbnormalExamples(Regularizer):
    """AAER, abnormal adversarial examples regularization (Lin et al., arXiv 2404.08154).

    With x' the attack's start, an adversarial example x* is abnormal when CE(x*, y) < CE(x', y).
    Of the m examples of the whole batch let n be abnormal; the penalty of the batch (section 3.3)
    is the product of their share and of what they vary by:

        weight (n / m) (loss L + logits max(0, A - N))

    * n / m: the number of abnormal examples;
    * L, their loss variation: the mean of CE(x', y) - CE(x*, y) over the abnormal ones;
    * A and N, the variations of the logits: the mean of |f(x*) - f(x')|_2^2 over the abnormal
      and over the normal ones; N is a constant.

    A batch without abnormal, or without normal examples to compare with, has no penalty.

    Args:
        weight: lambda_1. Default 1.
        loss: lambda_2, weight of the loss variation. Default 4, as in the authors' script; by
            attack and radius they take other values (``AAER`` in ``der_tf.training.recipes``).
        logits: lambda_3, weight of the variation of the logits. Default 1.5, likewise.
        full_gradient: what gradients flow through. False (default): the logits f(x*) of A alone,
            as in the authors' code, which makes the penalty nearly free; the loss variation is
            then part of the value without a gradient. True: L and A, through both passes, as the
            equation reads.
        warmup_steps: the weight rises linearly from 0 over this many optimizer steps. Default 0:
            constant.

    Raises:
        ValueError: for a negative weight; in training, for an attack without a start.
    """

    weight: float = dataclasses.field(default=1.0, kw_only=False)
    loss: float = 4.0
    logits: float = 1.5
    full_gradient: bool = False
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("weight", "loss", "logits", "warmup_steps")

    @property
    def reads_start(self) -> bool:
        return True

    def penalties(
        self, labels: tf.Tensor, start_logits: tf.Tensor, adversarial_logits: tf.Tensor
    ) -> tf.Tensor:
        """Each sample's part of the penalty, without ``weight``: their mean is that of the batch.

        Within ``strategy.run``, the batch is that of all replicas together.

        Args:
            labels: ``[B]`` integers.
            start_logits: ``[B, K]`` logits of x'.
            adversarial_logits: ``[B, K]`` logits of x*.

        Returns:
            ``[B]`` float32 (float64 for float64 logits).
        """
        if not self.full_gradient:
            start_logits = tf.stop_gradient(start_logits)
        start_logits = energy.at_least_float32(start_logits)
        adversarial_logits = energy.at_least_float32(adversarial_logits)
        losses = energy.cross_entropy(start_logits, labels)
        losses -= energy.cross_entropy(adversarial_logits, labels)
        if not self.full_gradient:
            losses = tf.stop_gradient(losses)
        variations = tf.reduce_sum(tf.square(adversarial_logits - start_logits), axis=1)
        abnormal = tf.cast(losses > 0, variations.dtype)
        constant = tf.stop_gradient(variations)
        normal = 1 - abnormal
        totals = (abnormal, normal, abnormal * constant, normal * constant)
        sums = tf.stack([tf.reduce_sum(values) for values in totals])
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        abnormal_count, normal_count, of_abnormal, of_normal = tf.unstack(tf.stop_gradient(sums))
        normal_level = tf.math.divide_no_nan(of_normal, normal_count)
        exceeds = tf.math.divide_no_nan(of_abnormal, abnormal_count) > normal_level
        excess = tf.where(exceeds, variations - normal_level, tf.zeros_like(variations))
        penalties = abnormal * (self.loss * losses + self.logits * excess)
        return tf.where(normal_count > 0, penalties, tf.zeros_like(penalties))

    def __call__(self, batch: TrainingBatch) -> tf.Tensor:
        penalties = self.penalties(batch.y, batch.start_logits, batch.adversarial_logits)
        return self.weight * _warmed_up(penalties, batch, self.warmup_steps)
