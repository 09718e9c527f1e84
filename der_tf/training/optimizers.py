"""SGD with coupled weight decay, the optimizer of the published recipes; wrapped optimizers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("der_tf.training")
class CoupledSGD(keras.optimizers.SGD):
    """SGD with momentum whose weight decay is an L2 term of the gradient, as in PyTorch.

        g <- g + weight_decay * w;    b <- momentum * b + g;    w <- w - learning_rate * b

    ``keras.optimizers.SGD`` differs twice: its ``weight_decay`` is decoupled (it bypasses the
    momentum), and its velocity has the learning rate of past steps in it, which matters when a
    schedule changes the rate. The recipes of the adversarial-training literature mean this one.
    All trainable weights decay, biases and batch-norm scales included, as in those recipes.

    Args:
        learning_rate: a number or a ``keras.optimizers.schedules.LearningRateSchedule``.
        momentum: in [0, 1]. Default 0.9.
        weight_decay: coefficient of the L2 term. Default 0.
        **kwargs: of ``keras.optimizers.Optimizer``: ``use_ema``, ``ema_momentum``, ``clipnorm`` ...

    Raises:
        ValueError: for a momentum outside [0, 1] or a negative weight decay.
    """

    def __init__(
        self, learning_rate=0.1, momentum: float = 0.9, weight_decay: float = 0.0, **kwargs
    ) -> None:
        if weight_decay < 0:
            raise ValueError(f"weight_decay is a number >= 0; received {weight_decay!r}")
        super().__init__(learning_rate=learning_rate, momentum=float(momentum), **kwargs)
        # Not the base class's attribute of that name: that one would add the decoupled decay.
        self.coupled_weight_decay = float(weight_decay)

    def update_step(self, gradient, variable, learning_rate) -> None:
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        gradient += ops.cast(self.coupled_weight_decay, variable.dtype) * variable
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            gradient += ops.cast(self.momentum, variable.dtype) * buffer
            self.assign(buffer, gradient)
        self.assign_sub(variable, learning_rate * gradient)

    def get_config(self) -> dict:
        config = super().get_config()
        config.pop("nesterov")
        return config | {"weight_decay": self.coupled_weight_decay}


def unwrapped(optimizer: keras.optimizers.Optimizer) -> Any:
    """The optimizer that has the state: a ``LossScaleOptimizer`` wraps it."""
    return getattr(optimizer, "inner_optimizer", optimizer)
