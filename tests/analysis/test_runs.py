"""Runs as their files tell of them."""

import dataclasses
import json
import re

import numpy as np
import pytest

from der_tf.analysis import read_run, read_runs, shared_split
from der_tf.analysis.report import table
from der_tf.files import write_text
from der_tf.training.run import load_data
from tests.analysis.run_files import energy_row, make_run

SAMPLES = (
    "train_marginal_energy",
    "train_training_delta_marginal_energy",
    "train_training_abnormal",
)


def test_records_within_epochs_lie_between_them(tmp_path):
    rows = [energy_row(epoch, step, 0.0) for epoch, step in ((0, 7), (1, 21), (1, 28), (2, 42))]
    make_run(tmp_path / "run", rows)
    epochs, _ = read_run(tmp_path / "run").energy_curve("abnormal_fraction")
    np.testing.assert_allclose(epochs, [1 / 3, 1, 4 / 3, 2])


def test_the_last_epoch_may_end_early(tmp_path):
    """By the guard, within the fourth epoch."""
    rows = [energy_row(n, step, 0.1 * n) for n, step in ((1, 10), (2, 20), (3, 30), (4, 33))]
    make_run(tmp_path / "run", rows)
    run = read_run(tmp_path / "run")
    epochs, _ = run.energy_curve("abnormal_fraction")
    np.testing.assert_allclose(epochs, [1, 2, 3, 3.3])
    assert run.every_epoch_recorded
    found = run.training_signal("abnormal_fraction", "abnormal_fraction")
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4])


def test_what_is_measured_at_the_end_of_the_collapse_is_told(tmp_path):
    """Not what the energies become in the epoch after it."""
    shares = (0.0, 0.0, 0.1, 0.8, 0.9)
    make_run(tmp_path / "run", [energy_row(n, 10 * n, shares[n - 1]) for n in range(1, 6)])
    run = read_run(tmp_path / "run")
    longer = dataclasses.replace(run, metrics=[*run.metrics, {**run.metrics[-1], "epoch": 5}])
    assert longer.verdict().startswith("CO in epoch 4")
    assert "abnormal samples 10.0 → 80.0 %" in longer.verdict()


def test_curves_are_those_of_the_training_samples_under_the_attack_asked_for(tmp_path):
    rows = [
        energy_row(1, 10, 0.1),
        energy_row(1, 10, 0.2, attack="pgd"),
        energy_row(1, 10, 0.3, split="validation"),
    ]
    make_run(tmp_path / "run", rows)
    run = read_run(tmp_path / "run")
    assert run.energy_curve("abnormal_fraction")[1].tolist() == [0.1]
    assert run.energy_curve("abnormal_fraction", "pgd")[1].tolist() == [0.2]


def test_a_collapse_is_told_with_the_energies_of_the_samples_and_without_them_of_the_metrics(
    tmp_path,
):
    shares = (0.0, 0.0, 0.1, 0.8)
    for name, recorded, seen, source in (
        ("older", (), "1.0 → 1.0 %", "metrics.csv"),
        ("watched", (1, 2, 3, 4), "10.0 → 80.0 %", "energies.csv (fixed samples)"),
        ("spaced", (2, 4), "1.0 → 1.0 %", "energies.csv (fixed samples), which lacks epochs"),
    ):
        make_run(tmp_path / name, [energy_row(n, 10 * n, shares[n - 1]) for n in recorded])
        run = read_run(tmp_path / name)
        assert run.verdict().startswith(
            "CO in epoch 4: since epoch 3 robust validation accuracy 40.0 → 2.0 %, "
            "under the training attack 40.0 → 70.0 %, "
            f"abnormal samples {seen}, mean dE(x)"
        )
        (told,) = dict(dict(table([run]))["training"])["energies from"]
        assert told.startswith(source)
        assert ("metrics.csv" in told) == (name != "watched")


