"""A run stopped at any moment and started again ends with the same weights, bit for bit."""

import random
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.cli.small_runs import start

EPOCHS = "--epochs=3"


def final_state(run):
    """Every variable of the last checkpoint: weights, optimizer, averages, position, best."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run / "checkpoints")))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name)
        for name in names
        if "VARIABLE_VALUE" in name and "save_counter" not in name
    }


def assert_same_end(run, reference):
    ours, theirs = final_state(run), final_state(reference)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 40
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    accuracies = [(r / "metrics.csv").read_text().splitlines() for r in (run, reference)]
    # All columns but the times, which are the last two.
    first, second = ([line.rsplit(",", 2)[0] for line in lines] for lines in accuracies)
    assert first == second
    for name in ("energies.csv", "energies/epoch-0003.npz"):
        assert (run / name).read_bytes() == (reference / name).read_bytes()


def finish(run, *options):
    process = start(run, EPOCHS, *options)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return out


def stop_when(process, is_time, signal_number):
    """Signal the process at the moment that is_time() becomes true; False if it never did."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if is_time():
            process.send_signal(signal_number)
            return True
        time.sleep(0.0005)
    return False


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run = tmp_path_factory.mktemp("reference") / "run"
    finish(run)
    return run


def test_killed_while_writing_a_checkpoint(reference, tmp_path):
    run = tmp_path / "run"
    process = start(run, EPOCHS)

    def is_writing():
        # Not the first one: there is a whole one to fall back to.
        return (run / "checkpoints" / "checkpoint").exists() and any(
            (run / "checkpoints").glob("state-*_temp")
        )

    assert stop_when(process, is_writing, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "going on after epoch" in finish(run)
    assert_same_end(run, reference)


def test_sigterm_saves_within_the_epoch_and_says_how_to_go_on(reference, tmp_path):
    run = tmp_path / "run"
    process = start(run, EPOCHS)
    has_trained = (run / "checkpoints" / "checkpoint").exists
    assert stop_when(process, has_trained, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert err.count("\n") == 1
    assert "stopped by SIGTERM: the state after epoch" in err
    assert f"train --run-dir {run} --checkpoint-minutes=1e-09 --no-export" in err
    finish(run)
    assert_same_end(run, reference)


def test_an_epoch_of_whole_executions_is_gone_on_with(tmp_path):
    """Executions of 2 steps in epochs of 3 batches: the second epoch begins with the second."""
    executions = "--steps-per-execution=2"
    finish(tmp_path / "whole", executions)
    run = tmp_path / "run"
    process = start(run, EPOCHS, executions)
    assert stop_when(process, (run / "metrics.csv").exists, signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143
    assert len((run / "metrics.csv").read_text().splitlines()) < 4
    finish(run, executions)
    assert_same_end(run, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_with_averaged_weights(seed, tmp_path):
    finish(tmp_path / "whole", "--ema=0.9")
    run, draw, stops = tmp_path / "run", random.Random(seed), 0
    while stops < 5:
        process = start(run, EPOCHS, "--ema=0.9")
        # From the first import to the last evaluation.
        time.sleep(draw.uniform(0.5, 12))
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
        process.communicate()
        stops += 1
        if process.returncode == 0:
            break
    finish(run, "--ema=0.9")
    assert_same_end(run, tmp_path / "whole")
