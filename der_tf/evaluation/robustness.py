"""Accuracy and energies of a model under attacks, and in the worst case over them."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf import attacks as attack_registry
from der_tf import energy
from der_tf.attacks import Attack, AutoAttack, AutoAttackResult
from der_tf.attacks.checks import NO_GRADIENT, check_logits, without_gradient
from der_tf.evaluation.inputs import batches_of, check_finite
from der_tf.evaluation.parts import Arrays, Parts
from der_tf.evaluation.results import AttackResult, Evaluation, NaturalResult, configuration

Ball = tuple[str, float]
Progress = Callable[[str, int, int | None, float], None]


def evaluate(
    model: Any,
    images: Any,
    labels: Any = None,
    attacks: Sequence[str | Attack] | Mapping[str, Any] = ("fgsm", "pgd"),
    *,
    epsilon: float = 8 / 255,
    norm: str = "linf",
    ball: Ball | None = None,
    source: Any = None,
    batch_size: int = 128,
    seed: int = 0,
    state_path: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on images as they are and under attacks.

    The attacks run on the model in inference mode, with random parts that depend on (seed, batch):
    equal arguments give equal results. Each attack is traced once, whatever the number of batches
    and the size of the last. AutoAttack runs over the whole set at the end, so that its survivors
    fill their batches; the images are kept in memory for it.

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
        ball: (norm, radius) that x* must lie in to count, for attacks that look further; outside
            of it the image counts as it is. Default None: x* counts wherever the attack ends.
        source: the model that the attacks are made against, when that is not the one they are
            measured on. Default None: it is. AutoAttack's log is of its source.
        batch_size: images at a time; with a data set, its own counts. Default 128.
        seed: of the attacks. Default 0.
        state_path: a folder for part results, from which the same call goes on when it was
            interrupted; it stays when all is done. Default None: nothing is kept.
        progress: called after each attack on each batch that was not loaded from the state, with
            the attack's name, the images done, their number (None with a data set) and the
            accuracy under this attack so far. AutoAttack calls it as ``auto_attack, apgd_ce``
            with the share of that part's work in images, and its bound over the whole set.

    Raises:
        ValueError: for images outside [0, 1], labels that do not fit, logits that are no
            ``[B, K]`` finite numbers, an unknown attack, a model that has no gradient, or a
            ``state_path`` of other arguments.
        RunError: when a part result cannot be written.

    Warns:
        UnreliableAttackWarning: when the model returns probabilities in place of logits, and
            where AutoAttack does.
    """
    chosen = _choose(attacks, epsilon, norm)
    source = model if source is None else source
    about = {"attacks": {name: configuration(attack) for name, attack in chosen.items()}}
    parts = Parts(Path(state_path) if state_path else None, {**about, "seed": seed, "ball": ball})
    logits_of = functools.partial(model, training=False) if _is_keras(model) else model
    natural_logits = tf.function(  # a lambda: TensorFlow counts tracings of equal models together
        lambda images: logits_of(images), reduce_retracing=True, jit_compile=False
    )
    batches, total = batches_of(images, labels, batch_size)
    whole = [name for name, attack in chosen.items() if isinstance(attack, AutoAttack)]
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    steps: dict[str, Any] = {}
    natural_parts: list[Arrays] = []
    attack_parts: dict[str, list[Arrays]] = {name: [] for name in chosen}
    robust = dict.fromkeys(chosen, 0)
    done = 0
    for index, (x, y) in enumerate(batches):
        natural = np.asarray(natural_logits(tf.constant(x))).astype(np.float32)
        check_logits(natural, y)
        parts.check_batch(index, x, y, natural)
        natural_parts.append(
            {
                "labels": y,
                "correct": np.argmax(natural, axis=1) == y,
                "marginal_energy": energy.marginal_energy(natural).numpy(),
                "joint_energy": energy.joint_energy(natural, y).numpy(),
            }
        )
        done += len(y)
        if whole:
            kept.append((x, y, natural))
        for name, attack in chosen.items():
            if name in whole:
                continue
            part = parts.load(name, index)
            loaded = part is not None
            if part is None:
                if name not in steps:
                    steps[name] = _attacked(name, attack, source, logits_of, x.shape[1:])
                began = time.perf_counter()
                moved, logits = steps[name](x, y, tf.constant([seed, index]))
                part = _compare(name, x, y, natural, moved.numpy(), logits.numpy(), ball)
                part["seconds"] = np.array([time.perf_counter() - began])
                parts.save(name, index, part)
            attack_parts[name].append(part)
            robust[name] += int(np.count_nonzero(~part["success"]))
            if progress and not loaded:
                progress(name, done, total, robust[name] / done)
    logs: dict[str, list[dict[str, Any]]] = {}
    if whole:
        x, y, natural = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
        kept.clear()
    for name in whole:
        result = _run_auto_attack(name, chosen[name], source, x, y, seed, parts, progress)
        logits = [natural_logits(at) for at in np.split(result.adversarial, _cuts(natural_parts))]
        moved = result.adversarial
        part = _compare(name, x, y, natural, moved, np.concatenate(logits), ball)
        part["seconds"] = np.array([entry["seconds"] for entry in result.log])
        attack_parts[name].append(part)
        logs[name] = result.log
    measured = _joined(natural_parts)
    return Evaluation(
        labels=measured.pop("labels"),
        natural=NaturalResult(**measured),
        attacks={
            name: _result(chosen[name], _joined(found), logs.get(name, []))
            for name, found in attack_parts.items()
        },
    )


