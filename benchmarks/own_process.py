"""Measurements in a process of their own: TensorFlow takes its thread counts once, at start."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def measured_by(command: list[str]) -> dict:
    """Run a command, pass its progress on, and return the JSON object that it prints on a line."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found: dict = {}
    for line in process.stdout:
        if line.startswith("{"):
            found = json.loads(line)
        else:
            print(line, end="", flush=True)
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} failed with status {process.returncode}")
    return found


def measured_each(
    script: str,
    options: argparse.Namespace,
    names: Sequence[str],
    variants: Iterable[Mapping[str, Any]],
) -> dict:
    """Run a benchmark once a variant; its settings and results, as they are kept.

    Args:
        script: the benchmark, which prints its result with ``--json``.
        options: of the command line.
        names: of those that are settings.
        variants: options by name.
    """
    settings = {name: getattr(options, name) for name in names}
    runs = []
    for variant in variants:
        command = [sys.executable, script, "--json"]
        for name, value in {**settings, **variant}.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        runs.append(measured_by(command))
    return {"machine": {"cores": os.cpu_count()}, **settings, "runs": runs}
