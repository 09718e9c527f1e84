"""``der-tf train-denoiser``: what it learns, stopping and going on, refusals."""

import json
import os
import shutil
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import data, diffusion
from der_tf.cli import main
from der_tf.training.denoising import with_noise
from der_tf.training.records import read_metrics

OPTIONS = ["--limit-train=512", "--width=8", "--epochs=6", "--learning-rate=0.01"]


def train(run_dir, *options):
    return main(["train-denoiser", *OPTIONS, "--run-dir", str(run_dir), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("denoiser") / "run"
    assert train(run) == 0
    return run


def test_it_beats_the_predictor_of_nothing(finished):
    digits = data.load("digits", batch_size=64)
    (noisy, levels), noise = next(iter(with_noise(digits.test, 0)))
    denoiser = diffusion.load_denoiser(finished / "denoiser.keras")
    predicted = diffusion.as_function(denoiser)(noisy, levels)
    assert np.mean(np.square(noise)) == pytest.approx(1, abs=0.05)
    assert np.mean(np.square(noise - predicted)) < 0.7
    losses = [row["val_loss"] for row in read_metrics(finished / "metrics.csv")]
    assert len(losses) == 6
    assert losses[-1] < min(0.7, losses[0])


def test_batches_have_noise_of_their_own_that_comes_again():
    batches = tf.data.Dataset.from_tensors((tf.fill([500, 2, 2, 1], 0.5), tf.zeros([500])))
    (first, levels), noise = next(iter(with_noise(batches, seed=3)))
    assert (levels.numpy().min(), levels.numpy().max()) < (20, diffusion.LEVELS + 1)
    assert levels.numpy().min() >= 1
    assert np.mean(levels) == pytest.approx(500, abs=40)
    deviation = np.sqrt(1 - diffusion.cosine_schedule()[levels.numpy()])
    np.testing.assert_allclose(first, deviation[:, None, None, None] * noise, atol=1e-6)
    (again, _), _ = next(iter(with_noise(batches, seed=3)))
    np.testing.assert_array_equal(first, again)
    for other in (with_noise(batches, seed=4), with_noise(batches, seed=3, first=1)):
        assert np.abs(next(iter(other))[1] - noise).max() > 0.1


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(finished, tmp_path, capsys):
    run = tmp_path / "run"

    def stop_after_an_epoch():
        while not (run / "metrics.csv").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    # Should the signal come after the end, it must not end the tests.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        stopper = threading.Thread(target=stop_after_an_epoch, daemon=True)
        stopper.start()
        assert train(run) == 143
        stopper.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the state after epoch" in err
    assert "train-denoiser --run-dir" in err
    assert len(read_metrics(run / "metrics.csv")) < 6

    assert main(["train-denoiser", "--run-dir", str(run)]) == 0
    assert [row["epoch"] for row in read_metrics(run / "metrics.csv")] == [1, 2, 3, 4, 5, 6]
    ours, theirs = (
        keras.models.load_model(r / "denoiser.keras").get_weights() for r in (run, finished)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_refusals_are_one_line_and_status_2(finished, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"configuration": {"attack": "pgd"}}))
    states = tmp_path / "states"
    (states / "checkpoints").mkdir(parents=True)
    (states / "checkpoints" / "checkpoint").touch()
    for options, words in (
        ([str(states)], "config.json, which says of what run, is missing"),
        ([str(finished), "--width=16"], "--width 8, received --width 16"),
        ([str(other)], "holds a run of another command"),
        ([str(tmp_path / "new"), "--width=0"], "--width"),
        ([str(tmp_path / "new"), "--dataset=no_such"], "no_such"),
    ):
        capsys.readouterr()
        assert main(["train-denoiser", "--run-dir", *options]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert words in err
    assert not (tmp_path / "new").exists()


def test_no_resume_sets_a_run_aside_once_nothing_is_refused(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    begin = ["train-denoiser", "--run-dir", str(run), "--no-resume", "--epochs=1", "--width=8"]
    assert main([*begin, "--limit-train=99999"]) == 2
    assert "limit_train" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert main([*begin, "--limit-train=64"]) == 0
    (old,) = tmp_path.glob("run-before-*")
    assert len(read_metrics(old / "metrics.csv")) == 6
    assert len(read_metrics(run / "metrics.csv")) == 1


def test_a_finished_run_is_left_alone(finished, capsys):
    written = (finished / "denoiser.keras").stat().st_mtime_ns
    assert train(finished) == 0
    assert "nothing is trained again" in capsys.readouterr().out
    assert (finished / "denoiser.keras").stat().st_mtime_ns == written