def _run_auto_attack(
    name: str,
    attack: AutoAttack,
    source: Any,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    parts: Parts,
    progress: Progress | None,
) -> AutoAttackResult:
    def tell(part: str, share: float, robust_accuracy: float) -> None:
        if progress:
            progress(f"{name}, {part}", round(share * len(x)), len(x), robust_accuracy)

    seeded = dataclasses.replace(attack, seed=seed)
    return seeded.run(source, x, y, state_path=parts.folder(name), progress=tell)


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


def _attacked(
    name: str, attack: Any, source: Any, logits_of: Any, image_shape: tuple[int, ...]
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """(x, y, seed) -> x* and its logits, as one graph for batches of any size."""

    def attacked(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if isinstance(attack, Attack):
            moved = attack.perturb(source, x, y, seed)
        else:
            moved = attack(source, x, y)
        return moved, logits_of(moved)

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
    except Exception as error:  # autograph wraps errors, TensorFlow's LookupError in its own class
        if missing := without_gradient(error):
            raise ValueError(f"attack {name!r}: {NO_GRADIENT} ({missing})") from error
        reason = str(error).strip().splitlines()[-1].strip()
        if isinstance(error, ValueError):
            raise ValueError(f"attack {name!r}: {reason.removeprefix('ValueError: ')}") from error
        raise
    return traced


def _compare(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    natural: np.ndarray,
    moved: np.ndarray,
    logits: np.ndarray,
    ball: Ball | None,
) -> Arrays:
    adversarial = check_finite(logits, f"under attack {name!r}")
    change = (moved.astype(np.float64) - x).reshape(len(x), -1)
    linf_distance, l2_distance = (np.linalg.norm(change, order, axis=1) for order in (np.inf, 2))
    success = np.argmax(adversarial, axis=1) != y
    if ball is not None:
        norm, radius = ball
        inside = (linf_distance if norm == "linf" else l2_distance) <= radius
        # Outside the image stays as it is: one that is wrong by itself is not made right.
        success = np.where(inside, success, np.argmax(natural, axis=1) != y)
    return {
        "success": success,
        "marginal_energy": energy.marginal_energy(adversarial).numpy(),
        "joint_energy": energy.joint_energy(adversarial, y).numpy(),
        "delta_marginal_energy": energy.delta_energy(natural, adversarial).numpy(),
        "delta_joint_energy": energy.delta_energy(natural, adversarial, y).numpy(),
        "abnormal": energy.abnormal(natural, adversarial, y).numpy(),
        "linf_distance": linf_distance,
        "l2_distance": l2_distance,
        "pixel_excess": np.maximum(-moved, moved - 1).reshape(len(x), -1).max(axis=1).clip(0),
    }


def _result(attack: Any, found: Arrays, log: list[dict[str, Any]]) -> AttackResult:
    seconds = float(found.pop("seconds").sum())
    return AttackResult(attack=attack, seconds=seconds, log=tuple(log), **found)


def _cuts(parts: list[Arrays]) -> np.ndarray:
    """Where the batches of a whole set end."""
    return np.cumsum([len(part["labels"]) for part in parts])[:-1]


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
