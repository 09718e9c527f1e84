"""EnergyMonitor: what it measures, that training does not notice it, and that it can be resumed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import RobustClassifier, attacks, energy, monitors
from der_tf.monitors import EnergyMonitor, read_energies
from der_tf.training.monitors import affordable_records

EPSILON = 0.1
SPLITS = {"train": 20, "validation": 12}


def classifier(attack="rs_fgsm", dropout=0.0, rate=0.1, eagerly=True, **optimizer):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10),
        ]
    )
    attack = attacks.get(attack, epsilon=EPSILON, training=True)
    evaluation = attacks.get("pgd", epsilon=EPSILON, steps=3)
    model = RobustClassifier(network, attack, evaluation_attack=evaluation)
    # Eagerly: tracing takes longer than the few steps of a test.
    model.compile(keras.optimizers.SGD(rate, **optimizer), jit_compile=False, run_eagerly=eagerly)
    return model


def monitor(directory, digits, **options):
    x, y = digits
    samples = (x[:20], y[:20]), (x[1000:1012], y[1000:1012])
    return EnergyMonitor(directory, *samples, **options)


def fit(model, digits, callbacks=(), epochs=1, **options):
    x, y = digits[0][:96], digits[1][:96]
    model.fit(
        x, y, batch_size=32, shuffle=False, verbose=0, callbacks=callbacks, epochs=epochs, **options
    )
    return model


def test_rows_and_arrays_are_what_the_functions_say(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("der_tf.training.monitors.BATCH_SIZE", 8)  # 8 + 8 + 4 and 8 + 4 images
    model = fit(classifier(), digits, [monitor(tmp_path, digits, seed=3)], epochs=2)
    rows = read_energies(tmp_path / "energies.csv")
    assert [(r["epoch"], r["step"]) for r in rows] == [(1, 3)] * 4 + [(2, 6)] * 4
    assert {(r["split"], r["attack"]) for r in rows[:4]} == {
        (split, attack) for split in SPLITS for attack in ("training", "pgd")
    }
    arrays = np.load(tmp_path / "energies" / "epoch-0002.npz")
    network = model.network
    for row in rows[4:]:
        split, attack = row["split"], f"{row['split']}_{row['attack']}"
        first = 0 if split == "train" else 1000
        x, y = (part[first : first + SPLITS[split]] for part in digits)
        natural = network(x)
        np.testing.assert_array_equal(arrays[f"{split}_labels"], y)
        np.testing.assert_allclose(
            arrays[f"{split}_marginal_energy"], energy.marginal_energy(natural), atol=1e-5
        )
        np.testing.assert_allclose(
            arrays[f"{split}_joint_energy"], energy.joint_energy(natural, y), atol=1e-5
        )
        chosen = model.attack if row["attack"] == "training" else model.evaluation_attack
        moved = network(
            np.concatenate(
                [
                    chosen.perturb(network, x[at : at + 8], y[at : at + 8], tf.constant([3, at]))
                    for at in range(0, len(x), 8)
                ]
            )
        )
        expected = {
            "marginal_energy": energy.marginal_energy(moved),
            "delta_marginal_energy": energy.delta_energy(natural, moved),
            "delta_joint_energy": energy.delta_energy(natural, moved, y),
            "abnormal": energy.abnormal(natural, moved, y),
            "correct": np.argmax(moved, axis=1) == y,
        }
        for name, values in expected.items():
            assert arrays[f"{attack}_{name}"].dtype == np.float32
            np.testing.assert_allclose(arrays[f"{attack}_{name}"], values, atol=1e-4, err_msg=name)
        assert row["images"] == len(y)
        assert row["accuracy"] == pytest.approx(np.mean(expected["correct"]), abs=1e-6)
        assert row["abnormal_fraction"] == pytest.approx(np.mean(expected["abnormal"]), abs=1e-6)
        for name, values in (
            ("marginal_energy", energy.marginal_energy(natural)),
            ("delta_marginal_energy", expected["delta_marginal_energy"]),
            ("delta_joint_energy", expected["delta_joint_energy"]),
        ):
            values = np.asarray(values, np.float64)
            assert row[f"{name}_mean"] == pytest.approx(values.mean(), abs=1e-4)
            assert row[f"{name}_std"] == pytest.approx(values.std(), abs=1e-4)
            for label, share in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
                assert row[f"{name}_{label}"] == pytest.approx(np.quantile(values, share), abs=1e-4)


def test_gradients_of_a_linear_loss_are_aligned(digits, tmp_path):
    """CE of two classes with logits (w.x, 0): all gradients point along w."""
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model = RobustClassifier(network, attacks.get("fgsm", epsilon=EPSILON))
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    two = digits[0], digits[1] % 2
    fit(model, two, [monitor(tmp_path / "linear", two)])
    fit(classifier(), digits, [monitor(tmp_path / "other", digits)])
    linear, other = (
        read_energies(tmp_path / name / "energies.csv") for name in ("linear", "other")
    )
    assert all(row["gradient_alignment"] == pytest.approx(1.0, abs=1e-5) for row in linear)
    assert all(0.2 < row["gradient_alignment"] < 0.999 for row in other)


def test_training_does_not_notice_it(digits, tmp_path):
    """The same weights, batch statistics, momentum, averages and random states, bit for bit."""

    def end(callbacks):
        model = classifier(dropout=0.5, momentum=0.9, use_ema=True, ema_momentum=0.9)
        fit(model, digits, callbacks, epochs=2, validation_data=(digits[0][:9], digits[1][:9]))
        state = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
        return [keras.ops.convert_to_numpy(v) for v in state], tf.random.uniform([3]).numpy()

    watched, drawn = end([monitor(tmp_path, digits, every_steps=1)])
    alone, drawn_alone = end([])
    for ours, theirs in zip(watched, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(drawn, drawn_alone)
    assert len(read_energies(tmp_path / "energies.csv")) == 2 * 3 * 4


def test_it_is_traced_once(digits, tmp_path, monkeypatch):
    traced = []
    original = monitors.EnergyMonitor.set_model.__globals__["_measurement"]

    def counting(model):
        measure = original(model)

        def counted(*args):
            traced.append(args)
            return measure(*args)

        return counted

    monkeypatch.setattr("der_tf.training.monitors._measurement", counting)
    monkeypatch.setattr("der_tf.training.monitors.BATCH_SIZE", 8)
    model, callback = classifier(), monitor(tmp_path, digits, every_steps=2)
    fit(model, digits, [callback])
    fit(model, digits, [callback])
    assert len(traced) == 1


def test_records_within_an_epoch_count_epochs_done(digits, tmp_path):
    fit(classifier(), digits, [monitor(tmp_path, digits, every_steps=2)], epochs=2)
    found = [(r["epoch"], r["step"]) for r in read_energies(tmp_path / "energies.csv")[::4]]
    # Steps 2, 4 and 6, of which the last is the end of the second epoch.
    assert found == [(0, 2), (1, 3), (1, 4), (2, 6)]


def test_only_the_wanted_epochs_are_recorded(digits, tmp_path):
    callback = monitor(tmp_path, digits, epochs=range(3, 0, -2))
    found = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: found.append(bool(callback.latest))
    )
    fit(classifier(), digits, [callback, look], epochs=4)
    assert [r["epoch"] for r in read_energies(tmp_path / "energies.csv")[::4]] == [1, 3]
    assert [path.name[-5] for path in sorted((tmp_path / "energies").iterdir())] == ["1", "3"]
    # What is no record of this epoch is not shown for one.
    assert found == [True, False, True, False]


def test_the_epoch_that_ends_the_training_is_recorded(digits, tmp_path):
    def stop(epoch, logs):
        model.stop_training = epoch == 1

    model = classifier()
    ending = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    fit(model, digits, [ending, monitor(tmp_path, digits, epochs=[5])], epochs=5)
    assert [r["epoch"] for r in read_energies(tmp_path / "energies.csv")] == [2] * 4


def test_records_are_as_many_as_they_are_cheap():
    """An image of each split costs 2 (2 + 20 + 6) passes; one of an RS-FGSM step 2 + 3."""
    network = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten()])
    evaluation = attacks.get("pgd", steps=10)
    model = RobustClassifier(network, attacks.get("rs_fgsm"), evaluation_attack=evaluation)

    def share(images, interval, train_size):
        return images * 56 / (interval * train_size * 5)

    images, interval = affordable_records(model, 49_000, share=0.03)
    assert interval == 1
    assert share(images, 1, 49_000) <= 0.03 < share(images + 1, 1, 49_000)
    for train_size in (96, 1_295, 5_973, 5_974):
        images, interval = affordable_records(model, train_size, share=0.03)
        assert images == 16
        assert share(16, interval, train_size) <= 0.03
        assert interval == 1 or share(16, interval - 1, train_size) > 0.03


def test_what_a_lost_part_of_the_training_wrote_is_dropped(digits, tmp_path):
    fit(classifier(), digits, [monitor(tmp_path, digits, every_steps=2)], epochs=2)
    whole = (tmp_path / "energies.csv").read_bytes()
    # Killed, and taken up again at a state of epoch 1: rows and arrays beyond it are gone ...
    model = fit(classifier(), digits)
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.append(
            (
                read_energies(tmp_path / "energies.csv")[-1]["step"],
                sorted(path.name for path in (tmp_path / "energies").iterdir()),
            )
        )
    )
    again = [monitor(tmp_path, digits, every_steps=2), look]
    fit(model, digits, again, epochs=2, initial_epoch=1)
    assert seen == [(3, ["epoch-0001.npz"])]
    # ... and written again as they were.
    assert (tmp_path / "energies.csv").read_bytes() == whole
    assert len(list((tmp_path / "energies").iterdir())) == 2


def test_the_end_of_an_epoch_that_is_recorded_again_is_whole(digits, tmp_path):
    model = fit(classifier(), digits, [monitor(tmp_path, digits)])
    whole = (tmp_path / "energies.csv").read_bytes()
    # Killed after the record, and taken up again at the state before it, of the same step.
    again = monitor(tmp_path, digits)
    again.set_model(model)
    again.on_train_begin()
    again.on_epoch_begin(0)
    again.on_epoch_end(0)
    assert (tmp_path / "energies.csv").read_bytes() == whole
    assert (tmp_path / "energies" / "epoch-0001.npz").exists()


def test_averaged_weights_are_measured(digits, tmp_path):
    model = classifier(use_ema=True, ema_momentum=0.99)
    fit(model, digits, [monitor(tmp_path, digits)])
    measured = np.load(tmp_path / "energies" / "epoch-0001.npz")["train_marginal_energy"]
    # Keras ends a fit by overwriting the weights with their averages.
    averaged = energy.marginal_energy(model.network(digits[0][:20]))
    trained = energy.marginal_energy(fit(classifier(), digits).network(digits[0][:20]))
    assert np.abs(measured - averaged).max() < 1e-5
    assert np.abs(measured - trained).max() > 1e-2


def test_two_replicas_are_measured_like_one(digits, tmp_path, two_replicas):
    """At learning rate 0, where they differ in the batch statistics of half batches alone."""

    def rows(name, strategy):
        with strategy.scope():
            model = classifier("fgsm", rate=0.0, eagerly=False)
        fit(model, digits, [monitor(tmp_path / name, digits)])
        return read_energies(tmp_path / name / "energies.csv")

    one = rows("one", tf.distribute.get_strategy())
    two = rows("two", two_replicas())
    for ours, theirs in zip(two, one, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=1e-3), name


def test_natural_training_and_attacks_of_ones_own(digits, tmp_path):
    network = classifier().network
    model = RobustClassifier(network, None, evaluation_attack=lambda _, x, y: 1 - x)
    model.compile("sgd", run_eagerly=True)
    fit(model, digits, [monitor(tmp_path, digits)])
    for row in read_energies(tmp_path / "energies.csv"):
        assert (row["delta_marginal_energy_std"] == 0) == (row["attack"] == "training")
        assert np.isnan(row["gradient_alignment"])  # no attack has a ball


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "energies.csv"
    path.write_text("epoch,step,split,attack,accuracy\n1,10,train,training,0.5\n2,20,tr")
    with pytest.raises(ValueError, match=r"energies\.csv cannot be read: its last line"):
        read_energies(path)


def test_errors_say_what_was_received(digits, tmp_path):
    with pytest.raises(ValueError, match=r"images are in \[0, 1\].*received values from 0 to 255"):
        monitor(tmp_path, (digits[0] * 255, digits[1]))
    for every in (-1, 2.5):
        with pytest.raises(ValueError, match=f"every_steps is an integer >= 0; received {every}"):
            monitor(tmp_path, digits, every_steps=every)
    x, y = digits
    for sample, message in (
        (tf.data.Dataset.from_tensors((x, y)), r"training is a pair of images .*received <class"),
        ((x[:0], y[:0]), "training has at least one image; received none"),
    ):
        with pytest.raises(ValueError, match=message):
            EnergyMonitor(tmp_path, sample, (x, y))
    with pytest.raises(ValueError, match=r"in 0\.\.9, .* 10 logits; received labels from 1 to 10"):
        EnergyMonitor(tmp_path, (x, y), (x, y + 1)).set_model(classifier())
    with pytest.raises(ValueError, match=r"expected shape=\(None, 8, 8, 1\)"):
        EnergyMonitor(tmp_path, (x, y), (x[:, :4], y)).set_model(classifier())
    with pytest.raises(ValueError, match="watches a RobustClassifier; received Sequential"):
        monitor(tmp_path, digits).set_model(classifier().network)
    assert read_energies(tmp_path / "energies.csv") == []
