"""The PyTorch twin of a Keras network: the same operations on the same weights.

Peers written for PyTorch are compared on it, so that a difference is one of the attack alone.
"""

from __future__ import annotations

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers
from keras.src.ops.numpy import Add, GetItem, Pad
from torch import nn


class _SamePad(nn.Module):
    """TensorFlow's ``padding="same"``, which pads more below and to the right."""

    def __init__(self, kernel: tuple[int, int], strides: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.strides = kernel, strides

    def forward(self, x):
        pads = []
        sizes = (x.shape[3], x.shape[2])  # pads are given from the last dimension
        for size, kernel, stride in zip(sizes, self.kernel[::-1], self.strides[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads) if any(pads) else x


class _Affine(nn.Module):
    def __init__(self, scale, offset) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("offset", offset)):
            tensor = torch.tensor(np.asarray(value, np.float32)).reshape(-1, 1, 1)
            self.register_buffer(name, tensor)

    def forward(self, x):
        return x * self.scale + self.offset


class _Flatten(nn.Module):
    """In the order of Keras, channels last."""

    def forward(self, x):
        return torch.flatten(x.permute(0, 2, 3, 1) if x.ndim == 4 else x, 1)


class _Index(nn.Module):
    """``x[key]`` with the key of a batch of images, channels last."""

    def __init__(self, key) -> None:
        super().__init__()
        self.key = tuple(key[axis] for axis in (0, 3, 1, 2))

    def forward(self, x):
        return x[self.key]


def _tensor(variable) -> torch.Tensor:
    return torch.tensor(np.asarray(variable))


def _module(node) -> nn.Module:
    """The PyTorch module that does what the Keras layer or operation of a node does."""
    layer = node.operation
    if isinstance(layer, keras.Model):
        return TorchTwin(layer)
    if isinstance(layer, GetItem):
        return _Index(node.arguments.args[1])
    if isinstance(layer, Pad) and layer.mode == "constant":
        _, height, width, channels = layer.pad_width
        return nn.ConstantPad3d((*width, *height, *channels), 0.0)
    if isinstance(layer, layers.Dropout):
        return nn.Identity()
    if isinstance(layer, layers.Rescaling):
        return _Affine(layer.scale, layer.offset)
    if isinstance(layer, layers.Normalization):
        scale = 1 / np.maximum(np.sqrt(np.ravel(layer.variance)), 1e-7)
        return _Affine(scale, -np.ravel(layer.mean) * scale)
    if isinstance(layer, layers.Conv2D):
        filters, channels = layer.filters, layer.kernel.shape[2]
        conv = nn.Conv2d(channels, filters, layer.kernel_size, layer.strides, bias=layer.use_bias)
        conv.weight.data = _tensor(layer.kernel).permute(3, 2, 0, 1).contiguous()
        if layer.use_bias:
            conv.bias.data = _tensor(layer.bias)
        if layer.padding == "valid":
            return conv
        if layer.strides == (1, 1) and all(size % 2 for size in layer.kernel_size):
            conv.padding = tuple(size // 2 for size in layer.kernel_size)
            return conv
        return nn.Sequential(_SamePad(layer.kernel_size, layer.strides), conv)
    if isinstance(layer, layers.BatchNormalization):
        norm = nn.BatchNorm2d(layer.moving_mean.shape[0], eps=layer.epsilon)
        norm.weight.data, norm.bias.data = _tensor(layer.gamma), _tensor(layer.beta)
        norm.running_mean, norm.running_var = (
            _tensor(layer.moving_mean),
            _tensor(layer.moving_variance),
        )
        return norm
    if isinstance(layer, layers.Dense):
        dense = nn.Linear(*layer.kernel.shape, bias=layer.use_bias)
        dense.weight.data = _tensor(layer.kernel).T.contiguous()
        if layer.use_bias:
            dense.bias.data = _tensor(layer.bias)
        return dense
    if isinstance(layer, layers.ReLU) or (
        isinstance(layer, layers.Activation) and layer.activation is keras.activations.relu
    ):
        return nn.ReLU()
    if isinstance(layer, layers.ZeroPadding2D):
        (top, bottom), (left, right) = layer.padding
        return nn.ZeroPad2d((left, right, top, bottom))
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if isinstance(layer, layers.MaxPooling2D | layers.AveragePooling2D):
        cls = nn.MaxPool2d if isinstance(layer, layers.MaxPooling2D) else nn.AvgPool2d
        return cls(layer.pool_size, layer.strides)
    if isinstance(layer, layers.Flatten):
        return _Flatten()
    raise ValueError(f"torch_twin knows no {type(layer).__name__} ({layer.name})")


class TorchTwin(nn.Module):
    """The twin of a functional Keras network, ``[B, C, H, W]`` in [0, 1] -> logits ``[B, K]``.

    In evaluation mode when made. Networks may be nested; additions are the only steps with
    several inputs, and a layer is used once.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.plan: list[tuple[str, list[str], int | None]] = []
        nodes = {node.operation: node for part in network._nodes_by_depth.values() for node in part}
        for operation in network.operations:
            node = nodes[operation]
            sources = [tensor._keras_history.operation.name for tensor in node.input_tensors]
            if isinstance(operation, layers.InputLayer):
                self.first = operation.name
            elif isinstance(operation, layers.Add | Add):
                self.plan.append((operation.name, sources, None))
            else:
                self.plan.append((operation.name, sources, len(self.layers)))
                self.layers.append(_module(node))
        self.eval()

    def forward(self, images):
        values = {self.first: images}
        for name, sources, index in self.plan:
            inputs = [values[source] for source in sources]
            values[name] = (
                sum(inputs[1:], inputs[0]) if index is None else self.layers[index](inputs[0])
            )
        return values[self.plan[-1][0]]


class _InChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(_, images):
        return images.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(_, gradient):
        return gradient.contiguous()


class ChannelsLast(nn.Module):
    """A network in channels-last memory, for peers whose own operations need contiguous images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, images):
        return self.network(_InChannelsLast.apply(images))
