"""Curves and checks against closed forms on a linear model, and on models that hide gradients."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from der_tf.attacks import FGSM, PGD
from der_tf.evaluation import evaluate, figures
from der_tf.evaluation.diagnosis import RandomTargetPGD, diagnose

EPSILON = 0.05
rng = np.random.default_rng(0)
WEIGHT = rng.normal(size=(12,)).astype(np.float32)
IMAGES = rng.uniform(0.3, 0.7, size=(40, 2, 2, 3)).astype(np.float32)
LABELS = rng.integers(0, 2, size=40)
DATASET = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(40)
BALL = ("linf", EPSILON)


def linear(images):
    score = tf.linalg.matvec(tf.reshape(images, [-1, 12]) - 0.5, WEIGHT)
    return tf.stack([-score, score], axis=1) / 2


def robust_share(epsilon):
    """Closed form: the share on the right side after the strongest attack."""
    scores = (IMAGES.reshape(-1, 12) - 0.5) @ WEIGHT
    return np.mean(np.where(LABELS == 1, scores, -scores) > epsilon * np.abs(WEIGHT).sum())


def suite_of(model, attacks=None):
    attacks = attacks or {"fgsm": FGSM(epsilon=EPSILON), "pgd": PGD(epsilon=EPSILON)}
    return evaluate(model, DATASET, attacks=attacks, ball=BALL)


@pytest.fixture(scope="module")
def found():
    suite = suite_of(linear)
    return suite, diagnose(linear, DATASET, suite, ball=BALL)


def test_accuracies_over_epsilon_and_steps_are_the_closed_form(found):
    curves = found[1].curves
    assert curves["images"] == 40
    assert [round(point["epsilon"] / EPSILON, 6) for point in curves["epsilon"]] == [
        *[0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3]
    ]
    for point in curves["epsilon"]:
        assert point["accuracy"] == pytest.approx(robust_share(point["epsilon"]))
        low, high = point["interval"]
        assert low <= point["accuracy"] <= high
    accuracies = {point["steps"]: point["accuracy"] for point in curves["steps"]}
    assert list(accuracies) == [1, 2, 5, 10, 20, 50]
    assert accuracies[50] == pytest.approx(robust_share(EPSILON))
    assert accuracies[1] > accuracies[50]


def test_a_model_with_gradients_passes_the_checks(found):
    assert [check["passed"] for check in found[1].checks] == [True] * 4
    assert "0.00 % of 40 images" in found[1].checks[1]["measured"]


def test_of_two_classes_the_target_is_the_other_one(found):
    np.testing.assert_array_equal(found[1].targeted.success, found[0].attacks["pgd"].success)


def test_targets_are_drawn_among_all_other_classes():
    def by_pixel(images):
        return 50 * tf.reshape(images, [-1, 12])[:, :4]

    x = np.full((200, 2, 2, 3), 0.5, np.float32)
    y = np.repeat(np.arange(4), 50).astype(np.int32)
    attack = RandomTargetPGD(epsilon=0.2, steps=10, seed=0)
    reached = np.argmax(by_pixel(attack(by_pixel, x, y)), axis=1)
    counts = np.array([np.bincount(reached[y == label], minlength=4) for label in range(4)])
    assert (np.diag(counts) == 0).all()
    # 50 draws among 3: seven are five deviations below the mean.
    assert (counts + 50 * np.eye(4) > 6).all()


def test_hidden_gradients_fail_three_checks():
    def rounded(images):
        return tf.round(10 * linear(images)) / 10 + 0 * linear(images)

    suite = suite_of(rounded)
    black_box, unbounded, grows, inside = diagnose(rounded, DATASET, suite, ball=BALL).checks
    assert not black_box["passed"]
    assert not unbounded["passed"]
    assert not grows["passed"]
    assert inside["passed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Escaping(FGSM):
    """Ends a little beyond its ball."""

    def perturb(self, model, x, y, seed):
        return x + 1.001 * self.epsilon


def test_an_attack_beyond_its_ball_is_told_and_turns_no_image():
    suite = suite_of(linear, {"escaping": Escaping(epsilon=EPSILON)})
    assert 0 < suite.natural.accuracy < 1
    np.testing.assert_array_equal(suite.attacks["escaping"].success, ~suite.natural.correct)
    inside = diagnose(linear, DATASET, suite, ball=BALL).checks[3]
    assert inside["passed"] is False
    assert "escaping, at 1.001" in inside["measured"]


def test_at_epsilon_zero_the_curve_is_a_point_and_no_growth_is_asked_for():
    attacks = {"fgsm": FGSM(epsilon=0)}
    suite = evaluate(linear, DATASET, attacks=attacks, ball=("linf", 0.0))
    found = diagnose(linear, DATASET, suite, ball=("linf", 0.0))
    assert [check["passed"] for check in found.checks] == [True, True, None, True]
    assert {point["accuracy"] for point in found.curves["epsilon"]} == {robust_share(0)}


def test_the_pictures_are_drawn_whatever_the_spread(found, tmp_path):
    suite, diagnosis = found
    names = figures.draw(tmp_path / "figures", suite, diagnosis.targeted, diagnosis.curves, BALL)
    still = evaluate(linear, DATASET, attacks={"still": FGSM(epsilon=0)})
    targeted = still.attacks["still"]
    figures.draw(tmp_path / "still", still, targeted, diagnosis.curves, ("l2", 0.0))
    for folder in ("figures", "still"):
        for name in names:
            with Image.open(tmp_path / folder / name) as picture:
                assert min(picture.size) > 300
                assert (
                    len(np.unique(np.asarray(picture.convert("L")))) > 20
                )  # more than a blank page
