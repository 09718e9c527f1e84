"""Whether a training has overfitted, by stated rules on its curves: pure functions of arrays.

The signs are those of Mirza et al., *Understanding Adversarial Training with Energy-based Models*
(arXiv 2505.22486), section 4; the numbers in the rules are ours.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# A collapse leaves less than this share of the best robust accuracy, and takes as much of it
# within one epoch.
COLLAPSED = 1 / 3
# Without a collapse, a network whose best is not so much better than guessing had nothing to lose.
ABOVE_CHANCE = 1.5
# The share of abnormal samples has jumped when it has risen by this much ...
ABNORMAL_JUMP = 0.1
# ... and dE(x) when it has risen by so many times its largest change in any earlier epoch.
DELTA_JUMP = 2.0
# Robust accuracy between the best and the last epoch; the gap of PGD training on CIFAR-10 is 7.9
# points (Rice et al., 2020), that of noise on 1,000 validation images about 1.5.
ROBUST_GAP = 0.04

RULES = (
    "Catastrophic overfitting (CO): within one epoch the robust validation accuracy (PGD) falls by "
    "at least a third of its best value so far, to less than a third of it; and in "
    "that epoch or the next one, the share of "
    f"abnormal samples rises by at least {100 * ABNORMAL_JUMP:.0f} points or the mean dE(x) rises "
    f"by more than {DELTA_JUMP:g} times its largest change in an earlier epoch. "
    "Robust overfitting (RO): no CO; after the learning rate has fallen to half of its peak or "
    "less, the last robust validation accuracy is at least "
    f"{100 * ROBUST_GAP:.0f} points below the best, while the robust training accuracy is not "
    "below what it was then. Without CO, a run whose best is less than "
    f"{ABOVE_CHANCE:g} times chance is called never robust."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collapse:
    """Catastrophic overfitting; shares in [0, 1], energies in nats.

    Attributes:
        epoch: index of the first epoch at whose end it is seen.
        robust: robust validation accuracy one epoch before, and then.
        abnormal: share of abnormal samples one epoch before, and its peak in this and the next.
        delta: mean dE(x), likewise.
    """

    epoch: int
    robust: tuple[float, float]
    abnormal: tuple[float, float]
    delta: tuple[float, float]


def catastrophic_overfitting(
    robust: np.ndarray, abnormal: np.ndarray, delta: np.ndarray
) -> Collapse | None:
    """The first collapse of single-step training, by :data:`RULES`; None without one.

    Args:
        robust: ``[T]`` robust validation accuracy at the ends of the epochs, under an attack of
            several steps.
        abnormal: ``[T]`` share of abnormal training samples.
        delta: ``[T]`` mean dE(x) of training samples.
    """
    for epoch in range(1, len(robust)):
        best = robust[:epoch].max()
        before, after = float(robust[epoch - 1]), float(robust[epoch])
        if before - after < COLLAPSED * best or after >= COLLAPSED * best:
            continue
        # What is averaged over an epoch shows a collapse at its end only in the next one.
        window = slice(epoch, epoch + 2)
        abnormal_before, abnormal_peak = float(abnormal[epoch - 1]), float(abnormal[window].max())
        delta_before, delta_peak = float(delta[epoch - 1]), float(delta[window].max())
        changes = np.abs(np.diff(delta[:epoch]))
        jumped = changes.size > 0 and delta_peak - delta_before > DELTA_JUMP * changes.max()
        if abnormal_peak - abnormal_before >= ABNORMAL_JUMP or jumped:
            return Collapse(
                epoch=epoch,
                robust=(before, after),
                abnormal=(abnormal_before, abnormal_peak),
                delta=(delta_before, delta_peak),
            )
    return None


def robust_overfitting(
    robust: np.ndarray, training_robust: np.ndarray, learning_rate: np.ndarray
) -> float | None:
    """The gap in robust validation accuracy between the best and the last epoch, if that is RO.

    By the second half of :data:`RULES`; whether the training has collapsed is not asked.

    Args:
        robust: ``[T]`` robust validation accuracy at the ends of the epochs.
        training_robust: ``[T]`` robust training accuracy.
        learning_rate: ``[T]``.

    Returns:
        The gap, or None where there is no robust overfitting.
    """
    best = int(np.argmax(robust))
    gap = float(robust[best] - robust[-1])
    decayed = learning_rate[-1] <= learning_rate.max() / 2
    if gap >= ROBUST_GAP and decayed and training_robust[-1] >= training_robust[best]:
        return gap
    return None
