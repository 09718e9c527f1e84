"""Intervals, JSON and tables of an evaluation."""

import json
import math

import numpy as np
import pytest

from der_tf.attacks import CW, PGD
from der_tf.evaluation import (
    AttackResult,
    Evaluation,
    NaturalResult,
    to_dict,
    to_markdown,
    wilson_interval,
)
from der_tf.evaluation.results import configuration


def wilson_by_hand(correct, total, z=1.959963984540054):
    share = correct / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    root = math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    half = z / (1 + z**2 / total) * root
    return middle - half, middle + half


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (47, 100), (4720, 10000)])
def test_the_interval_is_wilsons(correct, total):
    assert wilson_interval(correct, total) == pytest.approx(
        wilson_by_hand(correct, total), abs=1e-9
    )


@pytest.fixture
def report():
    correct = np.array([True] * 8 + [False] * 2)
    numbers = np.linspace(0, 1, 10)
    energies = ("marginal_energy", "joint_energy")
    deltas = ("delta_marginal_energy", "delta_joint_energy")
    distances = ("linf_distance", "l2_distance", "pixel_excess")
    results = {
        name: AttackResult(
            attack=PGD(epsilon=8 / 255, steps=50, restarts=10),
            success=success,
            abnormal=success,
            **{field: numbers for field in (*energies, *deltas, *distances)},
        )
        for name, success in (("a", ~correct), ("b", np.arange(10) < 5))
    }
    natural = NaturalResult(correct=correct, **{field: numbers for field in energies})
    return to_dict(Evaluation(labels=np.zeros(10, int), natural=natural, attacks=results))


def test_shares_and_means_stand_in_the_report(report):
    report = json.loads(json.dumps(report))
    assert report["images"] == 10
    assert report["natural"]["accuracy"] == 0.8
    assert report["attacks"]["b"]["correct"] == 5
    assert report["attacks"]["b"]["delta_joint_energy"] == pytest.approx(0.5)
    assert report["attacks"]["b"]["abnormal_fraction"] == 0.5
    assert report["attacks"]["a"]["config"]["steps"] == 50
    assert report["attacks"]["a"]["config"]["class"] == "PGD"
    assert report["attacks"]["a"]["median_l2_distance"] == pytest.approx(0.5)
    assert report["worst_case"]["accuracy"] == pytest.approx(0.3)
    assert report["worst_case"]["interval"] == pytest.approx(wilson_by_hand(3, 10))


def test_the_markdown_is_a_table_a_line_a_measurement(report):
    lines = to_markdown(report).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| natural | 80.00 % |")
    assert lines[3].startswith("| a-50-10 (linf 8/255) | 80.00 % |")
    assert lines[-1].startswith("| worst case | 30.00 % |")


def test_a_configuration_is_json_whatever_it_holds():
    assert configuration(CW())["epsilon"] == "inf"
    assert configuration(len) == {"class": "len"}
    json.dumps(configuration(CW()), allow_nan=False)
