"""What makes an attack's answer worthless: bad pixels and logits, masked gradients, randomness."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

NO_GRADIENT = (
    "a gradient attack needs the gradient of the model, and this one has none: attack the Keras "
    "model, or the `logits` function of an exported SavedModel (the square attack needs none)"
)


class UnreliableAttackWarning(UserWarning):
    """The robustness that an attack reports is likely higher than the true one."""


def warn(message: str) -> str:
    """Issues the warning, and returns its text for a report."""
    warnings.warn(message, UnreliableAttackWarning, stacklevel=3)
    return message


def check_logits(logits: Any, y: Any) -> None:
    """Clean logits that an attack can work with.

    Args:
        logits: ``[B, K]`` of the natural images.
        y: ``[B]`` integer labels.

    Raises:
        ValueError: for another shape, labels outside 0..K-1, or logits that are not finite.

    Warns:
        UnreliableAttackWarning: when the rows are probabilities: a softmax leaves attacks little
            gradient to follow.
    """
    logits, y = np.asarray(logits), np.asarray(y)
    if logits.ndim != 2 or len(logits) != len(y) or logits.shape[1] < 2:
        raise ValueError(
            f"a model gives logits [B, K] of K >= 2 classes for {len(y)} images; received "
            f"values of shape {logits.shape}"
        )
    if len(y) == 0:
        return
    classes = logits.shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"labels are in 0..{classes - 1}, as the model gives {classes} logits; received "
            f"labels from {y.min()} to {y.max()}"
        )
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise ValueError(
            f"logits of natural images are finite; received {np.count_nonzero(broken)} of "
            f"{len(y)} rows with NaN or infinity, the first for image {np.argmax(broken)}"
        )
    if logits.min() >= 0 and np.abs(logits.astype(np.float64).sum(axis=1) - 1).max() < 1e-4:
        warn(
            "the model seems to return probabilities (every row is >= 0 and sums to 1); attacks "
            "take logits, and look weaker on probabilities: leave the softmax out"
        )


def same_logits(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether two passes over the same images are one model's, up to a device's rounding."""
    if before.shape != now.shape:
        return False
    return bool(np.mean(np.abs(before - now)) <= 0.01 * (1e-6 + np.std(before)))


def check_pixels(images: np.ndarray) -> None:
    """ValueError unless all pixels are finite and in [0, 1]."""
    if not (images.min() >= 0 and images.max() <= 1):  # false for NaN too
        raise ValueError(
            "images are finite and in [0, 1]; received values from "
            f"{np.nanmin(images):g} to {np.nanmax(images):g}"
            + (" and NaN" if np.isnan(images).any() else "")
        )


def require_gradient(gradient: tf.Tensor | None) -> tf.Tensor:
    """The gradient; ValueError when a tape found none."""
    if gradient is None:
        raise ValueError(NO_GRADIENT)
    return gradient


def without_gradient(error: BaseException) -> str | None:
    """The line that says which operation has no gradient, where an error is about that.

    TensorFlow's LookupError, in its own class or wrapped by AutoGraph; of a loaded SavedModel it
    has other words than of a function of this process.
    """
    for line in reversed(str(error).splitlines()):
        if "gradient registry has no entry" in line or "No gradient defined for operation" in line:
            return line.strip()
    return None


def check_deterministic(passes: np.ndarray) -> str | None:
    """Warns when repeated passes ``[P, B, K]`` over the same images differ."""
    spread = float(np.max(np.ptp(passes, axis=0), initial=0.0))
    if spread <= 1e-3 * (1 + float(np.max(np.abs(passes), initial=0.0))):
        return None
    return warn(
        f"the model is randomised: its logits differ by up to {spread:.3g} between passes over "
        "the same images; use version='rand', which averages over its randomness"
    )


def check_gradients(gradients: np.ndarray) -> str | None:
    """Warns when gradients ``[B, ...]`` of the cross-entropy at natural images vanish."""
    zero = np.count_nonzero(~np.any(gradients.reshape(len(gradients), -1), axis=1))
    if zero == 0:
        return None
    return warn(
        f"{zero} of {len(gradients)} images have a gradient of zero: gradient attacks may fail "
        "for want of a direction, not because the model is robust"
    )


def check_black_box(lost: float) -> str | None:
    """Warns when Square, without gradients, breaks more than 0.2 % after the gradient attacks."""
    if lost <= 0.002:
        return None
    return warn(
        f"Square has lowered the robust accuracy by {100 * lost:.2f} points after the gradient "
        "attacks: gradients seem masked; use more queries, or an attack adapted to the defence"
    )


def check_unbounded(
    epsilon: float, norm: str, image_shape: tuple[int, ...], robust: float
) -> str | None:
    """Warns when images survive though the ball reaches uniform grey, where nothing is left."""
    reach = 0.5 if norm == "linf" else 0.5 * float(np.sqrt(np.prod(image_shape)))
    if epsilon < reach or not robust > 0:
        return None
    return warn(
        f"too good to be true: {100 * robust:.2f} % robust accuracy though epsilon "
        f"{epsilon:g} lets every image become grey; the attack does not reach the model"
    )
