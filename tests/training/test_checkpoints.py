"""Checkpoints of a plain Keras model: complete, atomic, and refused where they do not fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf.training.checkpoints import Checkpoints
from der_tf.training.faults import Diverged, RunError
from der_tf.training.optimizers import CoupledSGD


@pytest.fixture
def model():
    return small_model()


def small_model(units=4):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(CoupledSGD(0.1, use_ema=True), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 3)).astype(np.float32), rng.normal(size=(16, 1)).astype(np.float32)


def state(model):
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def test_restores_every_variable_bit_for_bit(model, tmp_path):
    model.train_on_batch(*data())
    saved = state(model)
    checkpoints = Checkpoints(tmp_path, model)
    checkpoints.best = 0.25
    checkpoints.save(3, 7)

    other = small_model()
    restored = Checkpoints(tmp_path, other)
    assert restored.restore()
    assert (restored.epoch, restored.step, restored.best) == (3, 7, 0.25)
    for a, b in zip(saved, state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_restored_model_trains_on_as_the_saved_one_does(model, tmp_path):
    model.train_on_batch(*data())
    Checkpoints(tmp_path, model).save(0, 1)
    other = small_model()
    Checkpoints(tmp_path, other).restore()
    for each in (model, other):  # dropout's random state included
        each.train_on_batch(*data())
        each.train_on_batch(*data())
    for a, b in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_replicas_are_saved_and_go_on_alone(tmp_path, two_replicas):
    with two_replicas().scope():
        mirrored = small_model()
    mirrored.fit(*data(), batch_size=8, verbose=0)
    Checkpoints(tmp_path, mirrored).save(1, 0)
    alone = small_model()
    assert Checkpoints(tmp_path, alone).restore()
    for a, b in zip(mirrored.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_there_is_nothing_to_restore_at_first(model, tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", model)
    assert not checkpoints.restore()
    assert checkpoints.kept == "no state was saved yet"


def test_only_complete_checkpoints_count_and_leftovers_are_removed(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, model)
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, 0)
    # What a process killed while writing its fourth leaves.
    (tmp_path / "state-4_temp").mkdir()
    (tmp_path / "state-4_temp" / "part-00000").write_bytes(b"half")
    (tmp_path / "state-4.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "checkpoint.tmp1234").write_text("half")
    again = Checkpoints(tmp_path, small_model())
    assert again.restore()
    assert again.epoch == 3
    assert {path.stem for path in tmp_path.iterdir()} == {"checkpoint", "state-2", "state-3"}
    again.save(4, 0)
    last = Checkpoints(tmp_path, small_model())
    assert last.restore()
    assert last.epoch == 4


@pytest.mark.parametrize("damaged", ["state-2.index", "state-2.data-00000-of-00001"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damaged, model, tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, model)
    checkpoints.save(1, 0)
    model.train_on_batch(*data())
    checkpoints.save(2, 0)
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 2])
    other = small_model()
    again = Checkpoints(tmp_path, other)
    assert again.restore()
    assert again.kept == "the state after epoch 1 is kept"
    for a, b in zip(state(small_model()), state(other), strict=True):
        np.testing.assert_array_equal(a, b)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Note: {tmp_path}/state-2 cannot be restored (")
    assert "going on from state-1, after epoch 1; what was trained since then is lost" in line
    # The next state takes the place of the damaged one.
    again.save(2, 0)
    last = Checkpoints(tmp_path, small_model())
    assert last.restore()
    assert last.epoch == 2
    assert capsys.readouterr().out == ""


def test_only_damaged_checkpoints_are_an_error_that_names_the_folder(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, model)
    checkpoints.save(1, 0)
    checkpoints.save(2, 0)
    for path in tmp_path.glob("state-*.data-*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=f"no checkpoint in {tmp_path} can be restored: "):
        Checkpoints(tmp_path, small_model()).restore()


@pytest.mark.parametrize(
    "index",
    [
        None,
        b"",
        b"\xff\x00 no index",
        b'model_checkpoint_path: "state-7"\nall_model_checkpoint_paths: "state-7"\n',
    ],
    ids=["missing", "empty", "garbage", "of another folder"],
)
def test_states_that_no_index_names_are_found_and_kept(index, model, tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, model)
    for epoch in range(1, 11):  # the numbers of the last two have 1 and 2 digits
        checkpoints.save(epoch, 0)
    (tmp_path / "checkpoint").unlink()
    if index is not None:
        (tmp_path / "checkpoint").write_bytes(index)
    (tmp_path / "state-11.data-00000-of-00001").write_bytes(b"half")
    there = {path.name for path in tmp_path.iterdir()}
    again = Checkpoints(tmp_path, small_model())
    assert again.restore()
    assert again.kept == "the state after epoch 10 is kept"
    assert {path.name for path in tmp_path.iterdir()} == there
    out = capsys.readouterr().out
    assert f"{tmp_path}/checkpoint names no state: going on from state-10, after epoch 10" in out
    again.save(11, 0)
    last = Checkpoints(tmp_path, small_model())
    assert last.restore()
    assert last.epoch == 11


def test_a_model_of_another_shape_is_refused(model, tmp_path):
    Checkpoints(tmp_path, model).save(1, 0)
    with pytest.raises(RunError, match=r"no checkpoint in .* can be restored"):
        Checkpoints(tmp_path, small_model(units=5)).restore()


def test_weights_that_are_no_numbers_are_not_saved(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, model)
    checkpoints.save(1, 0)
    model.trainable_variables[0].assign(tf.fill([3, 4], np.nan))
    with pytest.raises(
        Diverged, match=r"NaN or infinite by epoch 2, step 5.*after epoch 1 is kept"
    ):
        checkpoints.save(1, 5)
    again = Checkpoints(tmp_path, small_model())
    assert again.restore()
    assert (again.epoch, again.step) == (1, 0)


def test_a_place_that_cannot_be_written_is_one_sentence(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*file/states: .*; no state was saved yet"):
        Checkpoints(tmp_path / "file" / "states", model).save(0, 0)
