"""The gradient attacks: geometry, agreement with cleverhans, closed forms, compilation, faults."""

from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
from cleverhans.tf2.attacks.momentum_iterative_method import momentum_iterative_method
from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from der_tf import attacks
from der_tf.attacks import geometry

GRADIENT_ATTACKS = ["fgsm", "rs_fgsm", "n_fgsm", "pgd", "mim", "trades"]
NORMS = {"linf": (np.inf, 0.1), "l2": (2, 0.5)}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[..., None] / 16).astype(np.float32), data.target


@pytest.fixture(scope="module")
def network(digits):
    """A network trained on natural digits: 95 % and more, and no defence."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*digits, epochs=8, verbose=0)
    return model


def accuracy(model, x, y):
    return float(np.mean(np.argmax(model(x), axis=1) == y))


def distance(x, moved, norm):
    delta = np.abs(moved.astype(np.float64) - x.astype(np.float64)).reshape(len(x), -1)
    return delta.max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_stays_in_the_ball_raises_the_loss_and_leaves_no_trace(name, norm, network, digits):
    x, y = digits[0][:64], digits[1][:64]
    before = [v.numpy() for v in network.variables]
    for training in (False, True):
        attack = attacks.get(name, norm=norm, epsilon=NORMS[norm][1], seed=1, training=training)
        moved = attack(network, x, y).numpy()
        assert moved.dtype == np.float32
        assert (distance(x, moved, norm) <= attack.radius).all()
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert accuracy(network, moved, y) < accuracy(network, x, y) - 0.1
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)),
    epsilon=st.one_of(
        st.sampled_from([0.0, 4 / 255, 8 / 255, 0.031, 0.3, 1.0, 2.5]), st.floats(1e-6, 2.0)
    ),
    norm=st.sampled_from(list(NORMS)),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=300, deadline=None)
def test_into_ball_is_exact_after_rounding(shape, epsilon, norm, scale, seed):
    rng = np.random.default_rng(seed)
    x = rng.random(shape, dtype=np.float32)
    x[rng.random(shape) < 0.2] = rng.choice([0.0, 1.0])
    moved = (x + scale * rng.normal(size=shape)).astype(np.float32)
    inside = geometry.into_ball(tf.constant(x), tf.constant(moved), epsilon, norm).numpy()
    assert (distance(x, inside, norm) <= epsilon).all()
    assert inside.min() >= 0
    assert inside.max() <= 1
    # Nothing is given away: a point of the ball stays, and an outer one ends at the boundary.
    if norm == "linf":
        wanted = np.clip(np.clip(moved.astype(np.float64), x - epsilon, x + epsilon), 0, 1)
        np.testing.assert_allclose(inside, wanted, atol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_agrees_with_cleverhans(norm, targeted, network, digits):
    x, y = tf.constant(digits[0][:32]), tf.constant(digits[1][:32])
    if targeted:
        y = (y + 1) % 10
    order, epsilon = NORMS[norm]
    common = {"epsilon": epsilon, "norm": norm, "targeted": targeted}
    theirs = {"clip_min": 0.0, "clip_max": 1.0, "y": y, "targeted": targeted}
    pairs = [
        (
            attacks.get("pgd", random_start=False, **common),
            projected_gradient_descent(network, x, epsilon, epsilon / 4, 10, order, **theirs),
        ),
        (
            attacks.get("fgsm", **common),
            fast_gradient_method(network, x, epsilon, order, **theirs),
        ),
    ]
    if norm == "linf":  # in l2, theirs clips to [0, 1] after the projection only; PGD's before too
        mim = (
            attacks.get("mim", **common),
            momentum_iterative_method(
                network, x, epsilon, epsilon / 4, 10, order, sanity_checks=False, **theirs
            ),
        )
        pairs.append(mim)
    for ours, expected in pairs:
        np.testing.assert_allclose(ours(network, x, y), expected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_linear_model_has_a_closed_form(norm):
    """On two classes the worst case moves along the difference of the weights, by epsilon."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 2)).astype(np.float32)
    x = rng.uniform(0.4, 0.6, (8, 2, 2, 3)).astype(np.float32)  # so that [0, 1] does not bind
    y = rng.integers(0, 2, 8)
    _, epsilon = NORMS[norm]
    epsilon /= 2

    def model(images):
        return tf.reshape(images, [-1, 12]) @ weights

    direction = (weights[:, 1] - weights[:, 0])[None] * np.where(y == 0, 1, -1)[:, None]
    if norm == "linf":
        worst = x.reshape(8, 12) + epsilon * np.sign(direction)
    else:
        worst = x.reshape(8, 12) + epsilon * direction / np.linalg.norm(direction[0])
    for name, config in (("fgsm", {}), ("pgd", {"steps": 300, "seed": 0}), ("mim", {})):
        moved = attacks.get(name, norm=norm, epsilon=epsilon, **config)(model, x, y).numpy()
        np.testing.assert_allclose(moved.reshape(8, 12), worst, atol=1e-5)


