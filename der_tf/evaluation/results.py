"""What an evaluation has measured, sample by sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from der_tf.attacks import Attack
from der_tf.files import replacing


def configuration(attack: Any) -> dict[str, Any]:
    """An attack's class and fields as JSON values (infinity as ``"inf"``); of a function its name.

    What is no number, text or attack, such as a network, is told by its type.
    """
    if not isinstance(attack, Attack):
        return {"class": getattr(attack, "__qualname__", type(attack).__qualname__)}
    fields = {f.name: _plain(getattr(attack, f.name)) for f in dataclasses.fields(attack)}
    return {"class": type(attack).__name__, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Attack):
        return configuration(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value if isinstance(value, str | int | float | None) else type(value).__name__


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaturalResult:
    """A model on the images as they are; every array is ``[N]``."""

    correct: np.ndarray
    marginal_energy: np.ndarray
    joint_energy: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the images classified rightly, in [0, 1]."""
        return float(self.correct.mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackResult:
    """A model under one attack; every array is ``[N]``.

    Attributes:
        attack: what was run.
        success: bool, the attacked image x* is classified wrongly (whether or not x was). Where
            it lies outside of the ball of the evaluation, if that has one: x is.
        marginal_energy: E(x*).
        joint_energy: E(x*, y).
        delta_marginal_energy: dE(x) = E(x) - E(x*).
        delta_joint_energy: dE(x, y) = E(x, y) - E(x*, y).
        abnormal: bool, the attack has lowered the cross-entropy.
        linf_distance: largest change of a pixel, computed in float64.
        l2_distance: l2 norm of x* - x, computed in float64.
        pixel_excess: how far a pixel of x* lies outside [0, 1]; 0 where none does.
        seconds: that the attack took.
        log: of AutoAttack, an entry an attack; else empty.
    """

    attack: Any
    success: np.ndarray
    marginal_energy: np.ndarray
    joint_energy: np.ndarray
    delta_marginal_energy: np.ndarray
    delta_joint_energy: np.ndarray
    abnormal: np.ndarray
    linf_distance: np.ndarray
    l2_distance: np.ndarray
    pixel_excess: np.ndarray
    seconds: float = 0.0
    log: tuple[dict[str, Any], ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the attacked images classified rightly, in [0, 1]."""
        return 1.0 - float(self.success.mean())

    def distance(self, norm: str) -> np.ndarray:
        """Norms of x* - x: ``"linf"`` or ``"l2"``."""
        return self.linf_distance if norm == "linf" else self.l2_distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What :func:`der_tf.evaluation.evaluate` measures.

    Attributes:
        labels: int32 ``[N]``.
        natural: the model on the images as they are.
        attacks: results by name, in the order given.
    """

    labels: np.ndarray
    natural: NaturalResult
    attacks: Mapping[str, AttackResult]

    @property
    def size(self) -> int:
        """Number of images N."""
        return len(self.natural.correct)

    @property
    def worst_case_success(self) -> np.ndarray:
        """Bool ``[N]``: the natural image or any attack's result is classified wrongly."""
        return np.any([~self.natural.correct, *(r.success for r in self.attacks.values())], axis=0)

    @property
    def worst_case_accuracy(self) -> float:
        """Share of the images that are classified rightly as they are and under every attack."""
        return 1.0 - float(self.worst_case_success.mean())

    def samples(self) -> dict[str, np.ndarray]:
        """Every array ``[N]`` by name: ``labels``, ``natural/correct``, ``pgd/success`` ..."""
        found = {"labels": self.labels}
        for name, result in {"natural": self.natural, **self.attacks}.items():
            arrays = {field: v for field, v in vars(result).items() if isinstance(v, np.ndarray)}
            found |= {f"{name}/{field}": values for field, values in arrays.items()}
        return found


def save_samples(path: Path, samples: Mapping[str, np.ndarray]) -> None:
    """Write :meth:`Evaluation.samples` as a compressed ``.npz``, whole or not at all."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **samples)  # type: ignore[arg-type]
