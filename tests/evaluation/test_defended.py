"""A defended model under attackers who know more and more of it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks, models
from der_tf.cli import main
from der_tf.defenses import EnergyDescent
from der_tf.evaluation import defense_to_dict, evaluate, evaluate_defense

PGD = attacks.get("pgd", epsilon=0.1, steps=5, random_start=False)
DEFENSE = EnergyDescent(step_size=0.5, radius=1.0)
rng = np.random.default_rng(0)
IMAGES = rng.uniform(size=(40, 4, 4, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(2)
    images = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(8, 3, activation="tanh")(images)
    network = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    network.set_weights([3 * w for w in network.get_weights()])
    return network


@pytest.fixture(scope="module")
def labels(network):
    return np.argmax(DEFENSE.wrap(network)(IMAGES), axis=1)


@pytest.fixture(scope="module")
def found(network, labels):
    return evaluate_defense(network, DEFENSE, IMAGES, labels, {"pgd": PGD}, batch_size=16)


def test_attacks_may_be_made_against_another_model(network, labels):
    other = DEFENSE.wrap(network)
    result = evaluate(network, IMAGES, labels, {"pgd": PGD}, source=other, batch_size=16)
    moved = PGD(other, IMAGES, labels)
    for attack, x in ((result.natural, IMAGES), (result.attacks["pgd"], moved)):
        logits = network(tf.constant(x))
        expected = -tf.gather(logits, labels, axis=1, batch_dims=1)
        np.testing.assert_allclose(attack.joint_energy, expected, atol=1e-4)


def test_each_attacker_is_measured_on_the_defended_model(network, labels, found):
    wrapped = DEFENSE.wrap(network)
    sources = {"plain": network, "adaptive": wrapped, "bpda": DEFENSE.wrap(network, bpda=True)}
    assert list(found.views) == list(sources)
    wrong = np.zeros(len(labels), bool)
    for view, source in sources.items():
        logits = wrapped(PGD(source, IMAGES, labels))
        expected = -tf.gather(logits, labels, axis=1, batch_dims=1)
        result = found.views[view].attacks["pgd"]
        np.testing.assert_allclose(result.joint_energy, expected, atol=1e-3)
        wrong |= result.success
    assert found.natural.correct.all()
    np.testing.assert_array_equal(found.worst_case_success, wrong)


def test_the_report_has_every_attacker_and_their_worst_case(found):
    report = json.loads(json.dumps(defense_to_dict(found)))
    assert report["config"] == {"step_size": 0.5, "radius": 1.0, "steps": 1}
    for view, result in report["views"].items():
        success = found.views[view].attacks["pgd"].success
        assert result["attacks"]["pgd"]["correct"] == np.count_nonzero(~success)
    assert report["worst_case"]["correct"] == np.count_nonzero(~found.worst_case_success)
    assert report["natural"]["accuracy"] == 1.0


def test_parts_of_another_defence_are_refused(network, labels, tmp_path):
    data = IMAGES, labels, {"pgd": PGD}
    evaluate_defense(network, DEFENSE, *data, state_path=tmp_path)
    with pytest.raises(ValueError, match=r"unfinished evaluation of defense .*'steps': 1"):
        evaluate_defense(network, EnergyDescent(steps=2), *data, state_path=tmp_path)


def test_a_data_set_that_shuffles_anew_is_refused(network, labels, found):
    """What three attackers find is compared image by image."""
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, labels))
    with pytest.raises(ValueError, match="in the same order for each attacker"):
        evaluate_defense(network, DEFENSE, dataset.shuffle(40).batch(16), attacks={"pgd": PGD})
    kept = dataset.shuffle(40, seed=0, reshuffle_each_iteration=False).batch(16)
    ordered = evaluate_defense(network, DEFENSE, kept, attacks={"pgd": PGD})
    assert np.count_nonzero(ordered.worst_case_success) == pytest.approx(
        np.count_nonzero(found.worst_case_success), abs=1
    )


def test_the_command_measures_with_and_without_the_defence(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    models.convnet((8, 8, 1), 10, width=4).save(tmp_path / "network.keras")
    out = tmp_path / "report"
    command = ["evaluate", str(tmp_path / "network.keras"), "--dataset=digits", f"--out={out}"]
    command += ["--attacks=fgsm,pgd", "--steps=2", "--num-examples=30", "--epsilon=0.1"]
    assert main([*command, "--defense-steps=2"]) == 2
    assert "the options of a defence go with --defend" in capsys.readouterr().err
    assert main([*command, "--defend", "--defense-steps=2", "--defense-radius=0.5"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    defense, samples = report["defense"], np.load(tmp_path / "report.npz")
    assert (defense["config"]["steps"], defense["config"]["radius"]) == (2, 0.5)
    wrong = ~samples["defended/natural/correct"]
    for view, result in defense["views"].items():
        for name in ("fgsm", "pgd"):
            success = samples[f"defended/{view}/{name}/success"]
            assert result["attacks"][name]["correct"] == np.count_nonzero(~success)
            wrong |= success
    assert defense["worst_case"]["correct"] == np.count_nonzero(~wrong)
    assert report["worst_case"]["correct"] == np.count_nonzero(
        samples["natural/correct"] & ~samples["fgsm/success"] & ~samples["pgd/success"]
    )
    card = (tmp_path / "report.md").read_text()
    assert "## Defence" in card
    assert "| images | undefended | defended, plain | defended, adaptive | defended, BPDA |" in card
    assert "radius=0.5, steps=2" in card
    assert "right under every attacker" in capsys.readouterr().out
