"""C&W: the closed form of linear models, confidence, targets, and independence in a batch."""

import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks


@pytest.mark.parametrize("num_classes", [2, 6])
def test_finds_the_smallest_perturbation_of_a_linear_model(num_classes, linear, distance, errs):
    model = linear(num_classes)
    moved = attacks.get("cw", steps=300)(model, model.x, model.y).numpy()
    assert errs(model, moved, model.y).all()
    ratio = distance(model.x, moved, "l2") / model.distances("l2")
    assert ratio.min() > 1 - 1e-3
    assert ratio.max() < 1.01


def test_a_constant_too_small_is_raised_and_one_too_large_lowered(linear, distance, errs):
    """Whatever the first constant, the search ends at the same distance."""
    model = linear(4, samples=16)
    for initial in (1e-4, 100.0):
        attack = attacks.get("cw", steps=300, initial_constant=initial)
        moved = attack(model, model.x, model.y).numpy()
        assert errs(model, moved, model.y).all()
        ratio = distance(model.x, moved, "l2") / model.distances("l2")
        assert ratio.max() < 1.03
    lazy = attacks.get("cw", steps=300, initial_constant=1e-4, search_steps=1)
    np.testing.assert_array_equal(lazy(model, model.x, model.y), model.x)  # none succeeds


def test_confidence_and_targets(linear, distance):
    model = linear(5)
    wanted = (model.y + 1) % 5
    moved = attacks.get("cw", steps=300, targeted=True, confidence=0.5)(model, model.x, wanted)
    logits = model(moved).numpy()
    rows = np.arange(len(wanted))
    of_wanted = logits[rows, wanted]
    logits[rows, wanted] = -np.inf
    assert (of_wanted - logits.max(axis=1) > 0.5 - 1e-4).all()
    plain = attacks.get("cw", steps=300, targeted=True)(model, model.x, wanted)
    assert (distance(model.x, moved, "l2") > distance(model.x, plain, "l2")).all()


def test_network_within_epsilon_or_left_and_no_worse_than_pgd(robust_network, distance, errs):
    model, x, y = robust_network
    closest = attacks.get("cw", steps=250)(model, x, y).numpy()
    clean_errs, distances = errs(model, x, y), distance(x, closest, "l2")
    found = errs(model, closest, y)
    assert found.mean() > 0.95
    still = clean_errs | ~found  # nothing to do, or nothing found
    np.testing.assert_array_equal(closest[still], x[still])
    epsilon = float(np.median(distances[~still]))
    attack = attacks.get("cw", steps=250, epsilon=epsilon)
    within = attack(model, x, y).numpy()
    assert (distance(x, within, "l2") <= epsilon).all()
    np.testing.assert_array_equal(within[distances > epsilon], x[distances > epsilon])
    pgd = attacks.get("pgd", norm="l2", loss="margin", epsilon=epsilon, steps=50, seed=0)
    assert errs(model, within, y).mean() > errs(model, pgd(model, x, y), y).mean() - 0.03
    assert errs(model, within, y).mean() > 0.45


def test_a_sample_is_its_own_search(linear):
    """Alone or among others, and whether or not others end early."""
    model = linear(4)
    attack = attacks.get("cw", steps=60, search_steps=4)
    whole = attack(model, model.x, model.y).numpy()
    for row in (0, 7):
        alone = attack(model, model.x[row : row + 1], model.y[row : row + 1])
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-5)


def test_early_abort_saves_steps_and_loses_nothing(linear, distance):
    """Far from the boundary's kink the search may stop; what it finds is as close."""
    model, queries = linear(3), tf.Variable(0)

    def counted(images):
        queries.assign_add(1)
        return model(images)

    found = {}
    for abort in (True, False):
        queries.assign(0)
        moved = attacks.get("cw", steps=400, abort_early=abort)(counted, model.x, model.y)
        found[abort] = int(queries), distance(model.x, moved, "l2").mean()
    assert found[True][0] < 0.9 * found[False][0]
    assert found[True][1] < 1.01 * found[False][1]


def test_black_and_white_pixels(linear, errs):
    """tanh reaches 0 and 1 only at infinity: such images must still be moved."""
    model = linear(3)
    x = np.round(np.random.default_rng(1).random(model.x.shape)).astype(np.float32)
    y = np.argmax(model(x), axis=1)
    moved = attacks.get("cw", steps=500)(model, x, y).numpy()
    assert np.isfinite(moved).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert errs(model, moved, y).mean() > 0.9


def test_cw_linf_is_pgd_on_the_margin(robust_network):
    model, x, y = robust_network
    ours, pgd = (
        attacks.get(name, epsilon=0.1, steps=5, seed=0, **config)(model, x, y)
        for name, config in (("cw_linf", {}), ("pgd", {"loss": "margin"}))
    )
    np.testing.assert_array_equal(ours, pgd)
