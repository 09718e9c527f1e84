"""A defence under three attackers: one who ignores it, and two who go through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from der_tf.defenses import EnergyDescent
from der_tf.evaluation.parts import Parts
from der_tf.evaluation.results import Evaluation, NaturalResult
from der_tf.evaluation.robustness import Progress, evaluate

VIEWS = {"plain": "plain", "adaptive": "adaptive", "bpda": "BPDA"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseEvaluation:
    """What :func:`evaluate_defense` measures.

    Attributes:
        defense: what moved the images before they were classified.
        views: the defended model under the attacks, by attacker, each name of :data:`VIEWS`.
    """

    defense: EnergyDescent
    views: Mapping[str, Evaluation]

    @property
    def natural(self) -> NaturalResult:
        """The defended model on the images as they are."""
        return self.views["plain"].natural

    @property
    def worst_case_success(self) -> np.ndarray:
        """Bool ``[N]``: the natural image, or any attack of any attacker, is classified wrongly."""
        return np.any([view.worst_case_success for view in self.views.values()], axis=0)

    def seconds(self) -> dict[str, float]:
        """That the attacks took: ``pgd, adaptive`` ..."""
        return {
            f"{name}, {view}": result.seconds
            for view, evaluation in self.views.items()
            for name, result in evaluation.attacks.items()
        }

    def samples(self) -> dict[str, np.ndarray]:
        """Every array ``[N]``: ``defended/natural/correct``, ``defended/bpda/pgd/success`` ..."""
        found = {}
        for view, evaluation in self.views.items():
            for name, values in evaluation.samples().items():
                if name.startswith("natural/"):
                    found[f"defended/{name}"] = values
                elif name != "labels":
                    found[f"defended/{view}/{name}"] = values
        return found


def evaluate_defense(
    model: Any,
    defense: EnergyDescent,
    images: Any,
    labels: Any = None,
    attacks: Any = ("fgsm", "pgd"),
    *,
    state_path: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> DefenseEvaluation:
    """Measure a defended model under attacks by three attackers.

    ``plain`` attacks the undefended model, ``adaptive`` differentiates through the transformation,
    ``bpda`` takes its backward pass as the identity (Athalye et al., ICML 2018). Each counts what
    the defended model makes of its images; the defence is worth what the worst of them leaves.

    Args:
        model: the undefended model, as :func:`der_tf.evaluation.evaluate` takes it.
        defense: such as :class:`der_tf.defenses.EnergyDescent`.
        images, labels, attacks, state_path, progress, **options: as there; a data set gives its
            images in the same order each time.

    Raises:
        ValueError: as there, and for a data set that shuffles anew.
    """
    _refuse_shuffled(images)
    state = Path(state_path) if state_path else None
    Parts(state, {"attacks": {}, "defense": defense.get_config()})  # refuses another defence's
    wrapped = defense.wrap(model)
    sources = {"plain": model, "adaptive": wrapped, "bpda": defense.wrap(model, bpda=True)}

    def told(view: str) -> Progress | None:
        if progress is None:
            return None
        return lambda name, *state: progress(f"{name}, {VIEWS[view]}", *state)

    return DefenseEvaluation(
        defense=defense,
        views={
            view: evaluate(
                wrapped,
                images,
                labels,
                attacks,
                source=source,
                state_path=state / view if state else None,
                progress=told(view),
                **options,
            )
            for view, source in sources.items()
        },
    )


def _refuse_shuffled(images: Any) -> None:
    """What the attackers find is compared image by image."""
    if not isinstance(images, tf.data.Dataset):
        return
    first, again = (list(images.take(1).as_numpy_iterator()) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        if any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True)):
            raise ValueError(
                "a defence is measured on images in the same order for each attacker; received a "
                "data set whose first batch is another one each time"
            )
