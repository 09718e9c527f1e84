"""An evaluation that was interrupted goes on with the same results, and with no other's."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from der_tf import attacks, energy
from der_tf.attacks import FGSM, PGD
from der_tf.evaluation import evaluate

rng = np.random.default_rng(0)
WEIGHT = rng.normal(size=(12, 3)).astype(np.float32)
IMAGES = rng.uniform(0.3, 0.7, size=(50, 2, 2, 3)).astype(np.float32)
LABELS = rng.integers(0, 3, size=50)
ATTACKS = {"fgsm": FGSM(epsilon=0.1), "pgd": PGD(epsilon=0.1, steps=3)}


def linear(images):
    return tf.reshape(images, [-1, 12]) @ WEIGHT


class Interruption(Exception):
    pass


class Stop:
    """A progress that is told of so many attacked batches, and no more."""

    def __init__(self, after):
        self.after = after
        self.told = []

    def __call__(self, name, done, of, robust):
        self.told.append((name, done))
        if len(self.told) == self.after:
            raise Interruption


def measure(path, progress=None, **changes):
    arguments = {"model": linear, "images": IMAGES, "labels": LABELS, "attacks": ATTACKS}
    arguments |= {"batch_size": 16, "seed": 5} | changes
    return evaluate(arguments.pop("model"), **arguments, state_path=path, progress=progress)


def interrupted(path, after=5, **changes):
    with pytest.raises(Interruption):
        measure(path, Stop(after), **changes)


def assert_equal(ours, theirs):
    assert ours.samples().keys() == theirs.samples().keys()
    for name, values in theirs.samples().items():
        np.testing.assert_array_equal(ours.samples()[name], values, err_msg=name)


@pytest.mark.parametrize("after", [1, 4, 7])
def test_what_is_done_is_not_done_again_and_nothing_differs(after, tmp_path):
    interrupted(tmp_path / "state", after)
    rest = Stop(0)
    assert_equal(measure(tmp_path / "state", rest), measure(None))
    every = [(name, done) for done in (16, 32, 48, 50) for name in ATTACKS]
    assert rest.told == every[after:]


def test_a_part_that_a_killed_process_left_half_written_is_measured_again(tmp_path):
    state = tmp_path / "state"
    interrupted(state)
    last = max(state.glob("attack-*.npz"), key=lambda path: path.stat().st_mtime_ns)
    half = last.read_bytes()[:100]
    last.unlink()
    (state / f".partial-{last.name}").write_bytes(half)
    assert_equal(measure(state), measure(None))
    assert not list(state.glob(".partial-*"))


@pytest.mark.parametrize("part", ["attack-0-00001", "natural-00001"])
@pytest.mark.parametrize("damage", [lambda all_: all_[:100], lambda all_: b"", lambda all_: b"?"])
def test_a_damaged_part_is_measured_again(damage, part, tmp_path):
    state = tmp_path / "state"
    interrupted(state)
    path = state / f"{part}.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert_equal(measure(state), measure(None))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_record_is_named(text, tmp_path):
    interrupted(tmp_path / "state")
    (tmp_path / "state" / "about.json").write_text(text)
    with pytest.raises(ValueError, match=r"about\.json cannot be read: .* or remove its folder"):
        measure(tmp_path / "state")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "unfinished evaluation of seed 5; received seed 6"),
        ({"attacks": ATTACKS | {"pgd": PGD(epsilon=0.2, steps=3)}}, "'epsilon': 0.2"),
        ({"attacks": {"fgsm": FGSM(epsilon=0.1)}}, "unfinished evaluation of attacks"),
        ({"ball": ("linf", 0.1)}, "of ball None; received ball"),
        ({"batch_size": 8}, "other images in batch 0"),
        ({"labels": (LABELS + 1) % 3}, "other images in batch 0"),
        ({"model": lambda x: 2 * linear(x)}, "a model with other logits on these images"),
    ],
)
def test_parts_of_another_evaluation_are_refused_and_left_alone(changes, message, tmp_path):
    interrupted(tmp_path / "state")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message) as refusal:
        measure(tmp_path / "state", **changes)
    assert "remove that folder" in str(refusal.value)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_auto_attack_runs_over_the_whole_set_and_goes_on_from_its_own_state(tmp_path):
    attack = attacks.get("auto_attack", epsilon=0.05, steps=8, queries=20, batch_size=16)
    chosen = {"auto_attack": attack, "fgsm": FGSM(epsilon=0.05)}
    whole = measure(None, attacks=chosen)
    assert list(whole.attacks) == list(chosen)
    found = whole.attacks["auto_attack"]
    assert [entry["attack"] for entry in found.log] == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert found.log[-1]["robust_accuracy"] == pytest.approx(found.accuracy)
    assert 0 < found.accuracy < whole.natural.accuracy
    moved = dataclasses.replace(attack, seed=5)(linear, IMAGES, LABELS)
    np.testing.assert_allclose(
        found.joint_energy, energy.joint_energy(linear(moved), LABELS), atol=1e-5
    )

    first = Stop(None)
    with pytest.raises(Interruption):
        measure(
            tmp_path / "state",
            lambda name, *rest: first(name, *rest) or _stop_at("auto_attack, apgd_t", name),
            attacks=chosen,
        )
    second = Stop(None)
    goes_on = measure(tmp_path / "state", second, attacks=chosen)
    told = {name for name, _ in second.told}
    assert "auto_attack, square" in told
    assert not told & {"auto_attack, apgd_ce", "fgsm"}
    np.testing.assert_array_equal(goes_on.attacks["auto_attack"].success, found.success)
    assert_equal(measure(tmp_path / "state", attacks=chosen), goes_on)


def _stop_at(wanted, name):
    if name == wanted:
        raise Interruption
