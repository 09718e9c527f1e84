"""DER: its penalties by hand, its reference points, its schedule, its gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.regularizers import PENALTIES, DeltaEnergy
from der_tf.training.batch import TrainingBatch


def small_network(dtype="float32"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1), dtype=dtype),
            keras.layers.Conv2D(4, 3, activation="tanh", dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(3, dtype=dtype),
        ]
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.random((6, 4, 4, 1), dtype=np.float32), rng.integers(0, 3, 6)


@pytest.mark.parametrize(
    ("penalty", "of_minus_two", "of_half"),
    [
        ("squared", 4.0, 0.25),
        ("absolute", 2.0, 0.5),
        ("huber", 1.5, 0.125),
        ("hinge", 0.0, 0.5),
        ("squared_hinge", 0.0, 0.25),
        ("squared_plus_hinge", 4.0, 0.75),
    ],
)
def test_penalties_by_hand(penalty, of_minus_two, of_half):
    # Raising all logits by c lowers both energies by c: dE(x) = dE(x, y) = c.
    clean = tf.constant([[1.0, 0.0], [1.0, 0.0]])
    adversarial = clean + tf.constant([[-2.0], [0.5]])
    for weights in ({"marginal": 1.0, "joint": 0.0}, {"marginal": 0.0, "joint": 1.0}):
        der = DeltaEnergy(1.0, penalty=penalty, **weights)
        values = der.penalties(tf.constant([0, 1]), clean, adversarial)
        np.testing.assert_allclose(values, [of_minus_two, of_half], rtol=1e-5)
    both = DeltaEnergy(1.0, penalty=penalty, marginal=2.0, joint=3.0)
    np.testing.assert_allclose(
        both.penalties(tf.constant([0, 1]), clean, adversarial),
        [5 * of_minus_two, 5 * of_half],
        rtol=1e-5,
    )


@pytest.mark.parametrize("penalty", PENALTIES)
def test_zero_difference_costs_nothing(penalty):
    logits = tf.constant([[1.0, -2.0, 0.3]])
    der = DeltaEnergy(7.0, marginal=1.0, penalty=penalty)
    np.testing.assert_array_equal(der.penalties(tf.constant([1]), logits, logits), [0.0])


@pytest.mark.parametrize("reference_gradient", [True, False])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients_through_both_passes_are_those_of_finite_differences(
    penalty, reference_gradient, data
):
    """One SGD step of a float64 network, against central differences of the loss in numpy."""
    x, y = data
    network = small_network("float64")
    adversarial = np.clip(x + 0.3 * np.sign(np.random.default_rng(1).normal(size=x.shape)), 0, 1)

    def loss(reference_logits=None):
        moved = np.asarray(network(adversarial))
        natural = np.asarray(network(x)) if reference_logits is None else reference_logits
        rows = np.arange(len(y))
        marginal = np.log(np.exp(moved).sum(1)) - np.log(np.exp(natural).sum(1))
        joint = moved[rows, y] - natural[rows, y]
        rho = {
            "squared": np.square,
            "absolute": np.abs,
            "huber": lambda d: np.where(np.abs(d) <= 1, d**2 / 2, np.abs(d) - 0.5),
            "hinge": lambda d: np.maximum(d, 0),
            "squared_hinge": lambda d: np.maximum(d, 0) ** 2,
            "squared_plus_hinge": lambda d: d**2 + np.maximum(d, 0),
        }[penalty]
        cross_entropy = np.log(np.exp(moved).sum(1)) - moved[rows, y]
        return np.mean(cross_entropy + 4.0 * (0.7 * rho(marginal) + 1.3 * rho(joint)))

    model = RobustClassifier(
        network,
        attack=lambda model, x, y: tf.constant(adversarial, tf.float32),
        regularizers=[
            DeltaEnergy(
                4.0,
                marginal=0.7,
                joint=1.3,
                penalty=penalty,
                reference="natural",
                reference_gradient=reference_gradient,
            )
        ],
    )
    model.compile(keras.optimizers.SGD(1.0))
    before = [w.copy() for w in network.get_weights()]
    fixed = None if reference_gradient else np.asarray(network(x))
    step = 1e-5
    expected = []
    for i, weight in enumerate(before):
        difference = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            sides = []
            for sign in (1, -1):
                moved = [w.copy() for w in before]
                moved[i][index] += sign * step
                network.set_weights(moved)
                sides.append(loss(fixed))
            difference[index] = (sides[0] - sides[1]) / (2 * step)
        expected.append(difference)
    network.set_weights(before)
    model.train_on_batch(x, y)
    for weight, old, gradient in zip(network.get_weights(), before, expected, strict=True):
        np.testing.assert_allclose(old - weight, gradient, atol=1e-5)


@pytest.mark.parametrize(("drawn", "origin"), [("interior", "x"), ("path", "start")])
def test_drawn_points_lie_between_their_origin_and_the_counterpart_of_x(drawn, origin, data):
    x, y = (tf.constant(part) for part in data)
    batch = TrainingBatch(
        small_network(),
        x,
        tf.cast(y, tf.int32),
        attack=attacks.get("rs_fgsm", epsilon=0.1),
        seed=tf.constant([1, 2]),
        step=tf.zeros([], tf.int64),
    )
    batch.run_attack()
    origin, point = getattr(batch, origin), getattr(batch, drawn)
    moved = (batch.adversarial - origin).numpy().reshape(6, -1)
    went = (point - origin).numpy().reshape(6, -1)
    farthest = np.abs(moved).argmax(axis=1)[:, None]
    share = np.take_along_axis(went, farthest, 1) / np.take_along_axis(moved, farthest, 1)
    assert ((share > 0) & (share < 1)).all()
    assert len(np.unique(share)) == 6
    np.testing.assert_allclose(went, share * moved, atol=1e-6)


def test_weight_warms_up_linearly(data):
    x, y = data

    def penalty_after(steps, warmup):
        batch = TrainingBatch(
            small_network(),
            tf.constant(x),
            tf.constant(y, tf.int32),
            attack=attacks.get("fgsm", epsilon=0.1),
            seed=tf.constant([1, 2]),
            step=tf.constant(steps, tf.int64),
        )
        batch.run_attack()
        return DeltaEnergy(2.0, reference="natural", warmup_steps=warmup)(batch).numpy()

    full = penalty_after(0, 0)
    np.testing.assert_array_equal(penalty_after(0, 10), 0 * full)
    np.testing.assert_allclose(penalty_after(5, 10), full / 2, rtol=1e-6)
    np.testing.assert_allclose(penalty_after(99, 10), full, rtol=1e-6)


def test_the_shared_tape_gives_what_separate_passes_give(data):
    """RS-FGSM and DER on its start: one tape for both, against an attack run on its own."""

    class Separate(RobustClassifier):
        def _shares_start(self):
            return False

    def train(cls):
        model = cls(
            small_network(),
            attack=attacks.get("rs_fgsm", epsilon=0.1, training=True),
            regularizers=[DeltaEnergy(5.0, reference="start")],
        )
        model.compile(keras.optimizers.SGD(0.3, momentum=0.9))
        for _ in range(5):
            model.train_on_batch(*data)
        return model.get_weights()

    assert RobustClassifier(
        small_network(),
        attack=attacks.get("rs_fgsm", training=True),
        regularizers=[DeltaEnergy(1.0, reference="start")],
    )._shares_start()
    for shared, separate in zip(train(RobustClassifier), train(Separate), strict=True):
        np.testing.assert_allclose(shared, separate, atol=1e-6)


def test_start_needs_an_attack_that_has_one(data):
    model = RobustClassifier(
        small_network(),
        attack=lambda model, x, y: x,
        regularizers=[DeltaEnergy(1.0, reference="start")],
    )
    model.compile("sgd")
    with pytest.raises(ValueError, match="need an attack with a start"):
        model.train_on_batch(*data)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weight": -1.0}, "weight is a finite number >= 0; received -1"),
        ({"weight": 1.0, "interval": 0}, "interval is an integer >= 1; received 0"),
        ({"weight": 1.0, "penalty": "cubed"}, "penalty is one of squared.*received 'cubed'"),
        ({"weight": 1.0, "reference": "noise"}, "natural, start, interior, path; received 'noise'"),
    ],
)
def test_bad_configuration_says_what_is_accepted(config, message):
    with pytest.raises(ValueError, match=message):
        DeltaEnergy(**config)


def test_numbers_are_stored_in_the_type_of_their_option():
    given, exact = DeltaEnergy(30, warmup_steps=8.0), DeltaEnergy(30.0, warmup_steps=8)
    kinds = [
        {name: type(value) for name, value in each.get_config().items()} for each in (given, exact)
    ]
    assert kinds[0] == kinds[1]
