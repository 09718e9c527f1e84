"""Robustness of a model: accuracy and energies under attacks, worst case over them."""

from der_tf.evaluation.defended import DefenseEvaluation, evaluate_defense
from der_tf.evaluation.report import defense_to_dict, to_dict, to_markdown, wilson_interval
from der_tf.evaluation.results import AttackResult, Evaluation, NaturalResult, save_samples
from der_tf.evaluation.robustness import evaluate

__all__ = [
    "AttackResult",
    "DefenseEvaluation",
    "Evaluation",
    "NaturalResult",
    "defense_to_dict",
    "evaluate",
    "evaluate_defense",
    "save_samples",
    "to_dict",
    "to_markdown",
    "wilson_interval",
]
