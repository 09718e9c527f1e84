"""Exports of tiny networks, and the way TensorFlow Serving calls them."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import config_pb2

from der_tf.export import export


class Serving:
    """A version as TensorFlow Serving holds it: a session, called with whatever is sent.

    ``Session.run`` compares shapes in Python; a callable made from options goes straight to the
    C++ session, as the server does.
    """

    def __init__(self, path):
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = dict(meta_graph.signature_def)
        self._callables = {
            name: self.session._make_callable_from_options(
                config_pb2.CallableOptions(
                    feed=[tensor.name for _, tensor in sorted(signature.inputs.items())],
                    fetch=[tensor.name for _, tensor in sorted(signature.outputs.items())],
                )
            )
            for name, signature in self.signatures.items()
            if not name.startswith("__")
        }

    def __call__(self, signature, *values):
        """Answers by name; several inputs come in the order of their names."""
        outputs = self._callables[signature](*values)
        return dict(zip(sorted(self.signatures[signature].outputs), outputs, strict=True))


class RowsTogether(keras.layers.Layer):
    """Logits that tell how many rows the network was run on: (rows, identity of the version)."""

    def __init__(self, identity, **kwargs):
        super().__init__(**kwargs)
        self.identity = identity

    def call(self, images):
        ones = tf.ones_like(images[:, 0, 0, :1])
        rows = tf.cast(tf.shape(images)[0], tf.float32)
        return tf.concat([rows * ones, self.identity * ones], axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 2)


@pytest.fixture(scope="session")
def serve():
    return Serving


@pytest.fixture(scope="session")
def make_network():
    def make(channels=3, seed=0, classes=5):
        keras.utils.set_random_seed(seed)
        images = keras.Input((8, 6, channels))
        x = keras.layers.Conv2D(4, 3, activation="relu")(images)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Dropout(0.5)(x)
        logits = keras.layers.Dense(classes)(keras.layers.Flatten()(x))
        network = keras.Model(images, logits)
        # Moving statistics that differ from their start: a restore that drops them shows.
        rng = np.random.default_rng(seed)
        network.set_weights([rng.uniform(0.2, 1.0, w.shape) for w in network.get_weights()])
        return network

    return make


@pytest.fixture(scope="session")
def rows_network():
    def make(identity):
        images = keras.Input((4, 4, 1))
        return keras.Model(images, RowsTogether(identity)(images))

    return make


@pytest.fixture(scope="session")
def smooth():
    """A network whose energies turn smoothly: no rounding is amplified by steps along them."""
    keras.utils.set_random_seed(1)
    images = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(images)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


@pytest.fixture(scope="session")
def network(make_network):
    return make_network()


@pytest.fixture(scope="session")
def exported(network, tmp_path_factory):
    """The version of ``network``, with batches of at most 4 rows."""
    base = tmp_path_factory.mktemp("models") / "tiny"
    return export(network, base, class_names=["ä", "b", "c", "d", "e"], max_batch_size=4)


@pytest.fixture(scope="session")
def served(exported):
    return Serving(exported)


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).uniform(size=(11, 8, 6, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def encode():
    def encode(pixels, form="PNG", **options):
        buffer = io.BytesIO()
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        picture.save(buffer, form, **options)
        return buffer.getvalue()

    return encode
