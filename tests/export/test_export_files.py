"""What lies beside the graph: labels, model card, warm-up; and arguments that do not fit."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

import der_tf
from der_tf.cli import main
from der_tf.export import export


def card_of(version):
    return json.loads((version / "assets.extra" / "model_card.json").read_text("utf-8"))


def warmup_of(version):
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_labels_are_an_asset(exported, make_network, tmp_path):
    text = (exported / "assets" / "labels.txt").read_text("utf-8")
    assert text == "ä\nb\nc\nd\ne\n"
    loaded = tf.saved_model.load(str(exported))
    assert Path(loaded.labels.asset_path.numpy().decode()).read_text("utf-8") == text
    unnamed = export(make_network(), tmp_path / "m")
    assert (unnamed / "assets" / "labels.txt").read_text("utf-8") == "0\n1\n2\n3\n4\n"


def test_a_labels_file_may_begin_with_a_byte_order_mark(tmp_path):
    model((8, 8, 1), *dense(2)).save(tmp_path / "tiny.keras")
    (tmp_path / "names.txt").write_text("café\ndog\n", "utf-8-sig")
    options = ["--labels", str(tmp_path / "names.txt"), "--export-dir", str(tmp_path)]
    assert main(["export", str(tmp_path / "tiny.keras"), *options]) == 0
    labels = tmp_path / "tiny" / "1" / "assets" / "labels.txt"
    assert labels.read_text(encoding="utf-8").split() == ["café", "dog"]


def test_the_folder_holds_nothing_else(exported):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets/labels.txt",
        "assets.extra/model_card.json",
        "assets.extra/tf_serving_warmup_requests",
    }


def test_the_model_card(network, served, make_network, tmp_path):
    version = export(
        network,
        tmp_path / "digits",
        class_names=list("abcde"),
        max_batch_size=6,
        card={
            "training": {"epsilon": np.float32(0.5), "run": Path("runs/one")},
            "evaluation": {"pgd": np.array([0.25, 0.5])},
        },
    )
    card = card_of(version)
    assert card["schema_version"] == 1
    assert card["name"] == "digits"
    assert card["versions"] == {
        "der_tf": der_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    assert card["input"]["shape"] == [8, 6, 3]
    assert card["classes"] == list("abcde")
    assert card["num_parameters"] == network.count_params()
    assert card["batching"]["allowed_batch_sizes"] == [1, 2, 3, 4, 6]
    assert card["training"] == {"epsilon": 0.5, "run": "runs/one"}
    assert card["evaluation"] == {"pgd": [0.25, 0.5]}
    assert card_of(export(make_network(), tmp_path / "m", batching=False))["batching"] is None
    # Its signatures are those of the graph.
    assert card["signatures"] == {
        name: {
            kind: {
                key: {
                    "shape": [None if d.size == -1 else d.size for d in tensor.tensor_shape.dim],
                    "dtype": tf.as_dtype(tensor.dtype).name,
                }
                for key, tensor in getattr(signature, kind).items()
            }
            for kind in ("inputs", "outputs")
        }
        for name, signature in served.signatures.items()
        if not name.startswith("__")
    }


def test_warmup_requests_replay(exported, served):
    """Each record is a request of the model that the graph answers; no signature is left out."""
    logs = warmup_of(exported)
    rows = set()
    for log in logs:
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "tiny"
        signature = request.model_spec.signature_name
        ((name, value),) = request.inputs.items()
        assert [name] == list(served.signatures[signature].inputs)
        array = tf.make_ndarray(value)
        answer = served(signature, array)
        assert all(len(output) == len(array) for output in answer.values())
        rows.add((signature, len(array)))
    assert {signature for signature, _ in rows} == {
        name for name in served.signatures if not name.startswith("__")
    }
    # Every batch size that the network will meet has been run once.
    for signature in ("serving_default", "defend"):
        assert {(signature, size) for size in (1, 2, 3, 4)} <= rows


def test_warmup_of_a_large_model_is_a_small_file(tmp_path):
    images = keras.Input((224, 224, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    version = export(keras.Model(images, keras.layers.Dense(2)(pooled)), tmp_path / "m")
    assert (version / "assets.extra" / "tf_serving_warmup_requests").stat().st_size < 50_000
    assert (
        max(
            log.predict_log.request.inputs["images"].tensor_shape.dim[0].size
            for log in warmup_of(version)
            if "images" in log.predict_log.request.inputs
        )
        == 64
    )


def model(shape, *layers, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def dense(units, **options):
    return [keras.layers.Flatten(), keras.layers.Dense(units, **options)]


IMAGES = (4, 4, 1)
BAD_MODELS = {
    "a function": (lambda: abs, "be a Keras model, received a builtin_function"),
    "unbuilt": (lambda: keras.Sequential(dense(2)), "received a model of input shape None"),
    "vectors": (lambda: model((4,), *dense(2)), r"received a model of input shape \(None, 4\)"),
    "any size": (
        lambda: model((None, None, 1), keras.layers.GlobalAveragePooling2D(), *dense(2)),
        r"received a model of input shape \(None, None, None, 1\)",
    ),
    "integers": (
        lambda: model(IMAGES, keras.layers.Rescaling(1.0), *dense(2), dtype="uint8"),
        "received a model of uint8 input",
    ),
    "feature maps": (
        lambda: model(IMAGES, keras.layers.Conv2D(2, 1)),
        r"received a model of output shape \(None, 4, 4, 2\)",
    ),
    "one class": (lambda: model(IMAGES, *dense(1)), "received a model of K = 1"),
    "probabilities": (
        lambda: model(IMAGES, *dense(3, activation="softmax")),
        "answer logits, received probabilities",
    ),
    "not finite": (
        lambda: model(IMAGES, *dense(3, bias_initializer=keras.initializers.Constant(np.nan))),
        "answer finite logits, received NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_models_that_cannot_be_served(case, tmp_path):
    make, sentence = BAD_MODELS[case]
    with pytest.raises(ValueError, match=f"^model must (.* )?{sentence}"):
        export(make(), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"class_names": list("abcd")}, "class_names must be 5 different names, received 4"),
        ({"class_names": list("abcda")}, "5 different names, received 5 of which 4 differ"),
        ({"class_names": ["a", "b\nc", "d", "e", "f"]}, r"one line of .*, received 'b\\nc'"),
        ({"class_names": ["a", " ", "d", "e", "f"]}, "one line of text each, received ' '"),
        ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1, received 0"),
        ({"num_batch_threads": 1.5}, "num_batch_threads must be .*, received 1.5"),
        ({"max_enqueued_batches": True}, "max_enqueued_batches must be .*, received True"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros must be .* at least 0, received -1"),
        ({"allowed_batch_sizes": [1, 2]}, r"up to max_batch_size 64, received \[1, 2\]"),
        ({"allowed_batch_sizes": [8, 4, 64]}, r"must increase up to .*, received \[8, 4, 64\]"),
        ({"allowed_batch_sizes": [0, 64]}, "allowed_batch_sizes must be .* at least 1, received 0"),
        ({"card": {"classes": []}}, r"card may add keys other than .*, received \['classes'\]"),
        ({"card": {"accuracy": float("nan")}}, "card must hold finite JSON values"),
        ({"card": {"model": object()}}, "card must hold finite JSON values: received a object"),
    ],
)
def test_arguments_that_do_not_fit(network, tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        export(network, tmp_path / "m", **arguments)
    assert not (tmp_path / "m").exists()
