"""Diff-PGD (Xue et al., *Diffusion-Based Adversarial Sample Generation*, arXiv 2305.16494).

PGD whose every iterate is looked at after a short SDEdit: noise up to level K of a diffusion model
and a few DDIM steps back to level 0. What the loss is climbed at, and what the attack returns, are
images that the diffusion prior finds likely.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import tensorflow as tf

from der_tf import diffusion
from der_tf.attacks import geometry
from der_tf.attacks.base import Model
from der_tf.attacks.gradient import PGD, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffPGD(PGD):
    """Diff-PGD, basic and accelerated.

    With SDEdit(x) the purified image, a step is x <- project(x + step sign grad L(SDEdit(x)), y).
    The paper returns SDEdit of the last iterate, wherever that lies; here, as every result of an
    attack lies in the ball, that image is projected once more. Each step draws noise of its own.
    At ``noise_level`` 0 this is PGD.

    Args:
        denoiser: the prior: the path of a .keras file (that of ``der-tf train-denoiser``), a Keras
            model, or any callable ``eps(x_t, t)`` from noisy images ``[B, H, W, C]``, in [-1, 1]
            before the noise, and levels t int32 ``[B]`` in 1..1000 of the cosine schedule to the
            noise. Required. Only one given by path can be saved with the attack.
        noise_level: K, in 0..1000. Default 120, where the noise has the deviation 0.2 (0.1 in
            pixels of [0, 1]) that it has in the authors' code, at level 3 of 50 of the linear
            schedule.
        denoising_steps: DDIM steps from level K to 0. Default 3.
        accelerated: True takes the gradient at the purified image for that at the iterate, so that
            no gradient goes through the denoiser. Default False.
        random_start: start uniformly in the ball, or (default) at x.

    Raises:
        ValueError: for a value out of its range or a file that is no denoiser; when called, for
            images that a denoiser given as a Keras model or file does not take.
    """

    denoiser: Any = None
    noise_level: int = 120
    denoising_steps: int = 3
    accelerated: bool = False
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.denoiser, os.PathLike):
            object.__setattr__(self, "denoiser", os.fspath(self.denoiser))
        self._require(
            "denoiser",
            "the path of a .keras file or a callable eps(x_t, t)",
            lambda v: isinstance(v, str) or callable(v),
        )
        levels = diffusion.LEVELS
        self._require(
            "noise_level", f"an integer in 0..{levels}", lambda v: int(v) == v and 0 <= v <= levels
        )
        most = max(self.noise_level, 1)
        self._require(
            "denoising_steps",
            f"an integer in 1..{most}, at most one a noise level",
            lambda v: int(v) == v and 1 <= v <= most,
        )
        _ = self._predict  # a file that cannot be used is told of at once

    @functools.cached_property
    def _predict(self) -> diffusion.Denoiser:
        denoiser = self.denoiser
        if isinstance(denoiser, str):
            denoiser = diffusion.load_denoiser(denoiser)
        return diffusion.as_function(denoiser)

    @property
    def starts_at_random(self) -> bool:
        return self.random_start or self.noise_level > 0

    def get_config(self) -> dict[str, Any]:
        """The fields.

        Raises:
            ValueError: when the denoiser is not given by its path.
        """
        if not isinstance(self.denoiser, str):
            raise ValueError(
                "DiffPGD: an attack is saved with the path of its denoiser; received "
                f"{type(self.denoiser).__name__} in memory"
            )
        return super().get_config()

    def purified(self, moved: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """SDEdit of images ``[B, H, W, C]``, with the noise of a seed (int32 ``[2]``)."""
        noise = tf.random.stateless_normal(tf.shape(moved), seed)
        return diffusion.purify(self._predict, moved, noise, self.noise_level, self.denoising_steps)

    def gradient(
        self, model: Model, moved: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Of the loss at the purified images: with respect to ``moved``, or, accelerated, to them.

        Args:
            model: images ``[B, H, W, C]`` -> logits ``[B, K]``.
            moved: ``[B, H, W, C]`` float32, an iterate.
            labels: ``[B]``; natural logits for the kl loss.
            seed: int32 ``[2]`` of the noise.

        Returns:
            ``[B, H, W, C]`` float32.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            if not self.accelerated:
                tape.watch(moved)
            purified = self.purified(moved, seed)
        gradient = self._gradient(model, purified, labels)
        return gradient if self.accelerated else tape.gradient(purified, moved, gradient)

    def _climb(self, model: Model, x: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        def advance(number, moved):
            gradient = self.gradient(model, moved, labels, tf.random.fold_in(seed, number))
            return number + 1, self.step(x, moved, gradient)

        _, moved = tf.while_loop(
            lambda *state: True,
            advance,
            (1, self.start(x, seed)),
            shape_invariants=(tf.TensorShape([]), x.shape),
            maximum_iterations=self.steps,
        )
        purified = self.purified(moved, tf.random.fold_in(seed, 0))
        return geometry.project(x, purified, self.radius, self.norm)
