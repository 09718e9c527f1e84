"""Small SavedModels of many kinds, built with plain TensorFlow and Keras."""

from pathlib import Path

import keras
import tensorflow as tf


def _signature(*specs):
    return tf.function(input_signature=specs)


def _spec(shape, dtype, name):
    return tf.TensorSpec(shape, dtype, name=name)


class Zoo(tf.Module):
    """One signature for each thing a server can get right or wrong."""

    def __init__(self):
        super().__init__()
        self.slope = tf.Variable(0.5)
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["cat", "dog"], [1, 2]), default_value=-1
        )

    @_signature(_spec([None], tf.float32, "x"))
    def half_plus_two(self, x):
        return {"y": x * self.slope + 2.0}

    @_signature(_spec([None, 2], tf.float32, "a"), _spec([None], tf.int32, "b"))
    def two(self, a, b):
        return {"total": tf.reduce_sum(a, axis=1) + tf.cast(b, tf.float32), "double": b * 2}

    @_signature(_spec([None, 4], tf.float32, "images"))
    def checked(self, images):
        images = tf.ensure_shape(images, [None, 4])
        images = tf.debugging.check_numerics(images, "images hold NaN or infinity")
        return {"mean": tf.reduce_mean(images, axis=1)}

    @_signature(_spec([None], tf.string, "text"))
    def strings(self, text):
        return {
            "text": text,
            "text_bytes": text,
            "length": tf.strings.length(text),
            "index": self.table.lookup(text),
        }

    @_signature(
        _spec([None], tf.float16, "half"),
        _spec([None], tf.float64, "double"),
        _spec([None], tf.int64, "long"),
        _spec([None], tf.uint8, "byte"),
        _spec([None], tf.bool, "flag"),
    )
    def types(self, half, double, long, byte, flag):
        return {"half": half, "double": double, "long": long, "byte": byte, "flag": flag}

    @_signature(_spec(None, tf.float32, "x"))
    def echo(self, x):
        return {"x": tf.identity(x)}

    @_signature(_spec([None], tf.float32, "x"))
    def total(self, x):
        return {"total": tf.reduce_sum(x)}

    @_signature(_spec([None], tf.int32, "steps"))
    def slow(self, steps):
        """About a millisecond a step."""
        start = tf.ones([200, 200]) / 200.0
        _, matrix = tf.while_loop(
            lambda step, _: step < tf.reduce_max(steps),
            lambda step, matrix: (step + 1, tf.linalg.matmul(matrix, matrix)),
            (0, start),
        )
        return {"done": tf.cast(steps, tf.float32) * matrix[0, 0] * 200.0}


def export_zoo(path: Path) -> None:
    zoo = Zoo()
    tf.saved_model.save(
        zoo,
        str(path),
        signatures={
            "serving_default": zoo.half_plus_two,
            "two": zoo.two,
            "checked": zoo.checked,
            "strings": zoo.strings,
            "types": zoo.types,
            "echo": zoo.echo,
            "total": zoo.total,
            "slow": zoo.slow,
        },
    )


class Line(tf.Module):
    def __init__(self, slope: float):
        super().__init__()
        self.slope = tf.Variable(float(slope))

    @_signature(_spec([None], tf.float32, "x"))
    def __call__(self, x):
        return {"y": x * self.slope}


def export_line(path: Path, slope: float) -> None:
    line = Line(slope)
    tf.saved_model.save(line, str(path), signatures=line.__call__)


def export_keras(path: Path) -> keras.Model:
    model = keras.Sequential(
        [keras.layers.Input([8, 8, 1]), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.export(str(path), verbose=False)
    return model


def export_tf1(path: Path) -> None:
    """y = x / 2 + 2 with reference variables, and tf.Example signatures beside it."""
    v1 = tf.compat.v1
    predict, classify, regress = (
        f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress")
    )
    with tf.Graph().as_default(), v1.Session() as session:
        slope = v1.get_variable("slope", initializer=0.5, use_resource=False)
        examples = v1.placeholder(tf.string, name="tf_example")
        features = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        x = tf.identity(features["x"], name="x")
        y = tf.add(x * slope, 2.0, name="y")
        y2 = tf.add(x * slope, 3.0, name="y2")
        labels = tf.strings.as_string(tf.round(y), name="labels")
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.build_tensor_info
        build = v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": build({"x": info(x)}, {"y": info(y)}, predict),
                "classify_x_to_y": build(
                    {"inputs": info(examples)},
                    {"scores": info(y), "classes": info(labels)},
                    classify,
                ),
                "scores_only": build({"inputs": info(examples)}, {"scores": info(y)}, classify),
                "regress_x_to_y": build({"inputs": info(examples)}, {"outputs": info(y)}, regress),
                "regress_x_to_y2": build(
                    {"inputs": info(examples)}, {"outputs": info(y2)}, regress
                ),
                "no_method": build({"x": info(x)}, {"y": info(y)}, ""),
            },
        )
        builder.save()
