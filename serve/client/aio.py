"""The asyncio client: the same methods as `Client`, awaited."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike

from serve.client import core, messages
from serve.client.core import Batch, ClientBase
from serve.client.signatures import Metadata, VersionStatus, parse_metadata, parse_status


class AsyncClient(ClientBase):
    """`Client` for asyncio: same arguments, same methods, same errors, each method awaited.

    ::

        async with AsyncClient("127.0.0.1:8500", "digits") as client:
            answer = await client.predict(images)

    The connection belongs to the event loop of the first call.
    """

    def _open(self) -> None:
        # A channel takes the running event loop, so there is none before the first call.
        self._channel: grpc.aio.Channel | None = None

    async def predict(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """As `Client.predict`."""
        return await self.call("predict", {"images": images})

    async def predict_bytes(self, image_bytes: Sequence[bytes]) -> dict[str, np.ndarray]:
        """As `Client.predict_bytes`."""
        return await self.call("predict_bytes", {"image_bytes": image_bytes})

    async def energy(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """As `Client.energy`."""
        return await self.call("energy", {"images": images})

    async def sample(
        self, labels: ArrayLike, seeds: ArrayLike | None = None, num_steps: ArrayLike = 20
    ) -> dict[str, np.ndarray]:
        """As `Client.sample`."""
        return await self.call("sample", core.sample_inputs(labels, seeds, num_steps))

    async def defend(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """As `Client.defend`."""
        return await self.call("defend", {"images": images})

    async def call(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """As `Client.call`."""
        try:
            batch = Batch(self, self._metadata or await self.metadata(), signature, inputs)
        except ValueError:
            batch = Batch(self, await self.metadata(), signature, inputs)
        for attempt in itertools.count(1):
            responses = await self._send(batch, range(len(batch)))
            again, version = batch.outdated(responses)
            try:
                answers = await self._send(batch, again, version)
                break
            except core.ServingError as error:
                if not self._starts_over(error, attempt):
                    raise
        for index, response in zip(again, answers, strict=True):
            responses[index] = response
        return batch.join(responses)

    async def metadata(self) -> Metadata:
        """As `Client.metadata`."""
        self._metadata = parse_metadata(await self._describe(self.timeout))
        return self._metadata

    async def status(self) -> list[VersionStatus]:
        """As `Client.status`."""
        return await self._status(self.timeout)

    async def wait_until_ready(self, timeout: float = 60.0) -> list[VersionStatus]:
        """As `Client.wait_until_ready`."""
        end = time.monotonic() + timeout
        last_seen = "nothing"
        while (left := end - time.monotonic()) > 0:
            try:
                statuses = await self._status(min(left, 2.0))
                if self.label is not None:  # of which the status knows nothing
                    await self._describe(min(left, 2.0))
            except core.ServingError as error:
                if not self._is_not_yet(error):
                    raise
                last_seen = str(error)
            else:
                if any(status.state == "AVAILABLE" for status in statuses):
                    return statuses
                last_seen = ", ".join(map(str, statuses))
            await asyncio.sleep(max(0.0, min(0.1, end - time.monotonic())))
        raise self._not_ready(timeout, last_seen)

    async def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _connection(self) -> grpc.aio.Channel:
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.target, self._options)
            else:
                self._channel = grpc.aio.secure_channel(
                    self.target, self._credentials, self._options
                )
        return self._channel

    async def _rpc(self, path: str, request: Any, response: Any, timeout: float) -> Any:
        method = self._connection().unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return await method(request, timeout=timeout, metadata=self._headers)

    async def _ask(self, path: str, request: Any, response: Any, timeout: float) -> Any:
        try:
            return await self._rpc(path, request, response, timeout)
        except grpc.RpcError as error:
            raise core.serving_error(error) from None

    async def _describe(self, timeout: float) -> Any:
        response = messages.GetModelMetadataResponse
        return await self._ask(core.GET_METADATA, self._metadata_request(), response, timeout)

    async def _status(self, timeout: float) -> list[VersionStatus]:
        response = messages.GetModelStatusResponse
        return parse_status(
            await self._ask(core.GET_STATUS, self._status_request(), response, timeout)
        )

    async def _send(
        self, batch: Batch, parts: Sequence[int], version: int | None = None
    ) -> list[Any]:
        """Responses of the parts in order, at most `max_in_flight` of them under way."""
        slots = asyncio.Semaphore(self._max_in_flight)

        async def send(index: int) -> Any:
            async with slots:
                request = batch.request(index, version)
                try:
                    return await self._rpc(
                        core.PREDICT, request, messages.PredictResponse, self.timeout
                    )
                except grpc.RpcError as error:
                    raise batch.error(index, error) from None

        tasks = [asyncio.ensure_future(send(index)) for index in parts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
