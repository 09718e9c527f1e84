"""Accuracy and energies of a model under attacks, and in the worst case over them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf import attacks as attack_registry
from der_tf import energy
from der_tf.attacks import Attack
from der_tf.evaluation.inputs import batches_of, check_logits

Progress = Callable[[str, int, int | None], None]


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
        success: bool, the attacked image x* is classified wrongly (whether or not x was).
        marginal_energy: E(x*).
        joint_energy: E(x*, y).
        delta_marginal_energy: dE(x) = E(x) - E(x*).
        delta_joint_energy: dE(x, y) = E(x, y) - E(x*, y).
        abnormal: bool, the attack has lowered the cross-entropy.
    """

    attack: Any
    success: np.ndarray
    marginal_energy: np.ndarray
    joint_energy: np.ndarray
    delta_marginal_energy: np.ndarray
    delta_joint_energy: np.ndarray
    abnormal: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the attacked images classified rightly, in [0, 1]."""
        return 1.0 - float(self.success.mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What :func:`evaluate` measures.

    Attributes:
        natural: the model on the images as they are.
        attacks: results by name, in the order given.
    """

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


def evaluate(
    model: Any,
    images: Any,
    labels: Any = None,
    attacks: Sequence[str | Attack] | Mapping[str, Any] = ("fgsm", "pgd"),
    *,
    epsilon: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on images as they are and under attacks.

    The attacks run on the model in inference mode, with random parts that depend on (seed, batch):
    equal arguments give equal results. Each attack is traced once, whatever the number of batches
    and the size of the last.

    >>> result = evaluate(model, images, labels, attacks=("fgsm", "pgd"), epsilon=8 / 255)
    >>> result.natural.accuracy, result.attacks["pgd"].accuracy, result.worst_case_accuracy

    Args:
        model: any callable images ``[B, H, W, C]`` -> logits ``[B, K]`` made of TensorFlow
            operations: a Keras model, a closure, a function of a loaded SavedModel.
        images: ``[N, H, W, C]`` in [0, 1], or a ``tf.data.Dataset`` of batches (images, labels).
        labels: ``[N]`` integers in 0..K-1; None with a data set.
        attacks: names (with this ``epsilon`` and ``norm``, their defaults otherwise) and
            :class:`~der_tf.attacks.Attack` instances, or a mapping from names of your own to
            attacks or any callables ``attack(model, x, y) -> x*``.
        epsilon: radius for attacks given by name, in pixels of [0, 1]. Default 8/255.
        norm: ``"linf"`` (default) or ``"l2"``, for attacks given by name.
        batch_size: images at a time; with a data set, its own counts. Default 128.
        seed: of the attacks. Default 0.
        progress: called after each attack on each batch with the attack's name, the images done
            and their number (None with a data set).

    Raises:
        ValueError: for images outside [0, 1], labels that do not fit, logits that are no
            ``[B, K]`` finite numbers, an unknown attack, or a model that has no gradient.
    """
    chosen = _choose(attacks, epsilon, norm)
    logits_of = functools.partial(model, training=False) if _is_keras(model) else model
    natural_logits = tf.function(logits_of, reduce_retracing=True, jit_compile=False)
    batches, total = batches_of(images, labels, batch_size)
    steps: dict[str, Any] = {}
    natural_parts: list[dict[str, np.ndarray]] = []
    attack_parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in chosen}
    done = 0
    for index, (x, y) in enumerate(batches):
        natural = check_logits(natural_logits(tf.constant(x)), y)
        natural_parts.append(
            {
                "correct": np.argmax(natural, axis=1) == y,
                "marginal_energy": energy.marginal_energy(natural).numpy(),
                "joint_energy": energy.joint_energy(natural, y).numpy(),
            }
        )
        done += len(y)
        for name, attack in chosen.items():
            if name not in steps:
                steps[name] = _attacked_logits(name, attack, model, logits_of, x.shape[1:])
            adversarial = check_logits(steps[name](x, y, tf.constant([seed, index])), y)
            attack_parts[name].append(_compare(natural, adversarial, y))
            if progress:
                progress(name, done, total)
    return Evaluation(
        natural=NaturalResult(**_joined(natural_parts)),
        attacks={
            name: AttackResult(attack=chosen[name], **_joined(parts))
            for name, parts in attack_parts.items()
        },
    )


def _is_keras(model: Any) -> bool:
    return isinstance(model, keras.Model)


def _choose(attacks: Any, epsilon: float, norm: str) -> dict[str, Any]:
    if isinstance(attacks, Mapping):
        return dict(attacks)
    if isinstance(attacks, str | Attack):
        attacks = [attacks]
    chosen: dict[str, Any] = {}
    for attack in attacks:
        if isinstance(attack, str):
            name, attack = attack, attack_registry.get(attack, epsilon=epsilon, norm=norm)
        elif isinstance(attack, Attack):
            name = type(attack).__name__.lower()
        else:
            raise ValueError(
                "attacks are names, Attack instances or a mapping from names to attacks; "
                f"received {attack!r}"
            )
        if name in chosen:
            raise ValueError(
                f"two attacks are called {name!r}; give them names of your own in a mapping"
            )
        chosen[name] = attack
    return chosen


def _attacked_logits(
    name: str, attack: Any, model: Any, logits_of: Any, image_shape: tuple[int, ...]
) -> Callable[..., Any]:
    """(x, y, seed) -> logits of x*, as one graph for batches of any size."""

    def attacked(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if isinstance(attack, Attack):
            return logits_of(attack.perturb(model, x, y, seed))
        return logits_of(attack(model, x, y))

    traced = tf.function(
        attacked,
        input_signature=[
            tf.TensorSpec([None, *image_shape], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([2], tf.int32),
        ],
        jit_compile=False,  # on CPU, XLA makes a convolution in a while loop 11 times slower
    )
    try:
        traced.get_concrete_function()
    except Exception as error:  # autograph wraps TensorFlow's LookupError in a class of its own
        if "gradient registry has no entry" not in str(error):
            raise
        raise ValueError(
            f"attack {name!r} needs the gradient of the model, and this one has none: "
            f"{str(error).strip().splitlines()[-1].strip()}; attack the Keras model, or the "
            "`logits` function of an exported SavedModel"
        ) from error
    return traced


def _compare(natural: np.ndarray, adversarial: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "success": np.argmax(adversarial, axis=1) != y,
        "marginal_energy": energy.marginal_energy(adversarial).numpy(),
        "joint_energy": energy.joint_energy(adversarial, y).numpy(),
        "delta_marginal_energy": energy.delta_energy(natural, adversarial).numpy(),
        "delta_joint_energy": energy.delta_energy(natural, adversarial, y).numpy(),
        "abnormal": energy.abnormal(natural, adversarial, y).numpy(),
    }


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
