"""Chains against mathematics: a Gaussian energy, gradient descent, references, company."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.linalg import solve_discrete_lyapunov

from der_tf.energy import joint_energy
from der_tf.generation import LangevinSampler, LocalClasswisePCA
from tests.generation.conftest import GaussianEnergy

MEANS = np.linspace(0.4, 0.6, 3 * 16).reshape(3, 16)


@pytest.fixture(scope="module")
def noise():
    return LocalClasswisePCA(mode="noise").fit(np.zeros((3, 4, 4, 1), np.float32), np.arange(3))


@pytest.fixture(scope="module")
def local(data):
    return LocalClasswisePCA(neighbors=5).fit(*data)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("heun", [False, True])
def test_the_stationary_law_on_a_gaussian_energy(noise, momentum, heun):
    """Mean and variance of the linear recursion that a step is, from its Lyapunov equation."""
    curvature, step_size, level = 30.0, 0.02, 0.05
    sampler = LangevinSampler(
        GaussianEnergy(MEANS, curvature),
        noise,
        step_size=step_size,
        momentum=momentum,
        noise=level,
        heun=heun,
        batch_size=400,
    )
    images = sampler.sample(np.repeat([0, 1, 2], 400), np.arange(1200), 80).reshape(3, 400, 16)
    drift, spread = step_size / 2 * curvature, np.sqrt(2 * step_size) * level
    # (x, v) -> A (x, v) + b n around the mean.
    plain = np.array([[1 - drift, momentum], [-drift, momentum]])
    noisy = np.array([spread, 0.0])
    if heun:
        # The second gradient is that at x + v' + spread n of the plain step.
        half = drift / 2
        there = np.array([plain[0], plain[0]])
        velocity = np.array([[-half, momentum], [-half, momentum]]) - half * there
        plain = velocity + np.array([[1, 0], [0, 0]])
        noisy = np.array([spread - half * spread, -half * spread])
    stationary = solve_discrete_lyapunov(plain, np.outer(noisy, noisy))[0, 0]
    if momentum == 0 and not heun:
        # For small steps the temperature 2 s**2 over the curvature.
        np.testing.assert_allclose(stationary, 2 * level**2 / curvature, rtol=0.5)
    means = images.mean(axis=1)
    np.testing.assert_allclose(means, MEANS, atol=5 * np.sqrt(stationary / 400))
    # 3 * 400 * 16 draws: the standard error of the variance is 1 %.
    np.testing.assert_allclose(((images - MEANS[:, None]) ** 2).mean(), stationary, rtol=0.05)


def test_without_noise_and_momentum_it_is_gradient_descent(network, local):
    labels, seeds = np.array([0, 1, 2, 1]), np.arange(4)
    sampler = LangevinSampler(network, local, step_size=0.1, momentum=0.0, noise=0.0)
    x = tf.constant(local.sample(labels, seeds))
    for _ in range(7):
        with tf.GradientTape() as tape:
            tape.watch(x)
            energies = tf.reduce_sum(joint_energy(network(x, training=False), labels))
        x = tf.clip_by_value(x - 0.05 * tape.gradient(energies, x), 0.0, 1.0)
    result = sampler.run(labels, seeds, 7)
    np.testing.assert_allclose(result.images, x, atol=1e-6)
    np.testing.assert_allclose(
        result.joint_energy, joint_energy(network(x, training=False), labels), atol=1e-5
    )
    assert result.steps_taken.tolist() == [7] * 4


def test_the_same_sample_in_any_company(network, local, data):
    """Alone, among others with other numbers of steps, and in batches of other sizes."""
    starts = LocalClasswisePCA(neighbors=5).fit(*data)
    starts.set_reference_energies(network, *data, quantile=0.3)
    options = {"step_size": 0.05, "noise": 0.02, "candidates": 3}
    rng = np.random.default_rng(0)
    labels, seeds = rng.integers(0, 3, 23), rng.integers(-(2**60), 2**60, 23)
    steps = rng.integers(0, 25, 23)
    together = LangevinSampler(network, starts, **options).run(labels, seeds, steps)
    pieces = LangevinSampler(network, starts, batch_size=5, **options).run(labels, seeds, steps)
    alone = LangevinSampler(network, starts, batch_size=1, **options).run(labels, seeds, steps)
    assert 0 < np.count_nonzero(together.steps_taken < steps) < 23  # some stop, some do not
    for other in (pieces, alone):
        np.testing.assert_allclose(other.images, together.images, atol=1e-5)
        np.testing.assert_array_equal(other.steps_taken, together.steps_taken)
        np.testing.assert_allclose(other.joint_energy, together.joint_energy, atol=1e-4)


def test_a_longer_chain_goes_on_and_another_seed_or_class_differs(network, local):
    sampler = LangevinSampler(network, local, step_size=0.05, noise=0.02)
    trace = sampler.trace([0, 1], [5, 5], 9)
    assert trace.frames.shape == (10, 2, 4, 4, 1)
    np.testing.assert_allclose(trace.frames[0], local.sample([0, 1], [5, 5]), atol=1e-6)
    starts = sampler.trace([0, 1], [5, 5], 0)
    np.testing.assert_allclose(starts.frames, trace.frames[:1], atol=1e-6)
    np.testing.assert_allclose(starts.joint_energy, trace.joint_energy[:1], atol=1e-4)
    for steps in (3, 9):
        result = sampler.run([0, 1], [5, 5], steps)
        np.testing.assert_allclose(result.images, trace.frames[steps], atol=1e-5)
        np.testing.assert_allclose(result.joint_energy, trace.joint_energy[steps], atol=1e-4)
    assert np.abs(sampler.sample([0, 0], [5, 6], 9)[0] - trace.frames[9, 0]).max() < 1e-5
    assert np.abs(np.diff(sampler.sample([0, 0], [5, 6], 9), axis=0)).max() > 1e-3


def test_adaptive_stopping_stops_at_the_reference_and_not_above(network, local, data):
    starts = LocalClasswisePCA(neighbors=5).fit(*data)
    starts.set_reference_energies(network, *data, quantile=0.2)
    labels, seeds = np.arange(60) % 3, np.arange(60)
    sampler = LangevinSampler(network, starts, step_size=0.02, noise=0.01)
    result = sampler.run(labels, seeds, 40)
    reference = starts.reference_energies[labels]
    early = result.steps_taken < 40
    assert early.any()
    assert (result.joint_energy[early] <= reference[early]).all()
    energies = joint_energy(network(result.images, training=False), labels).numpy()
    np.testing.assert_allclose(result.joint_energy, energies, atol=1e-4)
    # No sooner than it could: one step before, the energy was above.
    trace = sampler.trace(labels, seeds, 40)
    np.testing.assert_array_equal(trace.steps_taken, result.steps_taken)
    for i in np.flatnonzero(early):
        assert (trace.joint_energy[: trace.steps_taken[i], i] > reference[i]).all()
    # Fixed steps take them all.
    fixed = LangevinSampler(network, starts, step_size=0.02, noise=0.01, adaptive=False)
    assert (fixed.run(labels, seeds, 40).steps_taken == 40).all()
    unreachable = LangevinSampler(network, starts, reference_energies=[-np.inf] * 3)
    assert (unreachable.run(labels, seeds, 3).steps_taken == 3).all()


def test_candidates_lower_the_energy_of_starts(network, local):
    labels, seeds = np.arange(12) % 3, np.arange(12)
    one = LangevinSampler(network, local).run(labels, seeds, 0)
    four = LangevinSampler(network, local, candidates=4).run(labels, seeds, 0)
    eight = LangevinSampler(network, local, candidates=8).run(labels, seeds, 0)
    assert (four.joint_energy <= one.joint_energy).all()
    assert (eight.joint_energy <= four.joint_energy).all()
    assert eight.joint_energy.mean() < one.joint_energy.mean()
    np.testing.assert_array_equal(one.images, local.sample(labels, seeds))


def test_heun_follows_the_flow_more_closely(noise):
    """Without noise the chain is an ODE solver of dx/dt = -a (x - mean) / 2 at t = n step."""
    curvature, horizon = 4.0, 1.0
    start = noise.sample([0], [0]).numpy().ravel() - MEANS[0]
    exact = start * np.exp(-curvature * horizon / 2)

    def error(steps, heun):
        sampler = LangevinSampler(
            GaussianEnergy(MEANS, curvature),
            noise,
            step_size=horizon / steps,
            momentum=0.0,
            noise=0.0,
            heun=heun,
        )
        return np.abs(sampler.sample([0], [0], steps).ravel() - MEANS[0] - exact).max()

    assert error(20, True) < error(20, False) / 10
    assert error(10, True) / error(20, True) == pytest.approx(4, rel=0.25)  # second order
    assert error(10, False) / error(20, False) == pytest.approx(2, rel=0.25)


def test_bad_input_is_one_sentence(network, local, noise):
    for options in (
        {"step_size": 0.0},
        {"momentum": 1.0},
        {"noise": -1.0},
        {"candidates": 0},
        {"batch_size": True},
        {"reference_energies": [1.0]},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))} .*received"):
            LangevinSampler(network, local, **options)
    with pytest.raises(ValueError, match="not fitted"):
        LangevinSampler(network, LocalClasswisePCA())
    grey = LocalClasswisePCA(mode="noise").fit(np.zeros((3, 4, 4, 3), np.float32), np.arange(3))
    with pytest.raises(ValueError, match=r"takes images \(4, 4, 1\); received .* \(4, 4, 3\)"):
        LangevinSampler(network, grey)
    two = LocalClasswisePCA(mode="noise").fit(np.zeros((2, 4, 4, 1), np.float32), np.arange(2))
    with pytest.raises(ValueError, match=r"logits \[B, 2\].*received shape \(1, 3\)"):
        LangevinSampler(network, two)
    sampler = LangevinSampler(network, local)
    with pytest.raises(ValueError, match=r"classes in 0\.\.2; received -1"):
        sampler.sample([-1], [0], 1)
    with pytest.raises(ValueError, match=r"num_steps is an integer >= 0.*-3"):
        sampler.sample([1], [0], -3)
    with pytest.raises(ValueError, match="1 to 64 chains"):
        sampler.trace(np.zeros(65, int), np.arange(65), 1)
    assert sampler.run([], [], 3).images.shape == (0, 4, 4, 1)
    with pytest.raises(ValueError, match="has none"):
        LangevinSampler(lambda x: tf.zeros([tf.shape(x)[0], 3]), noise)
    with pytest.raises(ValueError, match="answers NaN or infinity on the way of 2 of 2"):
        LangevinSampler(lambda x: tf.reduce_sum(x, [1, 2]) * [0.0, 1.0, np.nan], noise).sample(
            [2, 2], [0, 1], 1
        )
