"""Outer losses of adversarial training: ``objective(labels, natural, adversarial) -> [B]``.

Every objective gives one value a sample, computed in float32 from logits; gradients flow through
both. ``needs_natural`` says whether the natural logits are read: the natural forward pass is
only taken when something reads it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from der_tf import energy
from der_tf.attacks.losses import kl_divergence
from der_tf.configurable import Configurable, create

register = keras.saving.register_keras_serializable("der_tf.objectives")


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """``[B]``: (1 - s) CE against the label + s CE against the uniform distribution."""
    loss = energy.cross_entropy(logits, labels)
    if label_smoothing == 0:
        return loss
    uniform = -tf.reduce_mean(tf.nn.log_softmax(energy.at_least_float32(logits)), axis=1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Configurable):
    """Base of the outer losses.

    Args:
        label_smoothing: share of the uniform distribution in the target of the cross-entropy,
            in [0, 1). Default 0.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("label_smoothing", "a number in [0, 1)", lambda v: 0 <= v < 1)

    @property
    def needs_natural(self) -> bool:
        """Whether the natural logits are read."""
        return True

    def __call__(
        self, labels: tf.Tensor, natural_logits: tf.Tensor | None, adversarial_logits: tf.Tensor
    ) -> tf.Tensor:
        """Loss of each sample.

        Args:
            labels: ``[B]`` integers.
            natural_logits: ``[B, K]``; None is fine where ``needs_natural`` is False.
            adversarial_logits: ``[B, K]``.

        Returns:
            ``[B]`` float32.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define its loss")


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Madry(Objective):
    """CE(x*, y) (Madry et al., 2018, equation 2.1)."""

    @property
    def needs_natural(self) -> bool:
        return False

    def __call__(self, labels, natural_logits, adversarial_logits):
        return cross_entropy(labels, adversarial_logits, self.label_smoothing)


@register
@dataclasses.dataclass(frozen=True)
class TRADES(Objective):
    """CE(x, y) + beta KL(p(x) || p(x*)) (Zhang et al., 2019, equation 5).

    Args:
        beta: weight of the divergence. Default 6.

    Raises:
        ValueError: for a beta that is negative or not finite.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("beta")

    def __call__(self, labels, natural_logits, adversarial_logits):
        natural = cross_entropy(labels, natural_logits, self.label_smoothing)
        return natural + self.beta * kl_divergence(natural_logits, adversarial_logits)


@register
@dataclasses.dataclass(frozen=True)
class MART(Objective):
    """Boosted CE on x* + beta KL(p(x) || p(x*)) (1 - p_y(x)) (Wang et al., 2020, equation 11).

    The boosted cross-entropy is -log p_y(x*) - log(1 - max_{k != y} p_k(x*)).

    Args:
        beta: weight of the divergence. Default 5.

    Raises:
        ValueError: for a beta that is negative or not finite.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("beta")

    def __call__(self, labels, natural_logits, adversarial_logits):
        adversarial = tf.nn.softmax(energy.at_least_float32(adversarial_logits))
        is_label = tf.one_hot(labels, tf.shape(adversarial)[1], on_value=True, off_value=False)
        runner_up = tf.reduce_max(tf.where(is_label, 0.0, adversarial), axis=1)
        boosted = cross_entropy(labels, adversarial_logits, self.label_smoothing) - tf.math.log(
            1.0001 - runner_up  # the constants of the reference code keep both logarithms finite
        )
        natural = tf.nn.softmax(energy.at_least_float32(natural_logits))
        doubt = 1.0000001 - tf.gather(natural, labels, axis=1, batch_dims=1)
        return boosted + self.beta * doubt * kl_divergence(natural_logits, adversarial_logits)


@register
@dataclasses.dataclass(frozen=True)
class WEAT(Objective):
    """Weighted energy adversarial training (Mirza et al., arXiv 2407.06315).

    Each sample of another objective is weighted by 1 / log(1 + exp |E(x)|); no gradient flows
    through the weight. Label smoothing belongs to the weighted objective.

    Args:
        objective: the weighted one. Default ``TRADES(beta=6)``.
    """

    objective: Objective = dataclasses.field(default_factory=TRADES)

    def __call__(self, labels, natural_logits, adversarial_logits):
        size = tf.abs(energy.marginal_energy(natural_logits))
        weight = tf.stop_gradient(1.0 / tf.math.softplus(size))
        return weight * self.objective(labels, natural_logits, adversarial_logits)


_OBJECTIVES: dict[str, type[Objective]] = {
    "madry": Madry,
    "trades": TRADES,
    "mart": MART,
    "weat": WEAT,
}


def names() -> list[str]:
    """Names that :func:`get` knows."""
    return list(_OBJECTIVES)


def get(name: str, **config: Any) -> Objective:
    """The objective of this name: ``get("trades", beta=6.0)``.

    Raises:
        ValueError: for an unknown name or option.
    """
    return create("objective", _OBJECTIVES, name, config)
