"""metrics.csv, TensorBoard and progress lines, and the run directory that holds them."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks, energy
from der_tf.training.figures import training_curves
from der_tf.training.monitors import EnergyMonitor
from der_tf.training.recipes import resolve
from der_tf.training.records import MetricsFile, ProgressLines, TensorBoard, read_metrics
from der_tf.training.run_directory import RunDirectory, configure


def test_rows_of_a_killed_process_are_written_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path, epoch=0)
    for epoch in range(3):
        first.on_epoch_end(epoch, {"loss": epoch + 0.5, "val_loss": 1.0})
    assert [row["epoch"] for row in read_metrics(path)] == [1, 2, 3]
    # The state of epoch 3 was not saved any more: the run goes on after epoch 2.
    second = MetricsFile(path, epoch=2)
    second.on_epoch_end(2, {"loss": 9.0, "val_loss": 1.0})
    assert path.read_text().splitlines()[0] == "epoch,loss,val_loss"
    assert [row["loss"] for row in read_metrics(path)] == [0.5, 1.5, 9.0]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "last line is cut off"),
        ("epoch,loss\n1,0.5\n2", "last line is cut off"),
        ("epoch,loss\n1,0.5\n2,0.2", "last line is cut off"),  # of 0.25
        ("epoch,loss\n1,0.5\n2\n", "line 3 has more or fewer cells"),
        ("epoch,loss\n1,0.5,7\n", "line 2 has more or fewer cells"),
        ("epoch,loss\n1,half\n", "'half'"),
        ("epoch,loss\n1.5,0.5\n", "'1.5'"),
    ],
)
def test_a_damaged_table_is_named(content, words, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"metrics\.csv cannot be read: .*{words}"):
        read_metrics(path)


def test_tensorboard_gets_scalars_and_the_delta_energies_of_the_sample(tmp_path):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    attack = attacks.get("fgsm", epsilon=0.1)
    model = RobustClassifier(network, attack=attack, evaluation_attack=attack)
    model.compile(keras.optimizers.SGD())
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(6, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 6)
    monitor = EnergyMonitor(tmp_path / "run", (images[:2], labels[:2]), (images, labels))
    board = TensorBoard(tmp_path, monitor)
    callbacks = keras.callbacks.CallbackList([monitor, board], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_end(4, {"loss": 1.5, "val_loss": 2.5, "learning_rate": 0.1})

    found = {}
    for path in tmp_path.glob("*/events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[path.parent.name, value.tag] = (event.step, tf.make_ndarray(value.tensor))
    assert found["train", "loss"] == (5, 1.5)
    assert found["validation", "loss"] == (5, 2.5)
    assert found["train", "learning_rate"][1] == pytest.approx(0.1)
    step, buckets = found["validation", "delta_marginal_energies"]
    deltas = energy.delta_energy(network(images), network(attack(network, images, labels)))
    assert step == 5
    assert buckets[:, 2].sum() == len(images)
    assert buckets[0, 0] == pytest.approx(float(tf.reduce_min(deltas)))
    assert buckets[-1, 1] == pytest.approx(float(tf.reduce_max(deltas)))


def test_progress_without_a_terminal_is_lines():
    lines = []
    progress = ProgressLines(epochs=3, seconds=0, write=lines.append)
    progress.set_params({"steps": 5})
    progress.on_epoch_begin(1)
    progress.on_train_batch_end(1, {"loss": 2.0, "robust_accuracy": 0.25})
    progress.on_test_batch_end(0)
    logs = {"loss": 1.0, "clean_accuracy": 0.5, "robust_accuracy": 0.25, "val_loss": 1.5}
    progress.on_epoch_end(1, {**logs, "seconds": 2.0, "images_per_second": 100.0})
    assert lines[0] == "epoch 2/3: batch 2 of 5, loss 2.000, robust 25.0 %"
    assert lines[1] == "epoch 2/3: validating, batch 1"
    assert lines[2].startswith("epoch 2/3: loss 1.000, clean 50.0 %, robust 25.0 % | validation")


def test_the_figure_is_a_picture(tmp_path):
    names = ("clean_accuracy", "robust_accuracy", "delta_marginal_energy", "delta_joint_energy")
    row = {prefix + name: 0.5 for prefix in ("", "val_") for name in names}
    path = tmp_path / "figures" / "training.png"
    training_curves([{"epoch": 1, **row}, {"epoch": 2, **row}], path)
    image = tf.io.decode_png(path.read_bytes())
    assert image.shape[0] > 300
    assert len(np.unique(image)) > 10


def test_a_run_is_gone_on_with_only_by_options_that_agree(tmp_path):
    directory = RunDirectory(tmp_path)
    config = resolve({"epochs": 5, "epsilon": 0.2})
    directory.write_record(config, ["train"], ["0", "1"])
    assert configure({"epochs": None}, directory) == config
    assert configure({"epochs": 5, "epsilon": 0.2}, directory) == config
    with pytest.raises(ValueError, match=r"holds a run with --epochs 5, received --epochs 6"):
        configure({"epochs": 6}, directory)


def test_only_the_place_of_the_data_may_change(tmp_path):
    directory = RunDirectory(tmp_path)
    config = resolve({"dataset": "cifar10", "data_dir": "/old"})
    directory.write_record(config, ["train"], ["0", "1"])
    moved = configure({"dataset": None, "data_dir": "/new"}, directory)
    assert moved == dataclasses.replace(config, data_dir="/new")
    assert configure({"dataset": None, "data_dir": None}, directory) == config
    # A folder is the data set.
    directory.write_record(resolve({"dataset": "folder", "data_dir": "/old"}), ["train"], ["0"])
    with pytest.raises(ValueError, match="a run with --data-dir /old, received --data-dir /new"):
        configure({"data_dir": "/new"}, directory)


def test_config_json_names_what_is_needed_to_repeat(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write_record(resolve({"seed": 3}), ["train", "--seed", "3"], ["a"])
    record = json.loads(directory.config.read_text())
    assert record["arguments"] == ["train", "--seed", "3"]
    assert record["seed"] == record["configuration"]["seed"] == 3
    assert record["versions"]["tensorflow"] == tf.__version__
    assert "git_commit" in record


def test_a_damaged_config_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        configure({}, RunDirectory(tmp_path))


def test_states_without_a_config_json_are_not_gone_on_from_but_set_aside(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.checkpoints.mkdir(parents=True)
    assert configure({}, directory) == resolve({})
    (directory.checkpoints / "checkpoint").write_text("")
    with pytest.raises(ValueError, match=r"holds states of a run, but .*config\.json.* is missing"):
        configure({}, directory)
    old = directory.set_aside()
    assert (old / "checkpoints" / "checkpoint").exists()
    assert configure({}, directory) == resolve({})


def test_a_directory_in_use_is_refused_and_an_empty_one_goes_away(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.held():
        (directory.path / ".partial-best.keras").write_text("left by a killed process")
        with pytest.raises(ValueError, match="another process is training"), directory.held():
            pass
        directory.write_record(resolve({}), [], [])
    assert directory.config.exists()
    with directory.held():
        assert [path.name for path in directory.path.iterdir()] == ["config.json"]
    other = RunDirectory(tmp_path / "other")
    with other.held():
        assert other.path.exists()
    assert not other.path.exists()


def test_a_run_is_set_aside_whole_by_who_holds_it(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert directory.set_aside() is None
    with directory.held():
        directory.write_record(resolve({}), [], [])
        old = directory.set_aside()
        assert not directory.path.exists()
        assert (old / "config.json").exists()
        with directory.held(), pytest.raises(ValueError, match="another process"), directory.held():
            pass