def test_the_best_epoch_is_the_first_of_the_highest_robust_accuracy(tmp_path):
    make_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    again = dataclasses.replace(run, metrics=[*run.metrics, {**run.metrics[2], "epoch": 5}])
    assert run.epochs[run.best] == again.epochs[again.best] == 3


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"received .*nothing: there is no such folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_run(tmp_path)
    run = make_run(tmp_path / "run")
    run.metrics.unlink()
    with pytest.raises(ValueError, match="has no finished epoch yet"):
        read_run(run.path)
    record = json.loads(run.config.read_text())
    del record["class_names"]
    write_text(run.config, json.dumps(record))
    with pytest.raises(ValueError, match=r"config\.json names no classes"):
        read_run(run.path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("metrics.csv", "epoch,val_robust_accuracy\n1,0.", "its last line is cut off"),
        ("metrics.csv", "epoch,robust_accuracy\n1,0.5\n", "no column abnormal_fraction"),
        ("energies.csv", "epoch,step\n1,10\n2\n", "line 3"),
        ("energies.csv", "epoch,step\n1,10\n", "no column split"),
        ("evaluation.json", '{"images": 3, "natural": {}}', "no 'attacks'"),
        ("evaluation.json", "[]", "list indices"),
        (
            "evaluation.json",
            '{"images": 3, "natural": {"interval": [0]}, "attacks": {}}',
            "not enough values",
        ),
        ("evaluation.json", '{"images": 3, "natural": [], "attacks": {}}', "list indices"),
        ("evaluation.json", '{"images": 3, "natural": {}, "attacks": []}', "not a mapping"),
    ],
)
def test_a_damaged_file_is_named(file, content, words, tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / file).write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(run.path / file))} cannot.*{words}"):
        read_run(run.path)


@pytest.mark.parametrize(
    ("names", "end", "words"),
    [
        (SAMPLES, -100, "not a zip file"),
        (SAMPLES, 0, "No data left"),
        (SAMPLES[:2], None, "train_training_abnormal"),
    ],
)
def test_a_damaged_file_of_samples_is_named(names, end, words, tmp_path):
    run = make_run(tmp_path / "run")
    run.energies.mkdir()
    path = run.energies / "epoch-0002.npz"
    np.savez(path, **{name: np.zeros(3) for name in SAMPLES})
    assert list(read_run(run.path).samples) == [2]
    np.savez(path, **{name: np.zeros(3) for name in names})
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=rf"epoch-0002\.npz is no whole file.*{words}"):
        read_run(run.path)


def images_of(dataset):
    return {image.tobytes() for images, _ in dataset.as_numpy_iterator() for image in images}


@pytest.mark.parametrize(
    ("sizes", "count"), [([None], 143), ([20], 20), ([None, 20], 20), ([20, 50], 20)]
)
def test_validation_images_are_those_of_every_run(sizes, count, tmp_path):
    paths = [
        make_run(tmp_path / str(size), validation_size=size, limit_train=300, seed=seed).path
        for seed, size in enumerate(sizes)
    ]
    runs = read_runs(paths)
    split = shared_split(runs)
    assert split.validation_size == count
    for run in runs:
        trained_with = load_data(run.config)
        assert images_of(split.validation) <= images_of(trained_with.validation)
        assert not images_of(split.validation) & images_of(trained_with.train)


def test_runs_side_by_side_are_few_different_and_of_one_data_set(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    paths = [run.path for run in runs]
    assert [run.name for run in read_runs(paths)] == ["a", "b"]
    with pytest.raises(ValueError, match="each run once"):
        read_runs([*paths, tmp_path / "b" / ".." / "a"])
    with pytest.raises(ValueError, match="up to 7 runs; received 8"):
        read_runs(4 * paths)
    other = make_run(tmp_path / "c", dataset="cifar10")
    with pytest.raises(ValueError, match=r"received .*a \(digits\) and .*c \(cifar10\)"):
        read_runs([paths[0], other.path])
    record = json.loads(runs[1].config.read_text())
    record["configuration"]["image_size"] = 16
    write_text(runs[1].config, json.dumps(record))
    with pytest.raises(ValueError, match="digits of 16 pixels"):
        read_runs(paths)


def test_the_table_tells_what_a_run_reads_of_der(tmp_path):
    options = {"der_warmup_epochs": 4.0, "der_weight": 100.0}
    with_der = read_run(make_run(tmp_path / "with", **options).path)
    without = read_run(make_run(tmp_path / "without", der_weight=0.0).path)
    told = dict(dict(table([with_der, without]))["configuration"])
    assert told["der weight"] == ["100.0", "0.0"]
    assert told["der warmup epochs"] == ["4.0", ""]
    assert told["der penalty"] == ["hinge", ""]
    assert "der penalty" not in dict(dict(table([without]))["configuration"])


def test_runs_of_one_name_are_called_by_their_paths(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(make_run(tmp_path / folder / "run").path)
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]
