"""Measurements in a process of their own: TensorFlow takes its thread counts once, at start."""

from __future__ import annotations

import json
import subprocess
import sys


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
