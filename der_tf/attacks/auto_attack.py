"""AutoAttack (Croce & Hein, ICML 2020): complementary attacks without parameters to tune."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from der_tf.attacks import checks, streams
from der_tf.attacks.apgd import APGD, APGDDLR, APGDT
from der_tf.attacks.auto_attack_state import BROKEN, AutoAttackState
from der_tf.attacks.base import Attack, Model, checked, clean_logits, logits_function
from der_tf.attacks.fab import FABT
from der_tf.attacks.losses import cross_entropy
from der_tf.attacks.square import Square
from der_tf.attacks.stepped import SteppedAttack, errs, num_classes, query, select
from der_tf.attacks.sweep import sweep

VERSIONS = ("standard", "rand")
EXAMINED = 250  # images that the checks for randomness and vanishing gradients look at

Progress = Callable[[str, float, float], None]


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found on N images.

    Attributes:
        adversarial: ``[N, H, W, C]`` float32, in the ball and [0, 1] exactly: the image that
            broke the sample; for survivors the highest cross-entropy that APGD-CE found; the
            natural image where the model errs already.
        broken_by: N names: ``"clean"`` where the model errs on the natural image, the attack
            that broke the sample, or ``""`` for survivors.
        log: an entry an attack: ``attack``, ``attacked`` and ``broken`` (samples),
            ``robust_accuracy`` after it, ``seconds``, ``config``.
        warnings: why the result may be unreliable; empty when all checks are passed.
        seed: of the random draws; the attack with this seed repeats them.
    """

    adversarial: np.ndarray
    broken_by: list[str]
    log: list[dict[str, Any]]
    warnings: list[str]
    seed: int

    @property
    def robust(self) -> np.ndarray:
        """bool ``[N]``: survivors of every attack."""
        return np.array([name == "" for name in self.broken_by], bool)

    @property
    def clean_accuracy(self) -> float:
        """Share of correct natural images; NaN for an empty set."""
        return _mean([name != "clean" for name in self.broken_by])

    @property
    def robust_accuracy(self) -> float:
        """Share of survivors; NaN for an empty set."""
        return _mean(self.robust)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


