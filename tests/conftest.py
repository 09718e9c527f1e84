"""Shared by all tests: two logical CPU devices, so that distribution is tested on this machine."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture
def two_replicas():
    """Makes a MirroredStrategy over the two devices.

    Reduced on one device: TensorFlow's collectives keep the shapes of a first strategy in a
    process, so that a second one with other weights fails.
    """
    return lambda: tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
