"""Networks as plain Keras functional models: images in [0, 1] -> logits, normalisation inside.

Example:
    >>> from der_tf import models
    >>> model = models.preact_resnet18((32, 32, 3), 10)
    >>> model.output.shape
    (None, 10)
    >>> models.get("wide_resnet-10-1", (32, 32, 3), 10).name
    'wide_resnet_10_1'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from der_tf.models.convnet import convnet
from der_tf.models.preact_resnet import preact_resnet18
from der_tf.models.resnet50 import resnet50
from der_tf.models.wide_resnet import wide_resnet

__all__ = ["convnet", "get", "names", "preact_resnet18", "resnet50", "wide_resnet"]

_WITH_WIDTH: dict[str, Callable[..., keras.Model]] = {
    "convnet": convnet,
    "preact_resnet18": preact_resnet18,
}
_WIDE_RESNET = re.compile(r"wide_resnet-(\d+)-(\d+)")


def names() -> tuple[str, ...]:
    """The names :func:`get` takes; a wide ResNet also with any other depth and width."""
    return (*_WITH_WIDTH, "resnet50", "wide_resnet-28-10", "wide_resnet-34-10")


def get(
    name: str, input_shape: Sequence[int], num_classes: int, width: int | None = None, **config: Any
) -> keras.Model:
    """Builds the network of that name.

    Args:
        name: one of :func:`names`, or ``wide_resnet-DEPTH-WIDTH``.
        input_shape: (height, width, channels) of the images.
        num_classes: K, at least 2.
        width: filters of the first stage, default the network's own; only for ``convnet`` and
            ``preact_resnet18`` (a wide ResNet carries its width in the name).
        **config: passed on: ``mean`` and ``std`` of the pixels.

    Returns:
        A model from float32 images ``[B, H, W, C]`` in [0, 1] to float32 logits ``[B, K]``.

    Raises:
        ValueError: for an unknown name, or a width where the network takes none.
    """
    if name in _WITH_WIDTH:
        if width is not None:
            config["width"] = width
        return _WITH_WIDTH[name](input_shape, num_classes, **config)
    wide = _WIDE_RESNET.fullmatch(name)
    if not wide and name != "resnet50":
        raise ValueError(
            f"model is one of {', '.join(names())} (a wide ResNet with any depth 6 n + 4 and any "
            f"width), received {name!r}"
        )
    if width is not None:
        reason = "has it in its name" if wide else "has a fixed one"
        raise ValueError(f"{name} takes no width, it {reason}; received width {width}")
    if wide:
        return wide_resnet(int(wide[1]), int(wide[2]), input_shape, num_classes, **config)
    return resnet50(input_shape, num_classes, **config)
