"""Builds the server from its flags, runs it until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serve import config_files, model_config, monitoring, warmup
from serve import flags as flags_module
from serve.batching import BatchedServable, BatchingOptions, BatchScheduler
from serve.core import ServerCore
from serve.errors import ServingError, as_serving_error, invalid_argument
from serve.flags import Flags
from serve.grpc_service import GrpcServer
from serve.inference import Inference
from serve.manager import ModelManager
from serve.rest import RestApp, RestOptions, RestServer
from serve.servable import LoadOptions, Servable

log = logging.getLogger(__name__)

DEFAULT_MODELS = "saved_models"
DEFAULT_REST_PORT = 8501
_DRAIN_SECONDS = 30.0


def run(flags: Flags) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a signal, 1 when a port is taken, 255 when the flags or the
        models do not let the server start.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d: %(levelname).1s %(module)s.py:%(lineno)d] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_traceback)
    tf.get_logger().setLevel(logging.ERROR)  # the loader's notes on TF1 functions
    if flags.version:
        print(f"TensorFlow ModelServer: embedded\nTensorFlow Library: {tf.version.VERSION}")
        return 0
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        return Server(flags).serve(ended)
    except ServingError as error:
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return flags_module.EXIT_BAD_FLAGS
    except OSError as error:
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return 1


def _without_traceback(record: logging.LogRecord) -> bool:
    """What a client sends wrong is one line in gRPC's log."""
    if record.exc_info and record.name.startswith("grpc"):
        record.msg = f"{record.getMessage()}: {record.exc_info[1]!r}"
        record.args, record.exc_info = (), None
    return True


class Server:
    """Everything that one process serves.

    Args:
        flags: the command line.

    Raises:
        ServingError: the flags contradict each other or name files that do not do.
    """

    def __init__(self, flags: Flags):
        self._flags = flags
        self._config = _model_server_config(flags)
        self._metrics, self._metrics_path = _metrics(flags)
        self._inference = Inference(flags.enable_signature_method_name_check)
        self._load_options = LoadOptions(
            tuple(flags.saved_model_tags.split(",")), _session_config(flags)
        )
        self._batches = _batch_scheduler(flags)
        self._ssl = None
        if flags.ssl_config_file:
            self._ssl = config_files.read(flags.ssl_config_file, config_files.SSLConfig)
        if not flags.port and not flags.grpc_socket_path:
            raise invalid_argument("server_options.grpc_port is not set.")
        try:
            self._channel_arguments = flags_module.channel_arguments(flags.grpc_channel_arguments)
        except ValueError as error:
            raise invalid_argument(str(error)) from error
        self._manager = ModelManager(
            self._load,
            poll_seconds=flags.file_system_poll_wait_seconds,
            max_load_retries=flags.max_num_load_retries,
            load_retry_seconds=flags.load_retry_interval_micros / 1e6,
            load_threads=max(flags.num_load_threads, 1),
            labels_before_loading=flags.allow_version_labels_for_unavailable_models,
        )
        self._core = ServerCore(self._manager, self._inference, self._metrics)

    def serve(self, ended: threading.Event) -> int:
        """Load the models, open the ports, wait for the end, drain.

        As with the binary, ports open once every model has a version that serves: whoever
        connects is answered.

        Raises:
            OSError: a port is taken.
            ServingError: a model has no version that loads.
        """
        grpc_server = GrpcServer(
            self._core,
            max_threads=self._flags.grpc_max_threads,
            channel_arguments=self._channel_arguments,
        )
        self._manager.start()
        try:
            self._manager.reload(self._config, lambda: not ended.is_set())
            if ended.is_set():
                return 0
            rest_server = self._listen(grpc_server)
            self._poll_config_file(ended)
            ended.wait()
            log.info("Draining: requests that run are finished, new ones are refused")
            drained = grpc_server.drain(_DRAIN_SECONDS)
            if rest_server is not None:
                rest_server.stop()
            drained.wait()
        finally:
            self._manager.stop()
        return 0

    def _load(self, name: str, version: int, path: str) -> Servable:
        start, loaded = time.perf_counter(), False
        try:
            if self._batches is None:
                servable = Servable(name, version, path, self._load_options)
            else:
                servable = BatchedServable(name, version, path, self._load_options, self._batches)
            loaded = True
        finally:
            if self._metrics is not None:
                self._metrics.record_load(path, loaded, time.perf_counter() - start)
        if self._flags.enable_model_warmup:
            iterations = max(self._flags.num_request_iterations_for_warmup, 1)
            try:
                warmup.replay(servable, self._inference, iterations, self._metrics)
            except ServingError:
                servable.close()
                raise
        return servable

    def _listen(self, grpc_server: GrpcServer) -> RestServer | None:
        flags = self._flags
        host = f"[{flags.host}]" if ":" in flags.host else flags.host
        rest_port = flags.rest_api_port
        if not rest_port and not flags.names_models:
            rest_port = DEFAULT_REST_PORT
        rest_server = None
        if rest_port and rest_port == flags.port:
            log.error(
                "server_options.http_port cannot be same as grpc_port. Please use a different "
                "port for HTTP/REST API. Skipped exporting HTTP/REST API."
            )
        elif rest_port:
            options = RestOptions(
                threads=flags.rest_api_num_threads,
                timeout_seconds=flags.rest_api_timeout_in_ms / 1e3,
                metrics_path=self._metrics_path,
                cors=flags.rest_api_enable_cors_support,
            )
            app = RestApp(self._core, self._metrics, options)
            rest_server = RestServer(app, flags.host, rest_port)
        if flags.port:
            grpc_server.listen(f"{host}:{flags.port}", self._ssl)
        if flags.grpc_socket_path:
            grpc_server.listen(f"unix:{flags.grpc_socket_path}", self._ssl)
        grpc_server.start()
        if flags.port:
            log.info("Running gRPC ModelServer at %s:%d ...", host, flags.port)
        if flags.grpc_socket_path:
            log.info("Running gRPC ModelServer at UNIX socket %s ...", flags.grpc_socket_path)
        if rest_server is not None:
            rest_server.start()
            log.info("Exporting HTTP/REST API at:localhost:%d ...", rest_port)
            if self._ssl is not None:
                log.warning("--ssl_config_file covers gRPC only: the HTTP/REST API is in clear")
        if not flags.names_models:
            self._print_calls(rest_port)
        return rest_server

    def _print_calls(self, rest_port: int) -> None:
        models = [model.name for model in self._config.model_config_list.config]
        print("\nServing " + ", ".join(models) + ". Try, in another terminal:\n")
        for model in models:
            where = f"--target localhost:{self._flags.port} --model {model}"
            url = f"localhost:{rest_port}/v1/models/{model}"
            print(f"  python -m serve.client predict IMAGE.png {where}")
            print(f"  python -m serve.client status {where}")
            print(f"  curl {url}")
            for signature in self._bytes_signatures(model):
                body = f'{{"signature_name": "{signature}", "instances": [{{"b64": "%s"}}]}}'
                print(f"  printf '{body}' $(base64 -w0 IMAGE.png) | curl {url}:predict -d @-")
        print(flush=True)

    def _bytes_signatures(self, model: str) -> list[str]:
        """Signatures that curl can feed a file: their one input is named as bytes are."""
        servable = self._manager.acquire(model_pb2.ModelSpec(name=model))
        servable.release()
        return [
            name
            for name, signature in sorted(servable.signatures.items())
            if len(signature.inputs) == 1 and next(iter(signature.inputs)).endswith("_bytes")
        ]

    def _poll_config_file(self, ended: threading.Event) -> None:
        seconds = self._flags.model_config_file_poll_wait_seconds
        if seconds > 0 and self._flags.model_config_file:
            threading.Thread(
                target=self._keep_reloading, args=(seconds, ended), daemon=True
            ).start()

    def _keep_reloading(self, seconds: int, ended: threading.Event) -> None:
        while not ended.wait(seconds):
            try:
                config = _model_server_config(self._flags)
                if config != self._manager.config:
                    # A new model that never loads must not keep later edits from being read.
                    self._manager.reload(config, lambda: False)
            except Exception as error:  # whatever is wrong: a later edit may put it right
                reason = as_serving_error(error)
                log.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", reason)


