"""Attacks that climb a loss by its gradient: FGSM and its noisy variants, PGD, MIM, TRADES' KL-PGD.

An attack is composed of a start, a direction, a step, a projection and a loss. Whole attacks of
cleverhans (``projected_gradient_descent``, ``momentum_iterative_method``) are not called, because
they refuse alpha > eps (RS-FGSM), hold no per-sample restarts, no KL or margin loss for MIM and
no stateless randomness; their parts are used instead, and the tests compare with the wholes.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf
from cleverhans.tf2.utils import compute_gradient

from der_tf.attacks import checks, geometry
from der_tf.attacks.base import Attack, Model
from der_tf.attacks.losses import LOSSES

register = keras.saving.register_keras_serializable("der_tf.attacks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Base of the gradient attacks.

    Args:
        loss: ``"ce"`` (default), ``"margin"`` (Carlini & Wagner), ``"dlr"`` or ``"kl"``.
        restarts: independent runs; the worst case of each sample is kept (an error beats none,
            then the higher loss). Default 1. More than one needs a random start.
    """

    loss: str = "ce"
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("loss", f"one of {', '.join(LOSSES)}", lambda v: v in LOSSES)
        self._require_count("restarts")
        if self.loss == "kl" and self.targeted:
            raise ValueError(
                f"{type(self).__name__}: the kl loss knows no target; received targeted=True"
            )
        if self.restarts > 1 and not self.starts_at_random:
            raise ValueError(
                f"{type(self).__name__}: restarts > 1 needs a random start, else each would be "
                f"the same; received restarts={self.restarts}"
            )

    @property
    def starts_at_random(self) -> bool:
        """Whether restarts differ."""
        return True

    @property
    def gradients(self) -> int:
        """Gradients a run takes; 1 for the single-step attacks."""
        return 1

    @property
    def _step_size(self) -> float:
        return self.epsilon

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The first iterate of an attack with this seed, in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} does not say where it starts")

    def step(self, x: tf.Tensor, moved: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """The next iterate: a step along the gradient of the loss, projected."""
        moved += geometry.steepest_step(gradient, self._step_size, self.norm)
        return geometry.project(x, moved, self.radius, self.norm)

    def loss_of(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """``[B]``, what the attack climbs; ``labels`` are natural logits for the kl loss."""
        loss = LOSSES[self.loss](labels=labels, logits=logits)
        return -loss if self.targeted else loss

    def seed_of_run(self, seed: tf.Tensor, run: tf.Tensor | int) -> tf.Tensor:
        """The seed that a restart passes to :meth:`start`, from the seed of the attack."""
        return seed if self.restarts == 1 else tf.random.fold_in(seed, run)

    def _search(self, model: Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        labels = model(x) if self.loss == "kl" else y
        if self.restarts == 1:
            return self._climb(model, x, labels, self.seed_of_run(seed, 0))

        def another(run, worst, worst_errs, worst_loss):
            moved = self._climb(model, x, labels, self.seed_of_run(seed, run))
            logits = model(moved)
            predictions = tf.argmax(logits, axis=1, output_type=tf.int32)
            errs = tf.equal(predictions, y) == self.targeted
            # The loss of float64 logits is float64, the worst so far float32.
            loss = tf.cast(self.loss_of(labels, logits), tf.float32)
            worse = (errs & ~worst_errs) | ((errs == worst_errs) & (loss > worst_loss))
            pick = tf.reshape(worse, [-1] + [1] * (x.shape.rank - 1))
            return (
                run + 1,
                tf.where(pick, moved, worst),
                errs | worst_errs,
                tf.where(worse, loss, worst_loss),
            )

        batch = tf.shape(x)[0]
        first = (0, x, tf.zeros([batch], tf.bool), tf.fill([batch], tf.float32.min))
        return tf.while_loop(lambda *state: True, another, first, maximum_iterations=self.restarts)[
            1
        ]

    def _climb(self, model: Model, x: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """One run from a start."""
        moved = self.start(x, seed)
        return self.step(x, moved, self._gradient(model, moved, labels))

    def _gradient(self, model: Model, moved: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return checks.require_gradient(
            compute_gradient(model, LOSSES[self.loss], moved, labels, self.targeted)
        )


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """Fast gradient sign method (Goodfellow et al., 2015): one step of size epsilon from x."""

    @property
    def starts_at_random(self) -> bool:
        return False

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return x


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class RSFGSM(GradientAttack):
    """RS-FGSM (Wong et al., *Fast is better than free*, 2020): a random start, then one step.

    Args:
        step_size: alpha, in pixels. Default None: 1.25 epsilon.
    """

    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            self._require_not_negative("step_size")

    @property
    def _step_size(self) -> float:
        return 1.25 * self.epsilon if self.step_size is None else self.step_size

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return geometry.random_image(x, self.epsilon, self.norm, seed)


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class NFGSM(RSFGSM):
    """N-FGSM (de Jorge et al., 2022): stronger noise, one step from it, no clip to epsilon.

    Results lie within :attr:`radius` = noise_scale epsilon + step_size of x, not within epsilon.

    Args:
        step_size: alpha, in pixels. Default None: epsilon.
        noise_scale: k; the start is drawn uniformly from the ball of radius k epsilon. Default 2.
    """

    noise_scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("noise_scale")

    @property
    def _step_size(self) -> float:
        return self.epsilon if self.step_size is None else self.step_size

    @property
    def radius(self) -> float:
        return self.noise_scale * self.epsilon + self._step_size

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return geometry.random_image(x, self.noise_scale * self.epsilon, self.norm, seed)


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected gradient descent (Madry et al., 2018).

    Args:
        steps: number of gradient steps. Default 10.
        step_size: in pixels. Default None: epsilon / 4 (2/255 at 8/255).
        random_start: start uniformly in the ball (default True) or at x.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("steps", least=0)
        if self.step_size is not None:
            self._require_not_negative("step_size")

    @property
    def starts_at_random(self) -> bool:
        return self.random_start

    @property
    def gradients(self) -> int:
        return self.steps

    @property
    def _step_size(self) -> float:
        return self.epsilon / 4 if self.step_size is None else self.step_size

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if not self.random_start:
            return x
        return geometry.random_image(x, self.epsilon, self.norm, seed)

    def _climb(self, model: Model, x: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        def advance(moved):
            return (self.step(x, moved, self._gradient(model, moved, labels)),)

        return tf.while_loop(
            lambda moved: True,
            advance,
            (self.start(x, seed),),
            shape_invariants=(x.shape,),
            maximum_iterations=self.steps,
        )[0]


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class MIM(PGD):
    """Momentum iterative method (Dong et al., 2018): steps along an accumulated gradient.

    Args:
        decay: decay factor mu of the accumulated gradient. Default 1.
        random_start: default False, as in the paper.
    """

    random_start: bool = False
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("decay")

    def _climb(self, model: Model, x: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        def advance(moved, accumulated):
            gradient = self._gradient(model, moved, labels)
            axes = list(range(1, x.shape.rank))
            scale = tf.reduce_mean(tf.abs(gradient), axes, keepdims=True)
            accumulated = self.decay * accumulated + tf.math.divide_no_nan(gradient, scale)
            return self.step(x, moved, accumulated), accumulated

        return tf.while_loop(
            lambda *state: True,
            advance,
            (self.start(x, seed), tf.zeros_like(x)),
            shape_invariants=(x.shape, x.shape),
            maximum_iterations=self.steps,
        )[0]


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class TRADES(PGD):
    """KL-PGD of TRADES (Zhang et al., 2019): climbs KL(p(x) || p(x*)) from x plus a little noise.

    Args:
        loss: default ``"kl"``.
        step_size: default None: 0.007 at epsilon 8/255, in proportion elsewhere.
        random_start: normal noise of deviation 0.001 (default True; at x itself the divergence
            has no gradient).
    """

    loss: str = "kl"

    @property
    def _step_size(self) -> float:
        return self.epsilon * 0.007 / (8 / 255) if self.step_size is None else self.step_size

    def start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if not self.random_start:
            return x
        return geometry.project(
            x, x + 0.001 * tf.random.stateless_normal(tf.shape(x), seed), self.epsilon, self.norm
        )
