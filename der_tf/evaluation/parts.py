"""Part results of an evaluation under way: a file for each attack on each batch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from der_tf.attacks.checks import same_logits
from der_tf.files import locked, partial, read_arrays, replacing, write_text
from der_tf.training.faults import writing

Arrays = dict[str, np.ndarray]


class Parts:
    """A folder from which a killed evaluation goes on; without one, nothing is kept.

    Args:
        path: the folder, made when needed; None to keep nothing.
        about: what the results depend on beside model and images, as JSON values; ``attacks`` is
            a mapping from their names.

    Raises:
        ValueError: when the folder holds parts of another evaluation.
        RunError: when it cannot be written to.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self._path = path
        self._positions = {name: position for position, name in enumerate(about["attacks"])}
        if path is None:
            return
        record = path / "about.json"
        about = json.loads(json.dumps(about))
        if record.exists():
            try:
                held = dict(json.loads(record.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{record} cannot be read: {error}; write elsewhere, or remove its folder"
                ) from error
            for name in sorted(about.keys() | held.keys()):
                if held.get(name) != about.get(name):
                    raise self._other(f"{name} {held.get(name)}", f"{name} {about.get(name)}")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            for leftover in path.glob(partial("*")):
                leftover.unlink()
            write_text(record, json.dumps(about, indent=2) + "\n")

    def check_batch(self, batch: int, x: np.ndarray, y: np.ndarray, logits: np.ndarray) -> None:
        """Remember a batch and the model's answer, or see that they are those remembered.

        Raises:
            ValueError: when they are not.
        """
        if self._path is None:
            return
        digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
        held = self._read(f"natural-{batch:05d}")
        if held is None:
            self._write(f"natural-{batch:05d}", {"digest": np.array(digest), "logits": logits})
            return
        if str(held["digest"]) != digest:
            raise self._other(f"other images in batch {batch}", "these")
        if not same_logits(held["logits"], logits):
            raise self._other("a model with other logits on these images", "this one")

    def load(self, attack: str, batch: int) -> Arrays | None:
        """What was saved, None when that has not been."""
        return self._read(self._name(attack, batch))

    def save(self, attack: str, batch: int, arrays: Arrays) -> None:
        """Keep the result of an attack on a batch.

        Raises:
            RunError: when it cannot be written.
        """
        self._write(self._name(attack, batch), arrays)

    def folder(self, attack: str) -> Path | None:
        """For an attack that keeps a state of its own."""
        return None if self._path is None else self._path / f"attack-{self._positions[attack]}"

    def _name(self, attack: str, batch: int) -> str:
        return f"attack-{self._positions[attack]}-{batch:05d}"

    def _read(self, name: str) -> Arrays | None:
        if self._path is None:
            return None
        with contextlib.suppress(OSError, ValueError):  # a damaged one is measured again
            return read_arrays(self._path / f"{name}.npz")
        return None

    def _write(self, name: str, arrays: Arrays) -> None:
        if self._path is None:
            return
        path = self._path / f"{name}.npz"
        with writing(path), replacing(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]

    def _other(self, held: str, received: str) -> ValueError:
        return ValueError(
            f"{self._path} holds an unfinished evaluation of {held}; received {received}: give "
            "the same command again, write elsewhere, or remove that folder"
        )


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Make the folder of an evaluation's parts and keep other processes out of it meanwhile.

    Raises:
        ValueError: when another process holds it.
        RunError: when it cannot be made.
    """
    with contextlib.ExitStack() as lock:
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            try:
                lock.enter_context(locked(path))
            except BlockingIOError:
                raise ValueError(
                    f"another process is measuring, with its parts in {path}: wait for it, or name "
                    "another place with --out"
                ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.rmdir()  # where nothing is kept in it


def remove(path: Path) -> None:
    """Forget an evaluation whose results are written."""
    shutil.rmtree(path, ignore_errors=True)
