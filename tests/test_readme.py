"""The README's code and commands, run as they stand (with free ports)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.processes import running_server

ROOT = Path(__file__).parents[1]
# Deprecations of numpy are those of Keras and TensorFlow.
PYTHON = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning"]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture
def folder(tmp_path):
    """A folder where the README's relative paths lead to the project, and writes go nowhere."""
    shutil.copytree(ROOT / "saved_models", tmp_path / "saved_models")
    return tmp_path


def environment():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(command, folder, **kwargs):
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, **kwargs
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_python_of_training_and_saved_models(folder):
    code = [text for language, text in BLOCKS if language == "python" and "serve." not in text]
    assert len(code) == 3
    output = run([*PYTHON, "-c", "\n".join(code)], folder, timeout=300)
    assert "robust_accuracy" in output
    assert (folder / "robust.keras").exists()


@pytest.mark.slow
def test_command_lines(folder):
    (text,) = [text for language, text in BLOCKS if language == "sh" and "der-tf train" in text]
    run(["bash", "-euc", text], folder, timeout=600)
    assert (folder / "runs" / "first" / "evaluation.json").exists()


def test_serving_calls(folder):
    """The server without arguments but for its ports, then the client's lines."""
    with running_server(folder, cwd=folder) as server:

        def on_free_ports(text):
            return text.replace(":8500", f":{server.grpc_port}").replace(
                ":8501", f":{server.rest_port}"
            )

        (code,) = [text for language, text in BLOCKS if language == "python" and "serve." in text]
        run([*PYTHON, "-c", on_free_ports(code)], folder, timeout=60)
        (lines,) = [text for language, text in BLOCKS if language == "sh" and "curl" in text]
        lines = lines.replace("--model", f"--target 127.0.0.1:{server.grpc_port} --model")
        output = run(["bash", "-euc", on_free_ports(lines)], folder, timeout=60)
    assert "AVAILABLE" in output
