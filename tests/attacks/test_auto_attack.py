"""AutoAttack: order and survivors, resuming, few classes, its warnings, bad input."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks
from der_tf.attacks import sweep
from der_tf.attacks.auto_attack_state import AutoAttackState

SMALL = {"steps": 10, "targets": 3, "queries": 40, "batch_size": 32, "seed": 0}


@pytest.fixture(scope="module")
def standard(robust_network):
    """One run at a small budget, with what it told on its way."""
    told = []
    attack = attacks.get("auto_attack", epsilon=0.1, **SMALL)
    result = attack.run(*robust_network, progress=lambda *args: told.append(args))
    return attack, result, told


def test_each_attack_runs_on_the_survivors_and_the_worst_case_is_kept(
    standard, robust_network, distance, errs
):
    _, result, told = standard
    model, x, y = robust_network
    assert [entry["attack"] for entry in result.log] == ["apgd_ce", "apgd_t", "fab_t", "square"]
    alive = round(result.clean_accuracy * len(x))
    assert alive == np.sum(~errs(model, x, y))
    for entry in result.log:
        assert entry["attacked"] == alive
        alive -= entry["broken"]
        assert entry["robust_accuracy"] == pytest.approx(alive / len(x))
        assert entry["broken"] == result.broken_by.count(entry["attack"])
    assert result.robust_accuracy == alive / len(x) < result.clean_accuracy - 0.05
    np.testing.assert_array_equal(errs(model, result.adversarial, y), ~result.robust)
    assert (distance(x, result.adversarial, "linf") <= 0.1).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    shares = {name: [s for n, s, _ in told if n == name] for name, *_ in told}
    assert list(shares) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    for values in shares.values():
        assert values == sorted(values)
        assert values[-1] == pytest.approx(1)
    assert told[-1][2] == result.robust_accuracy


def test_at_least_as_strong_as_pgd(standard, robust_network, errs):
    model, x, y = robust_network
    for loss in ("ce", "margin"):
        pgd = attacks.get("pgd", loss=loss, epsilon=0.1, steps=10, seed=0)(model, x, y)
        assert standard[1].robust_accuracy <= np.mean(~errs(model, pgd, y)) + 0.01


def test_survivors_hold_the_highest_loss_found(standard, robust_network):
    model, x, y = robust_network
    result = standard[1]
    loss = keras.losses.sparse_categorical_crossentropy
    moved = loss(y, model(result.adversarial), from_logits=True).numpy()
    natural = loss(y, model(x), from_logits=True).numpy()
    assert (moved >= natural - 1e-5)[result.robust].all()
    assert moved[result.robust].mean() > 1.2 * natural[result.robust].mean()


def test_the_batch_does_not_matter(standard, robust_network):
    model, x, y = robust_network
    other = attacks.get("auto_attack", epsilon=0.1, **{**SMALL, "batch_size": 96})
    result = other.run(model, x, y)
    assert result.broken_by == standard[1].broken_by
    np.testing.assert_allclose(result.adversarial, standard[1].adversarial, atol=1e-3)


class Interruption(Exception):
    pass


@pytest.mark.parametrize("during", ["apgd_ce", "apgd_t"])
def test_an_interrupted_run_goes_on_to_the_same_result(during, standard, robust_network, tmp_path):
    attack, whole, _ = standard

    def interrupt(name, share, _):
        if name == during and share > 0.4:
            raise Interruption

    with pytest.raises(Interruption):
        attack.run(*robust_network, state_path=tmp_path / "state", progress=interrupt)
    told = []
    result = attack.run(
        *robust_network, state_path=tmp_path / "state", progress=lambda n, *_: told.append(n)
    )
    assert told[0] == during  # what was done is not done again
    assert result.broken_by == whole.broken_by
    np.testing.assert_allclose(result.adversarial, whole.adversarial, atol=1e-3)
    for entry, expected in zip(result.log, whole.log, strict=True):
        assert entry["broken"] == expected["broken"]
        assert entry["attacked"] == expected["attacked"]
        assert entry["seconds"] > 0

    told.clear()
    again = attack.run(
        *robust_network, state_path=tmp_path / "state", progress=lambda n, *_: told.append(n)
    )
    assert told == []  # a finished run answers at once
    np.testing.assert_array_equal(again.adversarial, result.adversarial)


@pytest.mark.parametrize("file", ["run.json", "logits.npy", "outcomes.npy", "adversarial.npy"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_damaged_state_is_named(file, content, linear, tmp_path):
    model = linear(4)
    attack = attacks.get("auto_attack", epsilon=0.01, **SMALL)
    AutoAttackState(tmp_path, ["apgd_ce"], model.x, model.y, np.zeros((2, 4)), {}, 0)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no whole state of a run"):
        attack.run(model, model.x, model.y, state_path=tmp_path)


def test_a_state_of_another_run_is_refused(linear, tmp_path):
    model = linear(4)
    attack = attacks.get("auto_attack", epsilon=0.01, **SMALL)
    attack.run(model, model.x, model.y, state_path=tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 0
    stronger = attacks.get("auto_attack", epsilon=0.02, **SMALL)
    with pytest.raises(ValueError, match="config was"):
        stronger.run(model, model.x, model.y, state_path=tmp_path)
    reseeded = attacks.get("auto_attack", epsilon=0.01, **{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="seed 0; received seed=1"):
        reseeded.run(model, model.x, model.y, state_path=tmp_path)
    with pytest.raises(ValueError, match="images_and_labels was"):
        attack.run(model, model.x[::-1], model.y[::-1], state_path=tmp_path)
    with pytest.raises(ValueError, match="state of another model"):
        attack.run(lambda x: 3 * model(x), model.x, model.y, state_path=tmp_path)


@pytest.mark.parametrize(("norm", "num_classes"), [("linf", 2), ("l2", 3), ("linf", 4)])
def test_few_classes_and_exact_on_linear_models(norm, num_classes, linear):
    model = linear(num_classes)
    distances = model.distances(norm)
    epsilon = float(np.median(distances))
    attack = attacks.get("auto_attack", norm=norm, epsilon=epsilon, **{**SMALL, "steps": 30})
    result = attack.run(model, model.x, model.y)
    assert result.log[1]["config"]["loss"] == ("dlr" if num_classes >= 4 else "margin")
    clear = np.abs(distances / epsilon - 1) > 0.01
    np.testing.assert_array_equal(result.robust[clear], (distances > epsilon)[clear])
    assert result.warnings == []


def noisy(model):
    """The model with noise on its logits, another at every call."""
    generator = tf.random.Generator.from_seed(0)

    def randomised(images):
        logits = model(images)
        return logits + generator.normal(tf.shape(logits), stddev=0.05)

    return randomised


@pytest.mark.parametrize("num_classes", [2, 5])
def test_rand_averages_and_does_not_mind_noise(num_classes, linear):
    model = linear(num_classes)
    epsilon = float(np.max(model.distances("linf"))) * 1.5
    attack = attacks.get("auto_attack", version="rand", eot=4, epsilon=epsilon, **SMALL)
    result = attack.run(noisy(model), model.x, model.y)
    assert [entry["attack"] for entry in result.log] == ["apgd_ce", "apgd_dlr"]
    assert result.log[0]["config"]["eot"] == 4
    assert result.robust_accuracy == 0
    assert result.warnings == []


def test_randomness_is_told(linear):
    model = linear(5)
    with pytest.warns(attacks.UnreliableAttackWarning, match="randomised.*version='rand'"):
        result = attacks.get("auto_attack", epsilon=0.05, **SMALL).run(
            noisy(model), model.x, model.y
        )
    assert "randomised" in result.warnings[0]


def test_masked_gradients_are_told(linear):
    """Logits whose gradient is zero: gradient attacks fail, Square does not, and both show."""
    model = linear(4)

    def rounded(images):
        logits = model(images)
        return tf.round(10 * logits) / 10 + 0 * logits

    attack = attacks.get("auto_attack", epsilon=0.2, **{**SMALL, "queries": 200})
    with pytest.warns(attacks.UnreliableAttackWarning) as caught:
        result = attack.run(rounded, model.x, model.y)
    texts = [str(warning.message) for warning in caught]
    assert texts == result.warnings
    assert any("48 of 48 images have a gradient of zero" in text for text in texts)
    assert any("Square has lowered the robust accuracy" in text for text in texts)


def test_too_good_to_be_true(linear):
    """A model that knows its images by heart survives a ball that reaches grey: no attack did."""
    model = linear(4)

    def by_heart(images):
        return model(images) * 1e-12 + tf.one_hot(model.y, 4)[: tf.shape(images)[0]]

    attack = attacks.get("auto_attack", epsilon=0.5, **{**SMALL, "batch_size": 48})
    with pytest.warns(attacks.UnreliableAttackWarning, match=r"100.00 % robust accuracy though"):
        attack.run(by_heart, model.x, model.y)


def test_probabilities_are_told_by_every_attack(linear):
    model = linear(4)
    for name in ("fgsm", "apgd_ce", "auto_attack"):
        with pytest.warns(attacks.UnreliableAttackWarning, match="probabilities"):
            attacks.get(name, epsilon=0.05)(
                lambda x: tf.nn.softmax(model(x)), model.x[:4], model.y[:4]
            )


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "cw", "auto_attack"])
def test_bad_input_is_refused_in_one_sentence(name, linear):
    model = linear(4)
    attack = attacks.get(name)
    with pytest.raises(ValueError, match=r"labels are in 0\.\.3.*received labels from 0 to 4"):
        attack(model, model.x[:2], np.array([0, 4]))
    with pytest.raises(ValueError, match=r"labels are in 0\.\.3.*received labels from -1"):
        attack(model, model.x[:2], np.array([0, -1]))
    with pytest.raises(ValueError, match=r"images are in \[0, 1\].*received values from"):
        attack(model, model.x[:2] * 255, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"logits of natural images are finite.*1 of 2 rows"):
        attack(
            lambda x: model(x) + tf.constant([[0.0], [np.nan]])[: tf.shape(x)[0]],
            model.x[:2],
            np.array([0, 1]),
        )
    with pytest.raises(ValueError, match=r"logits \[B, K\] of K >= 2 classes"):
        attack(lambda x: model(x)[:, :1], model.x[:2], np.array([0, 0]))


@pytest.mark.parametrize("name", attacks.names())
def test_empty_sets_and_single_images(name, linear):
    model = linear(5)
    needed = {
        "auto_attack": {"steps": 3, "queries": 5},
        "diff_pgd": {"denoiser": lambda x, t: tf.zeros_like(x)},
    }
    attack = attacks.get(name, **needed.get(name, {}))
    empty = attack(model, model.x[:0], model.y[:0])
    assert empty.shape == (0, 4, 4, 3)
    assert attack(model, model.x[:1], model.y[:1]).shape == (1, 4, 4, 3)
    if name == "auto_attack":
        result = attack.run(model, model.x[:0], model.y[:0])
        assert np.isnan(result.robust_accuracy)
        assert result.broken_by == []


def test_inside_a_function_the_same_samples_break(linear):
    model = linear(5)
    epsilon = float(np.median(model.distances("linf")))
    attack = attacks.get("auto_attack", epsilon=epsilon, **{**SMALL, "steps": 30})
    inside = tf.function(lambda x, y: attack(model, x, y))(model.x, model.y)
    found = np.argmax(model(inside), axis=1) != model.y
    eager = attack(model, model.x, model.y)
    np.testing.assert_array_equal(found, np.argmax(model(eager), axis=1) != model.y)


def test_an_undefended_network_falls_to_zero(robust_network):
    """The same attack at a large radius: nothing survives, and no check complains."""
    model, x, y = robust_network
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attacks.get("auto_attack", epsilon=0.6, **{**SMALL, "steps": 20}).run(model, x, y)
    assert result.robust_accuracy == 0


def test_batches_stay_full_and_nothing_is_traced_twice(linear):
    """What a sweep computes: few batch sizes, one trace, and about what the samples need."""
    model, traces, sizes = linear(5), [], []

    def counted(images):
        traces.append(1)
        sizes_now = tf.py_function(lambda n: sizes.append(int(n)), [tf.shape(images)[0]], [])
        with tf.control_dependencies([sizes_now] if sizes_now is not None else []):
            return model(tf.identity(images))

    attack = attacks.get("apgd_ce", epsilon=float(np.median(model.distances("linf"))), steps=20)
    run = dict(x=model.x, y=model.y, seed=np.array([0, 0], np.int32), batch_size=16)
    done = list(sweep.sweep(attack, counted, rows=np.arange(48), **run))
    assert sorted(np.concatenate([f.rows for f in done])) == list(range(48))
    assert set(sizes) <= {8, 16}
    count = len(traces)
    list(sweep.sweep(attack, counted, rows=np.arange(0, 48, 5), **run))
    assert len(traces) == count
    assert [sweep.bucket(n, 16) for n in (1, 8, 9, 16)] == [8, 8, 16, 16]
    assert [sweep.bucket(n, 4) for n in (1, 4)] == [4, 4]
