"""The synchronous client."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike

from serve.client import core, messages
from serve.client.core import Batch, ClientBase
from serve.client.signatures import Metadata, VersionStatus, parse_metadata, parse_status


class Client(ClientBase):
    """Talks to TensorFlow Serving, or to the embedded server, about one model.

    ::

        with Client("127.0.0.1:8500", "digits") as client:
            client.wait_until_ready(30)
            answer = client.predict(images)  # {"classes": [B], "probabilities": [B, K], ...}

    Safe to share between threads. Inputs are checked against the server's own description of the
    model before they are sent (ValueError). Requests that fail with UNAVAILABLE, RESOURCE_EXHAUSTED
    or, by the server, with CANCELLED are sent again with exponential back-off and jitter. One
    version answers all rows of a call: parts that an older one answered are asked again of the
    newer one, and the whole call, should that be withdrawn meanwhile. Nothing else is sent twice.

    Args:
        target: ``host:port`` of the gRPC port, or any gRPC target (``dns:///name:8500`` spreads
            requests over all addresses of the name).
        model: name the model is served under.
        version: version to ask; None for the one the server chooses, its latest.
        label: version label to ask instead, such as ``"stable"``.
        tls: certificates; True for TLS with the system's authorities; None for a plain connection.
        timeout: deadline of each request in seconds, its retries included.
        batch_size: rows in one request at most; larger calls are cut (fewer rows where these would
            exceed 16 MB), sent ahead of each other and put together in order.
        max_in_flight: requests of one call under way at a time.
        max_attempts: 1 (no retries) to 5, of a request and of a call during which versions change.
        headers: sent with every request, such as ``{"authorization": "Bearer ..."}``.

    Raises:
        ValueError: arguments that contradict each other.
    """

    def _open(self) -> None:
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self.target, self._options)
        else:
            self._channel = grpc.secure_channel(self.target, self._credentials, self._options)
        self._predict = self._method(core.PREDICT, messages.PredictResponse)
        self._get_metadata = self._method(core.GET_METADATA, messages.GetModelMetadataResponse)
        self._get_status = self._method(core.GET_STATUS, messages.GetModelStatusResponse)

    def predict(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """Classify images.

        Args:
            images: ``[B, H, W, C]`` float32 pixels in [0, 1].

        Returns:
            ``logits`` and ``probabilities`` float32 ``[B, K]``, ``classes`` int64 ``[B]``,
            ``marginal_energy`` float32 ``[B]``.

        Raises:
            ValueError: another shape or element type than the model takes.
            ServingError: what the server refused, with its status code and sentence.
        """
        return self.call("predict", {"images": images})

    def predict_bytes(self, image_bytes: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Classify PNG or JPEG files of any size, which the server resizes; returns as `predict`.

        Args:
            image_bytes: contents of B files.
        """
        return self.call("predict_bytes", {"image_bytes": image_bytes})

    def energy(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """Energies of images: ``marginal_energy`` ``[B]`` and ``joint_energy`` ``[B, K]``, float32.

        Args:
            images: ``[B, H, W, C]`` float32 pixels in [0, 1].
        """
        return self.call("energy", {"images": images})

    def sample(
        self, labels: ArrayLike, seeds: ArrayLike | None = None, num_steps: ArrayLike = 20
    ) -> dict[str, np.ndarray]:
        """Generate images of the wanted classes.

        Args:
            labels: class of each image, ``[B]`` integers in 0..K-1.
            seeds: ``[B]`` integers; the same seed, label and number of steps give the same image.
                None for 0, 1, ..., B-1.
            num_steps: Langevin steps at most, one number for all images or ``[B]``.

        Returns:
            ``images`` float32 ``[B, H, W, C]`` in [0, 1], ``joint_energy`` float32 ``[B]``,
            ``steps_taken`` int32 ``[B]``.
        """
        return self.call("sample", core.sample_inputs(labels, seeds, num_steps))

    def defend(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """Classify images after a few steps down their energy; as `predict`, plus ``images``.

        Args:
            images: ``[B, H, W, C]`` float32 pixels in [0, 1].
        """
        return self.call("defend", {"images": images})

    def call(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Run any signature of any model: inputs and outputs are arrays by name."""
        try:
            batch = Batch(self, self._known_metadata(), signature, inputs)
        except ValueError:
            # The model may have changed since its description was fetched.
            batch = Batch(self, self.metadata(), signature, inputs)
        for attempt in itertools.count(1):
            responses = self._send(batch, range(len(batch)))
            again, version = batch.outdated(responses)
            try:
                answers = self._send(batch, again, version)
                break
            except core.ServingError as error:
                if not self._starts_over(error, attempt):
                    raise
        for index, response in zip(again, answers, strict=True):
            responses[index] = response
        return batch.join(responses)

    def metadata(self) -> Metadata:
        """The model's signatures as the server describes them now."""
        self._metadata = parse_metadata(self._ask(self._get_metadata, self._metadata_request()))
        return self._metadata

    def status(self) -> list[VersionStatus]:
        """State of the model's versions, newest first."""
        return parse_status(self._ask(self._get_status, self._status_request()))

    def wait_until_ready(self, timeout: float = 60.0) -> list[VersionStatus]:
        """Wait until the wanted version or label, or any version if none was named, is served.

        Returns:
            The status at that moment.

        Raises:
            ServingError: DEADLINE_EXCEEDED with what was last seen when ``timeout`` seconds pass;
                at once for an answer that waiting does not change, such as UNAUTHENTICATED.
        """
        end = time.monotonic() + timeout
        last_seen = "nothing"
        while (left := end - time.monotonic()) > 0:
            try:
                response = self._ask(self._get_status, self._status_request(), min(left, 2.0))
                if self.label is not None:  # of which the status knows nothing
                    self._ask(self._get_metadata, self._metadata_request(), min(left, 2.0))
            except core.ServingError as error:
                if not self._is_not_yet(error):
                    raise
                last_seen = str(error)
            else:
                statuses = parse_status(response)
                if any(status.state == "AVAILABLE" for status in statuses):
                    return statuses
                last_seen = ", ".join(map(str, statuses))
            time.sleep(max(0.0, min(0.1, end - time.monotonic())))
        raise self._not_ready(timeout, last_seen)

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _method(self, path: str, response: Any) -> grpc.UnaryUnaryMultiCallable:
        return self._channel.unary_unary(
            path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _ask(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        try:
            return method(request, timeout=timeout or self.timeout, metadata=self._headers)
        except grpc.RpcError as error:
            raise core.serving_error(error) from None

    def _known_metadata(self) -> Metadata:
        return self._metadata or self.metadata()

    def _send(self, batch: Batch, parts: Sequence[int], version: int | None = None) -> list[Any]:
        """Responses of the parts in order, at most `max_in_flight` of them under way."""
        if len(parts) == 1:  # without the detour over gRPC's thread for futures
            request = batch.request(parts[0], version)
            try:
                return [self._predict(request, timeout=self.timeout, metadata=self._headers)]
            except grpc.RpcError as error:
                raise batch.error(parts[0], error) from None
        responses = []
        under_way: deque[tuple[int, Any]] = deque()
        waiting = deque(parts)
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self._max_in_flight:
                    index = waiting.popleft()
                    request = batch.request(index, version)
                    future = self._predict.future(
                        request, timeout=self.timeout, metadata=self._headers
                    )
                    under_way.append((index, future))
                index, future = under_way.popleft()
                try:
                    responses.append(future.result())
                except grpc.RpcError as error:
                    raise batch.error(index, error) from None
        finally:
            for _, future in under_way:
                future.cancel()
        return responses
