"""Verdicts on curves whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from der_tf.overfitting import Collapse, catastrophic_overfitting, robust_overfitting

RISING = np.array([0.2, 0.28, 0.33, 0.36, 0.38, 0.4])
COLLAPSING = np.array([0.2, 0.3, 0.35, 0.02, 0.01, 0.0])
TRAINING = np.array([0.2, 0.3, 0.35, 0.5, 0.6, 0.7])


@pytest.mark.parametrize(
    ("robust", "before", "epoch"),
    [
        (COLLAPSING, 2, 3),
        # In two steps, each of which leaves or takes too little.
        (np.array([0.2, 0.3, 0.36, 0.2, 0.15, 0.1]), 2, 4),
        # From below chance: strong attacks leave networks in their first epochs less than that.
        (np.array([0.07, 0.08, 0.08, 0.01, 0.01, 0.0]), 1, 3),
        # The first one counts even when the network recovers.
        (np.array([0.3, 0.35, 0.02, 0.3, 0.01, 0.0]), 1, 2),
    ],
)
def test_catastrophic_overfitting(robust, before, epoch):
    found = catastrophic_overfitting(robust, TRAINING)
    assert found == Collapse(before=before, epoch=epoch)


@pytest.mark.parametrize(
    ("robust", "training", "why"),
    [
        (RISING, TRAINING, "robustness rises"),
        (COLLAPSING, np.full(6, 0.3), "training accuracy does not rise"),
        (COLLAPSING, TRAINING[::-1], "robustness is lost to the training attack, too"),
        (np.array([0.2, 0.3, 0.35, 0.18, 0.2, 0.3]), TRAINING, "more than half is left"),
        (np.array([0.4, 0.35, 0.3, 0.25, 0.2, 0.15]), TRAINING, "it falls over many epochs"),
        (COLLAPSING[:1], TRAINING[:1], "one epoch has nothing before it"),
    ],
)
def test_what_is_no_catastrophic_overfitting(robust, training, why):
    assert catastrophic_overfitting(robust, training) is None, why


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def kept(experiment):
    """(name, its curves, accuracy under PGD on test images in the last epoch) of kept runs."""
    rows = json.loads((RESULTS / f"{experiment}-small.json").read_text())["rows"]
    runs = [(row, run) for row in rows for run in row["runs"] if not run.get("diverged")]
    for row, run in runs:
        curves = (
            np.array([epoch[name] for epoch in run["epochs"]])
            for name in ("val_robust_accuracy", "robust_accuracy")
        )
        pgd = run["test"]["last"]["attacks"]["pgd"]["accuracy"]
        yield f"{row['cure']}-{row['level']} seed {run['seed']}", curves, pgd


@pytest.mark.parametrize("experiment", ["catastrophic-overfitting", "der-ablation"])
def test_of_kept_runs_it_finds_all_that_are_lost_and_none_that_are_robust(experiment):
    for name, curves, pgd in kept(experiment):
        found = catastrophic_overfitting(*curves)
        if pgd < 0.02:
            assert found is not None, name
        if pgd > 0.1:
            assert found is None, name


def test_of_kept_runs_it_finds_none_of_multi_step_training():
    for name, curves, _ in kept("robust-overfitting"):
        assert catastrophic_overfitting(*curves) is None, name


DECAY = np.array([0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_robust_overfitting_is_the_gap_after_the_decay():
    robust = np.array([0.2, 0.3, 0.35, 0.5, 0.47, 0.43])
    assert robust_overfitting(robust, TRAINING, DECAY) == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("robust", "training", "rate", "why"),
    [
        ([0.2, 0.3, 0.35, 0.5, 0.49, 0.47], TRAINING, DECAY, "3 points are within noise"),
        ([0.2, 0.3, 0.5, 0.45, 0.44, 0.43], TRAINING, np.full(6, 0.1), "the rate never fell"),
        ([0.2, 0.3, 0.5, 0.45, 0.44, 0.43], TRAINING[::-1], DECAY, "training accuracy falls too"),
        (RISING, TRAINING, DECAY, "the last epoch is the best"),
    ],
)
def test_what_is_no_robust_overfitting(robust, training, rate, why):
    assert robust_overfitting(np.array(robust), training, rate) is None, why
