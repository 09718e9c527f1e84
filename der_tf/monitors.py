"""Callbacks that watch a training through its energies, for ``fit`` of a RobustClassifier."""

from __future__ import annotations

from der_tf.training.alarms import read_alarms
from der_tf.training.catastrophic_overfitting import CatastrophicOverfittingGuard
from der_tf.training.monitors import EnergyMonitor, read_energies
from der_tf.training.robust_overfitting import RobustOverfittingMonitor

__all__ = [
    "CatastrophicOverfittingGuard",
    "EnergyMonitor",
    "RobustOverfittingMonitor",
    "read_alarms",
    "read_energies",
]
