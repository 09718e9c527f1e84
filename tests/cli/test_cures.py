"""The baselines beside DER as options of der-tf train: one epoch with each."""

import json

import keras
import pytest

from der_tf.cli import main
from tests.cli.small_runs import TINY


@pytest.mark.parametrize(
    ("options", "announced"),
    [
        (
            ["--recipe=grad_align", "--swa-start=1", "--early-stopping=1", "--mixed-precision"],
            "GradAlign 0.2",
        ),
        (
            ["--recipe=aaer", "--aaer-full-gradient", "--awp-gamma=0.005", "--swa-start=1"],
            "AAER 1, AWP 0.005",
        ),
    ],
    ids=["grad_align", "aaer_awp"],
)
def test_a_run_of_one_epoch(options, announced, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", *TINY, "--epochs=1", "--no-export", "--run-dir", str(run), *options]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert announced in out
    assert "swa.keras" in out
    report = json.loads((run / "evaluation.json").read_text())
    assert report["swa"]["images"] == report["images"]
    assert report["swa"]["attacks"]["pgd"]["config"] == report["attacks"]["pgd"]["config"]
    # After one epoch the mean is the weights themselves; the batch statistics differ.
    last, swa = (keras.models.load_model(run / name) for name in ("last.keras", "swa.keras"))
    for a, b in zip(last.trainable_variables, swa.trainable_variables, strict=True):
        assert (keras.ops.convert_to_numpy(a) == keras.ops.convert_to_numpy(b)).all()
