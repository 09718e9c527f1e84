"""``python -m serve.client`` against the embedded server."""

import json
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.client import TensorSpec, render
from serve.client.__main__ import app, main
from serve.client.signatures import Metadata, Signature, VersionStatus
from tests.serve.contract_servers import CLASS_NAMES, COMMANDS, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("models"), COMMANDS["embedded"]) as served:
        yield served


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """Runs the command line in an empty folder; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments, model="robust"):
        where = ["--target", server.target, "--model", model]
        status = main([*arguments, *where])
        output = capsys.readouterr()
        return status, output.out, output.err

    return command


@pytest.fixture
def pictures(tmp_path):
    """a.png of the model's size, b.jpg larger, with their pixels as float arrays."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("RGB", (40, 20), (200, 100, 50)).save(tmp_path / "b.jpg")
    return pixels.astype(np.float32) / 255


def test_predict_as_table_and_as_json(run, pictures, server, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES))
    with server.client() as client:
        expected = client.predict(pictures[None])
    name = CLASS_NAMES[expected["classes"][0]]

    status, out, err = run("predict", "a.png", "b.jpg", "--labels", "names.txt")
    assert (status, err) == (0, "")
    row = next(line for line in out.splitlines() if "a.png" in line)
    assert name in row
    assert f"{expected['probabilities'].max():.3f}" in row
    assert f"{expected['marginal_energy'][0]:.3f}" in row
    assert "b.jpg" in out

    status, out, _ = run("predict", "a.png", "b.jpg", "--labels", "names.txt", "--json")
    first, second = json.loads(out)
    assert (first["image"], second["image"]) == ("a.png", "b.jpg")
    assert first["label"] == name
    np.testing.assert_allclose(first["logits"], expected["logits"][0], rtol=1e-5, atol=1e-5)
    assert first["classes"] == expected["classes"][0]


def test_class_names_come_with_the_model_when_it_lies_here(run, pictures, server, tmp_path):
    _, out, _ = run("predict", "a.png", "--json")
    number = json.loads(out)[0]["classes"]
    assert json.loads(out)[0]["label"] == str(number)
    (tmp_path / "saved_models").symlink_to(server.folder)
    _, out, _ = run("predict", "a.png", "--json")
    assert json.loads(out)[0]["label"] == CLASS_NAMES[number]


def test_energy_reads_files_as_the_server_does(run, pictures, server, tmp_path):
    deep = np.random.default_rng(0).integers(0, 1 << 16, (8, 8), np.uint16)  # 16 bits of grey
    Image.fromarray(deep).save(tmp_path / "deep.png")
    names = ("a.png", "b.jpg", "deep.png")
    status, out, _ = run("energy", *names, "--json")
    assert status == 0
    with server.client() as client:
        expected = client.predict_bytes([Path(name).read_bytes() for name in names])
    energies = [record["marginal_energy"] for record in json.loads(out)]
    np.testing.assert_allclose(energies, expected["marginal_energy"], atol=0.02)
    _, out, _ = run("energy", "a.png")
    assert f"{energies[0]:.3f}" in out


def test_a_labels_file_may_begin_with_a_byte_order_mark(run, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(["café", *CLASS_NAMES[1:]]), "utf-8-sig")
    sample = ["sample", "--label", "café", "--count", "1", "--labels", "names.txt"]
    status, out, err = run(*sample, "--json", model="generator")
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"][0]["label"] == "café"


