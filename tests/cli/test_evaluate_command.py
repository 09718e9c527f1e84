"""der-tf evaluate as a user runs it: reports, refusals, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from sklearn.datasets import load_digits

from der_tf import data, models
from der_tf.cli import main
from der_tf.evaluation import parts
from der_tf.evaluation.inputs import drawn
from tests.cli.small_runs import ENVIRONMENT


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Weights as drawn: what is measured is the command, not a classifier."""
    path = tmp_path_factory.mktemp("network") / "network.keras"
    models.convnet((8, 8, 1), 10, width=4).save(path)
    return path


def arguments(network, out, *options):
    return ["evaluate", str(network), "--dataset=digits", f"--out={out}", *options]


def report(out):
    return json.loads(out.with_name(f"{out.name}.json").read_text())


def same(ours, theirs):
    """The samples of two reports, written as .npz beside them."""
    first, second = (np.load(out.with_name(f"{out.name}.npz")) for out in (ours, theirs))
    assert set(first.files) == set(second.files)
    return all(np.array_equal(first[name], second[name]) for name in first.files)


FEW = ["--attacks=fgsm,pgd", "--steps=2", "--num-examples=60", "--batch-size=4", "--epsilon=0.1"]


@pytest.fixture(scope="module")
def few(network, tmp_path_factory):
    """A report on 60 images, measured without interruption."""
    out = tmp_path_factory.mktemp("few") / "report"
    assert main(arguments(network, out, *FEW)) == 0
    return out


def test_a_report_on_part_of_the_images_says_so_loudly(few, capsys):
    found = report(few)
    assert (found["schema"], found["suite"], found["images"], found["of"]) == (2, None, 60, 359)
    assert found["threat_model"] == {"norm": "linf", "epsilon": 0.1}
    card = few.with_name("report.md").read_text()
    assert "ONLY 60 OF 359 test images of digits" in card.splitlines()[0]
    assert "**Only 60 of 359 test images** were attacked" in card
    for line in ("| pgd-2 (linf 0.1) |", "| versions | python 3", "| commit |", "| machine |"):
        assert line in card
    assert found["versions"]["keras"] in card
    assert not few.with_name("report.state").exists()


def test_samples_beside_the_report_give_its_numbers(few):
    found, samples = report(few), np.load(few.with_name("report.npz"))
    images = data.load("digits").test.unbatch().as_numpy_iterator()
    labels = np.array([label for _, label in images])
    assert found["samples"] == "report.npz"
    np.testing.assert_array_equal(samples["labels"], labels[drawn(359, 60, seed=0)])
    for name, result in found["attacks"].items():
        assert result["correct"] == np.count_nonzero(~samples[f"{name}/success"])
        assert samples[f"{name}/linf_distance"].max() <= 0.1
    wrong = ~samples["natural/correct"] | samples["fgsm/success"] | samples["pgd/success"]
    assert found["worst_case"]["correct"] == np.count_nonzero(~wrong)


def test_a_suite_brings_checks_and_figures(network, tmp_path, capsys):
    out = tmp_path / "quick"
    options = ["--suite=quick", "--num-examples=12", "--batch-size=12"]
    assert main(arguments(network, out, *options)) == 0
    found, card = report(out), (tmp_path / "quick.md").read_text()
    assert found["suite"] == "quick"
    assert list(found["attacks"]) == ["fgsm", "pgd"]
    assert len(found["sanity"]) == 4
    assert found["sanity"][3]["passed"] is True
    assert found["curves"]["images"] == 12
    assert len(found["figures"]) == 3
    printed = capsys.readouterr().out
    for check in found["sanity"]:
        assert check["measured"] in card
        assert f": {check['check']}" in printed
    for path in found["figures"]:
        assert (tmp_path / path).stat().st_size > 1000
        assert f"]({path})" in card


