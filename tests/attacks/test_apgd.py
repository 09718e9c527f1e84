"""Auto-PGD: the paper's schedule, closed forms, strength against PGD, faults."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks
from der_tf.attacks.apgd import checkpoint_windows

NORMS = {"linf": 0.1, "l2": 0.5}


def cross_entropy(model, x, y):
    logits = model(tf.convert_to_tensor(x))
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits).numpy()


def test_checkpoints_are_the_papers():
    windows = checkpoint_windows(100)
    shares = [0.0, 0.22]  # p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
    while shares[-1] < 0.99:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    places = np.rint(100 * np.array(shares)).astype(int)
    np.testing.assert_array_equal(np.flatnonzero(windows), places[1:])
    np.testing.assert_array_equal(windows[windows > 0], np.diff(places))


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", NORMS)
def test_reaches_the_worst_case_of_a_linear_model(norm, loss, linear):
    model = linear(2)
    epsilon = 0.1 if norm == "linf" else 0.6
    slope = (model.weights[:, 1] - model.weights[:, 0])[None] * np.where(model.y == 0, 1, -1)[
        :, None
    ]
    step = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope[0])
    worst = model.x + epsilon * step.reshape(model.x.shape).astype(np.float32)
    moved = attacks.get("apgd_ce", loss=loss, norm=norm, epsilon=epsilon, seed=0)(
        model, model.x, model.y
    )
    np.testing.assert_allclose(
        cross_entropy(model, moved, model.y), cross_entropy(model, worst, model.y), rtol=1e-3
    )


def test_reaches_the_worst_case_where_the_box_binds(linear):
    """In l-inf with pixels near 0 and 1 the worst case is still known: clipped signs."""
    model = linear(2)
    x = np.random.default_rng(0).random(model.x.shape, dtype=np.float32)
    slope = (model.weights[:, 1] - model.weights[:, 0]) * np.where(model.y == 0, 1, -1)[:, None]
    worst = np.clip(x + 0.2 * np.sign(slope).reshape(x.shape), 0, 1).astype(np.float32)
    moved = attacks.get("apgd_ce", epsilon=0.2, seed=0)(model, x, model.y)
    np.testing.assert_allclose(moved, worst, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "num_classes"), [("apgd_dlr", 3), ("apgd_t", 4)])
def test_errs_exactly_where_a_linear_model_can(name, num_classes, norm, linear, errs):
    model = linear(num_classes)
    distances = model.distances(norm)
    epsilon = float(np.median(distances))
    clear = np.abs(distances / epsilon - 1) > 0.01
    moved = attacks.get(name, norm=norm, epsilon=epsilon, seed=0)(model, model.x, model.y)
    found = errs(model, moved, model.y)
    assert not found[clear & (distances > epsilon)].any()
    assert found[clear & (distances < epsilon)].mean() > (0.95 if name == "apgd_dlr" else 0.999)


@pytest.mark.parametrize("norm", NORMS)
def test_stronger_than_pgd_of_equal_budget_and_in_the_ball(norm, robust_network, distance, errs):
    model, x, y = robust_network
    epsilon = NORMS[norm]
    ball = {"norm": norm, "epsilon": epsilon, "seed": 0}
    pgd = attacks.get("pgd", steps=40, **ball)(model, x, y)
    moved = attacks.get("apgd_ce", steps=40, **ball)(model, x, y).numpy()
    assert cross_entropy(model, moved, y).mean() > cross_entropy(model, pgd, y).mean() - 1e-3
    # Both start at random, and a sample on the edge may fall to either one alone: over seeds the
    # two counts differ by one, while the losses keep their order.
    assert errs(model, moved, y).sum() >= errs(model, pgd, y).sum() - 2
    assert (distance(x, moved, norm) <= epsilon).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    targeted = attacks.get("apgd_t", steps=40, **ball)(model, x, y).numpy()
    assert (distance(x, targeted, norm) <= epsilon).all()
    assert errs(model, targeted, y).sum() >= errs(model, pgd, y).sum()


def test_targets_and_restarts_only_add(robust_network, errs):
    """With one seed a longer attack holds the runs of the shorter: it breaks at least the same."""
    model, x, y = robust_network
    for name, field, counts in (("apgd_t", "targets", (1, 9)), ("apgd_ce", "restarts", (1, 3))):
        shorter, longer = (
            attacks.get(name, steps=8, epsilon=0.1, seed=0, **{field: n})(model, x, y)
            for n in counts
        )
        broken, broken_longer = errs(model, shorter, y), errs(model, longer, y)
        assert (broken_longer | ~broken).all(), name
    # Of apgd_ce, the last: an image that errs is kept before one of a higher loss that does not.
    alike = broken_longer == broken
    loss, loss_longer = (cross_entropy(model, moved, y) for moved in (shorter, longer))
    assert (loss_longer >= loss - 1e-4)[alike].all()


def test_towards_given_targets(robust_network):
    model, x, y = robust_network
    wanted = (y + 1) % 10
    attack = attacks.get("apgd_ce", epsilon=0.4, steps=20, targeted=True, seed=0)
    reached = np.argmax(model(attack(model, x, wanted)), axis=1) == wanted
    assert reached.mean() > np.mean(np.argmax(model(x), axis=1) == wanted) + 0.5


def test_compiled_once_whatever_the_batch_and_the_same_inside_a_function(linear):
    model, traces = linear(5), []

    def counted(images):
        traces.append(images.shape)
        return model(images)

    attack = attacks.get("apgd_t", epsilon=0.05, steps=5, targets=2, seed=3)
    eager = attack(counted, model.x, model.y)
    count = len(traces)
    for size in (1, 7, 48):
        part = attack(counted, model.x[:size], model.y[:size])
        np.testing.assert_allclose(part, eager[:size], atol=1e-5)  # draws do not hang on the batch
    assert len(traces) == count
    inside = tf.function(lambda x, y: attack(model, x, y))(model.x, model.y)
    np.testing.assert_allclose(inside, eager, atol=1e-5)


def test_expectation_over_transformation_averages_the_noise_out(linear, errs):
    """Noise on the gradient alone, three times its size: one evaluation hides the direction."""
    model = linear(4)
    generator = tf.random.Generator.from_seed(0)

    def noisy(images):
        noise = generator.normal([tf.shape(images)[0], 48, 4], stddev=3.0)
        nothing = tf.reshape(images - tf.stop_gradient(images), [-1, 48])
        return model(images) + tf.einsum("bi,bik->bk", nothing, noise)

    epsilon = float(np.quantile(model.distances("linf"), 0.9))
    found = [
        errs(
            model,
            attacks.get("apgd_ce", epsilon=epsilon, steps=20, eot=eot, seed=0)(
                noisy, model.x, model.y
            ),
            model.y,
        ).mean()
        for eot in (1, 30)
    ]
    assert found[1] > found[0] + 0.1


def test_too_few_classes_for_the_loss(linear):
    for name, num_classes, least in (("apgd_dlr", 2, 3), ("apgd_t", 3, 4)):
        model = linear(num_classes)
        with pytest.raises(ValueError, match=f"at least {least} classes"):
            attacks.get(name, steps=2)(model, model.x, model.y)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_margin_takes_few_classes(num_classes, linear, errs):
    model = linear(num_classes)
    distances = model.distances("linf")
    epsilon = float(np.median(distances))
    attack = attacks.get("apgd_t", loss="margin", epsilon=epsilon, seed=0)
    found = errs(model, attack(model, model.x, model.y), model.y)
    clear = np.abs(distances / epsilon - 1) > 0.01
    np.testing.assert_array_equal(found[clear], (distances < epsilon)[clear])


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_t", "square", "fab_t"])
def test_epsilon_zero_and_above_one(name, linear, errs):
    model = linear(5)
    config = {"queries": 300} if name == "square" else {"steps": 10}
    still = attacks.get(name, epsilon=0.0, seed=0, **config)(model, model.x[:1], model.y[:1])
    np.testing.assert_array_equal(still, model.x[:1])
    far = attacks.get(name, epsilon=3.0, seed=0, **config)(model, model.x, model.y).numpy()
    assert far.min() >= 0
    assert far.max() <= 1
    assert errs(model, far, model.y).all()


def test_turns_back_from_logits_that_are_not_finite(linear):
    """A model that breaks down off the natural images gives no adversarial image there."""
    model = linear(4)

    def breaks_down(images):
        far = tf.reduce_max(tf.abs(images - model.x), [1, 2, 3]) > 0.01
        return tf.where(far[:, None], np.nan, model(images))

    for name in ("apgd_ce", "apgd_t", "square", "fab_t", "cw"):
        config = {"epsilon": 0.1} if name != "cw" else {}
        config["queries" if name == "square" else "steps"] = 30
        moved = attacks.get(name, seed=0, **config)(breaks_down, model.x, model.y).numpy()
        assert np.isfinite(moved).all()
        logits = breaks_down(moved).numpy()
        err = np.isfinite(logits).all(axis=1) & (np.argmax(logits, axis=1) != model.y)
        assert err.sum() <= (model.distances("linf") < 0.0101).sum()


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("apgd_ce", {"steps": 0}, "steps is an integer >= 1; received 0"),
        ("apgd_ce", {"loss": "kl"}, "loss is one of ce, dlr, margin; received 'kl'"),
        ("apgd_ce", {"rho": 2}, "rho is a number in"),
        ("apgd_t", {"targeted": True}, "tries its own targets; received True"),
        ("apgd_t", {"targets": 0}, "targets is an integer >= 1"),
        ("fab_t", {"beta": 0.0}, "beta is a number in"),
        ("fab_t", {"epsilon": float("nan")}, "epsilon is a number >= 0, or infinity"),
        ("square", {"p_init": 1.5}, "p_init is a number in"),
        ("cw", {"norm": "linf"}, "cw_linf"),
        ("auto_attack", {"version": "plus"}, "version is one of standard, rand"),
        ("auto_attack", {"training": True}, "training is False"),
    ],
)
def test_refuses_values_out_of_range(name, config, message):
    with pytest.raises(ValueError, match=message):
        attacks.get(name, **config)


@pytest.mark.parametrize("name", ["apgd_dlr", "apgd_t", "fab_t", "square", "cw", "auto_attack"])
def test_configuration_survives_keras(name):
    attack = attacks.get(name, seed=5)
    config = keras.saving.serialize_keras_object(attack)
    assert keras.saving.deserialize_keras_object(config) == attack
