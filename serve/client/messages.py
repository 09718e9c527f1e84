"""Message classes of the TensorFlow Serving API, without importing TensorFlow.

The modules generated for ``tensorflow-serving-api`` import ``tensorflow.core``, and with it all of
TensorFlow: 4 to 10 s. But each of those ``*_pb2.py`` files holds its ``.proto`` file, serialized,
as one literal. Here the literals are read from the installed files, with the syntax tree and
without running them, and put into a descriptor pool of our own. The pool is private, so the same
process may import TensorFlow before or after without a duplicate symbol.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_POOL = descriptor_pool.DescriptorPool()
_added: set[str] = set()


def _folders() -> list[Path]:
    """Where ``.proto`` paths start; those of ``xla/`` and ``tsl/`` do so inside TensorFlow.

    ``find_spec`` of a top-level package finds it without running it.
    """
    folders = []
    for package in ("tensorflow_serving", "tensorflow", "google.protobuf"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                f"the client reads its message definitions from the package {package}, which is "
                "not installed: pip install tensorflow-serving-api"
            )
        folder = Path(spec.submodule_search_locations[0])
        folders.append(folder.parents[package.count(".")])
        if package == "tensorflow":
            folders += [folder, folder / "compiler"]
    return list(dict.fromkeys(folders))


_FOLDERS = _folders()


def _serialized(name: str) -> bytes:
    """The serialized FileDescriptorProto inside the module generated from the file ``name``."""
    generated = name.removesuffix(".proto") + "_pb2.py"
    path = next((f / generated for f in _FOLDERS if (f / generated).is_file()), None)
    if path is None:
        raise ImportError(f"found no {generated} in {', '.join(map(str, _FOLDERS))}")
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            return ast.literal_eval(node.args[0])
    raise ImportError(f"{path} holds no serialized file descriptor")


def _add(name: str) -> None:
    if name in _added:
        return
    _added.add(name)
    serialized = _serialized(name)
    for dependency in descriptor_pb2.FileDescriptorProto.FromString(serialized).dependency:
        _add(dependency)
    _POOL.AddSerializedFile(serialized)


def message(file: str, name: str) -> Any:
    """The class of the message ``name``, package included, that ``file`` defines."""
    _add(file)
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def _serving(file: str, name: str) -> Any:
    return message(f"tensorflow_serving/apis/{file}.proto", f"tensorflow.serving.{name}")


PredictRequest = _serving("predict", "PredictRequest")
PredictResponse = _serving("predict", "PredictResponse")
ModelSpec = _serving("model", "ModelSpec")
GetModelMetadataRequest = _serving("get_model_metadata", "GetModelMetadataRequest")
GetModelMetadataResponse = _serving("get_model_metadata", "GetModelMetadataResponse")
SignatureDefMap = _serving("get_model_metadata", "SignatureDefMap")
GetModelStatusRequest = _serving("get_model_status", "GetModelStatusRequest")
GetModelStatusResponse = _serving("get_model_status", "GetModelStatusResponse")
TensorProto = message("tensorflow/core/framework/tensor.proto", "tensorflow.TensorProto")

#: Numbers and names of TensorFlow's element types: ``DT_FLOAT`` <-> 1.
DATA_TYPES: dict[int, str] = {
    value.number: value.name for value in _POOL.FindEnumTypeByName("tensorflow.DataType").values
}
#: Names of the states a version goes through: 30 -> ``AVAILABLE``.
STATES: dict[int, str] = {
    value.number: value.name
    for value in _POOL.FindEnumTypeByName("tensorflow.serving.ModelVersionStatus.State").values
}