def test_confident_samples_still_move_by_the_whole_step_in_l2():
    """Gradients of 1e-9 must not shorten an l2 step (cleverhans floors the norm at 1e-6)."""
    gradient = tf.constant([[[[1e-9]], [[-1e-9]]]])
    step = geometry.steepest_step(gradient, 0.5, "l2").numpy()
    np.testing.assert_allclose(np.linalg.norm(step), 0.5, rtol=1e-5)
    zero = geometry.steepest_step(tf.zeros_like(gradient), 0.5, "l2").numpy()
    np.testing.assert_array_equal(zero, 0)


def test_random_starts_are_uniform_in_the_ball():
    shape = [20_000, 2, 1, 1]
    seed = tf.constant([1, 2])
    for norm in NORMS:
        draws = geometry.random_in_ball(tf.constant(shape), 2.0, norm, seed).numpy()
        radius = distance(np.zeros(shape), draws, norm)
        # In two dimensions the share of the ball within radius r is (r / 2)^2.
        for r in (0.5, 1.0, 1.5):
            assert abs(np.mean(radius <= r) - (r / 2) ** 2) < 0.015
        assert radius.max() <= 2.0 * (1 + 1e-6)
        assert np.abs(draws.mean(axis=0)).max() < 0.05


def test_more_steps_and_restarts_never_help_the_defender(network, digits):
    x, y = digits[0][:200], digits[1][:200]
    accuracies = [
        accuracy(network, attacks.get("pgd", epsilon=0.1, steps=n, seed=0)(network, x, y), y)
        for n in (0, 1, 5, 40)
    ]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracy(network, attacks.get("pgd", epsilon=0.5, steps=40)(network, x, y), y) == 0
    one, many = (
        attacks.get("rs_fgsm", epsilon=0.06, restarts=r, seed=0)(network, x, y) for r in (1, 8)
    )
    errs_once = np.argmax(network(one), axis=1) != y
    errs_ever = np.argmax(network(many), axis=1) != y
    assert errs_ever.sum() > errs_once.sum()


@pytest.mark.parametrize("name", ["rs_fgsm", "n_fgsm", "pgd", "trades", "cw_linf"])
def test_restarts_take_logits_of_float64(name, network, digits):
    x, y = digits[0][:16], digits[1][:16]
    attack = attacks.get(name, epsilon=0.1, restarts=2, seed=0)
    moved = attack(lambda images: tf.cast(network(images), tf.float64), x, y)
    np.testing.assert_allclose(moved, attack(network, x, y), atol=1e-6)


@pytest.mark.parametrize(("loss", "left"), [("ce", 0), ("margin", 0), ("dlr", 0), ("kl", 0.1)])
def test_every_loss_breaks_an_undefended_model(loss, left, network, digits):
    x, y = digits[0][:100], digits[1][:100]
    moved = attacks.get("pgd", epsilon=0.5, steps=40, loss=loss, seed=0)(network, x, y)
    # The divergence has no label: some samples end where they disagree and are right.
    assert accuracy(network, moved, y) <= left


def test_losses_by_hand():
    logits = tf.constant([[1.0, 4.0, 2.0, 0.0]])
    losses = attacks.losses.LOSSES
    np.testing.assert_allclose(losses["margin"]([0], logits), [3.0])
    np.testing.assert_allclose(losses["margin"]([1], logits), [-2.0])
    np.testing.assert_allclose(losses["dlr"]([1], logits), [-2.0 / 3.0], rtol=1e-6)
    np.testing.assert_allclose(losses["kl"](logits, logits), [0.0], atol=1e-7)
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    np.testing.assert_allclose(
        losses["kl"](np.log([p]), np.log([q])), [np.sum(p * np.log(p / q))], rtol=1e-6
    )
    with pytest.raises(ValueError, match="at least 3 classes"):
        losses["dlr"]([0], tf.constant([[1.0, 0.0]]))


