"""A robust classifier as a generative model: where chains start, and the chains."""

from __future__ import annotations

from der_tf.generation.initialization import LocalClasswisePCA
from der_tf.generation.langevin import Chains, LangevinSampler, Traces

__all__ = ["Chains", "LangevinSampler", "LocalClasswisePCA", "Traces"]
