"""Models and versions over time: the manager with real SavedModels in real folders."""

import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serve import versions
from serve.errors import ServingError, StatusCode
from serve.manager import ModelManager
from serve.servable import Servable
from tests.serve.processes import wait_for

State = get_model_status_pb2.ModelVersionStatus


@contextmanager
def managed(config=None, **options):
    defaults = {"poll_seconds": 0.02, "max_load_retries": 0, "load_retry_seconds": 0.01}
    manager = ModelManager(Servable, **(defaults | options))
    manager.start()
    try:
        if config is not None:
            manager.reload(config)
        yield manager
    finally:
        manager.stop()


def config_of(base, name="m", extra=""):
    return text_format.Parse(
        f"""model_config_list {{ config {{
          name: "{name}" base_path: "{base}" model_platform: "tensorflow" {extra}
        }} }}""",
        model_server_config_pb2.ModelServerConfig(),
    )


def put(line, base, version):
    """Make a version appear at once, as a careful user does: copy, then rename."""
    temporary = base / f"copying-{version}"
    shutil.copytree(line, temporary)
    temporary.rename(base / str(version))


def put_broken(base, version):
    (base / f"copying-{version}").mkdir()
    (base / f"copying-{version}" / "saved_model.pb").write_bytes(b"no protobuf")
    (base / f"copying-{version}").rename(base / str(version))


def spec(name="m", version=None, label=None):
    result = model_pb2.ModelSpec(name=name)
    if version is not None:
        result.version.value = version
    if label is not None:
        result.version_label = label
    return result


def states(manager, name="m"):
    entries = manager.status(spec(name)).model_version_status
    return {entry.version: State.State.Name(entry.state) for entry in entries}


def served(manager, **choice):
    servable = manager.acquire(spec(**choice))
    servable.release()
    return servable.version


def becomes(manager, expected, name="m"):
    wait_for(lambda: states(manager, name) == expected, 20, f"{name} in states {expected}")


def test_a_new_version_is_loaded_before_the_old_one_goes(line, tmp_path):
    put(line, tmp_path, 1)
    with managed(config_of(tmp_path)) as manager:
        assert states(manager) == {1: "AVAILABLE"}
        failures, seen, done = [], set(), threading.Event()

        def ask():
            while not done.is_set():
                try:
                    seen.add(served(manager))
                except ServingError as error:
                    failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        put(line, tmp_path, 2)
        becomes(manager, {1: "END", 2: "AVAILABLE"})
        done.set()
        asking.join()
        assert not failures
        assert seen == {1, 2}


def test_a_running_request_keeps_its_version(line, tmp_path):
    put(line, tmp_path, 1)
    with managed(config_of(tmp_path)) as manager:
        running = manager.acquire(spec())
        put(line, tmp_path, 2)
        becomes(manager, {1: "UNLOADING", 2: "AVAILABLE"})
        signature = running.signatures["serving_default"]
        (answer,) = running.run(
            [signature.inputs["x"].name],
            [np.ones(1, np.float32)],
            [signature.outputs["y"].name],
        )
        assert answer == [3.0]
        running.release()
        becomes(manager, {1: "END", 2: "AVAILABLE"})


def test_a_broken_version_leaves_the_old_one_and_shows_its_error(line, tmp_path):
    put(line, tmp_path, 1)
    with managed(config_of(tmp_path)) as manager:
        before = manager.acquire(spec())
        before.release()
        put_broken(tmp_path, 2)
        becomes(manager, {1: "AVAILABLE", 2: "END"})
        (broken, _) = manager.status(spec()).model_version_status
        assert broken.status.error_code == StatusCode.DATA_LOSS.value[0]
        assert broken.status.error_message == (
            f"Can't parse {tmp_path}/2/saved_model.pb as binary proto"
        )
        assert served(manager) == 1
        with pytest.raises(ServingError, match=r"Servable not found for request: Specific\(m, 2\)"):
            manager.acquire(spec(version=2))
        shutil.rmtree(tmp_path / "2")
        put(line, tmp_path, 3)
        becomes(manager, {1: "END", 2: "END", 3: "AVAILABLE"})


