"""A robust classifier as a generative model: starts, Langevin chains, the quality of samples."""

from __future__ import annotations

from der_tf.generation.extractors import Extractor, load_extractor
from der_tf.generation.initialization import LocalClasswisePCA
from der_tf.generation.langevin import Chains, LangevinSampler, Traces
from der_tf.generation.quality import (
    BiasedScoreWarning,
    Features,
    Score,
    all_scores,
    extract,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest_distances,
    precision_recall,
)

__all__ = [
    "BiasedScoreWarning",
    "Chains",
    "Extractor",
    "Features",
    "LangevinSampler",
    "LocalClasswisePCA",
    "Score",
    "Traces",
    "all_scores",
    "extract",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_extractor",
    "nearest_distances",
    "precision_recall",
]
