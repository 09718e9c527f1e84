"""der_tf: adversarial training for Keras and TensorFlow seen through energies.

Submodules and public classes are loaded on first use, so that ``import der_tf`` (and with it
``der-tf --help``) does not wait for TensorFlow. Keras knows a saved ``RobustClassifier`` from then
on: ``from der_tf import RobustClassifier`` comes before ``keras.models.load_model``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from der_tf.training.classifier import RobustClassifier as RobustClassifier

_SUBMODULES = (
    "analysis",
    "attacks",
    "data",
    "defenses",
    "diffusion",
    "energy",
    "evaluation",
    "export",
    "generation",
    "models",
    "monitors",
    "objectives",
    "overfitting",
    "regularizers",
    "training",
)


def __getattr__(name: str) -> Any:
    if name == "RobustClassifier":
        return importlib.import_module("der_tf.training.classifier").RobustClassifier
    if name in _SUBMODULES:
        return importlib.import_module(f"der_tf.{name}")
    raise AttributeError(f"module 'der_tf' has no attribute {name!r}")
