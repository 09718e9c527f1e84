"""Tables that a benchmark writes into a page of ``docs/``."""

from __future__ import annotations

from pathlib import Path

from der_tf.files import write_text


def fill(page: Path, name: str, text: str) -> None:
    """Put a text between ``<!-- BEGIN name -->`` and ``<!-- END name -->``."""
    begin, end = (f"<!-- {word} {name} -->" for word in ("BEGIN", "END"))
    head, rest = page.read_text(encoding="utf-8").split(begin)
    write_text(page, f"{head}{begin}\n{text.rstrip()}\n{end}{rest.split(end, 1)[1]}")
