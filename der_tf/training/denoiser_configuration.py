"""What decides the training of a denoiser. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserConfiguration:
    """Settings of ``der-tf train-denoiser``; the defaults are a small job on digits.

    Args:
        dataset: a name that :func:`der_tf.data.load` takes.
        data_dir: where it lies.
        width: filters of the U-Net at the full resolution.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: peak of Adam's rate, reached after 5 % of the steps; a cosine takes it to 0.
        limit_train: training images to use. Default None: all.
        seed: of the first weights, the order of the images, levels and noise.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    width: int = 32
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3
    limit_train: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What run directories are called by default."""
        return f"{self.dataset}-denoiser"
