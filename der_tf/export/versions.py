"""Version folders that appear whole or not at all.

TensorFlow Serving polls a model's folder and loads every entry whose name is a number. A version
is therefore written under a hidden name beside its place, forced to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from der_tf.files import locked

MAX_VERSION = 2**63 - 1  # of TensorFlow Serving, which keeps versions in an int64
_PREFIX = ".exporting-"


def existing(base: Path) -> list[int]:
    """The version numbers in a model's folder, ascending; empty where there is no folder."""
    if not base.is_dir():
        return []
    return sorted(int(entry.name) for entry in base.iterdir() if _is_number(entry.name))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and int(name) <= MAX_VERSION


@contextlib.contextmanager
def staging(base: Path) -> Iterator[Path]:
    """A hidden folder inside ``base``, removed at the end unless :func:`publish` renamed it.

    It is locked as long as its process lives; those of processes that were killed are removed.
    """
    base.mkdir(parents=True, exist_ok=True)
    for leftover in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), locked(leftover):
            shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        with locked(folder):
            folder.chmod(0o755)  # a server may run as another user
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, base: Path, version: int | None) -> Path:
    """Makes a staged folder the given version, or the next free one for None.

    Raises:
        FileExistsError: the version exists.
    """
    for directory, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(directory, name))
        _sync(Path(directory))
    while True:
        number = max(existing(base), default=0) + 1 if version is None else version
        target = base / str(number)
        try:
            refuse_existing(base, version)
            os.rename(folder, target)
            break
        except OSError as error:
            # Another export took the number between the look and the rename.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or version is not None:
                raise
    _sync(base)
    return target


def refuse_existing(base: Path, version: int | None) -> None:
    """Raises FileExistsError, with one sentence, where ``base`` holds the version."""
    present = existing(base)
    if version in present:
        raise FileExistsError(
            f"version {version} exists in {base}: received version={version}, accepted is any "
            f"other than {', '.join(map(str, present))}, or none for {present[-1] + 1}"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
