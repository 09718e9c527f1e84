"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def partial(name: str) -> str:
    """What a file of this name (or pattern) is called while it is being written."""
    return f".partial-{name}"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` at the end.

    A process killed meanwhile leaves the old file as it was. When the block raises, the temporary
    file is removed. Its
    name keeps the suffix, by which libraries choose the format.
    """
    path = Path(path)
    temporary = path.with_name(partial(path.name))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder's lock, which the system releases with the process, however that ends.

    Raises:
        BlockingIOError: another process (or call) holds it.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a whole text file, or leave the old one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as a CSV file, whole or not at all; no rows, no file."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path, parse: Callable[[str, str], Any]) -> list[dict[str, Any]]:
    """Rows that :func:`write_table` wrote; none when there is no such file.

    Args:
        path: the file.
        parse: takes the name of a column and the text of a cell.

    Raises:
        ValueError: when the file is damaged or ``parse`` refuses a cell.
    """
    if not path.exists():
        return []
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
        # Tables are replaced as a whole: one that breaks off did not come from a killed process,
        # and half a number would pass for a number.
        if not text.endswith("\n"):
            raise ValueError("its last line is cut off")
        table = csv.DictReader(io.StringIO(text))
        for row in table:
            if None in row or None in row.values():
                raise ValueError(f"line {table.line_num} has more or fewer cells than the header")
            rows.append({name: parse(name, cell) for name, cell in row.items()})
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return rows


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, all or those named.

    Raises:
        OSError: when it cannot be opened.
        ValueError: when it is damaged or lacks one of them.
    """
    import numpy as np  # which parsing a command line need not wait for

    try:
        # np.load leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole file of arrays: {error}") from None
