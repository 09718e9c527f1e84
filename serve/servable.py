"""One loaded version of a SavedModel, run by tensor names as TensorFlow Serving's C++ runs it.

The graph goes into a ``tf.compat.v1.Session``, the loader of TensorFlow Serving: it takes every
TF1 and TF2 SavedModel, keeps the tensor names that the metadata shows, and checks no shapes.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session as tf_session

from serve.errors import ServingError, StatusCode, not_found

# A client chooses the outputs it wants, so the choices kept compiled are bounded.
_MAX_CALLABLES = 64


@dataclass(frozen=True)
class LoadOptions:
    """How SavedModels are loaded: the tags of the graph to take, and the session's settings."""

    tags: tuple[str, ...] = ("serve",)
    session_config: config_pb2.ConfigProto = field(
        default_factory=lambda: config_pb2.ConfigProto(allow_soft_placement=True)
    )


class Servable:
    """A SavedModel in memory, safe to run from many threads.

    Args:
        name: the model's name.
        version: its version number.
        path: the version's folder, the one that holds ``saved_model.pb``.
        options: tags and session settings.

    Raises:
        ServingError: the folder holds no SavedModel that loads, with the reason.
    """

    def __init__(self, name: str, version: int, path: str, options: LoadOptions | None = None):
        self.name, self.version, self.path = name, version, path
        options = options or LoadOptions()
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=options.session_config)
        try:
            meta_graph = _load(self._session, path, options.tags)
        except Exception:
            self._session.close()
            raise
        self.signatures: dict[str, meta_graph_pb2.SignatureDef] = dict(meta_graph.signature_def)
        self._batches_inside = _has_op(meta_graph.graph_def, "BatchFunction")
        self._callables: OrderedDict[tuple, Any] = OrderedDict()
        self._outputs: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._users = 0
        self._retired = False

    def run(
        self,
        feeds: Sequence[str],
        arrays: Sequence[np.ndarray],
        fetches: Sequence[str],
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Feed tensors by name, fetch tensors by name (``"serving_default_x:0"``).

        Args:
            feeds: names of the tensors fed.
            arrays: their values, in the same order.
            fetches: names of the tensors returned.
            timeout: seconds after which the graph is stopped (at the latest after twice as
                many); None lets it run to its end, and so does a graph that batches inside.

        Raises:
            tf.errors.OpError: what the graph says of the request; DeadlineExceededError.
        """
        # Neither call is public. Session.run and make_callable take 160 microseconds where the
        # first takes 30, and refuse shapes by the placeholder's, which the C++ server does not.
        # A graph that batches inside runs a batch in the step of its youngest request: a deadline
        # there would stop the batch, or empty its answers, for the others in it.
        if timeout is None or self._batches_inside:
            return self._callable(tuple(feeds), tuple(fetches))(*arrays)
        return self._session._call_tf_sessionrun(
            _run_options(timeout),
            {self._output(name): array for name, array in zip(feeds, arrays, strict=True)},
            [self._output(name) for name in fetches],
            [],
            None,
        )

    def _output(self, name: str):
        found = self._outputs.get(name)
        if found is None:
            found = self._session.graph.get_tensor_by_name(name)._as_tf_output()
            self._outputs[name] = found
        return found

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]):
        key = (feeds, fetches)
        with self._lock:
            found = self._callables.get(key)
            if found is not None:
                self._callables.move_to_end(key)
                return found
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        made = self._session._make_callable_from_options(options)
        with self._lock:
            self._callables[key] = made
            if len(self._callables) > _MAX_CALLABLES:
                self._callables.popitem(last=False)
        return made

    def acquire(self) -> bool:
        """Keep the session open for one request; False when the version is already retired."""
        with self._lock:
            if self._retired:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._retired and not self._users:
                self._idle.notify_all()

    def close(self) -> None:
        """Take no new request, wait for those that run, free the memory."""
        with self._lock:
            self._retired = True
            self._idle.wait_for(lambda: not self._users)
            self._callables.clear()
        self._session.close()
        del self._session
        gc.collect()  # the Python graph is full of reference cycles


def _has_op(graph: graph_pb2.GraphDef, op: str) -> bool:
    """Whether an operation occurs in a graph or in its functions."""
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return any(node.op == op for nodes in bodies for node in nodes)


def _run_options(timeout: float):
    # Rounded up to a power of two, so that few are ever made; never freed.
    return _run_options_of(1 << min(max(int(timeout * 1e3), 1).bit_length(), 40))


@functools.cache
def _run_options_of(milliseconds: int):
    options = config_pb2.RunOptions(timeout_in_ms=milliseconds)
    return tf_session.TF_NewBufferFromString(options.SerializeToString())


def _load(session, path: str, tags: Sequence[str]) -> meta_graph_pb2.MetaGraphDef:
    """Load into the session, with the codes and texts of TensorFlow's C++ loader."""
    files = ("saved_model.pb", "saved_model.pbtxt")
    if not any(os.path.isfile(os.path.join(path, file)) for file in files):
        raise not_found(
            "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
            f"{path}. Check that the directory exists and that you have the right permissions "
            "for accessing it."
        )
    try:
        with session.graph.as_default():
            return tf.compat.v1.saved_model.load(session, list(tags), path)
    except OSError as error:
        if "parse" not in str(error):
            raise
        raise ServingError(
            StatusCode.DATA_LOSS, f"Can't parse {path}/saved_model.pb as binary proto"
        ) from error
    except RuntimeError as error:
        if "MetaGraphDef associated with tags" not in str(error):
            raise
        raise not_found(
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. "
            "To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
            "`saved_model_cli`"
        ) from error
