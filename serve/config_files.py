"""The text-format configuration files of ``tensorflow_model_server``, read by their protobufs.

``tensorflow-serving-api`` ships the message classes of the model configuration only. Those of
batching, monitoring and TLS are declared here, with TensorFlow Serving's names and field numbers.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from google.protobuf.message import Message

from serve.errors import invalid_argument, not_found

_Field = descriptor_pb2.FieldDescriptorProto
_INT64 = ".google.protobuf.Int64Value"
_BOOL = ".google.protobuf.BoolValue"
_STRING = ".google.protobuf.StringValue"

# message -> field -> (number, type); a type that starts with a dot is a message, and the marker
# "repeated" precedes the type of a list.
_MESSAGES = {
    # tensorflow_serving/servables/tensorflow/session_bundle_config.proto
    "BatchingParameters": {
        "max_batch_size": (1, _INT64),
        "batch_timeout_micros": (2, _INT64),
        "max_enqueued_batches": (3, _INT64),
        "num_batch_threads": (4, _INT64),
        "thread_pool_name": (5, _STRING),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, _BOOL),
        "max_execution_batch_size": (9, _INT64),
    },
    # tensorflow_serving/config/monitoring_config.proto
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, ".tensorflow.serving.PrometheusConfig")},
    # tensorflow_serving/config/ssl_config.proto
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
}


def _build() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="serve/config_files.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated = kind.startswith("repeated ")
            kind = kind.removeprefix("repeated ")
            entry = message.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
            )
            if kind.startswith("."):
                entry.type, entry.type_name = _Field.TYPE_MESSAGE, kind
            else:
                entry.type = getattr(_Field, f"TYPE_{kind.upper()}")
    # A pool of its own: another package of the process may declare the same names.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.serving.{name}")
        )
        for name in _MESSAGES
    }


_CLASSES: dict[str, Any] = _build()
BatchingParameters = _CLASSES["BatchingParameters"]
MonitoringConfig = _CLASSES["MonitoringConfig"]
SSLConfig = _CLASSES["SSLConfig"]

_Message = TypeVar("_Message", bound=Message)


def read(path: str, message_class: type[_Message]) -> _Message:
    """Parse a text-format file.

    Raises:
        ServingError: the file cannot be read, or is no text of that message.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return text_format.Parse(file.read(), message_class())
    except OSError as error:
        raise not_found(f"{path}; {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_argument(f"Invalid protobuf file: '{path}' ({error})") from error