def test_sigkill_loses_no_part_and_the_same_command_goes_on(network, few, tmp_path, capsys):
    out = tmp_path / "report"
    program = [sys.executable, "-c", "import sys; from der_tf.cli import main; sys.exit(main())"]
    process = subprocess.Popen([*program, *arguments(network, out, *FEW)], env=ENVIRONMENT)
    state = tmp_path / "report.state"
    while process.poll() is None and len(list(state.rglob("attack-1-*.npz"))) < 3:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    parts = list(state.rglob("attack-*.npz"))
    written = {path: path.stat().st_mtime_ns for path in parts}
    assert not out.with_name("report.json").exists()
    other = [*FEW[:-1], "--epsilon=0.2"]
    assert main(arguments(network, out, *other)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds an unfinished evaluation of attacks" in error
    assert {path: path.stat().st_mtime_ns for path in parts} == written
    assert main(arguments(network, out, *FEW)) == 0
    assert same(out, few)
    assert not state.exists()


def test_sigterm_says_that_the_same_command_goes_on(network, few, tmp_path, capsys):
    out = tmp_path / "report"
    state = tmp_path / "report.state"

    def stop():
        while not list(state.rglob("attack-1-*.npz")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    assert main(arguments(network, out, *FEW)) == 143
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"stopped by SIGTERM: what is measured is kept in {state}" in error
    assert main(arguments(network, out, *FEW)) == 0
    assert same(out, few)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite=quick", "--attacks=fgsm"], ["--suite quick", "--attacks fgsm"]),
        (["--suite=quick", "--steps=3"], ["--suite quick", "--steps 3"]),
        (["--suite=quick", "--restarts=3"], ["--suite quick", "--restarts 3"]),
        (["--suite=all"], ["all", "quick", "standard", "full"]),
        (["--attacks=,"], ["--attacks takes names among", "received none"]),
        (["--attacks=fgsm,fgsm"], ["each attack once", "fgsm,fgsm"]),
        (["--attacks=fgsm", "--steps=3"], ["--steps 3", "fgsm"]),
        (["--suite=quick", "--denoiser=d.keras"], ["denoiser belongs to the suite full", "quick"]),
        (["--attacks=fgsm", "--denoiser=d.keras"], ["--denoiser d.keras", "fgsm"]),
        (["--attacks=diff_pgd"], ["denoiser is the path of a .keras file"]),
        (["--suite=full", "--denoiser=d.keras"], ["d.keras"]),
        (["--epsilon=8"], ["pixels of [0, 1]", "received 8", "8/255"]),
        (["--epsilon=-1"], ["--epsilon", "-1"]),
        (["--num-examples=360"], ["359 test images", "360"]),
        (["--num-examples=0"], ["--num-examples", ">= 1"]),
    ],
)
def test_unusable_arguments_are_one_line_and_status_2(options, words, network, tmp_path, capsys):
    assert main(arguments(network, tmp_path / "report", *options)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [".", "..", "/", ""])