def test_a_broken_version_taken_away_costs_the_old_one_nothing(line, tmp_path):
    put(line, tmp_path, 1)
    with managed(config_of(tmp_path)) as manager:
        before = manager.acquire(spec())
        before.release()
        put_broken(tmp_path, 2)
        becomes(manager, {1: "AVAILABLE", 2: "END"})
        shutil.rmtree(tmp_path / "2")
        threading.Event().wait(0.3)  # a dozen polls
        after = manager.acquire(spec())
        after.release()
        assert after is before
        put(line, tmp_path, 2)
        wait_for(lambda: served(manager) == 2)
        becomes(manager, {1: "END", 2: "AVAILABLE"})


def test_loading_is_retried_and_tells_why_meanwhile(line, tmp_path):
    put(line, tmp_path, 1)
    with managed(config_of(tmp_path), max_load_retries=3, load_retry_seconds=0.5) as manager:
        put_broken(tmp_path, 2)
        wait_for(lambda: states(manager).get(2) == "LOADING" and error_of(manager, 2))
        shutil.copyfile(line / "saved_model.pb", tmp_path / "2" / "saved_model.pb")
        shutil.copytree(line / "variables", tmp_path / "2" / "variables")
        becomes(manager, {1: "END", 2: "AVAILABLE"})
        assert not error_of(manager, 2)


def error_of(manager, version):
    (entry,) = manager.status(spec(version=version)).model_version_status
    return entry.status.error_message


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {3}),
        ("model_version_policy { latest { num_versions: 2 } }", {2, 3}),
        ("model_version_policy { all {} }", {1, 2, 3}),
        ("model_version_policy { specific { versions: 1 versions: 9 } }", {1}),
    ],
)
def test_policies(line, tmp_path, policy, expected):
    for version in (1, 2, 3):
        put(line, tmp_path, version)
    (tmp_path / "notes").mkdir()
    with managed(config_of(tmp_path, extra=policy)) as manager:
        becomes(manager, dict.fromkeys(expected, "AVAILABLE"))
        assert served(manager) == max(expected)


def test_a_deleted_version_gives_way_to_the_one_before(line, tmp_path):
    for version in (1, 2):
        put(line, tmp_path, version)
    with managed(config_of(tmp_path)) as manager:
        becomes(manager, {2: "AVAILABLE"})
        shutil.rmtree(tmp_path / "2")
        becomes(manager, {1: "AVAILABLE", 2: "END"})
        shutil.rmtree(tmp_path / "1")
        becomes(manager, {1: "END", 2: "END"})
        with pytest.raises(ServingError, match=r"Servable not found for request: Latest\(m\)"):
            manager.acquire(spec())
        put(line, tmp_path, 1)
        becomes(manager, {1: "AVAILABLE", 2: "END"})


def test_a_base_path_that_vanishes_changes_nothing(line, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    put(line, base, 1)
    with managed(config_of(base)) as manager:
        base.rename(tmp_path / "elsewhere")  # at once: emptied first, it would hold no version
        threading.Event().wait(0.3)  # a dozen polls
        assert states(manager) == {1: "AVAILABLE"}


def test_a_model_that_cannot_be_looked_at_leaves_the_others_alone(line, tmp_path, monkeypatch):
    aspired = versions.aspired

    def failing(config):
        if config.name == "a":
            raise RuntimeError("no such thing")
        return aspired(config)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        put(line, tmp_path / name, 1)
    a, b = (config_of(tmp_path / name, name) for name in ("a", "b"))
    with managed(merged(a, b)) as manager:
        # Injected: no configuration is known that is accepted and then raises.
        monkeypatch.setattr(versions, "aspired", failing)
        put(line, tmp_path / "b", 2)
        becomes(manager, {1: "END", 2: "AVAILABLE"}, "b")
        assert states(manager, "a") == {1: "AVAILABLE"}


def test_a_missing_base_path_is_waited_for(line, tmp_path):
    base = tmp_path / "later"
    with managed() as manager:
        loading = threading.Thread(target=manager.reload, args=(config_of(base),))
        loading.start()
        loading.join(0.3)
        assert loading.is_alive()
        base.mkdir()
        loading.join(0.3)
        assert loading.is_alive()
        put(line, base, 1)
        loading.join(20)
        assert not loading.is_alive()
        assert served(manager) == 1


def test_a_first_version_that_does_not_load_is_an_error(tmp_path):
    put_broken(tmp_path, 1)
    with managed() as manager, pytest.raises(ServingError) as caught:
        manager.reload(config_of(tmp_path))
    assert caught.value.code == StatusCode.UNKNOWN
    assert caught.value.message == (
        "1 model(s) did not become available: {{{name: m version: 1} due to error: DATA_LOSS: "
        f"Can't parse {tmp_path}/1/saved_model.pb as binary proto}}, }}"
    )


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        (lambda path: None, StatusCode.NOT_FOUND, "Could not find SavedModel .pb or .pbtxt at"),
        (
            lambda path: (path / "saved_model.pb").write_bytes(b""),
            StatusCode.NOT_FOUND,
            "Could not find meta graph def matching supplied tags: { serve }",
        ),
    ],
)
def test_folders_that_hold_no_savedmodel(tmp_path, make, code, text):
    make(tmp_path)
    with pytest.raises(ServingError) as caught:
        Servable("m", 1, str(tmp_path))
    assert caught.value.code == code
    assert text in caught.value.message


