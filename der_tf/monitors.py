"""Callbacks that watch a training through its energies, for ``fit`` of a RobustClassifier."""

from __future__ import annotations

from der_tf.training.monitors import EnergyMonitor, read_energies

__all__ = ["EnergyMonitor", "read_energies"]