def _model_server_config(flags: Flags) -> model_server_config_pb2.ModelServerConfig:
    if flags.model_config_file:
        config = config_files.read(
            flags.model_config_file, model_server_config_pb2.ModelServerConfig
        )
        for model in config.model_config_list.config:
            model.base_path = os.path.abspath(model.base_path)
        return config
    if flags.model_base_path:
        return model_config.single_model(flags.model_name, flags.model_base_path)
    return _all_of(DEFAULT_MODELS)


def _all_of(folder: str) -> model_server_config_pb2.ModelServerConfig:
    """Every sub-folder that holds numeric versions, as a model of its own."""
    config = model_server_config_pb2.ModelServerConfig()
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if os.path.isdir(path) and any(child.isdigit() for child in os.listdir(path)):
            model_config.add_model(config, name, path)
    if not config.model_config_list.config:
        raise invalid_argument(
            "Both server_options.model_base_path and server_options.model_config_file are empty, "
            f"and {folder}/ holds no model (NAME/VERSION/saved_model.pb)"
        )
    return config


def _session_config(flags: Flags) -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto()
    if flags.tensorflow_session_config_file:
        config = config_files.read(flags.tensorflow_session_config_file, config_pb2.ConfigProto)
    both = flags.tensorflow_session_parallelism
    intra = flags.tensorflow_intra_op_parallelism
    inter = flags.tensorflow_inter_op_parallelism
    if both and (intra or inter):
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    config.intra_op_parallelism_threads = intra or both or config.intra_op_parallelism_threads
    config.inter_op_parallelism_threads = inter or both or config.inter_op_parallelism_threads
    config.allow_soft_placement = True
    if flags.per_process_gpu_memory_fraction:
        fraction = flags.per_process_gpu_memory_fraction
        config.gpu_options.per_process_gpu_memory_fraction = fraction
    return config


def _batch_scheduler(flags: Flags) -> BatchScheduler | None:
    if not flags.enable_batching:
        if flags.batching_parameters_file:
            raise invalid_argument(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        return None
    parameters = config_files.BatchingParameters()
    if flags.batching_parameters_file:
        parameters = config_files.read(
            flags.batching_parameters_file, config_files.BatchingParameters
        )
    return BatchScheduler(BatchingOptions.from_proto(parameters))


def _metrics(flags: Flags) -> tuple[monitoring.Metrics | None, str | None]:
    if not flags.monitoring_config_file:
        return None, None
    config = config_files.read(flags.monitoring_config_file, config_files.MonitoringConfig)
    if not config.prometheus_config.enable:
        return None, None
    return monitoring.Metrics(), config.prometheus_config.path or monitoring.DEFAULT_PATH
