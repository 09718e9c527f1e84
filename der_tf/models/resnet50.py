"""ResNet-50 for ImageNet, through keras.applications."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from der_tf.models.blocks import check_arguments, classifier_head, normalized_input


def resnet50(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> keras.Model:
    """ResNet-50 of keras.applications with random weights, normalisation inside, logits out.

    It is Keras' own network (v1, He et al., arXiv 1512.03385: the 1x1 convolutions stride, and
    convolutions carry a bias), except that batch norm has momentum 0.9 as everywhere in
    der_tf.models: 25,583,592 trainable parameters for 1,000 classes.

    Args:
        input_shape: (height, width, channels) of the images, at least 32 x 32.
        num_classes: K, at least 2.
        mean: of the pixels, subtracted inside the network: one number or one a channel;
            default 0.5.
        std: of the pixels, divided by inside the network: likewise; default 0.25.

    Returns:
        A model from float32 images ``[B, H, W, C]`` in [0, 1] to float32 logits ``[B, K]``.

    Raises:
        ValueError: for an argument outside what is said above.
    """
    check_arguments(input_shape, num_classes)
    if min(input_shape[:2]) < 32:
        raise ValueError(
            f"resnet50 takes images of at least 32 x 32 pixels, received {tuple(input_shape)}: "
            "use preact_resnet18 or convnet for smaller ones"
        )
    images, x = normalized_input(input_shape, mean, std)
    features = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=x)
    for layer in features.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    return keras.Model(images, classifier_head(features.output, num_classes), name="resnet50")
