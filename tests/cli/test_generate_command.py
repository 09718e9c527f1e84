"""``der-tf generate`` on digits with a tiny network: files, repeatability, going on, scores."""

import csv
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from der_tf import models
from der_tf.cli import main
from der_tf.export import export

FAST = ["--dataset", "digits", "--limit-train", "200", "--steps", "4", "--step-size", "0.1"]
MOVING = [*FAST, "--noise", "0.2", "--quantile", "0"]  # chains that are seen to move


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    models.convnet((8, 8, 1), 10, width=4).save(path)
    return str(path)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    """A SavedModel images -> features, logits."""
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32, "images")])
    def run(images):
        pooled = tf.reshape(tf.nn.avg_pool2d(images, 4, 4, "SAME"), [-1, 4])
        return {"features": pooled, "logits": 5.0 * pooled}

    path = tmp_path_factory.mktemp("extractors") / "pooled"
    tf.saved_model.save(module, str(path), signatures=run)
    return str(path)


def rows_of(folder):
    with open(folder / "samples.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_is_written_and_a_stopped_command_goes_on(model, extractor, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    scored = ["--metrics", "--extractor", extractor, "--animate", "--batch-size", "7"]
    assert main(["generate", model, *MOVING, "--num", "3", "--out", str(first), *scored]) == 0
    assert "30 of 30 images" in capsys.readouterr().out
    rows = rows_of(first)
    assert [int(row["label"]) for row in rows] == np.repeat(np.arange(10), 3).tolist()
    assert all(0 <= int(row["steps_taken"]) <= 4 for row in rows)
    with Image.open(first / rows[4]["file"]) as picture:
        assert (picture.mode, picture.size) == ("L", (8, 8))
    report = json.loads((first / "metrics.json").read_text())
    assert (report["extractor"], report["num_samples"]) == ("pooled", 30)
    assert set(report["scores"]) == {"IS", "FID", "KID", "precision", "recall"}
    assert 0 <= report["classifier_agreement"] <= 1
    with Image.open(first / "chains.gif") as animation:
        assert 1 < animation.n_frames <= 5
    assert {p.name for p in first.iterdir()} == {
        "chains.gif",
        "config.json",
        "energies.png",
        "grid.png",
        "images",
        "metrics.json",
        "samples.csv",
        "starts.npz",
    }

    # In pieces: fewer first, then killed in the middle of a line, then another batch size.
    assert main(["generate", model, *MOVING, "--num", "2", "--out", str(second)]) == 0
    text = (second / "samples.csv").read_text()
    (second / "samples.csv").write_text(text[:-7])
    capsys.readouterr()
    assert main(["generate", model, *MOVING, "--num", "3", "--out", str(second)]) == 0
    assert "19 of 30 images are there" in capsys.readouterr().out
    files = sorted(row["file"] for row in rows)
    assert sorted(row["file"] for row in rows_of(second)) == files
    for file in files:
        with Image.open(first / file) as one, Image.open(second / file) as other:
            difference = np.asarray(one, int) - np.asarray(other, int)
        assert np.abs(difference).max() <= 1  # a level of 255, where rounding tips over

    # Other samples do not mix with these.
    other = ["--num", "3", "--steps", "5", "--out", str(second)]
    assert main(["generate", model, *MOVING[:4], *other]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_collection_knows_its_model_by_what_it_is_not_by_its_path(tmp_path, capsys, monkeypatch):
    """The path stays when a run goes on; and one model is given by several paths."""
    monkeypatch.chdir(tmp_path)
    few = [*FAST, "--classes", "3", "--out", "samples", "--num"]
    models.convnet((8, 8, 1), 10, width=4).save("tiny.keras")
    assert main(["generate", "tiny.keras", *few, "1"]) == 0
    assert main(["generate", str(tmp_path / "tiny.keras"), *few, "2"]) == 0
    shutil.copy("tiny.keras", "moved.keras")
    assert main(["generate", "moved.keras", *few, "3"]) == 0
    assert "2 of 3 images are there" in capsys.readouterr().out

    models.convnet((8, 8, 1), 10, width=4).save("tiny.keras")  # the same but for its weights
    assert main(["generate", "tiny.keras", *few, "4"]) == 2
    error = capsys.readouterr().err
    assert "samples holds samples of the model tiny.keras (digest " in error
    assert error.count("\n") == 1
    assert len(rows_of(tmp_path / "samples")) == 3

    # A folder of a command that kept no digest.
    config = tmp_path / "samples" / "config.json"
    settings = json.loads(config.read_text())
    del settings["digest"]
    config.write_text(json.dumps(settings))
    assert main(["generate", "moved.keras", *few, "4"]) == 2
    assert "(digest unknown)" in capsys.readouterr().err


def test_a_collection_of_a_saved_model(tmp_path, capsys):
    """What lies beside graph and variables may change."""
    place = tmp_path / "tiny" / "1"
    command = ["generate", str(place.parent), *FAST, "--classes", "3"]
    command += ["--out", str(tmp_path / "samples"), "--num"]
    export(models.convnet((8, 8, 1), 10, width=4), place.parent)
    assert main([*command, "1"]) == 0
    (place / "assets.extra" / "model_card.json").write_text("{}")
    assert main([*command, "2"]) == 0
    capsys.readouterr()
    shutil.rmtree(place)
    export(models.convnet((8, 8, 1), 10, width=4), place.parent)
    assert main([*command, "3"]) == 2
    assert f"holds samples of the model {place} (digest " in capsys.readouterr().err


def test_bad_arguments_are_one_line(model, tmp_path, capsys):
    colours = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4), keras.layers.ReLU()]
    )
    colours.save(tmp_path / "colours.keras")
    out = ["--out", str(tmp_path / "out")]
    for arguments, sentence in [
        (["--classes", "3,12"], "--classes takes 0..9 or names"),
        (["--classes", "3,3"], "names each class once"),
        (["--neighbors", "200"], "neighbors is less than the images of a class"),
        (["--metrics"], "--metrics and --extractor go together"),
        (["--metrics", "--extractor", "nowhere"], "there is no such file"),
        (
            ["--metrics", "--extractor", str(tmp_path / "colours.keras")],
            "colours takes images of 3 channel(s); received images of 1",
        ),
        (["--quantile", "2"], "quantile is in [0, 1]; received 2"),
    ]:
        assert main(["generate", model, *FAST, *out, *arguments]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert main(["generate", model, *out]) == 2
    assert "give --dataset" in capsys.readouterr().err
