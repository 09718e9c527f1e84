"""One training batch with its forward passes, each taken when it is first read."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from der_tf import energy
from der_tf.attacks import Attack, geometry
from der_tf.attacks.gradient import GradientAttack


class TrainingBatch:
    """Images, their adversarial counterparts and the logits of both, under the caller's tape.

    The passes are lazy, so that a natural (or start, or interior) pass costs nothing unless an
    objective or a regularizer reads it, and shared by all who do.

    Attributes:
        network: the Keras model images -> logits being trained.
        step: int, optimizer steps taken so far.
        x: ``[B, H, W, C]`` natural images.
        y: ``[B]`` int32 labels.
        attack: the training attack, or None.
        seed: int32 ``[2]`` for the random parts of this batch.
        adversarial: ``[B, H, W, C]``, x*; set by the train step once the attack has run.
    """

    def __init__(
        self,
        network: Any,
        x: tf.Tensor,
        y: tf.Tensor,
        *,
        attack: Any = None,
        seed: tf.Tensor,
        step: tf.Tensor,
    ) -> None:
        self.network = network
        self.x = x
        self.y = y
        self.attack = attack
        self.seed = seed
        self.step = step
        self.adversarial = x

    def run_attack(self) -> None:
        """Set :attr:`adversarial`. Nothing of the attack is recorded on the caller's tape."""
        if isinstance(self.attack, Attack):
            self.adversarial = self.attack.perturb(self.network, self.x, self.y, self.seed)
        elif self.attack is not None:
            self.adversarial = tf.stop_gradient(self.attack(self.network, self.x, self.y))

    def run_attack_on(self, tape: tf.GradientTape) -> None:
        """Run a single-step attack on a persistent tape, keeping the pass through its start.

        :attr:`start_logits` is then that very pass: the penalty on it needs no other.
        """
        tape.watch(self.start)
        loss = self.attack.loss_of(self.y, self.start_logits)
        with tape.stop_recording():
            gradient = tape.gradient(loss, self.start)
            # The loss carries the sign of a targeted attack already.
            self.run_attack_along(gradient)

    def run_attack_along(self, gradient: tf.Tensor) -> None:
        """Set :attr:`adversarial` by a single step whose gradient at the start is known."""
        moved = self.attack.step(self.x, self.start, tf.cast(gradient, self.x.dtype))
        self.adversarial = geometry.into_ball(self.x, moved, self.attack.radius, self.attack.norm)

    @functools.cached_property
    def start(self) -> tf.Tensor:
        """``[B, H, W, C]``, where the (first run of the) attack started."""
        if not isinstance(self.attack, GradientAttack):
            raise ValueError(
                "DeltaEnergy (unless with reference='natural' or 'interior') and AbnormalExamples "
                f"need an attack with a start, such as rs_fgsm or pgd; received {self.attack!r}"
            )
        seed = self.attack.seed_of_run(self.seed, 0)
        return tf.stop_gradient(self.attack.start(self.x, seed))

    @functools.cached_property
    def interior(self) -> tf.Tensor:
        """``[B, H, W, C]``, x + u (x* - x) with u uniform in [0, 1] for each sample."""
        return self._on_the_way_from(self.x)

    @functools.cached_property
    def path(self) -> tf.Tensor:
        """``[B, H, W, C]``, start + u (x* - start) with u uniform in [0, 1] for each sample."""
        return self._on_the_way_from(self.start)

    @functools.cached_property
    def natural_logits(self) -> tf.Tensor:
        """``[B, K]`` logits of x in training mode; without an attack, those of x*."""
        if self.attack is None:
            return self.adversarial_logits
        return self.network(self.x, training=True)

    @functools.cached_property
    def start_logits(self) -> tf.Tensor:
        """``[B, K]`` logits of the attack's start in training mode."""
        return self.network(self.start, training=True)

    @functools.cached_property
    def interior_logits(self) -> tf.Tensor:
        """``[B, K]`` logits of the interior point in training mode."""
        return self.network(self.interior, training=True)

    @functools.cached_property
    def path_logits(self) -> tf.Tensor:
        """``[B, K]`` logits of the point of the path in training mode."""
        return self.network(self.path, training=True)

    @functools.cached_property
    def adversarial_logits(self) -> tf.Tensor:
        """``[B, K]`` logits of x* in training mode."""
        return self.network(self.adversarial, training=True)

    @functools.cached_property
    def natural_gradient(self) -> tf.Tensor:
        """``[B, H, W, C]`` gradient of CE(x, y) with respect to x, itself differentiable.

        Its pass is the natural one, unless that was taken before.
        """
        gradient, logits = self._loss_gradient(self.x)
        self.__dict__.setdefault("natural_logits", logits)
        return gradient

    @functools.cached_property
    def neighbour_gradient(self) -> tf.Tensor:
        """``[B, H, W, C]``, the same at x + u, u uniform in the attack's ball, not clipped."""
        if not isinstance(self.attack, Attack):
            raise ValueError(
                "GradAlign needs an attack with a ball, such as fgsm or pgd; "
                f"received {self.attack!r}"
            )
        noise = geometry.random_in_ball(
            tf.shape(self.x),
            self.attack.epsilon,
            self.attack.norm,
            tf.random.fold_in(self.seed, 2),
        )
        return self._loss_gradient(self.x + noise)[0]

    def _on_the_way_from(self, images: tf.Tensor) -> tf.Tensor:
        shape = [tf.shape(images)[0]] + [1] * (images.shape.rank - 1)
        share = tf.random.stateless_uniform(shape, tf.random.fold_in(self.seed, 1))
        return images + share * (self.adversarial - images)

    def _loss_gradient(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = self.network(images, training=True)
            loss = energy.cross_entropy(logits, self.y)
        # In the precision of the loss, as all penalties are.
        return tf.cast(tape.gradient(loss, images), loss.dtype), logits

    def has(self, name: str) -> bool:
        """Whether a lazy value, such as ``"natural_logits"``, has been computed."""
        return name in self.__dict__
