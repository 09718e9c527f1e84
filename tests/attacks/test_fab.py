"""FAB: its projection against an independent solver, closed forms, and what the ball does."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from der_tf import attacks
from der_tf.attacks.fab import project_onto_hyperplane


def shortest_step(x, normal, level, norm):
    """By bisection over the length of the step, in float64; None where the box does not reach."""
    gap = level - normal @ x
    room = np.where(normal * np.sign(gap) > 0, 1 - x, x)
    pace = np.ones_like(x) if norm == "linf" else np.abs(normal)

    def missing(t):
        return abs(gap) - np.abs(normal) @ np.minimum(t * pace, room)

    if missing(1e9) > 0:
        return None
    t = optimize.brentq(missing, 0, 1e9, xtol=1e-14, rtol=1e-14, maxiter=500)
    return np.linalg.norm(np.minimum(t * pace, room), np.inf if norm == "linf" else 2)


@given(
    pixels=st.integers(1, 12),
    norm=st.sampled_from(["linf", "l2"]),
    reach=st.floats(0.0, 1.3),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_projection_is_the_shortest_step_in_the_box(pixels, norm, reach, seed):
    rng = np.random.default_rng(seed)
    x = rng.random(pixels)
    x[rng.random(pixels) < 0.2] = rng.choice([0.0, 1.0])
    normal = rng.normal(size=pixels)
    x, normal = x.astype(np.float32).astype(float), normal.astype(np.float32).astype(float)
    # A level at a share of the way to the corner of the box that lies farthest along the normal.
    level = normal @ x + reach * (normal @ ((normal > 0) - x))
    step = (
        project_onto_hyperplane(
            tf.constant(x[None], tf.float32),
            tf.constant(normal[None], tf.float32),
            tf.constant([level], tf.float32),
            norm,
        )
        .numpy()[0]
        .astype(float)
    )
    assert (x + step).min() >= -1e-6
    assert (x + step).max() <= 1 + 1e-6
    expected = shortest_step(x, normal, level, norm)
    if reach < 0.99:
        assert normal @ (x + step) == pytest.approx(level, abs=1e-4)
        length = np.linalg.norm(step, np.inf if norm == "linf" else 2)
        assert length == pytest.approx(expected, abs=1e-4, rel=1e-3)
    if reach > 1.01:
        np.testing.assert_allclose(x + step, normal > 0, atol=1e-5)  # the corner


@pytest.mark.parametrize("num_classes", [2, 8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_finds_the_smallest_perturbation_of_a_linear_model(
    norm, num_classes, linear, distance, errs
):
    model = linear(num_classes)
    attack = attacks.get("fab_t", epsilon=math.inf, norm=norm, steps=20)
    moved = attack(model, model.x, model.y).numpy()
    assert errs(model, moved, model.y).all()
    ratio = distance(model.x, moved, norm) / model.distances(norm)
    assert ratio.min() > 1 - 1e-3
    assert ratio.max() < 1.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_errs_within_epsilon_or_leaves_the_image(norm, robust_network, distance, errs):
    model, x, y = robust_network
    config = {"norm": norm, "steps": 20, "targets": 3}
    closest = attacks.get("fab_t", epsilon=math.inf, **config)(model, x, y)
    distances = distance(x, closest, norm)
    correct = ~errs(model, x, y)
    assert errs(model, closest, y).mean() > 0.95
    np.testing.assert_array_equal(closest[~correct], x[~correct])
    epsilon = float(np.median(distances[correct]))
    within = attacks.get("fab_t", epsilon=epsilon, **config)(model, x, y).numpy()
    found = correct & (distances <= epsilon)
    assert (distance(x, within, norm) <= epsilon).all()
    assert errs(model, within[found], y[found]).mean() > 0.99
    np.testing.assert_array_equal(within[~found], x[~found])


def test_more_targets_and_restarts_come_no_less_close(robust_network, distance):
    model, x, y = robust_network
    far, *closer = (
        distance(x, attacks.get("fab_t", epsilon=math.inf, steps=8, seed=0, **c)(model, x, y), "l2")
        for c in (
            {"norm": "l2", "targets": 1},
            {"norm": "l2", "targets": 4},
            {"norm": "l2", "targets": 1, "restarts": 3},
        )
    )
    for other in closer:
        assert (other <= far + 1e-4).mean() > 0.97  # up to images that none has led across
        assert other.mean() < far.mean()


def test_close_to_what_gradients_find(robust_network, errs):
    """Robust accuracy like that of APGD-T, which knows the radius."""
    model, x, y = robust_network
    fab, apgd = (
        errs(model, attacks.get(n, epsilon=0.1, steps=30, targets=3, seed=0)(model, x, y), y).mean()
        for n in ("fab_t", "apgd_t")
    )
    assert abs(fab - apgd) < 0.05