def test_targeted_attack_reaches_its_target(network, digits):
    x, target = digits[0][:50], (digits[1][:50] + 1) % 10
    moved = attacks.get("pgd", epsilon=0.5, steps=40, targeted=True, seed=0)(network, x, target)
    assert accuracy(network, moved, target) > 0.95


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_seed_makes_it_repeatable(name, network, digits):
    x, y = digits[0][:8], digits[1][:8]
    a, b = (attacks.get(name, epsilon=0.1, seed=7)(network, x, y).numpy() for _ in range(2))
    np.testing.assert_array_equal(a, b)
    if name not in ("fgsm", "mim"):  # those two draw nothing
        fresh = attacks.get(name, epsilon=0.1)
        assert np.any(fresh(network, x, y).numpy() != fresh(network, x, y).numpy())
        other = attacks.get(name, epsilon=0.1, seed=8)(network, x, y).numpy()
        assert np.any(other != a)


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_traced_once_for_all_batches(name, network, digits):
    calls = []

    def model(images):
        calls.append(images.shape)
        return network(images, training=False)

    attack = attacks.get(name, epsilon=0.1)
    attack(model, digits[0][:16], digits[1][:16])
    traced = len(calls)
    for size in (16, 5, 1):
        attack(model, digits[0][:size], digits[1][:size])
    attacks.get(name, epsilon=0.1)(model, digits[0][:3], digits[1][:3])  # an equal attack
    assert len(calls) == traced


def test_steps_are_a_loop_not_unrolled(network, digits):
    calls = []

    def model(images):
        calls.append(1)
        return network(images, training=False)

    attacks.get("pgd", steps=500)(model, digits[0][:2], digits[1][:2])
    assert len(calls) <= 3


def test_batch_norm_mode_is_the_argument(network, digits):
    x, y = digits[0][:16], digits[1][:16]
    inference, training = (
        attacks.get("fgsm", epsilon=0.1, training=mode)(network, x, y).numpy()
        for mode in (False, True)
    )
    assert np.any(inference != training)
    reference = fast_gradient_method(
        lambda images: network(images, training=False),
        tf.constant(x),
        0.1,
        np.inf,
        clip_min=0.0,
        clip_max=1.0,
        y=tf.constant(y),
    )
    np.testing.assert_allclose(inference, reference, atol=1e-6)


def test_works_inside_a_function_and_on_an_empty_batch(network, digits):
    attack = attacks.get("pgd", epsilon=0.1, seed=3)
    x, y = digits[0][:4], digits[1][:4]
    inside = tf.function(lambda a, b: attack(network, a, b))(tf.constant(x), tf.constant(y))
    np.testing.assert_allclose(inside, attack(network, x, y), atol=1e-6)
    assert attack(network, x[:0], y[:0]).shape == (0, 8, 8, 1)


