"""A folder of samples that can be added to: PNGs, a table of them, how they were made."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from der_tf.files import write_text
from der_tf.generation import pictures
from der_tf.generation.langevin import Chains

COLUMNS = ("file", "label", "class", "seed", "steps_taken", "joint_energy")


class Collection:
    """Samples by (label, seed).

    A row of ``samples.csv`` is written after its PNG, so that what has a row is there; a folder
    that was left in the middle is taken up again.

    Args:
        path: the folder; made by :meth:`open`.
        class_names: K names.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path = path
        self.class_names = class_names
        self.starts = path / "starts.npz"
        self._table = path / "samples.csv"
        self._rows: dict[tuple[int, int], dict[str, Any]] = {}

    def open(self, settings: dict[str, Any]) -> None:
        """Make the folder, or read what it holds.

        Args:
            settings: what decides on the samples. Of these ``model``, a path, is for people to
                read: the model is known by its ``digest``.

        Raises:
            ValueError: when it holds samples that were made otherwise.
        """
        config = self.path / "config.json"
        self.path.mkdir(parents=True, exist_ok=True)
        if self._table.exists():
            text = self._table.read_text(encoding="utf-8")
            # Without the line that a killed process may have left half written.
            whole = text[: text.rfind("\n") + 1]
            for row in csv.DictReader(io.StringIO(whole)):
                self._read(row)
        if self._rows:
            if not config.exists():
                raise ValueError(
                    f"{self.path} holds samples, and no {config.name} that says how they were "
                    "made: choose another folder"
                )
            old = json.loads(config.read_text(encoding="utf-8"))
            new = json.loads(json.dumps(settings))
            if old.get("digest") != new["digest"]:
                raise ValueError(
                    f"{self.path} holds samples of the model {old.get('model')} (digest "
                    f"{old.get('digest', 'unknown')}); received {new['model']} (digest "
                    f"{new['digest']}): choose another folder"
                )
            for name in sorted((old.keys() | new.keys()) - {"model"}):
                if old.get(name) != new.get(name):
                    raise ValueError(
                        f"{self.path} holds samples of {name} {old.get(name)}; received "
                        f"{new.get(name)}: choose another folder"
                    )
        if not self._rows:  # what a refused or stopped command has left may be of other settings
            self.starts.unlink(missing_ok=True)
            write_text(config, json.dumps(settings, indent=2) + "\n")
        write_text(self._table, ",".join(COLUMNS) + "\n" + "".join(map(_line, self._rows.values())))

    def missing(self, labels: Sequence[int], seeds: Sequence[int]) -> list[tuple[int, int]]:
        """The pairs (label, seed) that have no image yet."""
        return [(y, s) for y in labels for s in seeds if (y, s) not in self._rows]

    def add(self, labels: Sequence[int], seeds: Sequence[int], chains: Chains) -> None:
        """Write the images of chains, then their rows."""
        lines = []
        for i, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
            file = self._file(label, seed)
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(self.path / file, chains.images[i])
            values = (file, label, self.class_names[label], seed, int(chains.steps_taken[i]))
            row = dict(zip(COLUMNS, (*values, float(chains.joint_energy[i])), strict=True))
            self._rows[label, seed] = row
            lines.append(_line(row))
        with open(self._table, "a", encoding="utf-8") as table:
            table.write("".join(lines))

    def rows(self, labels: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of these samples, in the order of :meth:`batches`."""
        return [self._rows[y, s] for y in labels for s in seeds]

    def image(self, label: int, seed: int) -> np.ndarray:
        """float32 ``[H, W, C]`` in [0, 1], of 8 bits."""
        return pictures.load_png(self.path / self._rows[label, seed]["file"])

    def batches(
        self, labels: Sequence[int], seeds: Sequence[int], size: int = 64
    ) -> Iterator[np.ndarray]:
        """Images ``[B, H, W, C]``, read as they are asked for."""
        rows = self.rows(labels, seeds)
        for at in range(0, len(rows), size):
            yield np.stack([pictures.load_png(self.path / r["file"]) for r in rows[at : at + size]])

    def _file(self, label: int, seed: int) -> str:
        name = re.sub(r"[^\w-]+", "_", self.class_names[label])
        return f"images/{label}-{name}/{seed:06d}.png"

    def _read(self, row: dict[str, Any]) -> None:
        try:
            label, seed, steps = (int(row[name]) for name in ("label", "seed", "steps_taken"))
            energy = float(row["joint_energy"])
        except (TypeError, ValueError):
            return
        if (self.path / str(row["file"])).exists():
            row |= {"label": label, "seed": seed, "steps_taken": steps, "joint_energy": energy}
            self._rows[label, seed] = row


def _line(row: dict[str, Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(row[name] for name in COLUMNS)
    return buffer.getvalue()
