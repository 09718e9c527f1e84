"""Robustness of a model: accuracy and energies under attacks, worst case over them."""

from der_tf.evaluation.report import to_dict, to_markdown, wilson_interval
from der_tf.evaluation.results import AttackResult, Evaluation, NaturalResult, save_samples
from der_tf.evaluation.robustness import evaluate

__all__ = [
    "AttackResult",
    "Evaluation",
    "NaturalResult",
    "evaluate",
    "save_samples",
    "to_dict",
    "to_markdown",
    "wilson_interval",
]
