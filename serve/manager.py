"""The life of models and versions: polled, loaded, served, replaced, unloaded.

As in TensorFlow Serving's availability-preserving policy, a new version is loaded before the old
one goes, and a new version that does not load leaves the old one in its place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tensorflow_serving.apis import get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serve import model_config, versions
from serve.errors import (
    ServingError,
    StatusCode,
    as_serving_error,
    failed_precondition,
    invalid_argument,
    not_found,
)
from serve.servable import Servable

log = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus


@dataclass
class _Version:
    """One version of one model, kept after its end so that the status can tell of it."""

    name: str
    number: int
    path: str
    state: int = State.START
    error: ServingError | None = None
    servable: Servable | None = None
    wanted: bool = True
    given_up: threading.Event = field(default_factory=threading.Event)

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.number}}}"


class ModelManager:
    """Keeps the versions that the configuration asks for loaded, and hands them to requests.

    Args:
        load: ``(name, version, path) -> Servable``; raises when the version is unfit.
        poll_seconds: pause between looks at the base paths; 0 looks once.
        max_load_retries: loads after the first failed one, before a version is given up.
        load_retry_seconds: pause between them.
        load_threads: versions loaded at once.
        labels_before_loading: accept version labels for versions that are not loaded (yet).
    """

    def __init__(
        self,
        load: Callable[[str, int, str], Servable],
        *,
        poll_seconds: float = 1.0,
        max_load_retries: int = 5,
        load_retry_seconds: float = 60.0,
        load_threads: int = 1,
        labels_before_loading: bool = False,
    ):
        self._load = load
        self._poll_seconds = poll_seconds
        self._max_load_retries = max_load_retries
        self._load_retry_seconds = load_retry_seconds
        self._load_slots = threading.Semaphore(load_threads)
        self._labels_before_loading = labels_before_loading
        self._configs: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._versions: dict[str, dict[int, _Version]] = {}
        # What requests read without a lock: replaced as a whole, never changed in place.
        self._serving: dict[str, dict[int, Servable]] = {}
        self._changed = threading.Condition()
        self._reload_lock = threading.Lock()
        self._poll_now = threading.Event()
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="version-poller", daemon=True)

    # Requests

    def acquire(self, spec: model_pb2.ModelSpec) -> Servable:
        """The version a request asks for; the caller releases it.

        Raises:
            ServingError: no such model, version or label is served.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        wanted: int | None = None
        if choice == "version":
            wanted = spec.version.value
        elif choice == "version_label":
            wanted = self._labels.get(spec.name, {}).get(spec.version_label)
            if wanted is None:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        while True:
            served = self._serving.get(spec.name, {})
            number = max(served, default=None) if wanted is None else wanted
            servable = served.get(number) if number is not None else None
            if servable is None:
                what = f"Latest({spec.name})"
                if wanted is not None:
                    what = f"Specific({spec.name}, {wanted})"
                raise not_found(f"Servable not found for request: {what}")
            if servable.acquire():
                return servable
            # Retired between the two lines above: the table already names its successor.

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of one version, or of all that were ever aspired, newest first."""
        response = get_model_status_pb2.GetModelStatusResponse()
        with self._changed:
            known = self._versions.get(spec.name, {})
            if spec.WhichOneof("version_choice") == "version":
                number = spec.version.value
                if number not in known:
                    raise not_found(f"Could not find version {number} of model {spec.name}")
                known = {number: known[number]}
            elif not known:
                raise not_found(f"Could not find any versions of model {spec.name}")
            for number in sorted(known, reverse=True):
                version = known[number]
                entry = response.model_version_status.add(version=number, state=version.state)
                entry.status.SetInParent()
                if version.error is not None:
                    entry.status.error_code = version.error.code.value[0]
                    entry.status.error_message = version.error.message
        return response

    # Configuration

    @property
    def config(self) -> model_server_config_pb2.ModelServerConfig:
        """The configuration in force."""
        result = model_server_config_pb2.ModelServerConfig()
        result.model_config_list.config.extend(self._configs.values())
        return result

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        """End polling and retrying; what is loaded stays usable until the process ends."""
        self._stopped.set()
        self._poll_now.set()
        with self._changed:
            for version in self._all_versions():
                version.given_up.set()
            self._changed.notify_all()

    def reload(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        still_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Serve what a configuration says, and wait until its new models are available.

        Args:
            config: the complete new configuration.
            still_wanted: asked while waiting; False (the caller has gone) ends the wait.

        Raises:
            ServingError: the configuration is refused (the old one stays), or a new model has
                no version that loads.
        """
        with self._reload_lock:
            if config.WhichOneof("config") is None:
                log.info("Taking no action for empty config.")
                return
            model_config.validate(config, self._configs)
            configs = {model.name: model for model in config.model_config_list.config}
            labels = self._checked_labels(configs.values())
            log.info("Adding/updating models.")
            with self._changed:
                new = configs.keys() - self._configs.keys()
                for name in self._configs.keys() - configs.keys():
                    self._reconcile(name, {})
                self._configs, self._labels = configs, labels
            self._poll_now.set()
        self._wait_until_available(new, still_wanted)

    def _checked_labels(
        self, configs: Iterable[model_server_config_pb2.ModelConfig]
    ) -> dict[str, dict[str, int]]:
        labels: dict[str, dict[str, int]] = {}
        for config in configs:
            for label, number in config.version_labels.items():
                current = self._labels.get(config.name, {}).get(label, number)
                unchecked = self._labels_before_loading and current == number
                if not unchecked and number not in self._serving.get(config.name, {}):
                    raise failed_precondition(
                        f"Request to assign label to version {number} of model {config.name}, "
                        "which is not currently available for inference"
                    )
                labels.setdefault(config.name, {})[label] = number
        return labels

    def _wait_until_available(self, names: set[str], still_wanted: Callable[[], bool]) -> None:
        def failed(name: str) -> list[_Version]:
            managed = [v for v in self._versions.get(name, {}).values() if v.wanted]
            ended = managed and all(v.state == State.END for v in managed)
            return managed if ended else []

        with self._changed:
            while not self._stopped.is_set() and still_wanted():
                pending = [n for n in names if n in self._configs and not self._serving.get(n)]
                failures = [v for name in pending for v in failed(name)]
                if failures:
                    reasons = "".join(f"{{{v} due to error: {v.error}}}, " for v in failures)
                    raise ServingError(
                        StatusCode.UNKNOWN,
                        f"{len(failures)} model(s) did not become available: {{{reasons}}}",
                    )
                if not pending:
                    return
                self._changed.wait(timeout=0.2)

    # Versions

    def _poll(self) -> None:
        while not self._stopped.is_set():
            self._poll_now.clear()
            with self._changed:
                configs = list(self._configs.values())
            for model in configs:
                try:
                    self._poll_model(model)
                except Exception:  # must not keep the other models from being looked at
                    log.exception("Looking for versions of model %s failed", model.name)
            self._poll_now.wait(self._poll_seconds or None)

    def _poll_model(self, model: model_server_config_pb2.ModelConfig) -> None:
        wanted = versions.aspired(model)  # reads the disk: not under the lock
        with self._changed:
            still_configured = self._configs.get(model.name) is model
            if wanted is not None and still_configured:
                self._reconcile(model.name, wanted)

    def _all_versions(self) -> list[_Version]:
        return [version for known in self._versions.values() for version in known.values()]

    def _reconcile(self, name: str, wanted: dict[int, str]) -> None:
        """Bring one model's versions towards the wanted ones. The lock is held."""
        known = self._versions.setdefault(name, {})
        for number, version in known.items():
            # One that was on its way out but still serves is kept without loading it again.
            usable = version.wanted or version.state == State.AVAILABLE
            version.wanted = usable and number in wanted
            if not version.wanted:
                version.given_up.set()
        for number, path in sorted(wanted.items(), reverse=True):
            current = known.get(number)
            if current is not None and (current.wanted or current.state != State.END):
                continue  # under way, or at its end and not taken away since
            known[number] = _Version(name, number, path)
            _in_background(self._load_version, known[number])
        if not known:
            del self._versions[name]
        self._retire_unwanted(name)
        self._changed.notify_all()

    def _retire_unwanted(self, name: str) -> None:
        """Unload what is no longer wanted, once a wanted version serves or none is left to."""
        known = self._versions.get(name, {}).values()
        wanted = [version for version in known if version.wanted]
        if wanted and not any(version.state == State.AVAILABLE for version in wanted):
            return
        for version in known:
            if version.state == State.AVAILABLE and not version.wanted:
                log.info("Quiescing servable version %s", version)
                version.state = State.UNLOADING
                self._publish(name)
                _in_background(self._unload, version)

    def _publish(self, name: str) -> None:
        known = self._versions[name].values()
        served = {
            v.number: v.servable
            for v in known
            if v.state == State.AVAILABLE and v.servable is not None
        }
        self._serving = {**self._serving, name: served}

    def _load_version(self, version: _Version) -> None:
        version.state = State.LOADING
        servable, retries = None, 0
        while servable is None and not version.given_up.is_set():
            try:
                with self._load_slots:
                    log.info("Loading servable version %s", version)
                    servable = self._load(version.name, version.number, version.path)
            except Exception as error:
                # The binary shows it only after the last retry; waiting minutes helps nobody.
                version.error = as_serving_error(error)
                log.error("Loading servable: %s failed: %s", version, version.error)
                retries += 1
                if retries > self._max_load_retries:
                    break
                version.given_up.wait(self._load_retry_seconds)
        with self._changed:
            if servable is None:
                version.state = State.END
            else:
                version.state, version.error = State.AVAILABLE, None
                version.servable = servable
                self._publish(version.name)
                log.info("Successfully loaded servable version %s", version)
            self._retire_unwanted(version.name)
            self._changed.notify_all()

    def _unload(self, version: _Version) -> None:
        assert version.servable is not None
        version.servable.close()
        with self._changed:
            version.servable = None
            version.state = State.END
            self._changed.notify_all()
        log.info("Done unloading servable version %s", version)


def _in_background(work: Callable[[_Version], None], version: _Version) -> None:
    name = f"{work.__name__}-{version.name}-{version.number}"
    threading.Thread(target=work, args=(version,), name=name, daemon=True).start()
