"""What the commands share: values of options, error lines, a quiet TensorFlow, progress."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, validators

from der_tf.training.faults import Interrupted, RunError

if TYPE_CHECKING:
    from der_tf.evaluation.robustness import Progress


class UsageError(ValueError):
    """The arguments cannot be used: exit status 2."""


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Before the work begins, a value or file that is refused is an argument that was wrong."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise UsageError(what) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def fraction(type_: Any, tokens: Sequence[Any]) -> float:
    """``8/255`` or ``0.031`` as a number."""
    text = tokens[0].value
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"received {text!r}, accepted are numbers such as 8/255 or 0.031")


def whole(type_: Any, tokens: Sequence[Any]) -> int:
    """``12`` as a number; cyclopts itself would round ``1.7``."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"received {text!r}, accepted are whole numbers") from None


def _folder_name(type_: Any, value: str | None) -> None:
    if value is not None and (value in ("", "..") or Path(value).name != value):
        raise ValueError(f"received {value!r}, accepted is the name of one folder, not a path")


Count = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=1))]
Whole = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0))]
Seed = Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0, lt=2**31))]
NotNegative = Annotated[float, Parameter(converter=fraction, validator=validators.Number(gte=0))]
Share = Annotated[float, Parameter(converter=fraction, validator=validators.Number(gte=0, lt=1))]
FolderName = Annotated[str, Parameter(validator=_folder_name)]
Debug = Annotated[
    bool,
    Parameter(
        help="Show TensorFlow's messages, and the traceback of an error. Default: no.",
        negative="",
        show_default=False,
    ),
]


def option(group: Group, help: str) -> Parameter:
    """An option whose help says the default in words: most depend on recipe or data set."""
    return Parameter(group=group, help=help, show_default=False)


def flag(group: Group, help: str) -> Parameter:
    """The same for one that is there or not."""
    return Parameter(group=group, help=help, show_default=False, negative="")


def show_error(error: BaseException, debug: bool, status: int) -> int:
    """Print an error as one line on stderr, after its traceback where that is wanted."""
    if debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    expected = isinstance(error, RunError | Interrupted) or status == 2
    if not expected:
        kind = type(error).__name__
        text = f"{kind}: {text}" if text else kind
        if not debug and status == 1:
            text += " (--debug shows where)"
    print(f"der-tf: {text}", file=sys.stderr)
    return status


def load_tensorflow(debug: bool = False) -> None:
    """Import TensorFlow without its messages about this machine, which nobody asked for."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with without_startup_messages(debug):
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def without_startup_messages(debug: bool = False) -> Iterator[None]:
    """Around what imports TensorFlow; ``debug`` lets the messages through.

    Those of its native start-up obey no setting, so they are kept from stderr meanwhile, and shown
    when it does not load.
    """
    if debug:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What TensorFlow and its data sets say in Python.
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except (ValueError, Interrupted):
            raise
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def find_dataset(name: str, data_dir: str | None, debug: bool = False) -> None:
    """Tell of a data set that is not there, or fetch it, before seconds go into TensorFlow."""
    if name in ("digits", "folder"):
        return
    from der_tf.data import tfds_source  # half a second that other data need not pay

    with without_startup_messages(debug):
        found = tfds_source.find(name, data_dir)
    tfds_source.ensure_prepared(found)


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


@contextlib.contextmanager
def attack_progress(total: int) -> Iterator[Progress]:
    """Accuracy so far and time left: a bar an attack on a terminal, else a line every ten seconds.

    Args:
        total: images, where the evaluation does not know.
    """
    started: dict[str, tuple[float, int]] = {}

    def state(name: str, done: int, of: int, robust: float) -> str:
        now = time.monotonic()
        since, first = started.setdefault(name, (now, done))
        text = f"robust accuracy so far {100 * robust:.1f} %"
        if done > first:  # the first batch also pays for the tracing
            text += f", {_duration((now - since) * (of - done) / (done - first))} left"
        return text

    if not sys.stdout.isatty():
        spoke = time.monotonic()

        def speak(name: str, done: int, of: int | None, robust: float) -> None:
            nonlocal spoke
            text = state(name, done, of or total, robust)
            if time.monotonic() - spoke >= 10:
                say(f"{name}: {done:,} of {of or total:,} images, {text}")
                spoke = time.monotonic()

        yield speak
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn()) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, of: int | None, robust: float) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=of or total)
            text = f"{name}: {state(name, done, of or total, robust)}"
            bars.update(tasks[name], completed=done, description=text)

        yield show


@contextlib.contextmanager
def image_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Images done and images a second: a bar on a terminal, else a line every ten seconds."""
    began = spoke = time.monotonic()
    if not sys.stdout.isatty():

        def speak(done: int) -> None:
            nonlocal spoke
            now = time.monotonic()
            if now - spoke >= 10 or done == total:
                say(f"{done:,} of {total:,} images, {done / max(now - began, 1e-9):.1f} images/s")
                spoke = now

        yield speak
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=total)

        def show(done: int) -> None:
            speed = done / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=done, description=f"{speed:.1f} images/s")

        yield show


@contextlib.contextmanager
def noticed() -> Iterator[list[str]]:
    """The texts of UnreliableAttackWarning, each once, in place of the warnings themselves."""
    from der_tf.attacks import UnreliableAttackWarning

    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreliableAttackWarning)
        yield texts
    for warning in caught:
        if not issubclass(warning.category, UnreliableAttackWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif str(warning.message) not in texts:
            texts.append(str(warning.message))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show_table(report: dict[str, Any], title: str) -> None:
    """An evaluation's report as a table, and one more where a defence was measured."""
    from der_tf.evaluation import report as reports

    _show(title, reports.HEADER, reports.rows(report))
    if "defense" in report:
        _show("Behind the defence", reports.DEFENSE_HEADER, reports.defense_rows(report))
        say(reports.defense_summary(report))


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column == "images" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
