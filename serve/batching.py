"""``--enable_batching``: requests that run at the same time run as one batch, and fail alone.

TensorFlow's own batching op is not used here, for three reasons that were measured: its queues are
named after a name scope, so the functions of two signatures of one session share a queue and get
each other's answers; it needs the model as a function, which a TF1 graph with reference variables
is not; and its threads outlive the session. The rules are those of TensorFlow Serving's batching
session, but only requests of equal shapes and dtypes meet in a batch, and when a batch fails each
of its requests is run again on its own.

No thread is added: the first request of a batch leads it, waits for company, runs it, and hands
out the rows to those that followed.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.errors import ServingError, StatusCode, invalid_argument
from serve.servable import LoadOptions, Servable

Run = Callable[[Sequence[str], Sequence[np.ndarray], Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class BatchingOptions:
    """The parameters of BatchingParameters that have a meaning here, with its defaults."""

    max_batch_size: int = 1000
    timeout_seconds: float = 0.0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()

    @classmethod
    def from_proto(cls, proto: Any) -> BatchingOptions:
        """From a BatchingParameters message; raises ServingError when it contradicts itself."""
        given = {
            name: getattr(proto, name).value
            for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads")
            if proto.HasField(name)
        }
        for name, value in given.items():
            if value < 1:
                raise invalid_argument(f"{name} must be positive; was {value}")
        options = cls(
            timeout_seconds=max(proto.batch_timeout_micros.value, 0) / 1e6,
            allowed_batch_sizes=tuple(proto.allowed_batch_sizes),
            **given,
        )
        sizes = options.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
            raise invalid_argument("allowed_batch_sizes entries must be monotonically increasing")
        if sizes and sizes[-1] != options.max_batch_size:
            raise invalid_argument(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {options.max_batch_size}"
            )
        return options


class _Batch:
    def __init__(self) -> None:
        self.tasks: list[Sequence[np.ndarray]] = []
        self.rows = 0
        self.full = threading.Event()
        self.done = threading.Event()
        self.outputs: list[list[np.ndarray]] | None = None  # None once done: it failed


class BatchScheduler:
    """The batches of all models: how large, how long to wait, how many run at once.

    Args:
        options: the batching parameters.
    """

    def __init__(self, options: BatchingOptions):
        self._options = options
        self._threads = threading.Semaphore(options.num_batch_threads)
        self._lock = threading.Lock()
        self._queues: dict[tuple, deque[_Batch]] = {}

    def run(
        self,
        owner: int,
        run: Run,
        feeds: Sequence[str],
        arrays: Sequence[np.ndarray],
        fetches: Sequence[str],
    ) -> list[np.ndarray]:
        """Run one request in whatever batch it fits.

        Args:
            owner: tells apart models whose tensors have the same names.
            run: runs feeds on the model itself.

        Raises:
            ServingError: too many rows, rows that do not line up, or the queue is full.
            tf.errors.OpError: what the graph says of this request alone.
        """
        rows = self._count_rows(arrays)
        if not rows:
            return run(feeds, arrays, fetches)
        shapes = tuple((array.shape[1:], array.dtype.str) for array in arrays)
        key = (owner, tuple(feeds), tuple(fetches), shapes)
        batch, place = self._join(key, arrays, rows)
        if place == 0:
            self._lead(key, batch, lambda joined: run(feeds, joined, fetches))
        else:
            batch.done.wait()
        if batch.outputs is not None:
            return batch.outputs[place]
        # Someone in the batch is at fault, or its outputs have no rows: each stands alone.
        with self._threads:
            return run(feeds, arrays, fetches)

    def _count_rows(self, arrays: Sequence[np.ndarray]) -> int:
        if any(array.ndim == 0 for array in arrays):
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        counts = {len(array) for array in arrays}
        if len(counts) > 1:
            raise invalid_argument(
                "Batching Run() input tensors must have equal 0th-dimension size"
            )
        rows = counts.pop() if counts else 0
        if rows > self._options.max_batch_size:
            raise invalid_argument(
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._options.max_batch_size}"
            )
        return rows

    def _join(self, key: tuple, arrays: Sequence[np.ndarray], rows: int) -> tuple[_Batch, int]:
        with self._lock:
            queue = self._queues.setdefault(key, deque())
            if not queue or queue[-1].rows + rows > self._options.max_batch_size:
                if len(queue) >= self._options.max_enqueued_batches:
                    raise ServingError(
                        StatusCode.UNAVAILABLE,
                        "The batch scheduling queue to which this task was submitted is full",
                    )
                if queue:
                    queue[-1].full.set()
                queue.append(_Batch())
            batch = queue[-1]
            batch.tasks.append(arrays)
            batch.rows += rows
            if batch.rows == self._options.max_batch_size:
                batch.full.set()
            return batch, len(batch.tasks) - 1

    def _lead(
        self, key: tuple, batch: _Batch, run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    ) -> None:
        if self._options.timeout_seconds:
            batch.full.wait(self._options.timeout_seconds)
        try:
            with self._threads:  # while no thread is free, others may still join
                with self._lock:
                    queue = self._queues[key]
                    queue.remove(batch)
                    if not queue:
                        del self._queues[key]
                batch.outputs = self._run_together(batch, run)
        finally:
            batch.done.set()

    def _run_together(
        self, batch: _Batch, run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    ) -> list[list[np.ndarray]] | None:
        sizes = [len(task[0]) for task in batch.tasks]
        allowed = self._options.allowed_batch_sizes
        padding = min((size for size in allowed if size >= batch.rows), default=batch.rows)
        padding -= batch.rows
        if len(sizes) == 1 and not padding:
            return [run(batch.tasks[0])]
        columns = []
        for column in zip(*batch.tasks, strict=True):
            # Padding repeats a real row: zeros might be no valid input.
            filler = [np.repeat(column[0][:1], padding, axis=0)] if padding else []
            columns.append(np.concatenate([*column, *filler]))
        try:
            outputs = run(columns)
        except Exception:  # told apart when each request runs on its own
            return None
        if any(output.ndim == 0 or len(output) != batch.rows + padding for output in outputs):
            return None
        ends = np.cumsum(sizes)
        return [
            [output[end - size : end] for output in outputs]
            for size, end in zip(sizes, ends, strict=True)
        ]


class BatchedServable(Servable):
    """A Servable whose requests go through a BatchScheduler.

    Args:
        name, version, path, options: as for Servable.
        scheduler: shared by all models.
    """

    def __init__(
        self, name: str, version: int, path: str, options: LoadOptions, scheduler: BatchScheduler
    ):
        super().__init__(name, version, path, options)
        self._scheduler = scheduler

    def run(
        self,
        feeds: Sequence[str],
        arrays: Sequence[np.ndarray],
        fetches: Sequence[str],
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """As Servable's; a batch is of several deadlines, so it runs to its end."""
        return self._scheduler.run(id(self), super().run, feeds, arrays, fetches)
