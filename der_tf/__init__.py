"""der_tf: adversarial training for Keras and TensorFlow seen through energies.

Submodules and public classes are loaded on first use, so that ``import der_tf`` (and with it
``der-tf --help``) does not wait for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from der_tf.training.classifier import RobustClassifier as RobustClassifier

_SUBMODULES = {
    "attacks": "der_tf.attacks",
    "data": "der_tf.data",
    "energy": "der_tf.energy",
    "evaluation": "der_tf.evaluation",
    "export": "der_tf.export",
    "generation": "der_tf.generation",
    "models": "der_tf.models",
    "monitors": "der_tf.monitors",
    "objectives": "der_tf.objectives",
    "regularizers": "der_tf.regularizers",
    "training": "der_tf.training",
}


def __getattr__(name: str) -> Any:
    if name == "RobustClassifier":
        return importlib.import_module("der_tf.training.classifier").RobustClassifier
    if name in _SUBMODULES:
        return importlib.import_module(_SUBMODULES[name])
    raise AttributeError(f"module 'der_tf' has no attribute {name!r}")
