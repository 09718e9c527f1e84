"""How far a suite's numbers can be trusted: curves on a part of its images, and four checks."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from der_tf.attacks import PGD, Square
from der_tf.attacks.base import Model
from der_tf.attacks.stepped import num_classes
from der_tf.evaluation import inputs
from der_tf.evaluation.report import wilson_interval
from der_tf.evaluation.results import AttackResult, Evaluation
from der_tf.evaluation.robustness import Ball, Progress, evaluate

IMAGES = 500  # at most
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of epsilon
STEPS = (1, 2, 5, 10, 20, 50)
OF_THE_FACTORS = 20  # steps
TARGETED, UNBOUNDED, SQUARE = "pgd-20 targeted", "pgd-50 unbounded", "square-1000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTargetPGD(PGD):
    """PGD towards a class drawn for each image among those it is not of."""

    targeted: bool = True

    def _search(self, model: Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        classes = num_classes(model(x))
        key = tf.random.fold_in(seed, classes)
        shift = tf.random.stateless_uniform(tf.shape(y), key, 1, classes, tf.int32)
        return super()._search(model, x, (y + shift) % classes, seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What :func:`diagnose` finds.

    Attributes:
        targeted: PGD-20 towards random classes, for the figure of energies.
        curves: for JSON: ``images`` (how many), ``epsilon`` and ``steps``, lists of points.
        checks: for JSON: ``check``, ``measured``, ``accepted`` and ``passed`` (None: it says
            nothing here).
    """

    targeted: AttackResult
    curves: dict[str, Any]
    checks: list[dict[str, Any]]


