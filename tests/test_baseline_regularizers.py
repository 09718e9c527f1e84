"""GradAlign and AAER against their equations, worked by hand and in numpy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks
from der_tf.attacks import geometry
from der_tf.regularizers import AbnormalExamples, GradAlign
from der_tf.training.batch import TrainingBatch

SEED = tf.constant([3, 4])
EPSILON = 0.3


def dense_network(hidden=5, classes=3):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((2, 2, 1), dtype="float64"),
            keras.layers.Flatten(dtype="float64"),
            *([keras.layers.Dense(hidden, "tanh", dtype="float64")] if hidden else []),
            keras.layers.Dense(classes, dtype="float64"),
        ]
    )


def images_and_labels(classes=3):
    rng = np.random.default_rng(0)
    images = rng.random((6, 2, 2, 1), dtype=np.float32)
    return images, rng.integers(0, classes, 6).astype(np.int32)


def batch_of(network, images, labels, attack="fgsm", step=0):
    return TrainingBatch(
        network,
        tf.constant(images),
        tf.constant(labels),
        attack=attacks.get(attack, epsilon=EPSILON),
        seed=SEED,
        step=tf.constant(step, tf.int64),
    )


def one_minus_cosine(weights, images, labels, first_weights=None):
    """The penalties in numpy: input gradients of a tanh (or no) layer and a dense one by hand.

    The first gradient may be that of other weights.
    """
    noise = geometry.random_in_ball(
        tf.constant(images.shape), EPSILON, "linf", tf.random.fold_in(SEED, 2)
    ).numpy()

    def gradient(points, weights=weights):
        x = points.reshape(len(points), -1).astype(np.float64)
        *first, last, bias = weights
        hidden = np.tanh(x @ first[0] + first[1]) if first else x
        logits = hidden @ last + bias
        residual = np.exp(logits - logits.max(1, keepdims=True))
        residual /= residual.sum(1, keepdims=True)
        residual[np.arange(len(labels)), labels] -= 1
        back = residual @ last.T
        return (back * (1 - hidden**2)) @ first[0].T if first else back

    a, b = gradient(images, first_weights or weights), gradient(images + noise)
    return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("hidden", [0, 5])
def test_grad_align_is_one_minus_the_cosine_of_the_input_gradients(hidden):
    network, (images, labels) = dense_network(hidden), images_and_labels()
    penalties = GradAlign(0.7)(batch_of(network, images, labels))
    expected = 0.7 * one_minus_cosine(network.get_weights(), images, labels)
    assert penalties.shape == (6,)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(penalties, expected, atol=1e-6)


def test_grad_align_is_zero_where_the_direction_of_the_gradient_is_the_same_everywhere():
    # Two classes and a linear network: the gradient is p (w_1 - w_0), whatever x.
    network, (images, labels) = dense_network(hidden=0, classes=2), images_and_labels(2)
    np.testing.assert_allclose(GradAlign()(batch_of(network, images, labels)), 0, atol=1e-6)


@pytest.mark.parametrize("full", [True, False])
def test_grad_align_differentiates_through_both_input_gradients_or_the_second(full):
    network, (images, labels) = dense_network(), images_and_labels()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(GradAlign(1.0, full_gradient=full)(batch_of(network, images, labels)))
    gradients = tape.gradient(loss, network.trainable_variables)
    weights = network.get_weights()
    for i, gradient in enumerate(gradients):
        for index in np.ndindex(weights[i].shape):
            sides = []
            for sign in (1, -1):
                moved = [w.copy() for w in weights]
                moved[i][index] += sign * 1e-5
                first = moved if full else weights
                sides.append(one_minus_cosine(moved, images, labels, first).mean())
            expected = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose(gradient.numpy()[index], expected, atol=1e-6)


def test_grad_align_takes_small_gradients_for_what_they_are_and_zero_ones_for_none():
    rng = np.random.default_rng(2)
    a, b = (tf.constant(rng.normal(size=(3, 2, 2)), tf.float32) for _ in range(2))
    plain = GradAlign().penalties(a, b)
    np.testing.assert_allclose(GradAlign().penalties(1e-30 * a, 1e-25 * b), plain, rtol=1e-5)
    a *= tf.constant([1.0, 0.0, 1.0])[:, None, None]
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        penalties = GradAlign().penalties(a, b)
    assert penalties.numpy()[1] == 0
    for gradient in tape.gradient(penalties, [a, b]):
        assert np.isfinite(gradient).all()
        assert not gradient.numpy()[1].any()


def test_grad_align_shares_the_pass_of_fgsm_without_changing_anything():
    class Separate(RobustClassifier):
        def _shares_gradient(self):
            return False

    def train(cls):
        attack = attacks.get("fgsm", epsilon=EPSILON, training=True)
        model = cls(dense_network(), attack, regularizers=[GradAlign(2.0)])
        model.compile(keras.optimizers.SGD(0.3, momentum=0.9))
        for _ in range(5):
            model.train_on_batch(*images_and_labels())
        return model.get_weights()

    attack = attacks.get("fgsm", training=True)
    assert RobustClassifier(dense_network(), attack, "madry", [GradAlign()])._shares_gradient()
    for shared, separate in zip(train(RobustClassifier), train(Separate), strict=True):
        np.testing.assert_allclose(shared, separate, atol=1e-6)


def test_grad_align_needs_an_attack_with_a_ball():
    model = RobustClassifier(dense_network(), lambda model, x, y: x, regularizers=[GradAlign()])
    model.compile("sgd")
    with pytest.raises(ValueError, match="GradAlign needs an attack with a ball"):
        model.train_on_batch(*images_and_labels())


def test_two_replicas_take_the_grad_align_step_of_the_whole_batch(two_replicas):
    """Each replica draws noise of its own, so that the sum of both is worked out here."""
    images, labels = images_and_labels()
    attack = attacks.get("fgsm", epsilon=EPSILON)
    with two_replicas().scope():
        model = RobustClassifier(dense_network(), attack, regularizers=[GradAlign(5.0)], seed=7)
        model.compile(keras.optimizers.SGD(1.0))
    reference = dense_network()
    with tf.GradientTape() as tape:
        total = 0.0
        for replica in range(2):
            half = slice(3 * replica, 3 * replica + 3)
            seed = tf.random.fold_in(tf.random.fold_in(tf.constant([7, 1]), 0), replica)
            x, y = tf.constant(images[half]), tf.constant(labels[half])
            batch = TrainingBatch(reference, x, y, attack=attack, seed=seed, step=tf.zeros([]))
            batch.run_attack()
            losses = model.objective(y, None, batch.adversarial_logits)
            total += tf.reduce_sum(losses + GradAlign(5.0)(batch)) / 6
    gradients = tape.gradient(total, reference.trainable_variables)
    before = reference.get_weights()
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(6)
    model.fit(dataset, shuffle=False, verbose=0)
    for new, old, gradient in zip(model.get_weights(), before, gradients, strict=True):
        np.testing.assert_allclose(new, old - gradient, atol=1e-5)


# Labels are 0. At the start both logits are 0 and CE = log 2; x* has
#   abnormal: logits (log 3, 0): CE = log 4/3, variation log(3)^2;
#   normal:   logits (0, log 2): CE = log 3,   variation log(2)^2.
LABELS = tf.constant([0, 0, 0, 0])
START = tf.zeros([4, 2])
ABNORMAL, NORMAL = [np.log(3), 0.0], [0.0, np.log(2)]
MIXED = tf.constant([ABNORMAL, NORMAL, NORMAL, NORMAL], tf.float32)
LOSS_VARIATION = np.log(2) - np.log(4 / 3)
EXCESS = np.log(3) ** 2 - np.log(2) ** 2


def test_aaer_by_hand():
    penalties = AbnormalExamples(loss=3.0, logits=5.0).penalties(LABELS, START, MIXED)
    expected = (1 / 4) * (3 * LOSS_VARIATION + 5 * EXCESS)
    assert float(tf.reduce_mean(penalties)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(penalties[1:], 0)


def test_aaer_leaves_the_logits_alone_where_abnormal_ones_vary_less():
    louder = tf.constant([ABNORMAL, [0.0, 9.0], NORMAL, NORMAL], tf.float32)
    penalties = AbnormalExamples(loss=3.0, logits=5.0).penalties(LABELS, START, louder)
    assert float(tf.reduce_mean(penalties)) == pytest.approx(3 / 4 * LOSS_VARIATION, rel=1e-5)


@pytest.mark.parametrize("of_one_kind", [ABNORMAL, NORMAL, [0.0, 0.0]])
def test_aaer_is_zero_without_both_kinds(of_one_kind):
    logits = tf.constant([of_one_kind] * 4, tf.float32)
    np.testing.assert_array_equal(AbnormalExamples().penalties(LABELS, START, logits), 0)


@pytest.mark.parametrize("full", [False, True])
def test_aaer_has_the_gradients_of_its_equation(full):
    start, moved = tf.identity(START), tf.identity(MIXED)
    aaer = AbnormalExamples(loss=3.0, logits=5.0, full_gradient=full)
    with tf.GradientTape() as tape:
        tape.watch([start, moved])
        total = tf.reduce_mean(aaer.penalties(LABELS, start, moved))
    of_start, of_moved = tape.gradient(total, [start, moved])
    # d CE / d logits is p - (1, 0): (-1/4, 1/4) at x*, (-1/2, 1/2) at the start.
    variation = 5 * 2 * np.array(ABNORMAL)
    expected = variation - 3 * np.array([-0.25, 0.25]) if full else variation
    np.testing.assert_allclose(of_moved, [expected / 4, [0, 0], [0, 0], [0, 0]], atol=1e-5)
    if full:
        expected = 3 * np.array([-0.5, 0.5]) - variation
        np.testing.assert_allclose(of_start, [expected / 4, [0, 0], [0, 0], [0, 0]], atol=1e-5)
    else:
        assert of_start is None


def test_aaer_compares_with_the_start_of_the_attack_and_warms_up():
    network, (images, labels) = dense_network(), images_and_labels()
    batch = batch_of(network, images, labels, "n_fgsm")
    batch.adversarial = tf.constant(images[::-1].copy())  # some lower, some raise the loss
    aaer = AbnormalExamples(2.0)
    expected = 2 * aaer.penalties(labels, network(batch.start), network(batch.adversarial))
    assert float(tf.reduce_sum(expected)) > 0
    np.testing.assert_allclose(aaer(batch), expected, rtol=1e-6)
    half = batch_of(network, images, labels, "n_fgsm", step=5)
    half.adversarial = batch.adversarial
    warming = AbnormalExamples(2.0, warmup_steps=10)
    np.testing.assert_allclose(warming(half), expected / 2, rtol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_aaer_counts_over_all_replicas(full, two_replicas):
    """Its share and levels are those of the whole batch: 5 steps of 64, the last one of 19."""
    rng = np.random.default_rng(0)
    images = rng.random((275, 2, 2, 1), dtype=np.float32)
    labels = rng.integers(0, 3, 275).astype(np.int32)

    def train(strategy, weight=3.0):
        with strategy.scope():
            model = RobustClassifier(
                dense_network(),
                # Far beyond where the network is linear, so that some steps lower the loss.
                attacks.get("fgsm", epsilon=1.0, training=True),
                regularizers=[AbnormalExamples(weight, full_gradient=full)],
            )
            kernel = model.network.layers[1].kernel
            kernel.assign(8 * kernel)
            model.compile(keras.optimizers.SGD(0.05))
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(64)
        model.fit(dataset, shuffle=False, verbose=0)
        return model.get_weights()

    one, plain = train(tf.distribute.get_strategy()), train(tf.distribute.get_strategy(), 0.0)
    assert max(np.abs(a - b).max() for a, b in zip(one, plain, strict=True)) > 1e-3
    for a, b in zip(train(two_replicas()), one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("regularizer", [GradAlign(), AbnormalExamples(full_gradient=True)])
def test_mixed_precision_and_saving(regularizer, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
        layers += [keras.layers.ReLU(), keras.layers.Flatten()]
        network = keras.Sequential(
            [keras.Input((4, 4, 1)), *layers, keras.layers.Dense(3, dtype="float32")]
        )
        model = RobustClassifier(
            network, attacks.get("rs_fgsm", epsilon=0.2), regularizers=[regularizer]
        )
        model.compile(keras.optimizers.SGD(0.1))
        rng = np.random.default_rng(0)
        images = rng.random((64, 4, 4, 1), dtype=np.float32)
        labels = (images.mean((1, 2, 3)) * 6 % 3).astype(np.int32)
        losses = model.fit(images, labels, epochs=6, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").regularizers == (regularizer,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GradAlign(-1.0), "GradAlign: weight is a finite number >= 0; received -1"),
        (lambda: AbnormalExamples(loss=-2.0), "AbnormalExamples: loss is a finite number >= 0"),
    ],
)
def test_bad_configuration_says_what_is_accepted(build, message):
    with pytest.raises(ValueError, match=message):
        build()
