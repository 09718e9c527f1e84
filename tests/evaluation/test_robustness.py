"""evaluate() against closed forms on a linear model, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks, energy
from der_tf.attacks import FGSM, PGD
from der_tf.evaluation import evaluate

EPSILON = 0.1
rng = np.random.default_rng(0)
WEIGHT = rng.normal(size=(12,)).astype(np.float32)
# Away from 0 and 1, so that the ball is never cut.
IMAGES = rng.uniform(0.3, 0.7, size=(50, 2, 2, 3)).astype(np.float32)
LABELS = rng.integers(0, 2, size=50)


def linear(images):
    """Logits (-s, s) / 2 with s = w (x - 1/2)."""
    score = tf.linalg.matvec(tf.reshape(images, [-1, 12]) - 0.5, WEIGHT)
    return tf.stack([-score, score], axis=1) / 2


def margins(epsilon=0.0):
    """How far samples are on the right side after the strongest l-infinity attack."""
    scores = (IMAGES.reshape(-1, 12) - 0.5) @ WEIGHT
    return np.where(LABELS == 1, scores, -scores) - epsilon * np.abs(WEIGHT).sum()


def test_a_linear_model_is_broken_where_its_margin_is_too_small():
    result = evaluate(linear, IMAGES, LABELS, ("fgsm", "pgd"), epsilon=EPSILON, batch_size=16)
    np.testing.assert_array_equal(result.natural.correct, margins() > 0)
    for attack in result.attacks.values():
        np.testing.assert_array_equal(attack.success, margins(EPSILON) <= 0)
    assert result.attacks["fgsm"].accuracy == pytest.approx((margins(EPSILON) > 0).mean())
    assert 0 < result.attacks["fgsm"].accuracy < result.natural.accuracy < 1


def test_energies_are_those_of_the_images_and_their_counterparts():
    result = evaluate(linear, IMAGES, LABELS, [FGSM(epsilon=EPSILON)]).attacks["fgsm"]
    moved = attacks.get("fgsm", epsilon=EPSILON)(linear, IMAGES, LABELS)
    for name, expected in {
        "marginal_energy": energy.marginal_energy(linear(moved)),
        "joint_energy": energy.joint_energy(linear(moved), LABELS),
        "delta_marginal_energy": energy.delta_energy(linear(IMAGES), linear(moved)),
        "delta_joint_energy": energy.delta_energy(linear(IMAGES), linear(moved), LABELS),
    }.items():
        np.testing.assert_allclose(getattr(result, name), expected, atol=1e-6)
    assert not result.abnormal.any()


def test_the_worst_case_is_an_error_anywhere():
    def flip_first(model, x, y):
        return tf.where(tf.reshape(tf.range(tf.shape(x)[0]) < 5, [-1, 1, 1, 1]), 1 - x, x)

    def nothing(model, x, y):
        return x

    result = evaluate(linear, IMAGES, LABELS, {"first": flip_first, "nothing": nothing})
    first = result.attacks["first"].success
    np.testing.assert_array_equal(first[5:], ~result.natural.correct[5:])
    np.testing.assert_array_equal(first[:5], result.natural.correct[:5])
    expected = ~result.natural.correct
    expected[:5] = True
    np.testing.assert_array_equal(result.worst_case_success, expected)
    assert result.worst_case_accuracy < result.attacks["nothing"].accuracy


def test_a_data_set_and_arrays_give_the_same():
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16)
    ours = evaluate(linear, IMAGES, LABELS, "pgd", epsilon=EPSILON, batch_size=16, seed=3)
    theirs = evaluate(linear, dataset, attacks="pgd", epsilon=EPSILON, seed=3)
    assert ours.samples().keys() == theirs.samples().keys()
    for name, values in theirs.samples().items():
        np.testing.assert_array_equal(ours.samples()[name], values, err_msg=name)


def test_the_seed_decides_the_random_starts():
    def deltas(seed):
        attack = {"pgd": PGD(epsilon=EPSILON, steps=1, step_size=0.001)}
        return evaluate(linear, IMAGES, LABELS, attack, seed=seed).attacks["pgd"].joint_energy

    np.testing.assert_array_equal(deltas(1), deltas(1))
    assert (deltas(1) != deltas(2)).any()


def test_each_attack_is_traced_once_whatever_the_last_batch():
    traces = []

    def counting(images):
        traces.append(images.shape)
        return linear(images)

    evaluate(counting, IMAGES[:16], LABELS[:16], "fgsm", batch_size=16)
    one_batch = len(traces)
    traces.clear()
    evaluate(counting, IMAGES, LABELS, "fgsm", batch_size=7)
    assert len(traces) <= one_batch + 1  # the natural pass may be traced for the odd batch


def test_a_keras_model_is_measured_in_inference_mode():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2, 2, 3)),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.9),
            keras.layers.Dense(2),
        ]
    )
    before = model.get_weights()
    first = evaluate(model, IMAGES, LABELS, "fgsm", batch_size=50)
    second = evaluate(model, IMAGES, LABELS, "fgsm", batch_size=9)
    np.testing.assert_allclose(
        first.attacks["fgsm"].joint_energy, second.attacks["fgsm"].joint_energy, atol=1e-6
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_progress_tells_images_done_and_the_accuracy_so_far():
    seen = []
    result = evaluate(
        linear, IMAGES, LABELS, "fgsm", batch_size=20, progress=lambda *state: seen.append(state)
    )
    right = np.cumsum(~result.attacks["fgsm"].success)
    assert seen == [("fgsm", n, 50, right[n - 1] / n) for n in (20, 40, 50)]


def test_only_what_lies_in_the_ball_is_a_success():
    """An attack that errs on every image: in l2 the distances say which of them count."""
    length = np.linalg.norm(WEIGHT)

    def nearest(model, x, y):
        logits = model(x)
        way = (logits[:, 0] - logits[:, 1]) / length**2
        beyond = tf.where((way > 0) == (y == 0), 1.01 * way, 0.0)
        return x + tf.reshape(beyond[:, None] * WEIGHT, tf.shape(x))

    attack = {"nearest": nearest}
    distances = np.where(margins() > 0, 1.01 * margins() / length, 0)
    radius = float(np.median(distances[distances > 0]))
    assert evaluate(linear, IMAGES, LABELS, attack).attacks["nearest"].success.all()
    found = evaluate(linear, IMAGES, LABELS, attack, ball=("l2", radius)).attacks["nearest"]
    np.testing.assert_allclose(found.l2_distance, distances, rtol=1e-4)
    clear = np.abs(distances - radius) > 1e-5
    np.testing.assert_array_equal(found.success[clear], (distances < radius)[clear])
    assert 0 < found.accuracy < 1
    # The largest change of a pixel is another measure, by which other images lie in the ball.
    linf = evaluate(linear, IMAGES, LABELS, attack, ball=("linf", radius)).attacks["nearest"]
    np.testing.assert_array_equal(linf.success, linf.linf_distance <= radius)
    assert linf.accuracy < found.accuracy


def test_distances_are_those_of_the_attacked_images():
    def shift(model, x, y):
        return x - 0.4  # down to -0.1: outside of what an image may be

    found = evaluate(linear, IMAGES, LABELS, {"shift": shift}).attacks["shift"]
    np.testing.assert_allclose(found.linf_distance, 0.4, rtol=1e-5)
    np.testing.assert_allclose(found.l2_distance, 0.4 * np.sqrt(12), rtol=1e-5)
    lowest = IMAGES.reshape(50, -1).min(axis=1)
    np.testing.assert_allclose(found.pixel_excess, np.maximum(0.4 - lowest, 0), atol=1e-6)


def test_probabilities_are_warned_of():
    def softmax(images):
        return tf.nn.softmax(linear(images))

    with pytest.warns(attacks.UnreliableAttackWarning, match="seems to return probabilities"):
        result = evaluate(softmax, IMAGES, LABELS, "fgsm", epsilon=EPSILON)
    np.testing.assert_array_equal(result.natural.correct, margins() > 0)


FEW = {
    "apgd_t": {"loss": "margin"},
    "square": {"queries": 5},
    "auto_attack": {"queries": 5, "steps": 3},
}
EVERY = sorted(set(attacks.names()) - {"cw", "apgd_dlr", "diff_pgd"})


@pytest.mark.parametrize(
    ("names", "norm"),
    [
        (["fgsm", "pgd"], "linf"),
        *(pytest.param(EVERY, norm, marks=pytest.mark.slow) for norm in ("linf", "l2")),
    ],
)
def test_at_epsilon_zero_every_attack_returns_the_image(names, norm):
    chosen = {n: attacks.get(n, epsilon=0, norm=norm, **FEW.get(n, {})) for n in names}
    result = evaluate(linear, IMAGES[:8], LABELS[:8], chosen)
    for name, found in result.attacks.items():
        np.testing.assert_array_equal(found.success, ~result.natural.correct, err_msg=name)
        np.testing.assert_array_equal(found.l2_distance, 0, err_msg=name)


def test_beyond_epsilon_one_the_ball_is_all_images():
    result = evaluate(linear, IMAGES, LABELS, "pgd", epsilon=3)
    found = result.attacks["pgd"]
    assert found.success.all()
    assert found.pixel_excess.max() == 0
    assert found.linf_distance.max() <= 1


def test_a_batch_of_one():
    one = evaluate(linear, IMAGES, LABELS, "fgsm", epsilon=EPSILON, batch_size=1)
    many = evaluate(linear, IMAGES, LABELS, "fgsm", epsilon=EPSILON)
    np.testing.assert_array_equal(one.attacks["fgsm"].success, many.attacks["fgsm"].success)
    single = evaluate(linear, IMAGES[:1], LABELS[:1], "fgsm", epsilon=EPSILON)
    assert single.size == 1
    assert single.attacks["fgsm"].success[0] == many.attacks["fgsm"].success[0]


def test_a_model_without_gradient_is_named():
    batched = tf.nondifferentiable_batch_function(1, 64, 0)(linear)

    def served(images):
        return tf.ensure_shape(batched(images), [None, 2])

    assert evaluate(served, IMAGES, LABELS, {}).natural.accuracy > 0
    with pytest.raises(ValueError, match=r"attack 'fgsm': .* needs the gradient of the model"):
        evaluate(served, IMAGES, LABELS, "fgsm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES * 255}, r"in \[0, 1\]; received values from"),
        ({"images": np.where(IMAGES > 0.6, np.nan, IMAGES)}, "and NaN"),
        ({"images": IMAGES[0]}, r"received images of shape \(2, 2, 3\)"),
        ({"labels": LABELS[:3]}, r"labels of shape \(3,\)"),
        ({"labels": LABELS.astype(float)}, "float64 labels"),
        ({"labels": LABELS + 1}, r"labels are in 0\.\.1.*received labels from 1 to 2"),
        ({"labels": LABELS - 1}, r"labels are in 0\.\.1.*received labels from -1 to 0"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "at least one"),
        ({"attacks": "nope"}, "attack is one of .*; received 'nope'"),
        ({"attacks": "apgd_t"}, "^attack 'apgd_t': the targeted dlr loss needs at least 4 classes"),
        ({"attacks": [FGSM(), FGSM()]}, "two attacks are called 'fgsm'"),
        ({"attacks": [3]}, "received 3"),
        ({"batch_size": 0}, "batch_size is an integer >= 1; received 0"),
        ({"model": lambda x: x}, r"gives logits \[B, K\] .*received values of shape"),
        ({"model": lambda x: linear(x)[:, :1]}, r"of K >= 2 classes"),
        ({"model": lambda x: linear(x) / 0.0}, "logits of natural images are finite; received 50"),
        (
            {
                "model": lambda x: (
                    linear(x) / tf.cast(x[0, 0, 0, 0] == IMAGES[0, 0, 0, 0], tf.float32)
                )
            },
            "received NaN or infinity under attack 'fgsm'",
        ),
    ],
)
def test_refuses_what_it_cannot_measure(change, message):
    arguments = {"model": linear, "images": IMAGES, "labels": LABELS, "attacks": "fgsm"} | change
    with pytest.raises(ValueError, match=message):
        evaluate(arguments.pop("model"), **arguments)
