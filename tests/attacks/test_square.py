"""Square: its schedule and shapes, closed forms, no need of gradients, queries only help."""

import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks
from der_tf.attacks.square import bump, window_sizes


def test_windows_shrink_as_in_the_paper():
    sides = window_sizes(10_000, 0.8, False, 32, 32, 1)
    last = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]  # queries before the next halving
    for query, halvings in [(0, 0), (9999, 9), *zip(last, range(9), strict=True)]:
        assert sides[query] == max(round((0.8 / 2**halvings * 1024) ** 0.5), 1)
    assert (np.flatnonzero(np.diff(sides)) == last).all()
    np.testing.assert_array_equal(window_sizes(5000, 0.8, False, 32, 32, 1), sides[:5000])
    np.testing.assert_array_equal(window_sizes(5000, 0.8, True, 32, 32, 1), sides[::2])
    l2 = window_sizes(5000, 0.8, False, 32, 32, 3)
    assert l2.min() == 3
    assert (l2 % 2 == 1).all()


@pytest.mark.parametrize("side", [1, 3, 5, 6, 21])
def test_bumps_have_two_opposite_peaks_and_norm_one(side):
    values = bump(side)
    assert values.shape == (side, side)
    assert np.linalg.norm(values) == pytest.approx(1, abs=1e-6)
    assert (values[: side // 2] >= 0).all()
    assert (values[side // 2 :] <= 0).all()
    if side > 1:
        assert values.max() == values[: side // 2].max() > 0


def test_errs_where_a_linear_model_can(linear, errs, distance):
    model = linear(5)
    distances = model.distances("linf")
    epsilon = float(np.median(distances))
    attack = attacks.get("square", epsilon=epsilon, queries=1000, seed=0)
    moved = attack(model, model.x, model.y)
    found = errs(model, moved, model.y)
    assert not found[distances > epsilon].any()
    assert found[distances < 0.9 * epsilon].all()
    assert (distance(model.x, moved, "linf") <= epsilon).all()


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.8)])
def test_more_queries_break_at_least_the_same(norm, epsilon, robust_network, distance, errs):
    model, x, y = robust_network
    found = []
    for queries in (1, 20, 120):
        attack = attacks.get("square", norm=norm, epsilon=epsilon, queries=queries, seed=0)
        moved = attack(model, x, y).numpy()
        assert (distance(x, moved, norm) <= epsilon).all()
        assert moved.min() >= 0
        assert moved.max() <= 1
        found.append(errs(model, moved, y))
    assert (found[1] | ~found[0]).all()
    assert (found[2] | ~found[1]).all()
    assert found[2].mean() > errs(model, x, y).mean() + 0.08
    pgd = attacks.get("pgd", norm=norm, epsilon=epsilon, steps=20, seed=0)(model, x, y)
    assert found[2].mean() <= errs(model, pgd, y).mean() + 0.02  # black-box is not stronger


def test_uses_the_whole_radius(robust_network, distance):
    model, x, y = robust_network
    x = np.clip(x, 0.3, 0.7)  # so that [0, 1] does not bind
    for norm, epsilon in (("linf", 0.1), ("l2", 0.25)):
        attack = attacks.get("square", norm=norm, epsilon=epsilon, queries=20, seed=0)
        np.testing.assert_allclose(distance(x, attack(model, x, y), norm), epsilon, rtol=1e-4)


def test_needs_no_gradient(linear, errs):
    """Rounded logits have no gradient: gradient attacks say so, Square works."""
    model = linear(4)

    def rounded(images):
        return tf.cast(tf.round(100 * model(images)), tf.int32) / 100

    epsilon = float(np.max(model.distances("linf"))) * 2
    attack = attacks.get("square", epsilon=epsilon, queries=500, seed=0)
    assert errs(rounded, attack(rounded, model.x, model.y), model.y).mean() > 0.95
    with pytest.raises(ValueError, match="needs the gradient of the model"):
        attacks.get("apgd_ce")(rounded, model.x, model.y)


@pytest.mark.parametrize("shape", [(1, 1, 2), (12, 7, 3)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_of_any_shape(norm, shape, distance):
    rng = np.random.default_rng(0)
    x = rng.random((4, *shape), dtype=np.float32)
    weights = rng.normal(size=(int(np.prod(shape)), 3)).astype(np.float32)
    y = np.argmax(x.reshape(4, -1) @ weights, axis=1)
    attack = attacks.get("square", norm=norm, epsilon=0.05, queries=40, seed=0)
    moved = attack(lambda images: tf.reshape(images, [-1, len(weights)]) @ weights, x, y)
    assert moved.shape == x.shape
    assert (distance(x, moved, norm) <= 0.05).all()
    assert np.isfinite(moved).all()


def test_refuses_what_is_no_image():
    with pytest.raises(ValueError, match=r"images \[B, H, W, C\]"):
        attacks.get("square")(lambda x: x, np.full((2, 3), 0.5, np.float32), np.zeros(2, int))


def test_towards_given_targets(robust_network):
    model, x, y = robust_network
    wanted = (y + 1) % 10
    attack = attacks.get("square", epsilon=0.5, queries=300, targeted=True, seed=0)
    reached = np.argmax(model(attack(model, x, wanted)), axis=1) == wanted
    assert reached.mean() > np.mean(np.argmax(model(x), axis=1) == wanted) + 0.3
