"""The U-Net and files of denoisers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import diffusion


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3)])
def test_predicts_noise_of_the_images_shape_and_is_saved_whole(shape, tmp_path):
    keras.utils.set_random_seed(0)
    network = diffusion.unet(shape, width=4)
    for variable in network.trainable_variables:  # the last convolution begins at zero
        variable.assign(0.3 * tf.random.normal(variable.shape))
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    network.save(tmp_path / "denoiser.keras")
    loaded = diffusion.as_function(diffusion.load_denoiser(tmp_path / "denoiser.keras"))
    one, other = (loaded(tf.constant(images), tf.constant([t, 700])) for t in (30, 300))
    assert one.shape == images.shape
    np.testing.assert_allclose(one, network([images, np.array([30, 700])]), atol=1e-6)
    # Levels matter, each to its own image.
    assert np.abs(one - other)[0].max() > 1e-3
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)


def test_width_32_has_the_parameters_that_are_told():
    assert 450_000 < diffusion.unet((32, 32, 3)).count_params() < 550_000


def test_unusable_arguments_and_files_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"multiples of 4; received images of shape \(30, 32, 3\)"):
        diffusion.unet((30, 32, 3))
    with pytest.raises(ValueError, match="width is an integer of at least 1, received 0"):
        diffusion.unet((8, 8, 1), width=0)
    with pytest.raises(ValueError, match=r"a denoiser is a \.keras file; received .*none"):
        diffusion.load_denoiser(tmp_path / "none.keras")
    (tmp_path / "broken.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"broken\.keras cannot be loaded"):
        diffusion.load_denoiser(tmp_path / "broken.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="is no denoiser"):
        diffusion.load_denoiser(tmp_path / "other.keras")
    predict = diffusion.as_function(diffusion.unet((8, 8, 1), width=4))
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 1\); received \(12, 12, 1\)"):
        predict(tf.zeros([1, 12, 12, 1]), tf.constant([1]))
