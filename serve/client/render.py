"""What the command line prints: rich tables, or JSON with every number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serve.client.signatures import Metadata, VersionStatus


class Names:
    """Class names by number; without names, the numbers themselves."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [name.strip() for name in names]

    def name(self, number: int) -> str:
        return self._names[number] if 0 <= number < len(self._names) else str(number)

    def number(self, name: str) -> int:
        """Number of a class; a name that is no class is a ValueError."""
        if name in self._names:
            return self._names.index(name)
        try:
            return int(name)
        except ValueError:
            known = ", ".join(self._names) or "class numbers (give names with --labels FILE)"
            raise ValueError(f"no class {name!r}; known are {known}") from None


def predictions(
    paths: Sequence[Path],
    answer: dict[str, np.ndarray],
    names: Names,
    as_json: bool,
    written: Sequence[Path] | None = None,
) -> None:
    classes = [int(number) for number in answer["classes"]]
    if as_json:
        records = _records(paths, {k: v for k, v in answer.items() if k != "images"})
        for record, number in zip(records, classes, strict=True):
            record["label"] = names.name(number)
        for record, path in zip(records, written or [], strict=False):
            record["out"] = str(path)
        _print_json(records)
        return
    columns = ["image", "class", "probability", "marginal energy"] + ["written to"] * bool(written)
    table = Table(*columns)
    for row, (path, number) in enumerate(zip(paths, classes, strict=True)):
        cells = [
            str(path),
            names.name(number),
            f"{answer['probabilities'][row, number]:.3f}",
            f"{answer['marginal_energy'][row]:.3f}",
        ]
        table.add_row(*cells, *([str(written[row])] if written else []))
    _print_table(table)


def energies(
    paths: Sequence[Path], answer: dict[str, np.ndarray], names: Names, as_json: bool
) -> None:
    if as_json:
        _print_json(_records(paths, answer))
        return
    table = Table("image", "marginal energy", "lowest joint energy", "with class")
    for path, marginal, joint in zip(
        paths, answer["marginal_energy"], answer["joint_energy"], strict=True
    ):
        lowest = int(joint.argmin())
        table.add_row(str(path), f"{marginal:.3f}", f"{joint[lowest]:.3f}", names.name(lowest))
    _print_table(table)


def samples(
    out: Path,
    classes: Sequence[int],
    seeds: Sequence[int],
    answer: dict[str, np.ndarray],
    names: Names,
    as_json: bool,
) -> None:
    rows = zip(classes, seeds, answer["joint_energy"], answer["steps_taken"], strict=True)
    if as_json:
        records = [
            {
                "label": names.name(number),
                "class": number,
                "seed": seed,
                "joint_energy": float(energy),
                "steps_taken": int(steps),
            }
            for number, seed, energy, steps in rows
        ]
        _print_json({"out": str(out), "samples": records})
        return
    table = Table("class", "seed", "joint energy", "steps taken", caption=f"written to {out}")
    for number, seed, energy, steps in rows:
        table.add_row(names.name(number), str(seed), f"{energy:.3f}", str(steps))
    _print_table(table)


def status(statuses: Sequence[VersionStatus], as_json: bool) -> None:
    if as_json:
        _print_json([asdict(entry) for entry in statuses])
        return
    table = Table("version", "state", "error")
    for entry in statuses:
        table.add_row(str(entry.version), entry.state, entry.error_message)
    _print_table(table)


def metadata(description: Metadata, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(description))
        return
    title = f"{description.model}, version {description.version}"
    table = Table("signature", "inputs", "outputs", title=title, show_lines=True)
    for name, signature in description.signatures.items():
        sides = (signature.inputs, signature.outputs)
        cells = ["\n".join(f"{key}: {spec}" for key, spec in side.items()) for side in sides]
        table.add_row(name, *cells)
    _print_table(table)


def _records(paths: Sequence[Path], answer: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"image": str(path)} | {name: values[row].tolist() for name, values in answer.items()}
        for row, path in enumerate(paths)
    ]


def _print_table(table: Table) -> None:
    # Brackets and colons are those of shapes and names, not rich's markup.
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:  # into a file or a pipe: no line breaks for a screen's sake
        console.width = 200
    console.print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
