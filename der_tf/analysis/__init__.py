"""What happened in training runs: energies over training, overfitting, figures, a report."""

from der_tf.analysis.runs import Run, read_run, read_runs
from der_tf.analysis.verdict import Collapse, catastrophic_overfitting, robust_overfitting

__all__ = [
    "Collapse",
    "Run",
    "catastrophic_overfitting",
    "read_run",
    "read_runs",
    "robust_overfitting",
]
