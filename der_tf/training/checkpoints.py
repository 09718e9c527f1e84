"""The whole state of a training, saved so that the rest of it can be repeated bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from der_tf.training.faults import Diverged, RunError, writing

# Of a state that does not fit; the last two are the reader's at a file that is cut off.
_REFUSALS = (AssertionError, ValueError, tf.errors.OpError, IndexError, RuntimeError)


class Checkpoints:
    """Saves and restores model, optimizer, metrics and the position in the data.

    ``tf.train.CheckpointManager`` writes a checkpoint under temporary names and then replaces its
    index file ``checkpoint`` in one step, so that a process killed at any moment leaves the last
    complete checkpoint as the latest. The variables are saved as a flat list: one of another
    length or with other shapes fails, where an object graph would restore the part that fits.

    Args:
        directory: where the checkpoints lie; made when the first is saved.
        model: a compiled ``keras.Model`` with a built optimizer, all of whose variables exist.
        restore_from: where to restore from. Default None: ``directory``.
        others: further variables that belong to the state.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        model: keras.Model,
        restore_from: str | os.PathLike[str] | None = None,
        others: Sequence[tf.Variable] = (),
    ) -> None:
        self.directory = Path(directory)
        self._source = Path(restore_from or directory)
        variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
        self._variables = [*(variable.value for variable in variables), *others]
        self._epoch = tf.Variable(0, dtype=tf.int64)
        self._step = tf.Variable(0, dtype=tf.int64)
        self._best = tf.Variable(-np.inf, dtype=tf.float64)
        self._is_kept = False  # whether there is a state saved or restored
        self._checkpoint = tf.train.Checkpoint(
            variables=self._variables, epoch=self._epoch, step=self._step, best=self._best
        )
        self._manager: tf.train.CheckpointManager | None = None

    @property
    def epoch(self) -> int:
        """Epoch of the state saved or restored last, from 0."""
        return int(self._epoch.numpy())

    @property
    def step(self) -> int:
        """Batches of that epoch that it has seen."""
        return int(self._step.numpy())

    @property
    def position(self) -> str:
        """The state saved or restored last, in words."""
        return f"epoch {self.epoch + 1}, step {self.step}" if self.step else f"epoch {self.epoch}"

    @property
    def kept(self) -> str:
        """What is still there when training cannot go on, in words."""
        if not self._is_kept:
            return "no state was saved yet"
        return f"the state after {self.position} is kept"

    @property
    def best(self) -> float:
        """Best validation robust accuracy so far; -inf before the first epoch's end."""
        return float(self._best.numpy())

    @best.setter
    def best(self, value: float) -> None:
        self._best.assign(value)

    def require_finite(self, when: str) -> None:
        """Refuse a state that is not worth keeping.

        Args:
            when: completes the message: "in epoch 3".

        Raises:
            Diverged: when a weight is not finite.
        """
        for variable in self._variables:
            if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
                raise Diverged(f"a weight became NaN or infinite {when}; {self.kept}")

    def save(self, epoch: int, step: int) -> None:
        """Save the state after ``step`` batches of epoch ``epoch``.

        Raises:
            Diverged: when a weight is not finite.
            RunError: when the disk refuses.
        """
        self.require_finite(f"by epoch {epoch + 1}, step {step}")
        kept = self.kept
        self._epoch.assign(epoch)
        self._step.assign(step)
        with writing(self.directory, kept):
            if self._manager is None:
                self._manager = self._made_manager()
            self._manager.save()
        self._is_kept = True

    def restore(self) -> bool:
        """Restore the latest checkpoint that can be; False when there is none.

        Says so when it is not the one saved last. Also removes what a killed process left half
        written.

        Raises:
            RunError: when no checkpoint fits this model or none is readable.
        """
        if self.directory.exists():
            with writing(self.directory):
                self._sweep()
        named = _named(self._source)
        skipped, failure = "", None
        if not named and (named := _found(self._source)):
            skipped = f"{self._source / 'checkpoint'} names no state"
        for path in named:
            try:
                self._checkpoint.restore(path).assert_consumed()
            except _REFUSALS as error:
                failure = failure or error
                skipped = skipped or f"{path} cannot be restored ({_line(error)})"
                continue
            self._is_kept = True
            if skipped:
                print(
                    f"Note: {skipped}: going on from {Path(path).name}, after {self.position}; "
                    "what was trained since then is lost",
                    flush=True,
                )
            return True
        if failure is not None:
            raise RunError(
                f"no checkpoint in {self._source} can be restored: {_line(failure)}"
            ) from failure
        return False

    def _made_manager(self) -> tf.train.CheckpointManager:
        if not _named(self.directory):
            # A manager does not come to be beside a damaged one.
            (self.directory / "checkpoint").unlink(missing_ok=True)
        return tf.train.CheckpointManager(
            self._checkpoint, str(self.directory), max_to_keep=2, checkpoint_name="state"
        )

    def _sweep(self) -> None:
        complete = {Path(path).name for path in _named(self.directory)}
        if not complete:
            return  # without their names, states cannot be told from leftovers
        for entry in self.directory.iterdir():
            if entry.name == "checkpoint" or entry.stem in complete:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _named(directory: Path) -> list[str]:
    """Path prefixes of the states that the file ``checkpoint`` names, the latest first.

    Empty where it is missing, cannot be read, or names none that is there.
    """
    try:
        found = tf.train.get_checkpoint_state(str(directory))
    except ValueError:
        return []
    paths = found.all_model_checkpoint_paths if found else []
    return list(reversed(paths)) if any(Path(f"{path}.index").exists() for path in paths) else []


def _found(directory: Path) -> list[str]:
    """Path prefixes of the states in a folder, the highest number first."""
    indices = directory.glob("state-*.index")
    ordered = sorted(indices, key=lambda path: (len(path.name), path.name), reverse=True)
    return [str(path.with_suffix("")) for path in ordered]


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