def test_n_fgsm_leaves_the_epsilon_ball_but_not_its_own(network, digits):
    x, y = digits[0][:64], digits[1][:64]
    attack = attacks.get("n_fgsm", epsilon=0.05, seed=0)
    reach = distance(x, attack(network, x, y).numpy(), "linf")
    assert attack.radius == pytest.approx(0.15)
    assert reach.max() > 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_the_first_gradient_is_taken_at_an_image(name, norm, digits):
    attack = attacks.get(name, epsilon=5.0 if norm == "l2" else 0.3, norm=norm)
    start = attack.start(tf.constant(digits[0][:64]), tf.constant([1, 2])).numpy()
    assert start.min() >= 0
    assert start.max() <= 1


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("pgd", {"epsilon": -0.1}, "epsilon is a finite number >= 0; received -0.1"),
        ("pgd", {"epsilon": "8/255"}, "received '8/255'"),
        ("pgd", {"norm": "l1"}, "norm is 'linf' or 'l2'; received 'l1'"),
        ("pgd", {"loss": "mse"}, "loss is one of ce, margin, dlr, kl; received 'mse'"),
        ("pgd", {"steps": -1}, "steps is an integer >= 0; received -1"),
        ("pgd", {"steps": 2.5}, "steps is an integer >= 0; received 2.5"),
        ("pgd", {"steps": "4"}, "steps is an integer >= 0; received '4'"),
        ("pgd", {"step_size": "0.1"}, "step_size is a finite number >= 0; received '0.1'"),
        ("pgd", {"step_size": float("nan")}, "received nan"),
        ("rs_fgsm", {"step_size": float("inf")}, "received inf"),
        ("pgd", {"seed": 2**31}, "seed is None or an integer .*; received 2147483648"),
        ("pgd", {"seed": 0.5}, "received 0.5"),
        ("pgd", {"seed": "a"}, "received 'a'"),
        ("pgd", {"training": "x"}, "training is True or False; received 'x'"),
        ("pgd", {"restarts": 0}, "restarts is an integer >= 1; received 0"),
        ("fgsm", {"restarts": 2}, "needs a random start"),
        ("trades", {"targeted": True}, "knows no target"),
        ("fgsm", {"steps": 3}, "received steps"),
        ("fgms", {}, "attack is one of .*fgsm.*; received 'fgms'"),
    ],
)
def test_bad_configuration_says_what_is_accepted(name, config, message):
    with pytest.raises(ValueError, match=message):
        attacks.get(name, **config)


def test_bad_input_says_what_was_received(network, digits):
    attack = attacks.get("fgsm")
    x, y = digits[0][:4], digits[1][:4]
    with pytest.raises(ValueError, match=r"in \[0, 1\].*to 255"):
        attack(network, np.where(x > 0.5, 255, x), y)
    with pytest.raises(ValueError, match=r"finite"):
        attack(network, np.full_like(x, np.nan), y)
    with pytest.raises(ValueError, match=r"labels of shape \(4, 10\)"):
        attack(network, x, keras.utils.to_categorical(y, 10))
    with pytest.raises(ValueError, match="float32 labels"):
        attack(network, x, y.astype(np.float32))


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_a_model_without_a_gradient_is_refused(name, network, digits):
    with pytest.raises(ValueError, match="needs the gradient of the model"):
        attacks.get(name)(lambda images: network(tf.round(images)), digits[0][:2], digits[1][:2])


@pytest.mark.parametrize(
    ("name", "option", "given", "stored"),
    [
        ("pgd", "step_size", 1, 1.0),
        ("rs_fgsm", "step_size", 0, 0.0),
        ("n_fgsm", "noise_scale", np.float64(0.5), 0.5),
        ("mim", "decay", np.int64(1), 1.0),
        ("trades", "step_size", Fraction(1, 4), 0.25),
        ("cw", "learning_rate", 1, 1.0),
        ("pgd", "steps", 4.0, 4),
        ("pgd", "restarts", np.float32(2), 2),
        ("pgd", "seed", 3.0, 3),
        ("apgd_ce", "eot", np.int64(2), 2),
        ("apgd_t", "targets", 2.0, 2),
        ("square", "queries", 40.0, 40),
        ("cw", "search_steps", 2.0, 2),
        ("auto_attack", "batch_size", 8.0, 8),
        ("apgd_ce", "targeted", 1, True),
        ("fab_t", "targeted", np.False_, False),
    ],
)
def test_numbers_are_stored_in_the_type_of_their_option(name, option, given, stored):
    """Attacks that are equal share what is compiled, where 1 would not do for 1.0."""
    value = getattr(attacks.get(name, **{option: given}), option)
    assert (type(value), value) == (type(stored), stored)


def test_whole_numbers_do_for_others(network, digits):
    x, y = digits[0][:4], digits[1][:4]
    moved, expected = (
        attacks.get("pgd", norm="l2", epsilon=2, step_size=size, steps=steps, seed=0)(network, x, y)
        for size, steps in ((1, 4.0), (1.0, 4))
    )
    np.testing.assert_array_equal(moved, expected)


def test_attacks_are_immutable_and_known_by_value():
    attack = attacks.get("pgd", steps=3)
    with pytest.raises(AttributeError):
        attack.steps = 4
    assert attack == attacks.get("pgd", steps=3)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(attack))
    assert restored == attack
