"""Energies of a classifier read as an energy-based model: pure functions of logits.

Source: Mirza et al., *Understanding Adversarial Training with Energy-based Models*
(arXiv 2505.22486), section 3; the reading of logits as energies is that of Grathwohl et al.,
*Your classifier is secretly an energy based model* (ICLR 2020), equations 4-6.

Half-precision logits are computed in float32; float64 stays float64.
"""

from __future__ import annotations

import tensorflow as tf


def at_least_float32(logits) -> tf.Tensor:
    """Logits ``[B, K]`` in the precision energies are computed in: float32, or their own float64.

    Raises:
        ValueError: when the shape is not ``[B, K]``.
    """
    logits = tf.convert_to_tensor(logits)
    if logits.shape.rank not in (None, 2):
        raise ValueError(f"logits have shape [B, K], received shape {tuple(logits.shape)}")
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


def marginal_energy(logits) -> tf.Tensor:
    """E(x) = -log sum_k exp f(x)[k]; low where the model finds x likely.

    Args:
        logits: ``[B, K]`` floats.

    Returns:
        ``[B]`` float32 (float64 for float64 logits).
    """
    return -tf.reduce_logsumexp(at_least_float32(logits), axis=-1)


def joint_energy(logits, labels=None) -> tf.Tensor:
    """E(x, y) = -f(x)[y]; low where the model finds the pair (x, y) likely.

    Args:
        logits: ``[B, K]`` floats.
        labels: ``[B]`` integers in 0..K-1, or None for the energies of all classes.

    Returns:
        ``[B]`` with labels, ``[B, K]`` without; float32 (float64 for float64 logits).
    """
    energies = -at_least_float32(logits)
    if labels is None:
        return energies
    return tf.gather(energies, tf.cast(labels, tf.int32), axis=1, batch_dims=1)


def delta_energy(clean_logits, adversarial_logits, labels=None) -> tf.Tensor:
    """dE = E(x) - E(x*), natural minus adversarial; of the joint energies when labels are given.

    Its mean over the training set jumps up at catastrophic overfitting and diverges downward
    with robust overfitting (arXiv 2505.22486, section 4).

    Args:
        clean_logits: ``[B, K]`` logits of the natural images.
        adversarial_logits: ``[B, K]`` logits of their adversarial counterparts.
        labels: ``[B]`` integers for dE(x, y), or None for dE(x).

    Returns:
        ``[B]`` float32 (float64 for float64 logits).
    """
    if labels is None:
        return marginal_energy(clean_logits) - marginal_energy(adversarial_logits)
    return joint_energy(clean_logits, labels) - joint_energy(adversarial_logits, labels)


def cross_entropy(logits, labels) -> tf.Tensor:
    """CE(x, y) = E(x, y) - E(x), computed after subtracting the largest logit.

    The difference of two large energies would lose its small value to rounding: this keeps it.

    Args:
        logits: ``[B, K]`` floats.
        labels: ``[B]`` integers in 0..K-1.

    Returns:
        ``[B]`` float32 (float64 for float64 logits).
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.cast(labels, tf.int32), logits=at_least_float32(logits)
    )


def abnormal(clean_logits, adversarial_logits, labels) -> tf.Tensor:
    """Abnormal adversarial examples: the attack has *lowered* the loss, CE(x*, y) < CE(x, y).

    Args:
        clean_logits: ``[B, K]`` logits of the natural images.
        adversarial_logits: ``[B, K]`` logits of their adversarial counterparts.
        labels: ``[B]`` integers in 0..K-1.

    Returns:
        ``[B]`` bool.
    """
    return cross_entropy(adversarial_logits, labels) < cross_entropy(clean_logits, labels)
