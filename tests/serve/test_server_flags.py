"""The command line: what it accepts, what it refuses, and what it starts without arguments."""

import json
import subprocess
import sys

import pytest

from serve import flags
from serve.errors import ServingError
from serve.server import Server
from tests.serve import serving_models
from tests.serve.processes import free_port, run_server, running_server, wait_for


def test_values_in_every_notation():
    parsed = flags.parse(
        [
            "--port=9000",
            "--rest_api_port",
            "9001",
            "--enable_batching",
            "--enable_model_warmup=false",
            "--rest_api_enable_cors_support=true",
            "--model_name=m",
            "--per_process_gpu_memory_fraction=0.5",
        ]
    )
    assert (parsed.port, parsed.rest_api_port, parsed.model_name) == (9000, 9001, "m")
    assert parsed.enable_batching
    assert parsed.rest_api_enable_cors_support
    assert not parsed.enable_model_warmup
    assert parsed.per_process_gpu_memory_fraction == 0.5


def test_defaults_are_those_of_the_binary():
    parsed = flags.parse([])
    assert (parsed.port, parsed.rest_api_port, parsed.model_name) == (8500, 0, "default")
    assert parsed.rest_api_timeout_in_ms == 30_000
    assert parsed.file_system_poll_wait_seconds == 1
    assert parsed.max_num_load_retries == 5
    assert parsed.load_retry_interval_micros == 60_000_000
    assert parsed.host == "127.0.0.1"
    assert not parsed.names_models


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--no_such_flag=1", "unrecognized arguments: --no_such_flag=1"),
        ("--port=http", "argument --port: invalid int value: 'http'"),
        ("--enable_batching=maybe", "received 'maybe', want true or false"),
        ("--port=65536", "argument --port: received 65536, want 0 to 65535"),
        ("--rest_api_port=-1", "argument --rest_api_port: received -1, want 0 to 65535"),
        ("--grpc_max_threads=0", "received 0, want 1 to 2147483647"),
        ("--rest_api_num_threads=-2", "received -2, want 1 to 2147483647"),
        ("--rest_api_timeout_in_ms=0", "received 0, want 1 to 2147483647"),
        ("--tensorflow_session_parallelism=-1", "received -1, want 0 to 2147483647"),
        ("--tensorflow_intra_op_parallelism=2147483648", "received 2147483648, want 0 to"),
        ("--file_system_poll_wait_seconds=-1", "received -1, want 0 to 2147483647"),
        ("--per_process_gpu_memory_fraction=nan", "received nan, want 0 to 1"),
        ("--model_name=", "argument --model_name: received '', want a name"),
        ("--host=", "argument --host: received '', want a host name or address"),
        ("--host=a..b", "argument --host: received 'a..b', want a host name or address"),
        ("--model_base_path=/\udcff", "received '/\\udcff', want UTF-8"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_the_binarys_status(argument, text, capsys):
    with pytest.raises(SystemExit) as ended:
        flags.parse([argument])
    assert ended.value.code == 255
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_flags_without_meaning_are_accepted_with_a_warning(capsys):
    flags.parse(["--flush_filesystem_caches=false", "--enable_profiler"])
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all("has no meaning here and is ignored" in line for line in warnings)


def test_channel_arguments():
    text = "grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb"
    assert flags.channel_arguments(text) == {
        "grpc.max_connection_age_ms": 2000,
        "grpc.lb_policy_name": "grpclb",
    }


@pytest.mark.parametrize("argument", ["--help", "--no_such_flag"])
def test_help_and_a_mistyped_flag_answer_without_tensorflow(argument):
    code = """
import runpy, sys
try:
    runpy.run_module("serve", run_name="__main__")
finally:
    print("tensorflow" in sys.modules, file=sys.stderr)
"""
    shown = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True)
    assert shown.stderr.splitlines()[-1] == "False"
    assert ("--model_base_path" in shown.stdout) == (argument == "--help")


@pytest.fixture
def files(tmp_path):
    def write(text):
        path = tmp_path / "file.config"
        path.write_text(text, encoding="latin-1")
        return path

    return write


def refused(*arguments):
    with pytest.raises(ServingError) as caught:
        Server(flags.parse(arguments))
    return str(caught.value)


def test_files_and_flags_that_contradict(files, zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = f"--model_base_path={zoo}"
    assert "INVALID_ARGUMENT: Both server_options.model_base_path and" in refused()
    nested = "custom_model_config {" + "[type.googleapis.com/google.protobuf.Any] {" * 3000
    for text in ("model_config_list { nonsense: 1 }", "# \xff", nested):
        bad = files(text)
        assert f"INVALID_ARGUMENT: Invalid protobuf file: '{bad}'" in refused(
            f"--model_config_file={bad}"
        )
    assert "NOT_FOUND: /no/file" in refused("--model_config_file=/no/file")
    assert "is set without setting server_options.enable_batching to true" in refused(
        model, f"--batching_parameters_file={files('')}"
    )
    assert "You cannot configure all" in refused(
        model, "--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1"
    )
    assert "grpc_port is not set" in refused(model, "--port=0")
    assert "wants key=value" in refused(model, "--grpc_channel_arguments=x")
    assert f"received 'x={2**31}'" in refused(model, f"--grpc_channel_arguments=x={2**31}")
    ssl = files("server_key: 5")
    assert "Invalid protobuf file" in refused(model, f"--ssl_config_file={ssl}")


def test_a_model_that_does_not_load_ends_the_start(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    log = tmp_path / "log"
    process = run_server(
        log,
        f"--port={free_port()}",
        f"--model_base_path={tmp_path}/m",
        "--max_num_load_retries=0",
    )
    assert process.wait(timeout=180) == 255
    assert "Failed to start server. Error: UNKNOWN: 1 model(s) did not become available: " in (
        log.read_text()
    )


def test_without_arguments_it_serves_saved_models_and_says_how_to_ask(tmp_path):
    for name in ("digits", "other"):
        serving_models.export_line(tmp_path / "saved_models" / name / "3", slope=2)
    (tmp_path / "saved_models" / "notes").mkdir()
    (tmp_path / "saved_models" / "README.md").write_text("not a model")
    with running_server(tmp_path, cwd=tmp_path) as server:
        wait_for(lambda: "python -m serve.client" in server.log)
        for name in ("digits", "other"):
            assert server.states(name) == {3: "AVAILABLE"}
            call = f"curl localhost:{server.rest_port}/v1/models/{name}"
            assert call in server.log
            status, _, body = server.http(f"/v1/models/{name}")
            assert (status, json.loads(body)["model_version_status"][0]["version"]) == (200, "3")
        assert "/v1/models/notes" not in server.log
        # Loopback only: the machine's other addresses are not listened on.
        assert f"Running gRPC ModelServer at 127.0.0.1:{server.grpc_port} ..." in server.log
