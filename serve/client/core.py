"""What the synchronous and the asyncio client share: options, requests, answers, errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from serve.client import messages, tensors
from serve.client.signatures import Metadata, check

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"

# gRPC's own limit of 4 MB on what a client receives is seven float images of 224x224.
MAX_MESSAGE_BYTES = 256 << 20
MAX_REQUEST_BYTES = 16 << 20
# 31 years; of more than some centuries gRPC makes a deadline that has passed.
MAX_TIMEOUT = 1_000_000_000

# What `wait_until_ready` waits out: the server is not up, or has not loaded the model.
NOT_YET = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class ServingError(RuntimeError):
    """The server refused or failed a request, or could not be reached.

    Attributes:
        code: the ``grpc.StatusCode``.
        message: the server's sentence, without the names of graph nodes around an assertion's.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class TLS:
    """Certificates, as paths of PEM files.

    Attributes:
        ca: authority that signed the server's certificate (default: the system's).
        certificate: our own certificate, where the server asks for one.
        key: its private key.
        server_name: name in the server's certificate, where it is not the target's.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.certificate is None) != (self.key is None):
            raise ValueError(
                "a client certificate and its key come together; received "
                f"certificate {self.certificate}, key {self.key}"
            )
        return grpc.ssl_channel_credentials(
            _read(self.ca), _read(self.key), _read(self.certificate)
        )


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


class ClientBase:
    """Settings of a client and the parts of a call that need no network."""

    def __init__(
        self,
        target: str,
        model: str,
        version: int | None = None,
        *,
        label: str | None = None,
        tls: TLS | bool | None = None,
        timeout: float = 60.0,
        batch_size: int = 128,
        max_in_flight: int = 4,
        max_attempts: int = 5,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """See `Client`."""
        if version is not None and label is not None:
            raise ValueError(f"give a version or a label; received version {version}, {label!r}")
        for name, value in (("batch_size", batch_size), ("max_in_flight", max_in_flight)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, received {value}")
        if not 1 <= max_attempts <= 5:  # gRPC itself stops at 5
            raise ValueError(f"max_attempts is 1 (no retries) to 5, received {max_attempts}")
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(
                f"timeout is a number of seconds above 0 and at most {MAX_TIMEOUT}, "
                f"received {timeout}"
            )
        self.target = target
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self._batch_size = batch_size
        self._max_in_flight = max_in_flight
        self._max_attempts = max_attempts
        tls = TLS() if tls is True else tls or None
        self._credentials = tls.credentials() if tls else None
        self._options = _channel_options(target, max_attempts, tls.server_name if tls else None)
        self._headers = [(key.lower(), value) for key, value in (headers or {}).items()]
        self._metadata: Metadata | None = None
        self._open()

    def _open(self) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        which = "" if self.version is None else f", version={self.version}"
        which += "" if self.label is None else f", label={self.label!r}"
        return f"{type(self).__name__}({self.target!r}, {self.model!r}{which})"

    def _spec(self, version: int | None = None) -> Any:
        spec = messages.ModelSpec(name=self.model)
        version = self.version if version is None else version
        if version is not None:
            spec.version.value = version
        elif self.label is not None:
            spec.version_label = self.label
        return spec

    def _metadata_request(self) -> Any:
        return messages.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )

    def _status_request(self) -> Any:
        return messages.GetModelStatusRequest(model_spec=self._spec())

    def _is_not_yet(self, error: ServingError) -> bool:
        """Whether `wait_until_ready` waits on: a label that is not there is a bad argument."""
        unknown_label = self.label is not None and error.code is grpc.StatusCode.INVALID_ARGUMENT
        return unknown_label or error.code in NOT_YET

    def _not_ready(self, timeout: float, last_seen: str) -> ServingError:
        """The error of a `wait_until_ready` that ran out of time."""
        which = "" if self.label is None else f", label {self.label!r},"
        sentence = f"model {self.model}{which} was not ready after {timeout:g} s; "
        return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{sentence}last seen: {last_seen}")

    def _starts_over(self, error: ServingError, attempt: int) -> bool:
        """Whether a call is sent again after parts asked of one version failed.

        The version that took over is gone, or another address does not have it.
        """
        return error.code is grpc.StatusCode.NOT_FOUND and attempt < self._max_attempts

    def _note_version(self, version: int) -> None:
        """Forget the metadata of a version that no longer is the one that answers."""
        if self._metadata is not None and self._metadata.version != version:
            self._metadata = None


class Batch:
    """One call cut into requests of a bounded size, in order."""

    def __init__(
        self, client: ClientBase, metadata: Metadata, signature: str, inputs: dict[str, Any]
    ) -> None:
        """Checks the inputs (ValueError) and cuts them."""
        self._client = client
        self._signature = signature
        self._arrays = check(inputs, metadata, signature)
        specs = metadata.signatures[signature]
        rows = {array.shape[0] if array.ndim else -1 for array in self._arrays.values()}
        everything = [*specs.inputs.values(), *specs.outputs.values()]
        self.rows = max(rows, default=-1)
        self.step = max(self.rows, 1)
        if len(rows) == 1 and all(spec.batched for spec in everything):
            row_bytes = max(
                sum(array.nbytes for array in self._arrays.values()) // max(self.rows, 1),
                *(spec.row_bytes for spec in everything),
            )
            self.step = max(1, min(client._batch_size, MAX_REQUEST_BYTES // max(row_bytes, 1)))

    def __len__(self) -> int:
        return max(1, -(-self.rows // self.step))

    def request(self, index: int, version: int | None = None) -> Any:
        """The PredictRequest of part ``index``, built when it is about to be sent."""
        request = messages.PredictRequest(model_spec=self._client._spec(version))
        request.model_spec.signature_name = self._signature
        for name, array in self._arrays.items():
            if len(self) > 1:
                array = array[index * self.step : (index + 1) * self.step]
            request.inputs[name].CopyFrom(tensors.encode(array))
        return request

    def error(self, index: int, error: grpc.RpcError) -> ServingError:
        """The ServingError of part ``index``; says which rows when there are several parts."""
        failure = serving_error(error)
        if len(self) == 1:
            return failure
        last = min((index + 1) * self.step, self.rows) - 1
        rows = f"rows {index * self.step} to {last} of {self.rows}"
        return ServingError(failure.code, f"{failure.message} ({rows})")

    def outdated(self, responses: Sequence[Any]) -> tuple[list[int], int]:
        """Parts to ask again, and the version to ask, so that one version answers the whole call.

        A new version may take over while the parts of a call are under way.
        """
        last = responses[-1].model_spec.version.value
        versions = [response.model_spec.version.value for response in responses]
        return [index for index, version in enumerate(versions) if version != last], last

    def join(self, responses: Sequence[Any]) -> dict[str, np.ndarray]:
        """The outputs by name, parts one after the other."""
        self._client._note_version(responses[0].model_spec.version.value)
        parts = [
            {name: tensors.decode(proto) for name, proto in sorted(response.outputs.items())}
            for response in responses
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sample_inputs(labels: Any, seeds: Any, num_steps: Any) -> dict[str, Any]:
    """Inputs of the signature ``sample``: seeds 0, 1, ... if None, one num_steps for all."""
    labels = np.atleast_1d(labels)
    seeds = np.arange(len(labels)) if seeds is None else np.atleast_1d(seeds)
    steps = np.full(len(labels), num_steps) if np.ndim(num_steps) == 0 else np.asarray(num_steps)
    if not len(labels) == len(seeds) == len(steps):
        raise ValueError(
            "labels, seeds and num_steps have one entry per image; received "
            f"{len(labels)}, {len(seeds)} and {len(steps)}"
        )
    return {"labels": labels, "seeds": seeds, "num_steps": steps}


def serving_error(error: grpc.RpcError) -> ServingError:
    """Our exception for gRPC's.

    TensorFlow wraps the sentence of an assertion: ``assertion failed: [SENTENCE] [[NODES]]``.
    """
    details = error.details() or "the server gave no reason"
    assertion = re.match(r"assertion failed: \[(.*)\]\s*\[\[", details, re.DOTALL)
    return ServingError(error.code(), assertion[1] if assertion else details)


def _channel_options(
    target: str, max_attempts: int, server_name: str | None
) -> list[tuple[str, Any]]:
    method: dict[str, Any] = {"name": [{}]}
    if max_attempts > 1:
        # gRPC adds the jitter. The deadline of a call covers all of its attempts. CANCELLED is what
        # a server answers that stops; a call that is cancelled on this side gRPC never sends again.
        method["retryPolicy"] = {
            "maxAttempts": max_attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "5s",
            "backoffMultiplier": 3,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
        }
    config = {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method]}
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.service_config_disable_resolution", 1),
        # A request larger than this buffer is never sent twice.
        ("grpc.per_rpc_retry_buffer_size", 2 * MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if re.match(r"(127\.|localhost|\[::1\])", target):
        options.append(("grpc.enable_http_proxy", 0))
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options
