"""Defences at test time: images are moved before they are classified."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from cleverhans.tf2.utils import clip_eta

from der_tf import energy
from der_tf.attacks import geometry
from der_tf.attacks.base import Model, in_range, logits_function
from der_tf.configurable import Configurable

register = keras.saving.register_keras_serializable("der_tf.defenses")


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyDescent(Configurable):
    """ET3: a few steps down the marginal energy, in an l2 ball around the image.

    With step size a and radius r, from d = 0, a step is

        d <- Proj_{|d|_2 <= r}(d - a grad_x E(x + d) / |grad_x E(x + d)|_2),

    then x + d is clipped to [0, 1]. An image whose gradient is zero stays where it is. Nothing
    depends on what else is in the batch, as the model runs in inference mode.

    Only attacks that know of the transformation can judge it: those on :meth:`wrap` do. Under them
    it did not help where it was measured (``docs/defense.md``, a small robust classifier of
    CIFAR-10): on validation images no step size raised the accuracy, and the larger ones lowered
    it. The defaults are the settings for images of 32x32 pixels that cost least.

    Args:
        step_size: a, a length in l2 in pixels of [0, 1]. Default 0.125.
        radius: r, in pixels of [0, 1]. Default 0.25.
        steps: gradients taken. Default 1.

    Raises:
        ValueError: for a value out of its range.
    """

    step_size: float = 0.125
    radius: float = 0.25
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("step_size", "radius")
        self._require_count("steps")

    def transform(self, model: Model, x: Any) -> tf.Tensor:
        """The images after the descent; differentiable, also by ``x``.

        Called eagerly, it is compiled once a model and image shape; inside a ``tf.function`` it
        becomes part of that function.

        Args:
            model: images ``[B, H, W, C]`` -> logits ``[B, K]``: a Keras model or any callable
                with a gradient.
            x: ``[B, H, W, C]`` images in [0, 1].

        Returns:
            ``[B, H, W, C]`` float32 in [0, 1], inside the ball up to rounding.

        Raises:
            ValueError: eagerly, when the images are not in [0, 1].
        """
        x = tf.cast(tf.convert_to_tensor(x), tf.float32)
        if tf.inside_function():
            return self._descend(logits_function(model, training=False), x)
        in_range(x)
        if len(x) == 0:
            return x  # convolutions on CPU fail on an empty batch
        return _compiled(self, model, tuple(x.shape[1:]))(x)

    def wrap(self, model: Model, *, bpda: bool = False) -> DefendedModel:
        """``model`` behind this defence, a callable images -> logits that attacks can attack.

        Args:
            model: as in :meth:`transform`.
            bpda: what the gradient of the transformation is. False (default): its own, so that
                attacks differentiate through the descent (second derivatives of the model). True:
                the identity, the backward pass of Athalye et al., *Obfuscated gradients give a
                false sense of security* (ICML 2018), section 4.1.
        """
        return DefendedModel(defense=self, model=model, bpda=bpda)

    def _descend(self, model: Model, x: tf.Tensor) -> tf.Tensor:
        def step(moved: tf.Tensor) -> tuple[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(moved)
                energies = energy.marginal_energy(model(moved))
            gradient = tape.gradient(
                energies, moved, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            moved -= geometry.steepest_step(gradient, self.step_size, "l2")
            return (tf.clip_by_value(x + clip_eta(moved - x, 2, self.radius), 0.0, 1.0),)

        (moved,) = tf.while_loop(lambda moved: True, step, (x,), maximum_iterations=self.steps)
        return moved


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefendedModel:
    """A model that moves images before it classifies them; made by :meth:`EnergyDescent.wrap`.

    Two of the same defence and model are equal, and share what attacks have compiled.
    """

    defense: EnergyDescent
    model: Model
    bpda: bool = False

    def __call__(self, images: Any) -> tf.Tensor:
        """Logits ``[B, K]`` of the images ``[B, H, W, C]`` after the transformation."""
        transform = functools.partial(self.defense.transform, self.model)
        if self.bpda:
            transform = tf.grad_pass_through(transform)
        return logits_function(self.model, training=False)(transform(images))


@functools.lru_cache(maxsize=16)
def _compiled(
    defense: EnergyDescent, model: Model, image_shape: tuple[int, ...]
) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(
        functools.partial(defense.transform, model),
        input_signature=[tf.TensorSpec([None, *image_shape], tf.float32)],
        jit_compile=False,  # on CPU, XLA makes a convolution in a while loop 11 times slower
    )
