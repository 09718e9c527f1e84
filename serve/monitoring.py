"""Prometheus metrics under TensorFlow Serving's names, served at the path its config names."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.samples import Sample

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain"

# TensorFlow Serving's buckets: 10 microseconds, each 1.8 times the one before.
_MICROSECOND_BUCKETS = tuple(10 * 1.8**power for power in range(32))


class Metrics:
    """Counters and latencies of one server; safe to use from many threads."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._request_latency = self._latency(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            ["model_name", "API", "entrypoint"],
        )
        self._runtime_latency = self._latency(
            ":tensorflow:serving:runtime_latency",
            "Distribution of wall time (in microseconds) for Tensorflow runtime.",
            ["model_name", "API", "runtime"],
        )
        self._warmup_latency = self._latency(
            ":tensorflow:serving:model_warmup_latency",
            "Distribution of wall time (in microseconds) for warming up the model.",
            ["model_path", "status"],
        )
        self._loads = Counter(
            ":tensorflow:cc:saved_model:load_attempt_count",
            "The number of times a SavedModel was requested to be loaded.",
            ["model_path", "status"],
            registry=self._registry,
        )
        self._load_latency = Counter(
            ":tensorflow:cc:saved_model:load_latency",
            "Latency in microseconds for SavedModels that were successfully loaded.",
            ["model_path"],
            registry=self._registry,
        )

    def _latency(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(name, text, labels, buckets=_MICROSECOND_BUCKETS, registry=self._registry)

    def record_request(
        self, model: str, api: str, entrypoint: str, status: str, seconds: float
    ) -> None:
        self._requests.labels(model, status).inc()
        if status == "OK":
            self._request_latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def record_runtime(self, model: str, api: str, seconds: float) -> None:
        self._runtime_latency.labels(model, api, "TF1").observe(seconds * 1e6)

    def record_warmup(self, path: str, status: str, seconds: float) -> None:
        self._warmup_latency.labels(path, status).observe(seconds * 1e6)

    def record_load(self, path: str, succeeded: bool, seconds: float) -> None:
        self._loads.labels(path, "success" if succeeded else "fail").inc()
        if succeeded:
            self._load_latency.labels(path).inc(round(seconds * 1e6))

    def page(self) -> bytes:
        """The exposition that Prometheus scrapes, laid out as the binary lays it out.

        prometheus_client's own writer sorts the labels and appends "_total" to counters, which
        readers of TensorFlow Serving's page do not expect.
        """
        lines = []
        for metric in self._registry.collect():
            lines.append(f"# TYPE {metric.name} {metric.type}")
            lines += [_line(sample) for sample in metric.samples]
        return ("\n".join(lines) + "\n").encode()


def _line(sample: Sample) -> str:
    labels = dict(sample.labels)
    if labels.get("le", "+Inf") != "+Inf":
        labels["le"] = f"{float(labels['le']):g}"
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{sample.name.removesuffix('_total')}{{{text}}} {sample.value:.17g}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
