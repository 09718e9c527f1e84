"""The cosine schedule and DDIM, against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from der_tf import diffusion


def gaussian_denoiser(mean, deviation):
    """E[eps | x_t] for data N(mean, deviation^2), the best possible denoiser."""
    signal = tf.constant(diffusion.cosine_schedule())

    def denoise(x, t):
        a = tf.reshape(tf.cast(tf.gather(signal, t), x.dtype), [-1, 1])
        return tf.sqrt(1 - a) * (x - tf.sqrt(a) * mean) / (a * deviation**2 + 1 - a)

    return denoise


def test_the_schedule_is_the_squared_cosine():
    signal = diffusion.cosine_schedule(1000)
    assert signal.shape == (1001,)
    assert signal[0] == 1
    offset = 0.008 / 1.008 * np.pi / 2
    for level in (1, 10, 500, 900, 998):
        angle = (level / 1000 + 0.008) / 1.008 * np.pi / 2
        assert signal[level] == pytest.approx((np.cos(angle) / np.cos(offset)) ** 2, rel=1e-9)
    betas = 1 - signal[1:] / signal[:-1]
    assert betas.min() > 0
    assert betas.max() <= 0.999 + 1e-12
    assert 0 < signal[-1] < 1e-6


def test_noise_keeps_the_variance_of_unit_data():
    rng = np.random.default_rng(0)
    x, noise = (rng.normal(size=(4000, 2)).astype(np.float32) for _ in range(2))
    for level in (0, 120, 700, 1000):
        noisy = diffusion.add_noise(tf.constant(x), noise, tf.fill([4000], level)).numpy()
        assert noisy.var() == pytest.approx(1, abs=0.04)
    np.testing.assert_array_equal(
        diffusion.add_noise(tf.constant(x), noise, tf.zeros([4000], tf.int32)), x
    )


def test_levels_go_down_in_equal_steps():
    assert diffusion.levels_down(120, 3) == [120, 80, 40, 0]
    assert diffusion.levels_down(10, 4) == [10, 8, 5, 2, 0]
    assert diffusion.levels_down(3, 3) == [3, 2, 1, 0]


@pytest.mark.parametrize(("mean", "deviation"), [(0.3, 0.5), (-0.8, 0.1)])
def test_ddim_from_noise_reaches_a_gaussian(mean, deviation):
    """The probability flow of a Gaussian is a straight map: x_0 = mean + deviation * x_T."""
    start = np.random.default_rng(0).normal(size=(200, 1))
    denoiser = gaussian_denoiser(mean, deviation)
    errors = []
    for steps in (50, 250):
        levels = diffusion.levels_down(diffusion.LEVELS, steps)
        end = diffusion.ddim(denoiser, tf.constant(start), levels).numpy()
        errors.append(np.abs(end - (mean + deviation * start)).max())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3  # first order in the step


def test_ddim_undoes_noise_that_it_is_told():
    rng = np.random.default_rng(1)
    x, noise = (rng.normal(size=(5, 4, 4, 1)) for _ in range(2))
    noisy = diffusion.add_noise(tf.constant(x), noise, tf.fill([5], 600))
    for steps in (1, 7):
        back = diffusion.ddim(lambda x, t: noise, noisy, diffusion.levels_down(600, steps))
        np.testing.assert_allclose(back, x, atol=1e-12)


def test_purifying_draws_to_the_prior_and_stays_in_range():
    rng = np.random.default_rng(2)
    images = tf.constant(rng.uniform(size=(8, 4, 4, 1)).astype(np.float32))
    noise = tf.constant(rng.normal(size=(8, 4, 4, 1)).astype(np.float32))
    np.testing.assert_array_equal(diffusion.purify(None, images, noise, 0, 1), images)

    def narrow(x, t):  # a prior of grey images
        return gaussian_denoiser(0.0, 0.05)(tf.reshape(x, [8, 16]), t)[:, :, None, None]

    def denoiser(x, t):
        return tf.reshape(narrow(x, t), [8, 4, 4, 1])

    grey = diffusion.purify(denoiser, images, noise, 400, 10).numpy()
    assert np.abs(grey - 0.5).max() < 0.3 * np.abs(images - 0.5).max()
    wild = diffusion.purify(lambda x, t: -9 * x, images, noise, 400, 2).numpy()
    assert wild.min() >= 0
    assert wild.max() <= 1