def diagnose(
    model: Any,
    images: tf.data.Dataset,
    suite: Evaluation,
    *,
    ball: Ball,
    batch_size: int = 128,
    seed: int = 0,
    state_path: Path | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Curves over epsilon and steps on up to 500 images, and the four checks of a suite.

    Args:
        model: images -> logits.
        images: the batches (images, labels) that the suite has attacked.
        suite: what it has found.
        ball: norm and radius of the suite.
        batch_size: images at a time. Default 128.
        seed: of the attacks and of the choice of images. Default 0.
        state_path: as for :func:`evaluate`.
        progress: as for :func:`evaluate`.
    """
    norm, epsilon = ball
    mask = inputs.drawn(suite.size, min(IMAGES, suite.size), seed)
    part = images if mask.all() else inputs.chosen(images, mask, batch_size)
    everywhere = (
        1.0 if norm == "linf" else float(np.sqrt(np.prod(images.element_spec[0].shape[1:])))
    )
    by_factor = {
        factor: f"pgd-{OF_THE_FACTORS}" + ("" if factor == 1 else f" at {factor:g} epsilon")
        for factor in FACTORS
        if factor == 1 or 0 < factor * epsilon <= everywhere
    }
    by_steps = {steps: f"pgd-{steps}" for steps in STEPS}
    attacks: dict[str, Any] = {
        **{
            name: PGD(epsilon=factor * epsilon, norm=norm, steps=OF_THE_FACTORS)
            for factor, name in by_factor.items()
        },
        **{name: PGD(epsilon=epsilon, norm=norm, steps=n) for n, name in by_steps.items()},
        TARGETED: RandomTargetPGD(epsilon=epsilon, norm=norm, steps=20),
        UNBOUNDED: PGD(epsilon=everywhere, norm=norm, steps=50),
    }
    if "auto_attack" not in suite.attacks:
        attacks[SQUARE] = Square(epsilon=epsilon, norm=norm, queries=1000)
    found = evaluate(
        model, part, attacks=attacks, seed=seed, state_path=state_path, progress=progress
    )
    radii = {0.0: found.natural.accuracy} | {
        factor * epsilon: found.attacks[name].accuracy for factor, name in by_factor.items()
    }
    losses = {n: _loss(found.attacks[name]) for n, name in by_steps.items()}
    return Diagnosis(
        targeted=found.attacks[TARGETED],
        curves={
            "images": found.size,
            "epsilon": [
                {"epsilon": radius, **_point(accuracy, found.size)}
                for radius, accuracy in radii.items()
            ],
            "steps": [
                {
                    "steps": n,
                    **_point(found.attacks[name].accuracy, found.size),
                    "cross_entropy": losses[n],
                }
                for n, name in by_steps.items()
            ],
        },
        checks=[
            _black_box(suite, found, mask),
            _unbounded(found),
            _loss_grows(losses, epsilon),
            _inside(suite),
        ],
    )


def _point(accuracy: float, size: int) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "interval": list(wilson_interval(round(accuracy * size), size)),
    }


def _loss(result: AttackResult) -> float:
    return float(np.mean(result.joint_energy - result.marginal_energy))


def _black_box(suite: Evaluation, found: Evaluation, mask: np.ndarray) -> dict[str, Any]:
    """Square, without gradients, finds no more than the attacks that have them."""
    check = "a black-box attack (Square) is not stronger than the white-box ones"
    if "auto_attack" in suite.attacks:
        log = suite.attacks["auto_attack"].log
        broken = next(entry["broken"] for entry in log if entry["attack"] == "square")
        most = max(1, int(0.002 * suite.size))
        return _check(
            check,
            f"Square broke {broken:,} of {suite.size:,} images that AutoAttack's gradient attacks "
            "had not",
            f"at most {most:,} (0.2 %, or one image)",
            broken <= most,
        )
    black = found.attacks[SQUARE].accuracy
    white = 1 - float(suite.worst_case_success[mask].mean())
    return _check(
        check,
        f"robust accuracy on {found.size:,} images: {_percent(black)} under Square (1,000 "
        f"queries), {_percent(white)} in the worst case of the suite",
        "Square's at least the suite's",
        black >= white,
    )


def _unbounded(found: Evaluation) -> dict[str, Any]:
    accuracy = found.attacks[UNBOUNDED].accuracy
    return _check(
        "an unbounded attack breaks every image",
        f"PGD-50 free to reach any image leaves {_percent(accuracy)} of {found.size:,} images",
        "0 %",
        accuracy == 0,
    )


def _loss_grows(losses: dict[int, float], epsilon: float) -> dict[str, Any]:
    values = list(losses.values())
    told = ", ".join(f"{loss:.4g} ({steps})" for steps, loss in losses.items())
    # Steps of a fixed size swing a little around the top.
    grows = all(after >= 0.99 * before for before, after in itertools.pairwise(values))
    return _check(
        "the loss grows with the steps of PGD",
        f"mean cross-entropy in nats (steps): {told}",
        "more at the end than at the beginning, and no fall by more than 1 % on the way"
        + ("" if epsilon else "; at epsilon 0 nothing can grow"),
        grows and values[-1] > values[0] if epsilon else None,
    )


def _inside(suite: Evaluation) -> dict[str, Any]:
    """The largest distance over the radius, of every attack that has one."""
    shares, excess = {}, 0.0
    for name, result in suite.attacks.items():
        radius = result.attack.radius
        excess = max(excess, float(result.pixel_excess.max()))
        if np.isfinite(radius):
            largest = float(result.distance(result.attack.norm).max())
            shares[name] = largest / radius if radius else 1.0 + largest
    furthest = max(shares, key=lambda name: shares[name])
    return _check(
        "no attack leaves its ball or the range of pixels",
        f"furthest is {furthest}, at {shares[furthest]:.6f} of its radius; {excess:.3g} beyond "
        "[0, 1]",
        "at most 1 and 0",
        shares[furthest] <= 1 and excess == 0,
    )


def _check(check: str, measured: str, accepted: str, passed: bool | None) -> dict[str, Any]:
    return {"check": check, "measured": measured, "accepted": accepted, "passed": passed}


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
