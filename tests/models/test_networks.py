"""The networks against their published sizes and an independent forward pass."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.signal import correlate2d

from der_tf import models
from der_tf.models.blocks import conv

SMALL = {
    "preact_resnet18": lambda **kw: models.preact_resnet18((8, 8, 3), 5, width=4, **kw),
    "wide_resnet": lambda **kw: models.wide_resnet(10, 1, (8, 8, 3), 5, **kw),
    "convnet": lambda **kw: models.convnet((8, 8, 3), 5, width=4, **kw),
}


def images(batch=4, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).random((batch, *shape), np.float32)


def randomize(model, seed=0):
    """Batch norm as after training: at its start it would hide half of its arithmetic."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "bn" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("preact_resnet18", 11_172_170),
        ("wide_resnet-28-10", 36_479_194),
        ("wide_resnet-34-10", 46_160_474),
    ],
)
def test_as_many_parameters_as_the_reference_network(name, published):
    assert parameters(models.get(name, (32, 32, 3), 10)) == published


@pytest.mark.parametrize("size", [4, 5, 8])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_strided_convolution_pads_alike_on_every_side(size, kernel_size):
    inputs = keras.Input((size, size, 2))
    model = keras.Model(inputs, conv(inputs, 3, kernel_size, 2, name="c"))
    x = images(2, (size, size, 2))
    kernel = model.get_layer("c").kernel.numpy()
    p = kernel_size // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    expected = np.stack(
        [
            sum(correlate2d(image[..., i], kernel[..., i, o], "valid")[::2, ::2] for i in range(2))
            for image in padded
            for o in range(3)
        ]
    ).reshape(2, 3, *model.output_shape[1:3])
    np.testing.assert_allclose(model(x), expected.transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "blocks", "strides"),
    [("preact_resnet18", 2, [1, 2, 2, 2]), ("wide_resnet", 1, [1, 2, 2])],
)
def test_forward_pass_is_that_of_the_paper(name, blocks, strides):
    """Written out with PyTorch's explicit paddings, from the weights by their names."""
    model = randomize(SMALL[name](mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))

    def weight(layer, part):
        return tf.constant(getattr(model.get_layer(layer), part).numpy())

    def norm_relu(x, layer):
        mean, variance = weight(layer, "moving_mean"), weight(layer, "moving_variance")
        scaled = (x - mean) / tf.sqrt(variance + 1e-5) * weight(layer, "gamma")
        return tf.nn.relu(scaled + weight(layer, "beta"))

    def convolve(x, layer, stride):
        kernel = weight(layer, "kernel")
        p = kernel.shape[0] // 2
        return tf.nn.conv2d(x, kernel, stride, [[0, 0], [p, p], [p, p], [0, 0]])

    x = images()
    h = (x - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    h = convolve(h, "stem_conv", 1)
    for stage, stride in enumerate(strides, start=1):
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            step = stride if block == 1 else 1
            a = norm_relu(h, f"{prefix}_1_bn")
            out = convolve(a, f"{prefix}_1_conv", step)
            out = convolve(norm_relu(out, f"{prefix}_2_bn"), f"{prefix}_2_conv", 1)
            projected = any(layer.name == f"{prefix}_shortcut" for layer in model.layers)
            # A projection stands exactly where the shape changes.
            assert projected == (h.shape != out.shape)
            h = out + (convolve(a, f"{prefix}_shortcut", step) if projected else h)
    pooled = tf.reduce_mean(norm_relu(h, "final_bn"), [1, 2])
    expected = pooled @ weight("logits", "kernel") + weight("logits", "bias")
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_normalisation_is_inside(name):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    inside = randomize(SMALL[name](mean=mean, std=std))
    outside = SMALL[name](mean=0, std=1)
    outside.set_weights(inside.get_weights())
    x = images()
    by_hand = (x - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(inside(x), outside(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_network_loads_without_this_package(name, tmp_path):
    model = randomize(SMALL[name](mean=(0.1, 0.2, 0.3), std=0.5))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects={})
    assert {type(layer).__module__.split(".")[0] for layer in again.layers} == {"keras"}
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(again(images()), model(images()))


@pytest.mark.parametrize("name", [*SMALL, "resnet50"])
def test_mixed_precision_keeps_pixels_and_logits_in_float32(name):
    make = SMALL.get(name, lambda: models.resnet50((32, 32, 3), 5))
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = make()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    convolution = next(x for x in model.layers if isinstance(x, keras.layers.Conv2D))
    assert convolution.compute_dtype == "bfloat16"
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", SMALL)
def test_layers_as_in_the_recipes(name):
    model = SMALL[name]()
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms
    assert {(x.momentum, x.epsilon) for x in norms} == {(0.9, 1e-5)}
    assert not any(x.use_bias for x in model.layers if isinstance(x, keras.layers.Conv2D))


def test_convolutions_start_by_he_fan_out_each_with_its_own_draw():
    model = models.preact_resnet18((8, 8, 3), 10, width=32)
    kernels = [x.kernel.numpy() for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    for kernel in kernels:
        fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.1)
    same_shape = [k for k in kernels if k.shape == (3, 3, 32, 32)]
    assert len(same_shape) == 4
    assert abs(np.corrcoef([k.ravel() for k in same_shape]) - np.eye(4)).max() < 0.1


def test_a_seed_repeats_the_initial_weights():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return SMALL["convnet"]().get_weights()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_resnet50_gives_logits_from_pixels():
    model = models.get("resnet50", (32, 32, 3), 7)
    logits = model(images(2, (32, 32, 3))).numpy()
    assert logits.shape == (2, 7)
    assert not np.allclose(logits.sum(axis=1), 1)
    saved = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    norms = [x for x in saved.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {x.momentum for x in norms} == {0.9}


@pytest.mark.parametrize("name", models.names())
def test_every_name_builds(name):
    model = models.get(name, (32, 32, 3), 10)
    assert model.output_shape == (None, 10)
    assert model.input_shape == (None, 32, 32, 3)


def test_get_passes_its_arguments_on():
    given = {"mean": 0.25, "std": 0.125}
    by_name = models.get("wide_resnet-16-2", (8, 8, 1), 3, **given)
    by_hand = models.wide_resnet(16, 2, (8, 8, 1), 3, **given)
    assert parameters(by_name) == parameters(by_hand)
    config = by_name.get_layer("normalization").get_config()
    assert (config["scale"], config["offset"]) == ([8.0], [-2.0])
    assert parameters(models.get("convnet", (8, 8, 1), 10, 4)) == parameters(
        models.convnet((8, 8, 1), 10, 4)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.get("resnet18", (8, 8, 1), 10), r"model is one of convnet.*'resnet18'"),
        (lambda: models.get("wide_resnet-28", (8, 8, 1), 10), "wide_resnet-28-10"),
        (lambda: models.get("wide_resnet-10-1", (8, 8, 1), 10, width=4), "received width 4"),
        (lambda: models.get("resnet50", (32, 32, 3), 10, width=4), "received width 4"),
        (lambda: models.wide_resnet(12, 1, (8, 8, 1), 10), "6 n \\+ 4.*received 12"),
        (lambda: models.wide_resnet(4, 1, (8, 8, 1), 10), "received 4"),
        (lambda: models.convnet((8, 8), 10), "received \\(8, 8\\)"),
        (lambda: models.convnet((8, 8, 0), 10), "received \\(8, 8, 0\\)"),
        (lambda: models.convnet((8, 8, 1), 1), "num_classes.*received 1"),
        (lambda: models.preact_resnet18((8, 8, 1), 10, 0), "width.*received 0"),
        (lambda: models.convnet((8, 8, 3), 10, mean=(0.5, 0.5)), "3 channels"),
        (lambda: models.convnet((8, 8, 1), 10, std=0.0), "std is positive"),
        (lambda: models.resnet50((16, 16, 3), 10), "at least 32 x 32.*16"),
    ],
)
def test_unusable_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_convnet_learns_digits_in_three_epochs():
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    model = models.convnet((8, 8, 1), 10, width=16)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x[:1400], y[:1400], batch_size=64, epochs=3, verbose=0)
    assert model.evaluate(x[1400:], y[1400:], verbose=0)[1] > 0.85