def test_sample_writes_a_grid_with_a_row_a_class(run, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES))
    status, out, err = run(
        *("sample", "--label", "fox", "--label", "1", "--count", "3", "--seed", "4", "--json"),
        *("--labels", "names.txt", "--steps", "7", "--out", "made/grid.png"),
        model="generator",
    )
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert [entry["label"] for entry in answer["samples"]] == ["fox"] * 3 + ["dog"] * 3
    assert [entry["seed"] for entry in answer["samples"]] == [4, 5, 6] * 2
    assert {entry["steps_taken"] for entry in answer["samples"]} == {7}
    grid = np.asarray(Image.open(tmp_path / answer["out"])) / 255
    height, width, _ = grid.shape
    assert width / height == pytest.approx(3 / 2, rel=0.05)
    for row, label in enumerate((3, 1)):  # a sample's pixels are label / 10 + seed / 100
        for column, seed in enumerate((4, 5, 6)):
            centre = grid[(2 * row + 1) * height // 4, (2 * column + 1) * width // 6]
            np.testing.assert_allclose(centre, label / 10 + seed / 100, atol=1 / 255)


def test_defend_writes_the_moved_images(run, pictures, tmp_path):
    status, out, _ = run("defend", "a.png", "--out", "moved", "--json", model="generator")
    assert status == 0
    assert json.loads(out)[0]["out"] == "moved/a.png"
    moved = np.asarray(Image.open(tmp_path / "moved/a.png")) / 255
    np.testing.assert_allclose(moved, 1 - pictures, atol=1 / 255)


def test_status_and_metadata(run):
    status, out, _ = run("status", "--json")
    assert status == 0
    assert json.loads(out) == [
        {"version": 1, "state": "AVAILABLE", "error_code": 0, "error_message": ""}
    ]
    _, out, _ = run("status")
    assert "AVAILABLE" in out
    _, out, _ = run("metadata")
    assert "images: float32 [?, 8, 8, 3]" in out
    _, out, _ = run("metadata", "--json")
    assert json.loads(out)["signatures"]["predict"]["inputs"]["images"]["shape"] == [None, 8, 8, 3]


def test_names_that_look_like_markup_are_shown_as_they_are(capsys):
    name = "[red]x[/nope] :smile:"
    spec = TensorSpec("float32", (None, 3))
    signatures = {name: Signature({name: spec}, {name: spec})}
    answer = {
        "classes": np.array([0]),
        "probabilities": np.ones((1, 1)),
        "marginal_energy": np.zeros(1),
        "joint_energy": np.zeros((1, 1)),
    }
    samples = {"joint_energy": np.zeros(1), "steps_taken": np.ones(1)}
    labels = render.Names([name])
    render.metadata(Metadata(name, 1, signatures), False)
    render.status([VersionStatus(1, "END", 5, name)], False)
    render.predictions([Path(name)], answer, labels, False)
    render.energies([Path(name)], answer, labels, False)
    render.samples(Path(name), [0], [0], samples, labels, False)
    assert capsys.readouterr().out.count(name) == 4 + 1 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["predict"], 2, "IMAGES"),
        (["paint"], 2, 'Unknown command "paint"'),
        (["status", "--frobnicate"], 2, "--frobnicate"),
        (["status", "--timeout", "soon"], 2, "soon"),
        (["status", "--timeout", "-1"], 2, "timeout is a number of seconds above 0"),
        (["status", "--timeout", "inf"], 2, "at most 1000000000, received inf"),
        (["predict", "nosuch.png"], 2, "nosuch.png"),
        (["predict", "text.png"], 1, "INVALID_ARGUMENT: image_bytes[0] must be"),
        (["energy", "text.png"], 1, "cannot identify image file"),
        (["sample", "--label", "cat"], 2, "no class 'cat'; known are class numbers"),
        (["sample", "--label", "1", "--count", "0"], 2, "--count is at least 1, received 0"),
        (["sample", "--label", "1", "--seed", "1.5"], 2, "received '1.5', accepted are whole"),
        (["sample", "--label", "1"], 2, "no signature 'sample'"),
        (["status", "--version", "9"], 1, "NOT_FOUND"),
        (["predict", "a.png", "--version-label", "canary"], 1, "INVALID_ARGUMENT"),
        (["status", "--version", "1", "--version-label", "stable"], 2, "a version or a label"),
        (["status", "--ca", "nosuch.pem"], 2, "nosuch.pem"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    run, pictures, tmp_path, arguments, status, sentence
):
    (tmp_path / "text.png").write_text("not an image")
    code, out, err = run(*arguments)
    assert (code, out) == (status, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_without_a_server_the_address_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status", "--target", "127.0.0.1:1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_several_models_here_need_a_name(run, server, tmp_path, capsys):
    (tmp_path / "saved_models").symlink_to(server.folder)
    assert main(["status", "--target", server.target]) == 2
    assert "saved_models/ holds generator, robust: name one" in capsys.readouterr().err


def test_as_a_process_help_takes_less_than_a_second_and_errors_exit_with_2(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-m", "serve.client", "sample", "--help"], capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0
    assert b"--label" in shown.stdout
    # Processor time: other work may share the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    failed = subprocess.run([sys.executable, "-m", "serve.client", "paint"], capture_output=True)
    assert failed.returncode == 2
    assert failed.stderr.count(b"\n") == 1


def test_a_reader_that_stops_early_is_no_error_to_report(server):
    command = [sys.executable, "-m", "serve.client", "metadata", "--json"]
    where = ["--target", server.target, "--model", "robust"]
    with subprocess.Popen(
        [*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_the_command_lines_of_the_guide_are_understood():
    guide = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    lines = re.findall(r"^ *python -m serve\.client (.+)$", guide, re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)
