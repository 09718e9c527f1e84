"""Penalties added to the outer loss: ``regularizer(batch) -> [B]``.

A regularizer reads what it needs from the :class:`~der_tf.training.batch.TrainingBatch`.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from der_tf import energy
from der_tf.configurable import Configurable
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
}
REFERENCES = ("natural", "start", "interior")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularizer(Configurable):
    """Base of the regularizers."""

    @property
    def reads_start(self) -> bool:
        """Whether the logits at the attack's start are read."""
        return False

    def __call__(self, batch: TrainingBatch) -> tf.Tensor:
        """``[B]`` float32 penalties, added to the outer loss of each sample."""
        raise NotImplementedError(f"{type(self).__name__} does not define its penalty")


@register
@dataclasses.dataclass(frozen=True)
class DeltaEnergy(Regularizer):
    """DER, the Delta Energy Regularizer (Mirza et al., arXiv 2505.22486).

    weight (marginal rho(dE(x)) + joint rho(dE(x, y))) for each sample, where dE is the energy at
    the reference point minus the energy at x*.

    Args:
        weight: beta, the weight of the whole penalty.
        marginal: weight of the delta marginal energy. Default 0.
        joint: weight of the delta joint energy. Default 1.
        penalty: rho: ``"squared"`` (default), ``"absolute"``, ``"huber"`` (quadratic to 1),
            ``"hinge"`` (max(0, dE)) or ``"squared_hinge"``.
        reference: what x* is compared with. ``"natural"`` (default): x, as in the paper.
            ``"start"``: the attack's noisy start. ``"interior"``: x + u (x* - x) with u uniform
            in [0, 1]. The last two are ours, beyond the paper.
        reference_gradient: whether gradients flow through the reference pass too. Default True.
        warmup_steps: the weight rises linearly from 0 over this many optimizer steps. Default 0:
            constant.

    Raises:
        ValueError: for an unknown penalty or reference, or a negative weight.
    """

    weight: float = dataclasses.field(kw_only=False)
    marginal: float = 0.0
    joint: float = 1.0
    penalty: str = "squared"
    reference: str = "natural"
    reference_gradient: bool = True
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("weight", "marginal", "joint", "warmup_steps"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ValueError(f"DeltaEnergy: {name} is a number >= 0; received {value!r}")
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
        if self.warmup_steps:
            risen = tf.cast(batch.step, penalties.dtype) / self.warmup_steps
            penalties *= tf.minimum(tf.ones([], penalties.dtype), risen)
        return self.weight * penalties