def test_a_savedmodel_without_its_variables_is_refused(line, tmp_path):
    shutil.copytree(line, tmp_path / "1")
    shutil.rmtree(tmp_path / "1" / "variables")
    with managed() as manager, pytest.raises(ServingError, match="variables"):
        manager.reload(config_of(tmp_path))


def merged(*configs):
    result = model_server_config_pb2.ModelServerConfig()
    for config in configs:
        result.MergeFrom(config)
    return result


def test_reload_adds_and_removes_models(line, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        put(line, tmp_path / name, 1)
    a, b = (config_of(tmp_path / name, name) for name in ("a", "b"))
    with managed(a) as manager:
        manager.reload(merged(a, b))
        assert (served(manager, name="a"), served(manager, name="b")) == (1, 1)
        manager.reload(b)
        becomes(manager, {1: "END"}, "a")
        assert served(manager, name="b") == 1
        manager.reload(model_server_config_pb2.ModelServerConfig())  # empty: no action
        assert served(manager, name="b") == 1
        manager.reload(merged(a, b))
        assert states(manager, "a") == {1: "AVAILABLE"}


def test_configurations_that_are_refused_change_nothing(line, tmp_path):
    put(line, tmp_path, 1)
    good = config_of(tmp_path)
    other, none = config_of(tmp_path), config_of(tmp_path)
    other.model_config_list.config[0].model_platform = "caffe"
    none.model_config_list.config[0].model_platform = ""
    refused = {
        "Illegal to list model m multiple times in config list": merged(good, good),
        "Expected model m to have an absolute path or URI; got base_path()=here": config_of("here"),
        "Expected model m to have a path without NUL; got base_path()='/a\\x00b'": config_of(
            r"/a\0b"
        ),
        "Illegal to change a model's platform. For model m platform was tensorflow and new "
        "platform requested is caffe": other,
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
        "ModelServerConfig::model_platform.": none,
    }
    with managed(good) as manager:
        for text, config in refused.items():
            with pytest.raises(ServingError) as caught:
                manager.reload(config)
            assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, text)
        assert served(manager) == 1


def test_labels_point_at_what_serves(line, tmp_path):
    for version in (1, 2):
        put(line, tmp_path, version)

    def labelled(version):
        both = "model_version_policy { all {} }"
        label = f'version_labels {{ key: "stable" value: {version} }}' if version else ""
        return config_of(tmp_path, extra=both + label)

    with managed(labelled(None)) as manager:
        becomes(manager, {1: "AVAILABLE", 2: "AVAILABLE"})
        manager.reload(labelled(1))
        assert served(manager, label="stable") == 1
        manager.reload(labelled(2))
        assert served(manager, label="stable") == 2
        with pytest.raises(ServingError) as caught:
            manager.reload(labelled(3))
        assert (caught.value.code, caught.value.message) == (
            StatusCode.FAILED_PRECONDITION,
            "Request to assign label to version 3 of model m, "
            "which is not currently available for inference",
        )
        assert served(manager, label="stable") == 2
    with managed() as manager, pytest.raises(ServingError, match="Request to assign label"):
        manager.reload(labelled(1))
    with managed(labels_before_loading=True) as manager:
        manager.reload(labelled(1))
        wait_for(lambda: states(manager) == {1: "AVAILABLE", 2: "AVAILABLE"})
        assert served(manager, label="stable") == 1
        with pytest.raises(ServingError, match="Request to assign label to version 3"):
            manager.reload(labelled(3))  # a label in use moves to what serves only