@keras.saving.register_keras_serializable("der_tf.attacks")
@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack, ``auto_attack``: APGD-CE, APGD-T, FAB-T and Square, each on the survivors.

    Called like every attack, or through :meth:`run` for the log and a state that an interrupted
    run goes on from. With fewer than 4 classes APGD-T climbs the margin, as its DLR loss needs 4
    (so does APGD-DLR with 2).

    Args:
        version: ``"standard"`` (default), or ``"rand"`` for randomised models: APGD-CE and
            APGD-DLR on means over ``eot`` evaluations.
        steps: of APGD and FAB. Default 100.
        targets: of APGD-T and FAB-T, at most K - 1. Default 9.
        queries: of Square. Default 5000.
        eot: evaluations that version ``"rand"`` averages. Default 20.
        batch_size: samples attacked at a time when called eagerly. Default 128.
    """

    version: str = "standard"
    steps: int = 100
    targets: int = 9
    queries: int = 5000
    eot: int = 20
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("version", f"one of {', '.join(VERSIONS)}", lambda v: v in VERSIONS)
        self._require_count("steps", "targets", "queries", "eot", "batch_size")
        self._refuse_targeted()
        self._require("training", "False: samples change their batch", lambda v: v is False)

    def attacks(self, num_classes: int) -> dict[str, SteppedAttack]:
        """The attacks in their order, for a model of so many classes."""
        ball: dict[str, Any] = {"epsilon": self.epsilon, "norm": self.norm}
        if self.version == "rand":
            common = {**ball, "steps": self.steps, "eot": self.eot}
            loss = "dlr" if num_classes >= 3 else "margin"
            return {"apgd_ce": APGD(**common), "apgd_dlr": APGDDLR(loss=loss, **common)}
        targeted = {**ball, "steps": self.steps, "targets": self.targets}
        return {
            "apgd_ce": APGD(steps=self.steps, **ball),
            "apgd_t": APGDT(loss="dlr" if num_classes >= 4 else "margin", **targeted),
            "fab_t": FABT(**targeted),
            "square": Square(queries=self.queries, **ball),
        }

    def __call__(self, model: Model, x: Any, y: Any) -> tf.Tensor:
        """As for every attack; eagerly over any number of images, in batches of survivors."""
        if tf.inside_function():
            return super().__call__(model, x, y)
        return tf.constant(self.run(model, x, y).adversarial)

    def _search(self, model: Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(model(x), tf.float32)
        broken, worst = errs(logits, y), x
        for index, attack in enumerate(self.attacks(num_classes(logits)).values()):
            key = streams.keys(_seed_of(seed, index), tf.range(tf.shape(x)[0]))
            state = attack.begin(model, x, y, key)
            state["end"] = tf.where(broken, 0, state["end"])
            state = attack.proceed(model, state, settle=True)
            take = ~broken & (state["errs"] | (index == 0))
            worst = select(take, state["found"], worst)
            broken |= state["errs"]
        return worst

    def run(
        self,
        model: Model,
        x: Any,
        y: Any,
        *,
        state_path: str | Path | None = None,
        progress: Progress | None = None,
    ) -> AutoAttackResult:
        """Attacks a whole set.

        Args:
            model: images -> logits, a Keras model or any callable.
            x: ``[N, H, W, C]`` images in [0, 1].
            y: ``[N]`` integer labels.
            state_path: a folder to keep the state in. When it holds an unfinished run of the
                same attack, model and images, that one goes on where it stopped, with the result
                of an uninterrupted one. Default None: nothing is kept.
            progress: called as ``progress(attack, share, robust_accuracy)`` while attacks run;
                ``share`` of the attack's work is done, ``robust_accuracy`` is the bound so far.

        Raises:
            ValueError: for images outside [0, 1], labels that do not fit, logits that are not
                finite, or a state of another run.

        Warns:
            UnreliableAttackWarning: for probabilities in place of logits, a randomised model,
                vanishing gradients, masked gradients, or survivors where none can be.
        """
        x, y = (tensor.numpy() for tensor in checked(x, y))
        seed = int(self._new_seed()[0])
        if len(x) == 0:
            return AutoAttackResult(x, [], [], [], seed)
        logits = clean_logits(model, x, self.batch_size)
        checks.check_logits(logits, y)
        attacks = self.attacks(logits.shape[1])
        config = {field: value for field, value in self.get_config().items() if field != "seed"}
        state = AutoAttackState(state_path, list(attacks), x, y, logits, config, seed)
        if self.seed not in (None, state.seed):
            raise ValueError(
                f"{state_path} holds the state of a run with seed {state.seed}; received "
                f"seed={self.seed}: name another folder"
            )
        correct = np.argmax(logits, axis=1) == y
        notes = [self._check_randomness(model, x), _check_gradients(model, x, y)]
        log = []
        for index, attack in enumerate(attacks.values()):
            try:
                self._sweep(index, attack, model, x, y, correct, state, progress)
            finally:
                state.save()
            log.append(self._entry(index, attack, correct, state))
        notes += self._check_results(log, x.shape[1:])
        return AutoAttackResult(
            np.array(state.adversarial),
            _names_of_breakers(correct, state),
            log,
            [note for note in notes if note],
            state.seed,
        )

    def _sweep(
        self,
        index: int,
        attack: SteppedAttack,
        model: Model,
        x: np.ndarray,
        y: np.ndarray,
        correct: np.ndarray,
        state: AutoAttackState,
        progress: Progress | None,
    ) -> None:
        name = state.attacks[index]
        seed = _seed_of(tf.constant([state.seed, 0], tf.int32), index).numpy()
        rows = state.waiting(index, correct)
        started = time.perf_counter()
        for finished in sweep(attack, model, x, y, rows, seed, self.batch_size):
            state.record(index, finished.rows, finished.images, finished.errs)
            now = time.perf_counter()
            state.add_seconds(name, now - started)
            started = now
            if progress is not None:
                progress(name, finished.share, _mean(state.alive(correct)))

    def _entry(
        self, index: int, attack: SteppedAttack, correct: np.ndarray, state: AutoAttackState
    ) -> dict[str, Any]:
        outcomes = state.outcomes[:, index]
        return {
            "attack": state.attacks[index],
            "attacked": int(np.count_nonzero(outcomes)),
            "broken": int(np.count_nonzero(outcomes == BROKEN)),
            "robust_accuracy": _mean(state.alive(correct, index + 1)),
            "seconds": round(state.seconds[state.attacks[index]], 3),
            "config": attack.get_config(),
        }

    def _check_randomness(self, model: Model, x: np.ndarray) -> str | None:
        if self.version == "rand":
            return None
        passes = [clean_logits(model, x[:EXAMINED], self.batch_size) for _ in range(5)]
        return checks.check_deterministic(np.stack(passes))

    def _check_results(
        self, log: list[dict[str, Any]], image_shape: tuple[int, ...]
    ) -> list[str | None]:
        before, last = log[-2]["robust_accuracy"], log[-1]["robust_accuracy"]
        masked = checks.check_black_box(before - last) if log[-1]["attack"] == "square" else None
        return [masked, checks.check_unbounded(self.epsilon, self.norm, image_shape, last)]


def _seed_of(seed: tf.Tensor, attack: int) -> tf.Tensor:
    return tf.cast(tf.random.fold_in(seed, attack), tf.int32)


def _check_gradients(model: Model, x: np.ndarray, y: np.ndarray) -> str | None:
    images, labels = tf.constant(x[:EXAMINED]), tf.constant(y[:EXAMINED])
    loss = functools.partial(cross_entropy, labels)
    gradients = tf.function(lambda images: query(logits_function(model, False), loss, images)[2])
    return checks.check_gradients(gradients(images).numpy())


def _names_of_breakers(correct: np.ndarray, state: AutoAttackState) -> list[str]:
    broken = state.outcomes == BROKEN
    first = np.where(broken.any(axis=1), np.argmax(broken, axis=1), -1)
    names = [*state.attacks, ""]  # -1 is the last: no attack
    return [names[f] if c else "clean" for f, c in zip(first, correct, strict=True)]
