"""Whether a training has overfitted, by stated rules on its curves: pure functions of arrays.

Catastrophic overfitting is that of Wong et al. (arXiv 2001.03994), robust overfitting that of Rice
et al. (arXiv 2002.11569); the numbers in the rules are ours.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# A collapse takes at least this share of the best robust accuracy, and leaves less than it, ...
COLLAPSED = 1 / 2
# ... in so many epochs, ...
COLLAPSE_EPOCHS = 2
# ... while accuracy under the training attack rises by this much. Robustness that is lost to the
# training attack, too, is another failure.
TRAINING_RISE = 0.03
# Without a collapse, a network whose best is not so much better than guessing had nothing to lose.
ABOVE_CHANCE = 1.5
# Robust accuracy between the best and the last epoch; the gap of PGD training on CIFAR-10 is 7.9
# points (Rice et al., 2020), that of noise on 1,000 validation images about 1.5.
ROBUST_GAP = 0.04

RULES = (
    f"Catastrophic overfitting (CO): within {COLLAPSE_EPOCHS} epochs the robust validation "
    "accuracy (PGD) falls by at least half of its best value so far, to less than half of it, "
    "while that of the training images under the training attack rises by at least "
    f"{100 * TRAINING_RISE:.0f} points. "
    "Robust overfitting (RO): no CO; after the learning rate has fallen to half of its peak or "
    "less, the last robust validation accuracy is at least "
    f"{100 * ROBUST_GAP:.0f} points below the best, while the robust training accuracy is not "
    "below what it was then. Without CO, a run whose best is less than "
    f"{ABOVE_CHANCE:g} times chance is called never robust."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collapse:
    """Catastrophic overfitting.

    Attributes:
        epoch: index of the first epoch at whose end it is seen.
        before: index of the most robust one of the :data:`COLLAPSE_EPOCHS` epochs before that.
    """

    epoch: int
    before: int


def catastrophic_overfitting(robust: np.ndarray, training_robust: np.ndarray) -> Collapse | None:
    """The first collapse of single-step training, by :data:`RULES`; None without one.

    The energies are not asked: they jump in most collapses, but a regularizer of the energies
    keeps them still while the network loses its robustness elsewhere (docs/results.md).

    Args:
        robust: ``[T]`` robust validation accuracy at the ends of the epochs, under an attack of
            several steps.
        training_robust: ``[T]`` accuracy on training images under the training attack; as a mean
            over the epoch it may show a collapse at its end only in the next one.
    """
    for epoch in range(1, len(robust)):
        best = robust[:epoch].max()
        first = max(0, epoch - COLLAPSE_EPOCHS)
        before = first + int(np.argmax(robust[first:epoch]))
        if (
            robust[before] - robust[epoch] >= COLLAPSED * best
            and robust[epoch] < (1 - COLLAPSED) * best
            and training_robust[epoch] - training_robust[before] >= TRAINING_RISE
        ):
            return Collapse(epoch=epoch, before=before)
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
