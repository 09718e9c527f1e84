"""The files of serve/deploy, read as their consumers read them and tried on a server."""

import inspect
import json
import mmap
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import crossplane
import kubernetes_validate
import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import der_tf
from serve import config_files, flags
from serve.client import Client
from tests.serve.contract_servers import COMMANDS, free_port, write_models

DEPLOY = Path(__file__).parents[2] / "serve" / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROMETHEUS_PATH = "/monitoring/prometheus/metrics"


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def text_proto(name, message_class):
    return text_format.Parse((DEPLOY / name).read_text(), message_class())


@pytest.fixture(scope="module")
def compose():
    return load("compose.yaml")


@pytest.fixture(scope="module")
def models():
    """Names of the models of models.config."""
    config = text_proto("models.config", model_server_config_pb2.ModelServerConfig)
    for entry in config.model_config_list.config:
        assert entry.base_path == f"/models/{entry.name}"
        assert entry.model_platform == "tensorflow"
    return [entry.name for entry in config.model_config_list.config]


@pytest.fixture(scope="module")
def model(models):
    """The first of them, which the probes ask for."""
    return models[0]


@pytest.fixture(scope="module")
def manifests():
    """(kind, name) -> manifest."""
    documents = [doc for path in KUBERNETES for doc in yaml.safe_load_all(path.read_text())]
    return {(doc["kind"], doc["metadata"]["name"]): doc for doc in documents}


# Protobuf text


