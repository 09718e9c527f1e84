"""Learning rates at the steps where recipes say what they are."""

import keras
import numpy as np
import pytest

from der_tf.training import schedules


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def test_cyclic_is_a_triangle_over_the_whole_training():
    schedule = schedules.get("cyclic", 0.2, epochs=30, steps_per_epoch=10)
    np.testing.assert_allclose(
        rates(schedule, [0, 75, 150, 225, 300]), [0, 0.1, 0.2, 0.1, 0], atol=1e-7
    )
    np.testing.assert_allclose(np.diff(rates(schedule, range(150))), 0.2 / 150, rtol=1e-3)


@pytest.mark.parametrize(
    ("milestones", "epochs", "drops"),
    [((0.5, 0.75), 200, (100, 150)), ((0.75, 0.9), 100, (75, 90)), ((0.55,), 100, (55,))],
)
def test_piecewise_drops_at_the_first_step_of_an_epoch(milestones, epochs, drops):
    steps = 7
    schedule = schedules.get("piecewise", 0.1, epochs, steps, milestones)
    for count, drop in enumerate(drops):
        before, after = rates(schedule, [drop * steps - 1, drop * steps])
        np.testing.assert_allclose([before, after], [0.1 / 10**count, 0.1 / 10 ** (count + 1)])


def test_a_single_epoch_is_trained_at_the_full_rate():
    schedule = schedules.get("piecewise", 0.1, epochs=1, steps_per_epoch=5)
    np.testing.assert_allclose(rates(schedule, range(5)), 0.1)


def test_one_cycle_rises_then_falls_to_almost_nothing():
    schedule = schedules.get("one_cycle", 0.1, epochs=10, steps_per_epoch=10)
    values = rates(schedule, range(101))
    assert np.argmax(values) == 30
    np.testing.assert_allclose(values[[0, 30, 100]], [0.004, 0.1, 4e-7], rtol=1e-5, atol=1e-8)
    assert (np.diff(values[30:]) < 0).all()


def test_constant_stays():
    assert schedules.get("constant", 0.3, epochs=10, steps_per_epoch=10) == 0.3


def test_is_restored_from_its_config():
    schedule = schedules.get("cyclic", 0.2, epochs=3, steps_per_epoch=4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    np.testing.assert_array_equal(rates(again, range(13)), rates(schedule, range(13)))


@pytest.mark.parametrize("milestones", [(0.75, 0.5), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_refuses_milestones_out_of_order_or_range(milestones):
    with pytest.raises(ValueError, match=r"increasing shares of the epochs in \(0, 1\)"):
        schedules.get("piecewise", 0.1, 10, 10, milestones)


def test_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="cyclic, piecewise, one_cycle, constant; received 'step'"):
        schedules.get("step", 0.1, 10, 10)


def test_refuses_points_out_of_order():
    with pytest.raises(ValueError, match="increase"):
        schedules.PiecewiseLinear([0, 5, 5], [0, 1, 0])
