"""What every attack is: an immutable configuration called as ``attack(model, x, y) -> x*``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf.attacks import checks, geometry
from der_tf.configurable import Configurable

Model = Callable[[tf.Tensor], tf.Tensor]


def logits_function(model: Any, training: bool) -> Model:
    """``model`` as a function images -> logits in the given mode that leaves no trace in it.

    A Keras model in training mode runs in a ``StatelessScope``: its batch statistics are used,
    and the updates of its moving statistics (and random states) are dropped. Other callables
    are called as they are; ``training`` does not reach them.
    """
    if not isinstance(model, keras.Model):
        return model
    if not training:
        return functools.partial(model, training=False)

    def in_training_mode(images: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope():
            return model(images, training=True)

    return in_training_mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(Configurable):
    """Base of all attacks.

    Args:
        epsilon: radius of the ball, in pixels of [0, 1]. Default 8/255.
        norm: ``"linf"`` (default) or ``"l2"``.
        targeted: False (default): y are the true labels to leave. True: y are the labels to reach.
        training: the mode Keras models run in during the attack. False (default): inference, batch
            norm uses its moving statistics. True: batch statistics, as the reference codes of
            fast and PGD adversarial training do. Moving statistics never change either way.
        seed: makes the random parts repeatable: equal seeds and inputs give equal results. An
            integer from -2^31 to 2^31 - 1. Default None: fresh draws at every call, under
            ``tf.random.set_seed``.

    Raises:
        ValueError: for a value out of its range.
    """

    epsilon: float = 8 / 255
    norm: str = "linf"
    targeted: bool = False
    training: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_epsilon()
        self._require("norm", "'linf' or 'l2'", lambda v: v in geometry.NORMS)
        for field in ("targeted", "training"):
            self._require(field, "True or False", lambda v: isinstance(v, bool))
        self._require(
            "seed",
            "None or an integer from -2^31 to 2^31 - 1",
            lambda v: v is None or (int(v) == v and -(2**31) <= v < 2**31),
        )

    def _check_epsilon(self) -> None:
        self._require_not_negative("epsilon")

    def _refuse_targeted(self) -> None:
        self._require("targeted", "False, as it tries its own targets", lambda v: v is False)

    @property
    def radius(self) -> float:
        """Radius of the ball that results lie in, in pixels of [0, 1]."""
        return self.epsilon

    def __call__(self, model: Model, x: Any, y: Any) -> tf.Tensor:
        """Adversarial counterparts of ``x``.

        Called eagerly, the attack is compiled once a model and image shape, whatever the batch
        size; inside a ``tf.function`` it becomes part of that function.

        Args:
            model: images ``[B, H, W, C]`` -> logits ``[B, K]``: a Keras model or any callable.
            x: ``[B, H, W, C]`` float32 images in [0, 1].
            y: ``[B]`` integer labels: the true ones, or the wanted ones of a targeted attack.

        Returns:
            ``[B, H, W, C]`` float32, inside the ball and [0, 1] exactly.

        Raises:
            ValueError: when the images are not in [0, 1], the labels fit neither the images nor
                the logits, or the logits of the images are not finite. Inside a ``tf.function``
                none of these is checked. Everywhere, when a gradient attack finds no gradient.

        Warns:
            UnreliableAttackWarning: when the model returns probabilities in place of logits.
        """
        if tf.inside_function():
            return self.perturb(
                model, tf.cast(x, tf.float32), tf.cast(y, tf.int32), self._new_seed()
            )
        x, y = checked(x, y)
        if len(x) == 0:
            return x  # convolutions on CPU fail on an empty batch
        checks.check_logits(clean_logits(model, x), y)
        compiled = _compiled(self, model, tuple(x.shape[1:]))
        try:
            return compiled(x, y, self._new_seed())
        except Exception as error:
            if missing := checks.without_gradient(error):
                raise ValueError(f"{checks.NO_GRADIENT} ({missing})") from error
            raise

    def perturb(self, model: Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The attack as graph code, with the random seed (int32 ``[2]``) given by the caller."""
        moved = self._search(logits_function(model, self.training), x, y, seed)
        return tf.stop_gradient(geometry.into_ball(x, moved, self.radius, self.norm))

    def _search(self, model: Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Adversarial images in the ball, up to rounding."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it searches")

    def _new_seed(self) -> tf.Tensor:
        if self.seed is None:
            return tf.random.uniform([2], maxval=np.iinfo(np.int32).max, dtype=tf.int32)
        return tf.constant([self.seed, 0], tf.int32)


def checked(x: Any, y: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Images as float32 and labels as int32; ValueError for what no attack can take."""
    x = tf.cast(tf.convert_to_tensor(x), tf.float32)
    y = tf.convert_to_tensor(y)
    if y.shape.rank != 1 or not y.dtype.is_integer or x.shape.rank < 2 or len(x) != len(y):
        raise ValueError(
            "an attack takes images [B, H, W, C] and integer labels [B]; received images of shape "
            f"{tuple(x.shape)} and {y.dtype.name} labels of shape {tuple(y.shape)}"
        )
    in_range(x)
    return x, tf.cast(y, tf.int32)


def in_range(images: tf.Tensor) -> None:
    """ValueError for images that are not finite and in [0, 1]."""
    if tf.size(images) > 0 and not tf.reduce_all((images >= 0) & (images <= 1)):
        raise ValueError(
            "images are in [0, 1] and finite; received values from "
            f"{tf.reduce_min(images):g} to {tf.reduce_max(images):g}"
        )


def clean_logits(model: Model, x: Any, batch_size: int | None = None) -> np.ndarray:
    """Logits of images, ``[B, K]``, in inference mode; in batches unless they come in one."""
    forward = _forward(model, tuple(x.shape[1:]))
    size = batch_size or len(x)
    return np.concatenate([forward(x[at : at + size]).numpy() for at in range(0, len(x), size)])


@functools.lru_cache(maxsize=16)
def _forward(model: Model, image_shape: tuple[int, ...]) -> Callable:
    return tf.function(
        lambda images: tf.cast(logits_function(model, False)(images), tf.float32),
        input_signature=[tf.TensorSpec([None, *image_shape], tf.float32)],
        jit_compile=False,
    )


@functools.lru_cache(maxsize=16)
def _compiled(attack: Attack, model: Model, image_shape: tuple[int, ...]) -> Callable:
    """One trace for an attack, a model and an image shape; the batch size is left open."""
    return tf.function(
        functools.partial(attack.perturb, model),
        input_signature=[
            tf.TensorSpec([None, *image_shape], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([2], tf.int32),
        ],
        jit_compile=False,  # on CPU, XLA makes a convolution in a while loop 11 times slower
    )