def test_batching_parameters_fit_together():
    parameters = text_proto("batching.config", config_files.BatchingParameters)
    sizes = list(parameters.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == parameters.max_batch_size.value
    assert parameters.num_batch_threads.value > 0
    assert parameters.max_enqueued_batches.value > 0


def test_metrics_are_on_where_prometheus_looks():
    monitoring = text_proto("monitoring.config", config_files.MonitoringConfig)
    assert monitoring.prometheus_config.enable
    (job,) = load("prometheus.yml")["scrape_configs"]
    assert monitoring.prometheus_config.path == job["metrics_path"] == PROMETHEUS_PATH


def test_the_tls_example_has_every_field_of_its_message():
    example = text_proto("ssl.config", config_files.SSLConfig)
    assert {field.name for field, _ in example.ListFields()} == set(
        config_files.SSLConfig.DESCRIPTOR.fields_by_name
    )


# The flags, on a server


def test_compose_and_kubernetes_use_flags_that_both_servers_have(compose, manifests, capsys):
    container = manifests["Deployment", "serving"]["spec"]["template"]["spec"]["containers"][0]
    for arguments in (compose["x-serving"]["command"], container["args"]):
        parsed = flags.parse(arguments)
        assert not parsed.enable_batching
        assert parsed.grpc_max_threads == 64
    assert capsys.readouterr().err == ""  # no flag that is ignored


@pytest.fixture(scope="module", params=COMMANDS)
def composed(request, compose, models, tmp_path_factory):
    """A server with the flags of compose.yaml: its port, REST port, the first model's folder."""
    folder = tmp_path_factory.mktemp("composed")
    config = (DEPLOY / "models.config").read_text().replace("/models/", f"{folder}/")
    (folder / "models.config").write_text(config)
    write_models(folder)
    for name in models:
        shutil.copytree(folder / "robust", folder / name)
    port, rest_port = free_port(), free_port()
    arguments = [
        argument.replace("/config/models.config", f"{folder}/models.config").replace(
            "/config", str(DEPLOY)
        )
        for argument in compose["x-serving"]["command"]
    ]
    command = [
        *COMMANDS[request.param],
        *arguments,
        f"--port={port}",
        f"--rest_api_port={rest_port}",
    ]
    assert not healthy(compose, rest_port)
    with (
        open(folder / "server.log", "w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            with Client(f"127.0.0.1:{port}", models[0]) as client:
                client.wait_until_ready(120)
            yield port, rest_port, folder / models[0]
        finally:
            process.terminate()


def healthy(compose, rest_port, **replaced):
    """Whether the health check of compose.yaml passes."""
    kind, *command = compose["x-serving"]["healthcheck"]["test"]
    assert kind == "CMD"
    for old, new in {"8501": str(rest_port), **replaced}.items():
        command = [part.replace(old, new) for part in command]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_the_composed_server_is_healthy_and_measured(composed, compose, model):
    port, rest_port, _ = composed
    assert healthy(compose, rest_port)
    assert not healthy(compose, rest_port, **{model: "nosuch"})
    with Client(f"127.0.0.1:{port}", model) as client:
        client.predict([[[[0.5] * 3] * 8] * 8])
    with urllib.request.urlopen(f"http://127.0.0.1:{rest_port}{PROMETHEUS_PATH}") as page:
        exported = page.read().decode()
    for name in used_metrics():
        assert f"{name}{{" in exported or in_tensorflow(name), name


def test_a_version_is_rolled_out_and_back_without_a_failed_call(composed, model):
    port, _, folder = composed
    shutil.copytree(folder / "1", folder / "copy")
    pixels = np.full((10, 8, 8, 3), 0.5, np.float32)
    with Client(f"127.0.0.1:{port}", model, batch_size=3) as client:

        def served():
            client.predict(pixels)
            states = {status.version: status.state for status in client.status()}
            return client.metadata().version, states

        def until(version, states):
            end = time.monotonic() + 60
            while served() != (version, states):
                assert time.monotonic() < end, f"still at {served()}"

        assert served() == (1, {1: "AVAILABLE"})
        (folder / "copy").rename(folder / "2")
        until(2, {1: "AVAILABLE", 2: "AVAILABLE"})
        (folder / "2").rename(folder / "withdrawn")
        until(1, {1: "AVAILABLE", 2: "END"})


def used_metrics():
    """Names of TensorFlow Serving's metrics in the dashboard and the alerts."""
    text = (DEPLOY / "alerts.yml").read_text() + (DEPLOY / "grafana/dashboard.json").read_text()
    names = set(re.findall(r":tensorflow:[\w:]+", text))
    assert len(names) > 5
    return names


def in_tensorflow(name):
    """Whether TensorFlow's own library defines the metric (those of the batching op)."""
    path = re.sub(r"_(bucket|sum|count)$", "", name).replace(":", "/").encode()
    library = next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.so*"))
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(path + b"\0") >= 0


# Compose


def test_compose_mounts_what_is_there_and_publishes_only_the_gateway(compose):
    services = {**compose["services"], "serving": compose["x-serving"]}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name} mounts {source}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "gateway", f"{name} publishes {port}"
    profiles = {profile for s in compose["services"].values() for profile in s["profiles"]}
    assert profiles == {"cpu", "gpu", "monitoring", "gateway"}


def test_compose_runs_the_processor_variant_of_one_version(compose):
    cpu, gpu = (compose["services"][f"serving-{kind}"] for kind in ("cpu", "gpu"))
    assert gpu["image"] == f"{cpu['image']}-gpu"
    assert gpu["command"] == cpu["command"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    kustomized = load("kustomization.yaml")["images"][0]
    assert f"{kustomized['name']}:${{TF_SERVING_TAG:-{kustomized['newTag']}}}" == cpu["image"]


def test_prometheus_and_grafana_find_each_other(compose):
    prometheus = load("prometheus.yml")
    host, port = prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0].split(":")
    assert host in compose["x-serving"]["networks"]["default"]["aliases"]
    assert f"127.0.0.1:{port}:{port}" in compose["x-serving"]["ports"]
    for name in prometheus["rule_files"]:
        rules = [rule for group in load(name)["groups"] for rule in group["rules"]]
        assert all(rule["alert"] and rule["expr"] and rule["annotations"] for rule in rules)
    (source,) = load("grafana/datasources.yaml")["datasources"]
    assert source["url"].split("/")[-1].split(":")[0] in compose["services"]
    (provider,) = load("grafana/dashboards.yaml")["providers"]
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/dashboard.json" in mounts


def test_the_dashboard_covers_what_it_should_and_overlaps_nowhere():
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels:
        expressions = [target["expr"] for target in panel["targets"]]
        for text in (*expressions, panel["datasource"]["uid"]):
            used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
            assert used <= variables
        assert all(text.count("(") == text.count(")") for text in expressions)


# Kubernetes


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_manifests_follow_the_schema_of_kubernetes(path):
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_kustomize_takes_every_manifest_and_makes_the_mounted_config(manifests):
    kustomization = load("kustomization.yaml")
    assert sorted(DEPLOY / name for name in kustomization["resources"]) == KUBERNETES
    (generated,) = kustomization["configMapGenerator"]
    assert all((DEPLOY / name).is_file() for name in generated["files"])
    pod = manifests["Deployment", "serving"]["spec"]["template"]["spec"]
    assert generated["name"] in [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    arguments = flags.parse(pod["containers"][0]["args"])
    for path in (arguments.model_config_file, arguments.monitoring_config_file):
        assert path.removeprefix("/config/") in generated["files"]


def test_pods_are_ready_by_the_models_status_and_replaced_without_a_gap(manifests, model):
    deployment = manifests["Deployment", "serving"]["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment  # the autoscaler's
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    arguments = flags.parse(container["args"])
    assert ports == {"grpc": arguments.port, "rest": arguments.rest_api_port}
    for probe in (container["startupProbe"], container["readinessProbe"]):
        assert probe["httpGet"] == {"path": f"/v1/models/{model}", "port": "rest"}
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pause < pod["terminationGracePeriodSeconds"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert ("PersistentVolumeClaim", volumes["models"]["persistentVolumeClaim"]["claimName"]) in (
        manifests
    )


def test_services_autoscaler_and_policies_select_the_pods(manifests):
    deployment = manifests["Deployment", "serving"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    for name in ("serving", "serving-rest"):
        assert manifests["Service", name]["spec"]["selector"] == labels
    assert manifests["Service", "serving"]["spec"]["clusterIP"] == "None"
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        assert manifests[kind, "serving"]["spec"][key]["matchLabels"] == labels
    scaler = manifests["HorizontalPodAutoscaler", "serving"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "serving"
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    container = deployment["template"]["spec"]["containers"][0]
    assert "cpu" in container["resources"]["requests"]  # what its percentage is of


# Gateway


def test_the_gateway_passes_nothing_on_without_a_token_and_no_reload():
    parsed = crossplane.parse(str(DEPLOY / "gateway/nginx.conf"), single=True)
    assert parsed["errors"] == []
    # In strict mode it also refuses names that it does not know: entries of a map, and a
    # directive of nginx 1.25, which is younger than the parser.
    strict = crossplane.parse(str(DEPLOY / "gateway/nginx.conf"), single=True, strict=True)
    unknown = {error["error"].split('"')[1] for error in strict["errors"]}
    assert unknown == {"default", "http2"}

    (http,) = [d for d in parsed["config"][0]["parsed"] if d["directive"] == "http"]
    (server,) = [d for d in http["block"] if d["directive"] == "server"]
    locations = {d["args"][-1]: d["block"] for d in server["block"] if d["directive"] == "location"}
    assert locations.keys() == {
        "/tensorflow.serving.PredictionService/",
        "/tensorflow.serving.ModelService/GetModelStatus",
        "/v1/",
        "/",
    }
    upstreams = {d["args"][0] for d in http["block"] if d["directive"] == "upstream"}
    for path, block in locations.items():
        first = block[0]
        passes = [d["args"][0] for d in block if d["directive"] in ("grpc_pass", "proxy_pass")]
        if path == "/":
            assert first["directive"] == "return"
            assert passes == []
        else:
            assert first["directive"] == "if"
            assert first["block"][0]["args"] == ["401"]
            assert passes[0].split("//")[1] in upstreams
    tls = {d["directive"]: d["args"] for d in server["block"]}
    assert tls["listen"] == ["8443", "ssl"]
    assert tls["ssl_protocols"] == ["TLSv1.2", "TLSv1.3"]


# Guide


def test_the_guide_gives_the_defaults_of_the_export():
    guide = (DEPLOY.parents[1] / "docs" / "serving.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", guide, re.MULTILINE))
    parameters = inspect.signature(der_tf.export.export).parameters
    assert len(told) == 4
    assert {name: parameters[name].default for name in told} == {
        name: int(value) for name, value in told.items()
    }


def test_the_commands_for_production_ask_for_models_that_are_configured(models):
    guide = (DEPLOY.parents[1] / "docs" / "serving.md").read_text()
    (section,) = re.findall(r"^## TensorFlow Serving in production\n(.*?)^## ", guide, re.M | re.S)
    asked = set(re.findall(r"--model (\S+)", section))
    assert asked
    assert asked <= set(models)


def test_every_file_is_explained_in_the_guide():
    guide = (DEPLOY.parents[1] / "docs" / "serving.md").read_text()
    for path in DEPLOY.iterdir():
        assert f"`{path.name}{'/' * path.is_dir()}" in guide, path.name
