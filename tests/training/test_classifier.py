"""RobustClassifier in plain Keras code: metrics, passes, saving, precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks, energy, objectives
from der_tf.attacks import RSFGSM
from der_tf.regularizers import AbnormalExamples, DeltaEnergy, GradAlign
from tests.training.small_classifiers import assert_same_weights, compiled, fit, small_network

METRICS = {
    "loss",
    "clean_accuracy",
    "robust_accuracy",
    "delta_marginal_energy",
    "delta_joint_energy",
    "abnormal_fraction",
}


@pytest.mark.parametrize("attack", [None, "fgsm", "rs_fgsm", "n_fgsm", "pgd", "mim", "trades"])
def test_all_metrics_are_there_for_every_attack(attack, digits):
    x, y = digits[0][:200], digits[1][:200]
    if attack is not None:
        attack = attacks.get(attack, epsilon=0.1)
    history = fit(compiled(small_network(), attack), x, y, validation_data=(x[:50], y[:50]))
    assert set(history) == METRICS | {f"val_{name}" for name in METRICS}
    assert np.isfinite(list(history.values())).all()


@pytest.mark.parametrize("objective", objectives.names())
def test_training_makes_robust(objective, digits):
    """From chance to well above it under PGD, for every outer loss."""
    x, y = digits
    model = compiled(small_network(), attacks.get("pgd", epsilon=0.1, steps=5), objective)
    before = model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]
    fit(model, x, y, epochs=8)
    after = model.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"]
    assert before < 0.3
    assert after > 0.6


def test_an_attack_without_a_radius_is_measured_by_the_default_one():
    model = RobustClassifier(small_network(), attack="cw")
    assert model.evaluation_attack == attacks.get("pgd")


def test_evaluate_measures_what_the_functions_say(digits):
    x, y = digits[0][:150], digits[1][:150]
    network = small_network()
    attack = attacks.get("fgsm", epsilon=0.1)
    model = compiled(network, attack, evaluation_attack=attack)
    measured = model.evaluate(x, y, batch_size=64, verbose=0, return_dict=True)  # 64 + 64 + 22
    natural, moved = network(x), network(attack(network, x, y))
    expected = {
        "loss": energy.cross_entropy(moved, y),
        "clean_accuracy": np.argmax(natural, axis=1) == y,
        "robust_accuracy": np.argmax(moved, axis=1) == y,
        "delta_marginal_energy": energy.delta_energy(natural, moved),
        "delta_joint_energy": energy.delta_energy(natural, moved, y),
        "abnormal_fraction": energy.abnormal(natural, moved, y),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], np.mean(values), atol=1e-5, err_msg=name)


class CountsCalls(keras.Model):
    """A network that counts how often it is really run."""

    def __init__(self):
        super().__init__()
        self.network = small_network()
        self.calls = tf.Variable(0, trainable=False)

    def build(self, input_shape):
        self.built = True

    def call(self, images, training=None):
        self.calls.assign_add(1)
        return self.network(images, training=training)


@pytest.mark.parametrize(
    ("attack", "objective", "regularizers", "passes"),
    [
        (None, "madry", (), 1),
        ("fgsm", "madry", (), 2),
        ("pgd", "madry", (), 11),
        ("fgsm", "trades", (), 3),
        ("fgsm", "madry", (DeltaEnergy(1.0, reference="natural"),), 3),
        (
            "fgsm",
            "trades",
            (
                DeltaEnergy(1.0, reference="natural"),
                DeltaEnergy(1.0, penalty="hinge", reference="natural"),
            ),
            3,
        ),
        ("pgd", "madry", (DeltaEnergy(1.0, reference="interior"),), 12),
        ("rs_fgsm", "madry", (DeltaEnergy(1.0, reference="path"),), 3),
        ("rs_fgsm", "madry", (DeltaEnergy(1.0, reference="start"),), 3),
        # In the mode of the outer pass, the attack's own pass through the start serves the loss.
        (
            attacks.get("rs_fgsm", training=True),
            "madry",
            (DeltaEnergy(1.0, reference="start"),),
            2,
        ),
        (attacks.get("n_fgsm", training=True), "madry", (AbnormalExamples(),), 2),
        ("n_fgsm", "madry", (AbnormalExamples(),), 3),
        # The input gradient that FGSM climbs is the one that GradAlign aligns.
        (attacks.get("fgsm", training=True), "madry", (GradAlign(),), 3),
        (attacks.get("fgsm", training=True), "trades", (GradAlign(),), 3),
        ("rs_fgsm", "madry", (GradAlign(),), 4),
    ],
)
def test_forward_passes_are_taken_only_when_read(attack, objective, regularizers, passes, digits):
    network = CountsCalls()
    model = RobustClassifier(network, attack, objective, regularizers, natural_metrics_every=0)
    model.compile("sgd")
    data = digits[0][:8], digits[1][:8]
    model.train_on_batch(*data)
    network.calls.assign(0)
    model.train_on_batch(*data)
    assert network.calls.numpy() == passes


@pytest.mark.parametrize(("objective", "passes"), [("madry", 3), ("trades", 5)])
def test_weight_perturbation_costs_one_more_evaluation_of_the_objective(objective, passes, digits):
    network = CountsCalls()
    model = RobustClassifier(network, "fgsm", objective, awp_gamma=0.01, natural_metrics_every=0)
    model.compile("sgd")
    model.train_on_batch(digits[0][:8], digits[1][:8])
    network.calls.assign(0)
    model.train_on_batch(digits[0][:8], digits[1][:8])
    assert network.calls.numpy() == passes


def test_natural_metrics_cost_one_pass_in_n_steps(digits):
    network = CountsCalls()
    model = RobustClassifier(network, "fgsm", natural_metrics_every=4)
    model.compile("sgd")
    dataset = tf.data.Dataset.from_tensor_slices(digits).batch(8).take(9)
    model.fit(dataset, shuffle=False, verbose=0)
    assert network.calls.numpy() == 9 * 2 + 3  # steps 0, 4 and 8


def test_moving_statistics_follow_the_outer_pass_alone(digits):
    x, y = digits[0][:64], digits[1][:64]
    network = small_network()
    attack = attacks.get("rs_fgsm", epsilon=0.1, training=True, seed=0)
    moved = attack(network, x, y)
    conv, norm = network.layers[:2]
    features = conv(moved).numpy()
    expected = 0.01 * features.mean(axis=(0, 1, 2))  # Keras' momentum of 0.99, from zero
    model = compiled(network, lambda *_: moved)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4)


def test_steps_are_a_function_of_seed_and_step(digits):
    x, y = digits[0][:256], digits[1][:256]

    def weights(seed, **kwargs):
        attack = attacks.get("rs_fgsm", epsilon=0.1)
        model = compiled(small_network(), attack, seed=seed, **kwargs)
        fit(model, x, y, epochs=2)
        return model.get_weights()

    reference = weights(1)
    assert_same_weights(weights(1), reference)
    assert_same_weights(weights(1, steps_per_execution=3), reference, 1e-6)
    with pytest.raises(AssertionError):
        assert_same_weights(weights(2), reference)


def test_saved_and_loaded_it_goes_on_as_before(digits, tmp_path):
    x, y = digits[0][:256], digits[1][:256]
    model = compiled(
        small_network(),
        attacks.get("rs_fgsm", epsilon=0.1),
        objectives.get("weat", objective=objectives.get("trades", beta=2.0)),
        [DeltaEnergy(3.0, reference="start")],
        evaluation_attack=attacks.get("pgd", epsilon=0.1, steps=3),
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True),
    )
    fit(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name in ("attack", "objective", "regularizers", "evaluation_attack", "seed"):
        assert getattr(loaded, name) == getattr(model, name)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for each in (model, loaded):
        fit(each, x, y)
    assert_same_weights(loaded.get_weights(), model.get_weights())


def test_predict_gives_the_logits_of_the_network(digits):
    network = small_network()
    model = compiled(network)
    np.testing.assert_allclose(
        model.predict(digits[0][:70], verbose=0), network(digits[0][:70]), atol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy, digits):
    keras.config.set_dtype_policy(policy)
    try:
        network = small_network()
        model = compiled(
            network, attacks.get("rs_fgsm", epsilon=0.1), regularizers=[DeltaEnergy(1.0)]
        )
        history = fit(model, *digits, epochs=5)
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.layers[0].compute_dtype == policy.removeprefix("mixed_")
    assert history["robust_accuracy"][-1] > 0.6


def test_ema_callbacks_and_users_metrics(digits):
    x, y = digits[0][:256], digits[1][:256]
    model = RobustClassifier(small_network(), attacks.get("fgsm", epsilon=0.1))
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, metrics=["accuracy"])
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ReduceLROnPlateau(monitor="val_robust_accuracy", mode="max", patience=0),
    ]
    history = fit(model, x, y, epochs=3, validation_data=(x, y), callbacks=callbacks)
    for prefix in ("", "val_"):
        np.testing.assert_allclose(
            history[f"{prefix}accuracy"], history[f"{prefix}clean_accuracy"], atol=1e-6
        )


def test_sample_weights_weight_the_loss(digits):
    x, y = digits[0][:32], digits[1][:32]
    kept = np.arange(32) < 16
    weighted, half = (
        compiled(small_network(batch_norm=False), attacks.get("fgsm", epsilon=0.1))
        for _ in range(2)
    )
    weighted.train_on_batch(x, y, sample_weight=2.0 * kept)
    half.train_on_batch(x[:16], y[:16])
    assert_same_weights(weighted.get_weights(), half.get_weights(), 1e-6)


def test_layer_losses_are_added_once(digits):
    network = small_network(batch_norm=False)
    network.layers[-1].kernel.regularizer = keras.regularizers.L2(0.5)
    model = compiled(network, attacks.get("fgsm", epsilon=0.1), optimizer=keras.optimizers.SGD(1.0))
    plain = compiled(
        small_network(batch_norm=False),
        attacks.get("fgsm", epsilon=0.1),
        optimizer=keras.optimizers.SGD(1.0),
    )
    kernel = network.layers[-1].kernel.numpy()
    for each in (model, plain):
        each.train_on_batch(digits[0][:16], digits[1][:16])
    difference = plain.network.layers[-1].kernel.numpy() - network.layers[-1].kernel.numpy()
    np.testing.assert_allclose(difference, kernel, atol=1e-6)


def test_every_batch_has_noise_of_its_own_while_gradients_are_accumulated(digits):
    seen = []

    class Noted(RSFGSM):
        def start(self, x, seed):
            seen.append(tuple(seed.numpy()))
            return super().start(x, seed)

    model = RobustClassifier(small_network(), Noted(epsilon=0.1))
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model.compile(optimizer, run_eagerly=True)
    fit(model, *digits, epochs=1)
    assert len(set(seen)) == len(seen) == int(optimizer._iterations)
    assert int(optimizer.iterations) < len(seen)


def test_natural_metrics_can_be_left_out_of_training(digits):
    model = compiled(small_network(), "fgsm", natural_metrics_every=0)
    history = fit(model, *digits, epochs=1, validation_data=digits)
    for name in ("clean_accuracy", "delta_marginal_energy", "abnormal_fraction"):
        assert name not in history
        assert f"val_{name}" in history
    assert {"loss", "robust_accuracy"} <= history.keys()


def test_keras_exports_it(digits, tmp_path):
    model = compiled(small_network(), "fgsm")
    fit(model, *digits, epochs=1)
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    images = digits[0][:5]
    np.testing.assert_allclose(
        loaded.serve(images),
        model.predict(images, verbose=0),
        atol=1e-5,
    )
