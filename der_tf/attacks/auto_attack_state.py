"""What AutoAttack has found so far: in memory, or in a folder from which it can go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from der_tf.attacks.checks import same_logits
from der_tf.files import write_text

WAITING, SURVIVED, BROKEN = 0, 1, 2
_SAVE_EVERY = 5.0  # seconds between two writes of run.json, which holds the time spent


class AutoAttackState:
    """Outcomes of samples and attacks, the adversarial images, the seed and the seconds spent.

    In a folder these are ``outcomes.npy`` and ``adversarial.npy``, written in place (first the
    image, then its outcome, so that a process that is killed leaves nothing half said), and
    ``run.json``.

    Args:
        path: the folder, or None for memory.
        attacks: names of the attacks, in their order.
        x: ``[N, H, W, C]`` float32 images.
        y: ``[N]`` labels.
        logits: ``[N, K]`` of the natural images; they tell whether the model is the same.
        config: what the result depends on beside these.
        seed: used when the run is a new one.

    Raises:
        ValueError: when the folder holds the state of another run.
    """

    def __init__(
        self,
        path: str | Path | None,
        attacks: Sequence[str],
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        config: dict[str, Any],
        seed: int,
    ) -> None:
        self.attacks = list(attacks)
        self.seed = seed
        self.seconds = dict.fromkeys(attacks, 0.0)
        self._path = None if path is None else Path(path)
        self._saved = time.monotonic()
        if self._path is None:
            self.outcomes = np.zeros((len(x), len(self.attacks)), np.int8)
            self.adversarial = x.copy()
            return
        digest = hashlib.sha256(x.tobytes() + y.astype(np.int64).tobytes()).hexdigest()
        self._about = {"config": config, "images_and_labels": digest, "shape": list(x.shape)}
        if (self._path / "run.json").exists():
            self._load(config, logits)
        else:
            self._create(x, logits)

    def _create(self, x: np.ndarray, logits: np.ndarray) -> None:
        assert self._path is not None
        self._path.mkdir(parents=True, exist_ok=True)
        np.save(self._path / "logits.npy", logits)
        self.adversarial = self._map("adversarial", "w+", x.dtype, x.shape)
        self.adversarial[:] = x
        self.outcomes = self._map("outcomes", "w+", np.int8, (len(x), len(self.attacks)))
        self.save()  # last: a folder without run.json is none

    def _load(self, config: dict[str, Any], logits: np.ndarray) -> None:
        assert self._path is not None
        try:
            held = json.loads((self._path / "run.json").read_text())
            self.seed, self.seconds = held["seed"], held["seconds"]
            before = np.load(self._path / "logits.npy")
            self.adversarial = self._map("adversarial", "r+")
            self.outcomes = self._map("outcomes", "r+")
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._path} holds no whole state of a run ({type(error).__name__}: {error}): "
                "remove it, or name another folder"
            ) from error
        for part, value in self._about.items():
            if held.get(part) != value:
                raise ValueError(
                    f"{self._path} holds the state of another run, of which {part} was "
                    f"{held.get(part)}; received {value}: name another folder"
                )
        # A randomised model never gives the same logits.
        if config["version"] != "rand" and not same_logits(before, logits):
            raise ValueError(
                f"{self._path} holds the state of another model: its logits on these images "
                "differ from those received; name another folder"
            )

    def _map(self, name: str, mode: Any, dtype: Any = None, shape: Any = None) -> np.ndarray:
        assert self._path is not None
        return np.lib.format.open_memmap(self._path / f"{name}.npy", mode, dtype, shape)

    def record(self, attack: int, rows: np.ndarray, images: np.ndarray, broken: np.ndarray) -> None:
        """Outcomes of samples; images of the broken ones, and of the first attack's survivors."""
        kept = broken | (attack == 0)
        self.adversarial[rows[kept]] = images[kept]
        self.outcomes[rows, attack] = np.where(broken, BROKEN, SURVIVED)

    def alive(self, correct: np.ndarray, attacks: int | None = None) -> np.ndarray:
        """bool ``[N]``: correct samples that the first so many attacks have not broken."""
        return correct & ~np.any(self.outcomes[:, :attacks] == BROKEN, axis=1)

    def waiting(self, attack: int, correct: np.ndarray) -> np.ndarray:
        """Positions of the samples this attack has still to be run on."""
        alive = self.alive(correct, attack)
        return np.flatnonzero(alive & (self.outcomes[:, attack] == WAITING))

    def add_seconds(self, attack: str, seconds: float) -> None:
        self.seconds[attack] += seconds
        if self._path is not None and time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes ``run.json``, atomically."""
        if self._path is None:
            return
        about = {**self._about, "seed": self.seed, "seconds": self.seconds}
        write_text(self._path / "run.json", json.dumps(about, indent=2))
        self._saved = time.monotonic()
