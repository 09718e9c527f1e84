"""Means and deviations over seeds, and the table made of them."""

import numpy as np
import pytest

from der_tf.reproduce.summary import markdown, mean_and_deviation, summarize


def result(seed, last, best=0.3, speed=100.0, **more):
    """What a measured run keeps, by hand."""
    epoch = {
        "val_robust_accuracy": last,
        "abnormal_fraction": 0.25 * (seed + 1),
        "delta_marginal_energy": 0.1 * seed,
        "delta_joint_energy": -0.2 * seed,
        "images_per_second": speed,
    }
    test = {
        name: {"natural": {"accuracy": 0.5}, "attacks": {"pgd": {"accuracy": value}}}
        for name, value in (("last", last), ("best", best))
    }
    return {
        "seed": seed,
        "epochs": [{**epoch, "images_per_second": 1.0}, epoch],
        "test": test,
        **more,
    }


def test_mean_and_sample_deviation_are_those_of_numpy():
    values = list(np.random.default_rng(0).normal(size=5))
    found = mean_and_deviation(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["deviation"] == pytest.approx(np.sqrt(np.var(values) * 5 / 4))
    assert found["n"] == 5
    assert mean_and_deviation([0.25]) == {"mean": 0.25, "deviation": None, "n": 1}


def test_a_row_sums_up_its_seeds():
    runs = [result(0, 0.01), result(1, 0.04), result(2, 0.25, speed=50.0)]
    plain = [result(0, 0.0, speed=150.0), result(1, 0.0, speed=200.0)]
    summary = summarize(runs, plain)
    assert summary["pgd"]["mean"] == pytest.approx(0.1)
    assert summary["gap"]["mean"] == pytest.approx(0.2)
    assert summary["gap"]["deviation"] == pytest.approx(np.std([0.29, 0.26, 0.05], ddof=1))
    assert summary["abnormal"]["mean"] == pytest.approx(0.5)
    assert summary["delta_joint"]["mean"] == pytest.approx(-0.2)
    # Under 2 % under PGD: the first alone. The fastest epochs are compared.
    assert (summary["runs"], summary["collapsed"], summary["diverged"]) == (3, 1, 0)
    assert summary["relative_time"] == pytest.approx(2.0)
    assert summary["auto_attack"] is None


def test_times_are_compared_between_runs_on_one_processor():
    plain = [result(0, 0.0, speed=100.0), result(1, 0.0, speed=300.0, processor="fast")]
    slow, fast = result(0, 0.1, speed=50.0), result(1, 0.1, speed=200.0, processor="fast")
    assert summarize([slow], plain)["relative_time"] == pytest.approx(2.0)
    assert summarize([slow, fast], plain)["relative_time"] == pytest.approx((2.0 + 1.5) / 2)
    elsewhere = [slow, result(1, 0.1, speed=900.0, processor="other")]
    assert summarize(elsewhere, plain)["relative_time"] == pytest.approx(2.0)
    assert summarize(elsewhere[1:], plain)["relative_time"] is None


def test_a_run_that_diverged_is_counted_and_not_averaged():
    lost = {"seed": 1, "epochs": [], "diverged": "the loss became nan"}
    summary = summarize([result(0, 0.2), lost])
    assert (summary["runs"], summary["collapsed"], summary["diverged"]) == (2, 0, 1)
    assert summary["pgd"] == {"mean": 0.2, "deviation": None, "n": 1}
    none = summarize([lost])
    assert none["pgd"] is None
    assert none["diverged"] == 1


def test_the_table_has_a_row_a_setting_and_columns_for_what_was_measured():
    runs = [result(0, 0.01), result(1, 0.03)]
    attacked = [result(0, 0.2, auto_attack={"accuracy": 0.125})]
    lost = [{"seed": 0, "epochs": [], "diverged": "the loss became nan"}]
    rows = [
        {"cure": name, "level": 16, "summary": summarize(group, runs)}
        for name, group in (("none", runs), ("der", attacked), ("wild", lost))
    ]
    report = {"measured": {"steps": 20, "restarts": 1}, "rows": rows}
    header, _, none, der, wild = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(report).splitlines()
    )
    assert len(header) == len(none) == len(der) == len(wild)
    table = {
        name: dict(zip(header, cells, strict=True))
        for name, cells in (("none", none), ("der", der), ("wild", wild))
    }
    assert table["none"]["PGD-20-1, last epoch"] == "2.0 ± 1.4"
    assert table["none"]["collapsed"] == "1 of 2"
    assert table["der"]["AutoAttack"] == "12.5"
    assert table["none"]["AutoAttack"] == "-"
    assert table["der"]["time"] == "1.00x"
    assert table["wild"]["collapsed"] == "0 of 1, 1 diverged"
    assert table["wild"]["clean"] == table["wild"]["time"] == "-"
