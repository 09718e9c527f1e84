"""What happened in training runs: energies over training, overfitting, figures, a report."""

from der_tf.analysis.runs import Run, read_run, read_runs, shared_split

__all__ = ["Run", "read_run", "read_runs", "shared_split"]
