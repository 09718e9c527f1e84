"""Checks of a ModelServerConfig, with TensorFlow Serving's texts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tensorflow_serving.config import model_server_config_pb2

from serve.errors import failed_precondition, invalid_argument

_PLATFORM = "tensorflow"


def single_model(name: str, base_path: str) -> model_server_config_pb2.ModelServerConfig:
    """The configuration that serves the latest version of one model."""
    config = model_server_config_pb2.ModelServerConfig()
    add_model(config, name, base_path)
    return config


def add_model(config: model_server_config_pb2.ModelServerConfig, name: str, base_path: str) -> None:
    config.model_config_list.config.add(
        name=name, base_path=os.path.abspath(base_path), model_platform=_PLATFORM
    )


def validate(
    config: model_server_config_pb2.ModelServerConfig,
    current: Mapping[str, model_server_config_pb2.ModelConfig],
) -> None:
    """Raise ServingError if the server cannot go from the current models to this configuration."""
    if config.WhichOneof("config") != "model_config_list":
        raise failed_precondition(
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another."
        )
    seen = set()
    for model in config.model_config_list.config:
        if model.name in seen:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        seen.add(model.name)
        if not os.path.isabs(model.base_path):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got "
                f"base_path()={model.base_path}"
            )
        if "\0" in model.base_path:
            raise invalid_argument(
                f"Expected model {model.name} to have a path without NUL; got "
                f"base_path()={model.base_path!r}"
            )
        platform = _platform(model)
        old = current.get(model.name)
        if old is not None and _platform(old) != platform:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{_platform(old)} and new platform requested is {platform}"
            )
        if platform != _PLATFORM:
            raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def _platform(model: model_server_config_pb2.ModelConfig) -> str:
    if model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        if model.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(
                f"ModelServerConfig::model_type choice {model.model_type} not supported."
            )
        return _PLATFORM
    if not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform."
        )
    return model.model_platform
