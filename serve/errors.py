"""One exception for everything the server refuses, and its shape over gRPC and over HTTP."""

from __future__ import annotations

import logging
from http import HTTPStatus

import grpc
import tensorflow as tf

log = logging.getLogger(__name__)

StatusCode = grpc.StatusCode

# TensorFlow's error codes are gRPC's, number for number.
_BY_NUMBER = {code.value[0]: code for code in StatusCode}

# As TensorFlow Serving's HTTP server maps them.
_HTTP_STATUS = {
    StatusCode.OK: 200,
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    StatusCode.ABORTED: HTTPStatus.CONFLICT,
    StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

# Bytes of a message that the header carries: gRPC writes up to three for each that is no printable
# ASCII character, and refuses metadata above 8 KiB.
_MAX_GRPC_DETAILS = 1024


class ServingError(Exception):
    """A request, configuration or model that the server refuses.

    Args:
        code: canonical status code.
        message: what the client reads.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    @property
    def grpc_details(self) -> str:
        """The message, cut to what a gRPC trailer carries."""
        encoded = self.message.encode("utf-8", "replace")
        if len(encoded) <= _MAX_GRPC_DETAILS:
            return self.message
        return encoded[:_MAX_GRPC_DETAILS].decode("utf-8", "ignore") + "...TRUNCATED"

    @property
    def http_status(self) -> int:
        return int(_HTTP_STATUS.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR))


def invalid_argument(message: str) -> ServingError:
    return ServingError(StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    return ServingError(StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> ServingError:
    return ServingError(StatusCode.FAILED_PRECONDITION, message)


def as_serving_error(error: BaseException) -> ServingError:
    """The ServingError that an exception stands for; TensorFlow's keep their code and text."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        return ServingError(_BY_NUMBER.get(error.error_code, StatusCode.UNKNOWN), error.message)
    if isinstance(error, MemoryError):
        return ServingError(StatusCode.RESOURCE_EXHAUSTED, f"Out of memory: {error}")
    log.error("Unexpected error while serving", exc_info=error)
    return ServingError(StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
