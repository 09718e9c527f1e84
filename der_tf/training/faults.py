"""What can end a training early: a signal, a loss that is no number, a disk that takes no more."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from types import FrameType


class RunError(RuntimeError):
    """A run cannot go on; the message is the one line to show."""


class Diverged(RunError):
    """The loss or a weight is no longer a finite number."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived.

    No Exception, as KeyboardInterrupt is none: TensorFlow's tracing takes an Exception that is
    raised in it for a function that it cannot convert, and goes on.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number

    def add(self, text: str) -> Interrupted:
        """The same with more to say."""
        self.args = (f"{self.args[0]}: {text}",)
        return self


class Signals:
    """Turns SIGTERM and SIGINT into :class:`Interrupted`, at once or where the work allows it.

    Within :meth:`deferred` a signal is only noted, until :meth:`check` is called; elsewhere it
    raises immediately. A second one ends even deferred work, with KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferring = False

    def __enter__(self) -> Signals:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()  # Python drops what is raised while it frees objects

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        if not self._deferring:
            raise Interrupted(number)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals instead of raising; raises at the end when one came."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raise :class:`Interrupted` when a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Around what reads a file that the run has left: a damaged one ends it with the reader's line.

    Raises:
        RunError: in place of the ValueError of the block, which names the file.
    """
    try:
        yield
    except ValueError as error:
        raise RunError(str(error)) from error


# TensorFlow's file system reports the operating system's errors as text inside its own classes.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG), os.strerror(errno.EDQUOT))
_REASONS = (*_FULL, os.strerror(errno.EROFS), os.strerror(errno.EACCES), os.strerror(errno.EIO))


@contextlib.contextmanager
def writing(what: str | os.PathLike[str], kept: str = "") -> Iterator[None]:
    """Say in one line that a file could not be written, whichever library failed to.

    Args:
        what: the file or folder.
        kept: what is still there, to end the line with.

    Raises:
        RunError: in place of the OSError or TensorFlow error of the block.
    """
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        text = str(error)
        reason = next((reason for reason in _REASONS if reason in text), None)
        if reason is None:
            reason = (getattr(error, "strerror", None) or text).splitlines()[0]
        raise RunError(f"cannot write {what}: {reason}{'; ' + kept if kept else ''}") from error
