"""Trains 5 steps on one process, or as a worker of ``TF_CONFIG``; writes weights and losses."""

import os
import sys

import tensorflow as tf

strategy = (
    tf.distribute.MultiWorkerMirroredStrategy()  # before any other TensorFlow operation
    if "TF_CONFIG" in os.environ
    else tf.distribute.get_strategy()
)

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from der_tf import RobustClassifier, attacks  # noqa: E402
from der_tf.regularizers import DeltaEnergy  # noqa: E402

digits = load_digits()
images = (digits.images[:275, ..., None] / 16).astype(np.float32)
with strategy.scope():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model = RobustClassifier(
        network, attacks.get("fgsm", epsilon=0.1), regularizers=[DeltaEnergy(5.0)]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
dataset = tf.data.Dataset.from_tensor_slices((images, digits.target[:275].astype(np.int32)))
dataset = dataset.batch(64).with_options(options)
history = model.fit(dataset, shuffle=False, verbose=0).history
np.savez(sys.argv[1], *model.get_weights(), loss=history["loss"])
