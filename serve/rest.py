"""The REST front end: ``/v1/models/NAME...`` and, when configured, Prometheus metrics."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import socket
import threading
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from serve import json_reply, monitoring
from serve.core import ServerCore
from serve.errors import ServingError, StatusCode, as_serving_error, invalid_argument
from serve.inference import DEFAULT_SIGNATURE
from serve.json_request import JsonRequest
from serve.servable import Servable

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 128 << 20
# Requests that may wait for a thread, for each thread; more are refused.
_QUEUE_PER_THREAD = 16

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(_MODEL + r"(?:/(?P<metadata>metadata))?", re.IGNORECASE)
_MAX_VERSION_DIGITS = 19  # of 2**63; Python refuses to convert thousands
_API = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)

_NOT_FOUND = """<HTML><HEAD>
<TITLE>404 Not Found</TITLE>
</HEAD><BODY>
<H1>Not Found</H1>
</BODY></HTML>
"""
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@dataclass(frozen=True)
class RestOptions:
    """Limits and extras of the REST front end.

    Attributes:
        threads: requests that run at once.
        timeout_seconds: a request that takes longer is answered with 504.
        metrics_path: where Prometheus scrapes; None serves no metrics.
        cors: send the headers that let browsers of any origin read the replies.
    """

    threads: int
    timeout_seconds: float = 30.0
    metrics_path: str | None = None
    cors: bool = False


class RestApp:
    """The ASGI application.

    Args:
        core: what answers.
        metrics: the page behind ``options.metrics_path``.
        options: limits and extras.
    """

    def __init__(self, core: ServerCore, metrics: monitoring.Metrics | None, options: RestOptions):
        self._core = core
        self._metrics = metrics
        self._options = options
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="rest")
        self._free = threading.Semaphore(options.threads * (1 + _QUEUE_PER_THREAD))

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":  # lifespan: nothing to set up
            return
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        if self._metrics is not None and path == self._options.metrics_path:
            return Response(self._metrics.page(), media_type=monitoring.CONTENT_TYPE)
        if not _API.fullmatch(path):
            return Response(_NOT_FOUND, 404, media_type="text/html")
        headers = dict(_CORS_HEADERS) if self._options.cors else {}
        status, content = 200, b""
        try:
            if not (self._options.cors and request.method == "OPTIONS"):
                body = await _body(request)
                content = await self._in_thread(request.method, path, body)
        except ServingError as error:
            status, content = error.http_status, json_reply.error(error.message)
        return Response(content, status, headers, media_type="application/json")

    async def _in_thread(self, method: str, path: str, body: bytes) -> bytes:
        if not self._free.acquire(blocking=False):
            raise ServingError(StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
        future = self._pool.submit(self._answer, method, path, body)
        future.add_done_callback(lambda _: self._free.release())
        try:
            return await asyncio.wait_for(
                asyncio.wrap_future(future), self._options.timeout_seconds
            )
        except TimeoutError as error:
            raise ServingError(
                StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification"
            ) from error

    def _answer(self, method: str, path: str, body: bytes) -> bytes:
        try:
            pattern = {"GET": _GET, "POST": _POST}.get(method)
            found = pattern.fullmatch(path) if pattern else None
            if found is None:
                if method == "GET" and re.fullmatch(r"(?i)/v1/models", path):
                    raise invalid_argument("Missing model name in request.")
                raise invalid_argument(f"Malformed request: {method} {path}")
            spec = _spec(found)
            if method == "POST":
                return self._infer(spec, found["method"].lower(), JsonRequest(body))
            if found["metadata"]:
                request = get_model_metadata_pb2.GetModelMetadataRequest(
                    model_spec=spec, metadata_field=["signature_def"]
                )
                return json_reply.metadata(self._core.metadata(request))
            return json_reply.status(self._core.manager.status(spec))
        except Exception as error:
            raise as_serving_error(error) from error

    def _infer(self, spec: model_pb2.ModelSpec, method: str, request: JsonRequest) -> bytes:
        spec.signature_name = request.signature_name
        timeout = self._options.timeout_seconds
        if method == "classify":
            answer = self._core.classify(spec, request.examples(), "REST", timeout)
            return json_reply.classifications(answer.result)
        if method == "regress":
            return json_reply.regressions(
                self._core.regress(spec, request.examples(), "REST", timeout).result
            )
        by_rows = True

        def decode(servable: Servable) -> Mapping[str, np.ndarray]:
            nonlocal by_rows
            name = spec.signature_name or DEFAULT_SIGNATURE
            if name not in servable.signatures:
                raise invalid_argument(
                    f'Serving signature name: "{name}" not found in signature def'
                )
            infos = servable.signatures[name].inputs
            if not infos:
                raise invalid_argument(
                    "Failed to get input map for signature: " + (spec.signature_name or "DEFAULT")
                )
            arrays, by_rows = request.inputs(infos)
            return arrays

        _, outputs = self._core.predict(spec, decode, (), "REST", timeout)
        return json_reply.predictions(outputs, by_rows)


def _spec(found: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(found["name"]))
    version = found["version"]
    if version:
        if len(version) > _MAX_VERSION_DIGITS or int(version) >= 2**63:
            raise invalid_argument(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    elif found["label"]:
        spec.version_label = unquote(found["label"])
    return spec


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _TooLarge
        chunks.append(chunk)
    body = b"".join(chunks)
    if request.headers.get("content-encoding", "").lower() != "gzip":
        return body
    inflate = zlib.decompressobj(wbits=31)
    try:
        body = inflate.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise invalid_argument(f"Request body is no gzip: {error}") from error
    if inflate.unconsumed_tail:
        raise _TooLarge
    return body


class _TooLarge(ServingError):
    http_status = 413

    def __init__(self) -> None:
        text = f"Request body larger than max ({MAX_BODY_BYTES} bytes)"
        super().__init__(StatusCode.RESOURCE_EXHAUSTED, text)


class RestServer:
    """Runs the application in a thread of its own.

    Args:
        app: the application.
        host: address to listen on.
        port: its port.

    Raises:
        OSError: the port cannot be had.
    """

    def __init__(self, app: RestApp, host: str, port: int):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=1024)
        # asyncio sets it only on sockets it makes itself; without it a reply waits 40 ms for the
        # acknowledgement of its own headers.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=30,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=functools.partial(self._server.run, [self._socket]), name="rest", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuse new connections, let running requests end."""
        self._server.should_exit = True
        self._thread.join()
