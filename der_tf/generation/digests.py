"""Which network made something: names and paths stay when a network is trained on or replaced."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np


def of_files(path: Path) -> str:
    """Of a model on disk: a file, or a SavedModel's graph and variables.

    What lies beside these, such as a model card, says nothing about what the model answers.
    """
    files = [path]
    if path.is_dir():
        files = [path / "saved_model.pb", *sorted((path / "variables").glob("variables.*"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def of_weights(model: keras.Model) -> str:
    """Of a model in memory, as its weights are now."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(f"{weights.dtype} {weights.shape}".encode())
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()
