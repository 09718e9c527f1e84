"""The command line of ``tensorflow_model_server``, so that one server replaces the other.

No TensorFlow is imported here: ``--help`` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

# The binary ends with -1 on a command line it cannot use.
EXIT_BAD_FLAGS = 255

_CPUS = os.cpu_count() or 1
# Python threads that wait for TensorFlow cost little, and requests can only be batched with
# requests that run: the binary's 4 threads a CPU would refuse 32 clients on a laptop.
_THREADS = max(4 * _CPUS, 64)


_INT32 = 2**31 - 1  # what the binary's flags, gRPC and TensorFlow's settings hold
_PORT = 65535


def _flag(default: Any, text: str, low: int = 0, high: int = _INT32) -> Any:
    """A flag; ``low`` and ``high`` are the least and the greatest number it takes."""
    return field(default=default, metadata={"help": text, "range": (low, high)})


@dataclass(frozen=True)
class Flags:
    """Parsed flags; names, types and (but for the thread counts) defaults of the binary."""

    port: int = _flag(8500, "TCP port of the gRPC API", high=_PORT)
    host: str = _flag("127.0.0.1", "address to listen on; 0.0.0.0 for all (not in the binary)")
    grpc_socket_path: str = _flag("", "also serve gRPC at this UNIX socket")
    rest_api_port: int = _flag(
        0, "TCP port of the HTTP/REST API; 0: none, or 8501 when no model is named", high=_PORT
    )
    rest_api_num_threads: int = _flag(_THREADS, "REST requests that run at once", low=1)
    rest_api_timeout_in_ms: int = _flag(30000, "timeout of a REST request", low=1)
    rest_api_enable_cors_support: bool = _flag(False, "send CORS headers")
    model_name: str = _flag("default", "name of the model; not with --model_config_file")
    model_base_path: str = _flag("", "folder of the model's numeric versions")
    model_config_file: str = _flag("", "text-format ModelServerConfig: several models")
    model_config_file_poll_wait_seconds: int = _flag(0, "pause between reads of it; 0: once")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "accept version labels for versions that are not loaded yet"
    )
    file_system_poll_wait_seconds: int = _flag(1, "pause between looks for versions; 0: once")
    num_load_threads: int = _flag(0, "versions loaded at once; 0: one")
    max_num_load_retries: int = _flag(5, "loads after the first that failed")
    load_retry_interval_micros: int = _flag(60_000_000, "pause between them", high=10**15)
    saved_model_tags: str = _flag("serve", "comma-separated tags of the graph to load")
    enable_model_warmup: bool = _flag(True, "replay recorded requests before serving a version")
    num_request_iterations_for_warmup: int = _flag(1, "times each is replayed")
    enable_signature_method_name_check: bool = _flag(
        True, "refuse signatures whose method name is not that of the call"
    )
    enable_batching: bool = _flag(False, "run simultaneous requests as one batch")
    batching_parameters_file: str = _flag("", "text-format BatchingParameters")
    tensorflow_session_parallelism: int = _flag(0, "threads within and between ops; 0: auto")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads within an op; 0: auto")
    tensorflow_inter_op_parallelism: int = _flag(0, "ops that run at once; 0: auto")
    tensorflow_session_config_file: str = _flag("", "text-format ConfigProto")
    per_process_gpu_memory_fraction: float = _flag(
        0.0, "share of the GPU's memory; 0: auto", high=1
    )
    grpc_max_threads: int = _flag(_THREADS, "gRPC calls that run at once; more are refused", low=1)
    grpc_channel_arguments: str = _flag("", "comma-separated key=value for the gRPC server")
    ssl_config_file: str = _flag("", "text-format SSLConfig: TLS for gRPC")
    monitoring_config_file: str = _flag("", "text-format MonitoringConfig: Prometheus")
    version: bool = _flag(False, "print versions")

    @property
    def names_models(self) -> bool:
        return bool(self.model_base_path or self.model_config_file)


# Flags of the binary that mean nothing here: accepted, with a warning.
_WITHOUT_MEANING = (
    "enable_grpc_healthcheck_service",
    "enable_per_model_batching_parameters",
    "enable_profiler",
    "enable_serialization_as_tensor_content",
    "enforce_session_run_timeout",
    "flush_filesystem_caches",
    "mixed_precision",
    "num_tflite_interpreters_per_pool",
    "num_tflite_pools",
    "num_unload_threads",
    "platform_config_file",
    "prefer_tflite_model",
    "remove_unused_fields_from_bundle_metagraph",
    "skip_initialize_tpu",
    "thread_pool_factory_config_file",
    "use_alts_credentials",
    "use_tflite_model",
    "xla_cpu_compilation_enabled",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_FLAGS, f"{self.prog}: {message} (--help lists the flags)\n")


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"received {text!r}, want true or false") from None


def parse(arguments: Sequence[str] | None = None) -> Flags:
    """Parse ``--flag=value`` and ``--flag value``; a bare ``--flag`` is true.

    Exits with status 255 and one line on what cannot be used.
    """
    parser = _Parser(
        prog="python -m serve",
        description="Serves SavedModels with the API and the flags of tensorflow_model_server. "
        "Without a model it serves every model of the folder saved_models.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for entry in fields(Flags):
        default, text = entry.default, entry.metadata["help"]
        if isinstance(default, bool):
            parser.add_argument(
                f"--{entry.name}",
                type=_boolean,
                nargs="?",
                const=True,
                default=default,
                metavar="true|false",
                help=text,
            )
        else:
            parser.add_argument(
                f"--{entry.name}", type=type(default), default=default, help=text, metavar="VALUE"
            )
    for name in _WITHOUT_MEANING:
        parser.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    parsed = vars(parser.parse_args(arguments))
    for name in _WITHOUT_MEANING:
        if parsed.pop(name) is not None:
            print(f"warning: --{name} has no meaning here and is ignored", file=sys.stderr)
    _check_values(parser, parsed)
    return Flags(**parsed)


def _check_values(parser: argparse.ArgumentParser, parsed: dict[str, Any]) -> None:
    for entry in fields(Flags):
        value, (low, high) = parsed[entry.name], entry.metadata["range"]
        if isinstance(value, int | float) and not low <= value <= high:
            parser.error(f"argument --{entry.name}: received {value}, want {low} to {high}")
        if isinstance(value, str) and not _encodes(value, "utf-8"):
            parser.error(f"argument --{entry.name}: received {value!r}, want UTF-8")
    if not parsed["model_name"]:
        parser.error("argument --model_name: received '', want a name")
    host = parsed["host"]
    if not host or not _encodes(host, "idna"):
        parser.error(f"argument --host: received {host!r}, want a host name or address")


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeError:
        return False
    return True


def channel_arguments(text: str) -> dict[str, int | str]:
    """``a=1,b=c`` as gRPC takes it: whole numbers as such.

    Raises:
        ValueError: an entry is not ``key=value``.
    """
    result: dict[str, int | str] = {}
    for entry in filter(None, text.split(",")):
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"--grpc_channel_arguments wants key=value, received {entry!r}")
        is_number = value.lstrip("-").isdigit()
        result[key] = int(value) if is_number else value
        if is_number and abs(int(value)) > _INT32:
            raise ValueError(
                f"--grpc_channel_arguments wants numbers from {-_INT32} to {_INT32}, "
                f"received {entry!r}"
            )
    return result
