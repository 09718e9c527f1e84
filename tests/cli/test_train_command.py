"""der-tf train as a user runs it: what it leaves, and what it leaves alone."""

import csv
import json
import resource
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import data
from der_tf.cli import main
from der_tf.monitors import read_energies
from der_tf.training.records import read_metrics
from der_tf.training.run_directory import RunDirectory
from tests.cli.small_runs import ENVIRONMENT, TINY, command

METRICS = [
    "loss",
    "clean_accuracy",
    "robust_accuracy",
    "delta_marginal_energy",
    "delta_joint_energy",
    "abnormal_fraction",
]


def test_a_run_leaves_what_the_contract_names(finished):
    run = finished / "run"
    assert {path.name for path in run.iterdir()} == {
        "best.keras",
        "checkpoints",
        "config.json",
        "energies",
        "energies.csv",
        "evaluation.json",
        "figures",
        "last.keras",
        "metrics.csv",
        "tensorboard",
    }
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in METRICS:
        for row in rows:
            assert np.isfinite([float(row[name]), float(row[f"val_{name}"])]).all()
    assert [row["epoch"] for row in read_energies(run / "energies.csv")] == [1] * 4 + [2] * 4
    assert len(list((run / "energies").iterdir())) == 2
    record = json.loads((run / "config.json").read_text())
    assert record["configuration"]["epochs"] == 2
    assert record["configuration"]["ema"] == 0.9
    assert record["class_names"] == [str(digit) for digit in range(10)]


def test_an_epoch_is_a_whole_number_of_executions(tmp_path, capsys):
    """5 batches in executions of 3: 6 steps, by which rate and records go."""
    run = tmp_path / "run"
    options = [option for option in TINY if not option.startswith("--limit-train")]
    options += ["--limit-train=160", "--steps-per-execution=3", "--epochs=2", "--no-export"]
    assert main(["train", "--run-dir", str(run), "--schedule=cyclic", *options]) == 0
    assert "2 epochs of 6 steps" in capsys.readouterr().out
    assert [row["step"] for row in read_energies(run / "energies.csv")[::4]] == [6, 12]
    # From 0 up to the peak and down to 0.
    rates = [row["learning_rate"] for row in read_metrics(run / "metrics.csv")]
    assert rates == pytest.approx([0.05, 0])


def test_the_evaluation_is_that_of_the_best_network_on_all_test_images(finished):
    report = json.loads((finished / "run" / "evaluation.json").read_text())
    digits = data.load("digits", batch_size=32)
    images, labels = (
        np.concatenate(parts) for parts in zip(*digits.test.as_numpy_iterator(), strict=True)
    )
    best = keras.models.load_model(finished / "run" / "best.keras")
    correct = int((np.argmax(best.predict(images, verbose=0), axis=1) == labels).sum())
    assert report["images"] == len(images) == digits.test_size
    assert report["natural"]["correct"] == correct
    low, high = report["attacks"]["pgd"]["interval"]
    assert low < report["attacks"]["pgd"]["accuracy"] < high
    assert report["attacks"]["pgd"]["accuracy"] <= report["natural"]["accuracy"]


def test_the_export_answers_as_the_best_network(finished):
    folder = finished / "models" / "digits-rs_fgsm" / "1"
    predict = tf.saved_model.load(str(folder)).signatures["predict"]
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    best = keras.models.load_model(finished / "run" / "best.keras")
    np.testing.assert_allclose(
        predict(images=images)["logits"], best(images, training=False), atol=1e-5
    )
    card = json.loads((folder / "assets.extra" / "model_card.json").read_text())
    assert card["training"]["attack"] == "rs_fgsm"


