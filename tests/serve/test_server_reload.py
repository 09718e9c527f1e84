"""Changing the models of a running server: through gRPC, and through its configuration file."""

import grpc
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2

from tests.serve import serving_models
from tests.serve.grpc_calls import floats, predict, refusal
from tests.serve.processes import running_server, wait_for

Code = grpc.StatusCode


def entry(base, name, extra=""):
    path = f'base_path: "{base}/{name}" model_platform: "tensorflow"'
    return f'config {{ name: "{name}" {path} {extra} }}'


def reload_request(*entries):
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(f"model_config_list {{ {' '.join(entries)} }}", request.config)
    return request


def slope(server, name, **choice):
    return predict(server, name, x=floats(1), **choice).outputs["y"].float_val[0]


def test_models_come_and_go_at_run_time(tmp_path):
    for name, slopes in {"a": [1, 2], "b": [5]}.items():
        for version, value in enumerate(slopes, 1):
            serving_models.export_line(tmp_path / name / str(version), slope=value)
    both = "model_version_policy { all {} }"
    label = 'version_labels { key: "stable" value: 1 }'
    config = tmp_path / "models.config"
    config.write_text(f"model_config_list {{ {entry(tmp_path, 'a', both)} }}")
    flags = [f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1"]
    with running_server(tmp_path, *flags) as server:
        assert slope(server, "a") == 2.0
        wait_for(lambda: server.states("a") == {2: "AVAILABLE", 1: "AVAILABLE"})

        config.write_text(
            f"model_config_list {{ {entry(tmp_path, 'a', both + label)} {entry(tmp_path, 'b')} }}"
        )
        wait_for(lambda: "b" in server.log and succeeds(lambda: slope(server, "b") == 5.0))
        assert slope(server, "a", label="stable") == 1.0

        # What is no configuration is said in the log, and changes nothing.
        any_ = "[type.googleapis.com/google.protobuf.Any] {"
        nested = f"custom_model_config {{ {any_ * 3000} {'}' * 3001}"
        for content, said in {
            b"no configuration": "Invalid protobuf file",
            b"\xff": "can't decode byte 0xff",
            nested.encode(): "maximum recursion depth exceeded",
        }.items():
            config.write_bytes(content)
            wait_for(lambda said=said: said in server.log)
        assert slope(server, "b") == 5.0

        reply = server.models.HandleReloadConfigRequest(
            reload_request(entry(tmp_path, "b")), timeout=30
        )
        assert reply.status.error_code == 0
        wait_for(lambda: server.states("a") == {2: "END", 1: "END"})
        assert slope(server, "b") == 5.0

        call = server.models.HandleReloadConfigRequest
        assert refusal(call, model_management_pb2.ReloadConfigRequest()) == (
            Code.INVALID_ARGUMENT,
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported",
        )
        twice = reload_request(entry(tmp_path, "b"), entry(tmp_path, "b"))
        assert refusal(call, twice)[1] == "Illegal to list model b multiple times in config list"

        # A new model without a folder is waited for: as long as the caller does, no longer.
        missing = reload_request(entry(tmp_path, "b"), entry(tmp_path, "later"))
        with pytest.raises(grpc.RpcError) as caught:
            call(missing, timeout=1)
        assert caught.value.code() == Code.DEADLINE_EXCEEDED
        call(reload_request(entry(tmp_path, "b")), timeout=30)
        assert slope(server, "b") == 5.0


def succeeds(call):
    try:
        return call()
    except grpc.RpcError:
        return False
