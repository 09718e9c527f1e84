"""Small SavedModels and the server that most tests of the serve package send requests to."""

from pathlib import Path

import pytest

from tests.serve import serving_models
from tests.serve.processes import running_server


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Path:
    """Base path of a model whose signatures cover what the tests ask for; version 7."""
    base = tmp_path_factory.mktemp("models") / "zoo"
    serving_models.export_zoo(base / "7")
    return base


@pytest.fixture(scope="session")
def tf1(tmp_path_factory) -> Path:
    """Base path of a TF1 SavedModel with predict, classify and regress; version 123."""
    base = tmp_path_factory.mktemp("models") / "tf1"
    serving_models.export_tf1(base / "123")
    return base


@pytest.fixture(scope="session")
def line(tmp_path_factory):
    """A SavedModel to copy versions from."""
    path = tmp_path_factory.mktemp("line") / "model"
    serving_models.export_line(path, slope=3)
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory, zoo, tf1):
    """One server for all tests that only send requests: zoo, tf1, lines (versions 1 and 2)."""
    folder = tmp_path_factory.mktemp("server")
    lines = folder / "lines"
    for version in (1, 2, 3):
        serving_models.export_line(lines / str(version), slope=version)
    serving_models.export_keras(folder / "keras" / "1")
    config = folder / "models.config"
    config.write_text(
        f"""
        model_config_list {{
          config {{ name: "zoo" base_path: "{zoo}" model_platform: "tensorflow" }}
          config {{ name: "tf1" base_path: "{tf1}" model_platform: "tensorflow" }}
          config {{ name: "keras" base_path: "{folder}/keras" model_platform: "tensorflow" }}
          config {{
            name: "lines" base_path: "{lines}" model_platform: "tensorflow"
            model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
            version_labels {{ key: "stable" value: 1 }}
            version_labels {{ key: "canary" value: 2 }}
          }}
        }}
        """
    )
    monitoring = folder / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true }")
    with running_server(
        folder,
        f"--model_config_file={config}",
        "--allow_version_labels_for_unavailable_models=true",
        f"--monitoring_config_file={monitoring}",
        "--rest_api_enable_cors_support",
    ) as running:
        yield running