def test_a_finished_run_is_not_trained_again_but_completed(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    (run / "evaluation.json").unlink()
    assert main(["train", "--run-dir", str(run), "--no-export"]) == 0
    assert "is finished: nothing is trained again" in capsys.readouterr().out
    for name in ("best.keras", "last.keras", "metrics.csv", "config.json"):
        assert (run / name).read_bytes() == kept[name]
    old = json.loads(kept["evaluation.json"])
    assert json.loads((run / "evaluation.json").read_text()) == {
        name: value for name, value in old.items() if name != "export"
    }


def test_a_run_that_goes_on_elsewhere_says_what_differs(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "last.keras").unlink()
    record = json.loads((run / "config.json").read_text())
    record["processor"] = "Processor of before"
    (run / "config.json").write_text(json.dumps(record))
    assert main(["train", "--run-dir", str(run), "--no-export"]) == 0
    (note,) = (line for line in capsys.readouterr().out.splitlines() if "Note" in line)
    assert note.startswith("Note: the run began with processor Processor of before, now ")
    assert (run / "last.keras").exists()


def test_a_run_whose_data_moved_goes_on(finished, tmp_path, capsys):
    run, new = tmp_path / "run", tmp_path / "new"
    shutil.copytree(finished / "run", run)
    (run / "last.keras").unlink()
    record = json.loads((run / "config.json").read_text())
    record["configuration"]["data_dir"] = str(tmp_path / "old")
    (run / "config.json").write_text(json.dumps(record))
    new.mkdir()
    assert main(["train", "--run-dir", str(run), "--no-export"]) == 2
    assert f"data_dir is an existing folder, received '{tmp_path}/old'" in capsys.readouterr().err
    assert main(["train", "--run-dir", str(run), "--no-export", "--data-dir", str(new)]) == 0
    assert (run / "last.keras").exists()


@pytest.mark.parametrize("name", ["metrics.csv", "energies.csv", "alarms.csv"])
def test_a_damaged_table_of_a_run_that_goes_on_is_one_line(name, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "last.keras").unlink()
    record = json.loads((run / "config.json").read_text())
    record["configuration"]["epochs"] = 3
    (run / "config.json").write_text(json.dumps(record))
    (run / name).write_text("epoch,step\n1,")
    assert main(["train", "--run-dir", str(run), "--no-export"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"der-tf: {run / name} cannot be read: its last line is cut off"


@pytest.mark.parametrize("content", [None, b"PK"], ids=["missing", "damaged"])
@pytest.mark.parametrize("measured", [False, True])
def test_a_finished_run_without_a_best_network_is_one_line(
    content, measured, finished, tmp_path, capsys
):
    """What is left to do is to measure the network, or to export it."""
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "best.keras").unlink()
    if content is not None:
        (run / "best.keras").write_bytes(content)
    if measured:
        report = json.loads((run / "evaluation.json").read_text())
        del report["export"]
        (run / "evaluation.json").write_text(json.dumps(report))
    else:
        (run / "evaluation.json").unlink()
    assert main(["train", "--run-dir", str(run), "--export-dir", str(tmp_path / "models")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run}/best.keras" in line
    assert "--debug" not in line


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_damaged_evaluation_is_named(command, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    (run / "evaluation.json").write_text('{"images": 3, "natural": {}}')
    named = ["--run-dir", str(run)] if command == "train" else [str(run)]
    assert main([command, *named, "--export-dir", str(tmp_path / "models")]) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{run}/evaluation.json cannot be read: it has no 'attacks'" in error
    assert not (tmp_path / "models").exists()


def test_a_run_of_another_configuration_is_left_alone(finished, capsys):
    run = finished / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--run-dir", str(run), "--epsilon", "0.2"]) == 2
    error = capsys.readouterr().err
    assert "holds a run with --epsilon 0.1, received --epsilon 0.2" in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_no_resume_sets_the_old_run_aside(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    options = ["--run-dir", str(run), "--no-resume", "--no-export", *TINY, "--epochs=1"]
    assert main(["train", *options]) == 0
    (old,) = tmp_path.glob("run-before-*")
    assert (old / "last.keras").read_bytes() == (finished / "run" / "last.keras").read_bytes()
    assert json.loads((run / "config.json").read_text())["configuration"]["epochs"] == 1


def test_no_resume_leaves_a_run_that_is_trained_alone(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    with RunDirectory(run).held():
        assert main(["train", "--run-dir", str(run), "--no-resume", "--no-export", *TINY]) == 2
    assert "another process is training in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "option",
    ["--attack=nope", "--objective=nope", "--model=nope", "--validation-size=9999", "--epochs=0"],
)
def test_no_resume_sets_nothing_aside_for_arguments_that_are_refused(
    option, finished, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    assert main(["train", "--run-dir", str(run), "--no-resume", option]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (run / "last.keras").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attack", "nope"], ["rs_fgsm", "'nope'"]),
        (["--objective", "nope"], ["madry", "'nope'"]),
        (["--model", "nope"], ["convnet", "'nope'"]),
        (["--dataset", "no such"], ["digits", "'no such'"]),
        (["--data-dir", "/no/such"], ["/no/such"]),
    ],
)
def test_unknown_names_are_one_line_and_leave_no_run(options, words, tmp_path, capsys):
    assert main(["train", "--run-dir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_is_told_before_tensorflow_is_loaded(tmp_path):
    options = ["--dataset", "imagenet", "--data-dir", str(tmp_path)]
    code = (
        "import sys; from der_tf.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(99 if 'tensorflow' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--run-dir", str(tmp_path / "run"), *options],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"data set 'imagenet2012' is not in {tmp_path}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_names_step_and_rate(tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--learning-rate=1e9", "--schedule=constant", "--epochs=1", "--no-export"]
    assert main(["train", "--run-dir", str(run), *TINY, *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the loss became" in error or "a weight became NaN" in error
    assert "step" in error
    assert not (run / "last.keras").exists()


def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(tmp_path):
    """A limit on the size of files stands in for the full disk: 20 KB, less than a network."""
    run = tmp_path / "run"
    done = subprocess.run(
        command(run, "--epochs=1"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert (run / "config.json").exists()
    assert not (run / "best.keras").exists()


@pytest.mark.parametrize("command", ["export", "generate"])
def test_a_full_disk_is_no_wrong_argument(command, finished, tmp_path, capsys):
    arguments = {
        "export": ["--export-dir", str(tmp_path)],
        "generate": ["--out", str(tmp_path / "out"), "--neighbors=5", "--classes=1", "--steps=1"],
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        assert main([command, str(finished / "run"), *arguments[command]]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot write {tmp_path}" in error
    assert "File too large" in error