def test_a_place_without_a_name_is_refused(out, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(network, out)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--out is a file without ending; received" in error
    assert not list(tmp_path.iterdir())


def test_another_evaluation_in_the_default_place_is_left_alone(
    network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    quick = ["evaluate", str(network), "--dataset=digits", "--attacks=fgsm,pgd", "--steps=2"]
    quick += ["--num-examples=20", "--batch-size=20"]
    assert main([*quick, "--epsilon=0.1"]) == 0
    (report,) = (tmp_path / "runs" / "evaluations").glob("*.json")
    first = report.read_bytes()
    (tmp_path / "other").mkdir()
    other = str(shutil.copy(network, tmp_path / "other" / network.name))
    capsys.readouterr()
    for command, words in (
        ([*quick, "--epsilon=0.2"], ["epsilon of fgsm 0.1; received 0.2"]),
        ([*quick, "--epsilon=0.1", "--seed=1"], ["seed 0; received 1"]),
        ([*quick[:-1], "--batch-size=10", "--epsilon=0.1"], ["batch_size 20; received 10"]),
        ([*quick[:4], "--steps=3", *quick[5:], "--epsilon=0.1"], ["steps of pgd 2; received 3"]),
        ([quick[0], other, *quick[2:], "--epsilon=0.1"], ["model", str(network), other]),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in [*words, "name another place with --out"]:
            assert word in error
        assert report.read_bytes() == first
    assert main([*quick, "--epsilon=0.1"]) == 0
    defended = [*quick, "--epsilon=0.1", "--defend"]
    for steps, status in ((1, 0), (2, 2), (1, 0)):
        assert main([*defended, f"--defense-steps={steps}"]) == status
    for foreign in ("[]", '{"attacks": [], "model": 3}', '{"attacks": {"fgsm": 3}}', "{"):
        report.write_text(foreign)
        assert main([*quick, "--epsilon=0.1"]) == 0
        assert json.loads(report.read_bytes())["images"] == 20


def test_another_process_in_the_same_place_is_refused(network, tmp_path, capsys):
    out = tmp_path / "report"
    with parts.held(tmp_path / "report.state"):
        assert main(arguments(network, out, *FEW)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "another process is measuring" in error
    assert not list(tmp_path.iterdir())


def test_attacks_by_name_count_in_the_ball_alone(network, tmp_path):
    """N-FGSM goes three times as far as the others."""
    out = tmp_path / "report"
    options = ["--attacks=mim,rs_fgsm,n_fgsm", "--restarts=2", "--steps=2", "--num-examples=60"]
    assert main(arguments(network, out, *options, "--epsilon=0.1")) == 0
    samples = np.load(tmp_path / "report.npz")
    outside = samples["n_fgsm/linf_distance"] > 0.1
    assert outside.all()
    assert not samples["n_fgsm/success"][outside & samples["natural/correct"]].any()
    assert samples["n_fgsm/success"][~samples["natural/correct"]].all()
    found = report(out)
    assert "n_fgsm may end as far as 0.3 from the image" in found["notes"][0]
    restarts = [found["attacks"][name]["config"]["restarts"] for name in ("mim", "rs_fgsm")]
    assert restarts == [1, 2]


def test_the_attack_that_has_no_radius_counts_in_the_ball(network, tmp_path):
    out = tmp_path / "report"
    options = ["--attacks=cw", "--steps=20", "--num-examples=20", "--epsilon=0.001"]
    assert main(arguments(network, out, *options)) == 0
    samples = np.load(tmp_path / "report.npz")
    outside = samples["cw/linf_distance"] > 0.001
    assert outside.any()
    np.testing.assert_array_equal(
        samples["cw/success"][outside], ~samples["natural/correct"][outside]
    )


def test_models_that_others_saved_are_measured(tmp_path):
    """Of images of any size, and SavedModels whose signature calls its output by another name."""
    import keras
    import tensorflow as tf

    images = keras.Input((None, None, 1))
    features = keras.layers.Conv2D(10, 3, strides=2)(images)
    network = keras.Model(images, keras.layers.GlobalAveragePooling2D()(features))
    network.save(tmp_path / "network.keras")
    network.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(network, str(tmp_path / "saved"))
    for name in ("network.keras", "exported", "saved"):
        assert main(arguments(tmp_path / name, tmp_path / f"report-{name}", *FEW)) == 0
    first, *others = (np.load(path) for path in sorted(tmp_path.glob("report-*.npz")))
    assert len(others) == 2
    for other in others:
        for name in ("natural/correct", "pgd/success", "pgd/linf_distance"):
            np.testing.assert_allclose(other[name], first[name], atol=1e-6)


def test_probabilities_are_a_warning_of_the_report(tmp_path, capsys):
    import keras

    network = models.convnet((8, 8, 1), 10, width=4)
    path = tmp_path / "softmax.keras"
    keras.Model(network.inputs, keras.ops.softmax(network.outputs[0])).save(path)
    options = ["--attacks=fgsm", "--num-examples=20"]
    assert main(arguments(path, tmp_path / "report", *options)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "Warning: the model seems to return probabilities" in captured.out
    (text,) = report(tmp_path / "report")["warnings"]
    assert text in (tmp_path / "report.md").read_text()


def test_an_image_folder_with_a_label_too_many_is_refused(tmp_path, capsys):
    """Ten classes of digits for a network of three."""
    path = tmp_path / "three.keras"
    models.convnet((8, 8, 1), 3, width=4).save(path)
    assert main(arguments(path, tmp_path / "report")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    highest = load_digits().target.max()
    assert "labels are in 0..2, as the model gives 3 logits" in error
    assert f"to {highest}" in error
