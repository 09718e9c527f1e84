"""der-tf reproduce on the smallest real runs."""

import json

import pytest

from der_tf.cli import main
from der_tf.cli.console import UsageError
from der_tf.cli.reproduce import run_experiment
from der_tf.reproduce.experiments import Experiment, Scale
from der_tf.reproduce.results import planned, write_report

TINY = {
    "limit_train": 96,
    "width": 4,
    "batch_size": 32,
    "validation_steps": 1,
    "validation_size": 20,
    "epochs": 2,
}
SCALE = Scale(
    name="small",
    options=TINY,
    levels=(26,),
    seeds=1,
    test_images=20,
    steps=2,
    restarts=1,
    auto_attack_images=0,
)
EXPERIMENT = Experiment(
    name="tiny",
    question="Does it work?",
    cures=lambda epochs: {
        "swa": {"der_weight": 0, "swa_start": epochs},
        "wild": {"der_weight": 0, "learning_rate": 1e30},
    },
    scales={"small": SCALE},
)


def reproduced(out, seeds, only=()):
    run_experiment(EXPERIMENT, SCALE, EXPERIMENT.rows(SCALE, only), seeds=seeds, out=out)
    return json.loads((out / "results.json").read_text())


def test_an_experiment_is_trained_measured_and_taken_up_again(tmp_path, capsys):
    report = reproduced(tmp_path, 1)
    out = capsys.readouterr().out
    assert "Run 1 of 2: swa-26, seed 0\n" in out
    assert "Run 2 of 2: wild-26, seed 0, about" in out
    rows = {row["cure"]: row for row in report["rows"]}
    assert list(rows) == ["swa", "wild"]

    # The figures are those of the run's own files.
    (run,) = rows["swa"]["runs"]
    assert set(run["test"]) == {"last", "best", "swa"}
    assert run["test"]["last"]["images"] == 20
    assert run["test"]["last"]["attacks"]["pgd"]["config"]["steps"] == 2
    assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
    last = run["test"]["last"]
    summary = rows["swa"]["summary"]
    assert summary["clean"]["mean"] == last["natural"]["accuracy"]
    assert summary["pgd"]["mean"] == last["attacks"]["pgd"]["accuracy"]
    assert summary["abnormal"]["mean"] == run["epochs"][-1]["abnormal_fraction"]

    # A loss that is no number is a result too.
    assert rows["wild"]["summary"]["diverged"] == 1
    assert "the loss became" in rows["wild"]["runs"][0]["diverged"]
    assert "0 of 1, 1 diverged" in (tmp_path / "results.md").read_text()

    assert report["not_run"] == []

    # What is finished is not repeated, what is missing is added, what was trained but not yet
    # measured is measured.
    seed_0, seed_1 = (tmp_path / "swa-26" / f"seed-{seed}" for seed in (0, 1))
    (seed_0 / "result.json").unlink()
    before = (seed_0 / "last.keras").stat().st_mtime_ns
    again = reproduced(tmp_path, 2, ["swa-26"])
    out = capsys.readouterr().out
    assert "2 runs, 0 of them finished" in out
    assert f"{seed_0} is finished: nothing is trained again" in out
    assert (seed_0 / "last.keras").stat().st_mtime_ns == before
    assert (seed_1 / "last.keras").exists()
    swa, wild = again["rows"]
    assert swa["summary"]["runs"] == 2
    assert wild == rows["wild"]
    assert swa["runs"][0] == run

    reproduced(tmp_path, 2, ["swa-26"])
    out = capsys.readouterr().out
    assert "2 runs, 2 of them finished" in out
    assert "Loading TensorFlow" not in out


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_result_is_named(content, tmp_path, capsys):
    out = tmp_path / "out"
    path = out / "none-16" / "seed-0" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    arguments = ["--scale=tiny", "--only=none-16", "--seeds=1", "--out", str(out)]
    assert main(["reproduce", "catastrophic-overfitting", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is no result (" in line


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    (row,) = EXPERIMENT.rows(SCALE, ["swa-26"])
    run = planned(row, 0, tmp_path)
    with run.directory.held(), pytest.raises(UsageError, match="another process is training in"):
        reproduced(tmp_path, 1, ["swa-26"])


def test_only_folders_of_seeds_are_runs(tmp_path):
    for name in ("seed-0-old", "seed-", "seed-x"):
        (tmp_path / "swa-26" / name).mkdir(parents=True)
    assert write_report(EXPERIMENT, SCALE, tmp_path)["not_run"] == ["swa-26", "wild-26"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["everything"], "catastrophic-overfitting"),
        (["der-ablation", "--only=none-16,wrong"], "received wrong"),
        (["der-ablation", "--seeds=0"], "--seeds"),
        (["der-ablation", "--scale=medium"], "small"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, said, capsys):
    assert main(["reproduce", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert said in errors[0]


def test_the_list_shows_commands_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "robust-overfitting", "--list", "--only=swa-*"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("swa-8: der-tf train --dataset=cifar10 --attack=pgd ")
    assert not list(tmp_path.iterdir())
