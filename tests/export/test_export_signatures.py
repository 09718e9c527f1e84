"""The signatures answer what the Keras model answers, in any loader and any company."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import der_tf
from der_tf import attacks
from der_tf.evaluation import evaluate
from der_tf.export import export


def logits_of(network, images):
    return keras.ops.convert_to_numpy(network(images, training=False))


def check_prediction(answer, logits):
    exponentials = np.exp(logits.astype(np.float64))
    totals = exponentials.sum(axis=1)
    assert set(answer) == {"logits", "probabilities", "classes", "marginal_energy"}
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], exponentials / totals[:, None], atol=1e-5)
    np.testing.assert_allclose(answer["marginal_energy"], -np.log(totals), rtol=1e-5, atol=1e-5)
    assert answer["classes"].dtype == np.int64
    assert answer["classes"].tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("signature", ["serving_default", "predict"])
@pytest.mark.parametrize("rows", [1, 3, 4, 11])
def test_predict_equals_the_network(served, network, images, signature, rows):
    check_prediction(served(signature, images[:rows]), logits_of(network, images[:rows]))


def test_energies(served, network, images):
    answer = served("energy", images)
    logits = logits_of(network, images).astype(np.float64)
    np.testing.assert_allclose(answer["joint_energy"], -logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        answer["marginal_energy"], -np.log(np.exp(logits).sum(axis=1)), rtol=1e-5, atol=1e-5
    )


def test_no_rows_in_no_rows_out(served):
    answer = served("predict", np.zeros((0, 8, 6, 3), np.float32))
    assert {name: value.shape for name, value in answer.items()} == {
        "logits": (0, 5),
        "probabilities": (0, 5),
        "classes": (0,),
        "marginal_energy": (0,),
    }
    assert served("energy", np.zeros((0, 8, 6, 3), np.float32))["joint_energy"].shape == (0, 5)
    assert served("predict_bytes", np.zeros((0,), object))["logits"].shape == (0, 5)


def test_every_tensor_has_its_name_shape_and_type(served):
    def described(tensors):
        return {
            name: ([d.size for d in tensor.tensor_shape.dim], tf.as_dtype(tensor.dtype).name)
            for name, tensor in tensors.items()
        }

    prediction = {
        "logits": ([-1, 5], "float32"),
        "probabilities": ([-1, 5], "float32"),
        "classes": ([-1], "int64"),
        "marginal_energy": ([-1], "float32"),
    }
    pixels = {"images": ([-1, 8, 6, 3], "float32")}
    energies = {"marginal_energy": ([-1], "float32"), "joint_energy": ([-1, 5], "float32")}
    contract = {
        "serving_default": (pixels, prediction),
        "predict": (pixels, prediction),
        "predict_bytes": ({"image_bytes": ([-1], "string")}, prediction),
        "energy": (pixels, energies),
        "defend": (pixels, prediction | pixels),
    }
    for name, (inputs, outputs) in contract.items():
        assert described(served.signatures[name].inputs) == inputs, name
        assert described(served.signatures[name].outputs) == outputs, name


def test_a_fresh_process_needs_neither_der_tf_nor_keras(exported, network, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    script = textwrap.dedent("""
        import sys

        for name in ("keras", "tf_keras", "der_tf"):
            sys.modules[name] = None  # any import of it fails

        import numpy as np
        import tensorflow as tf

        version, folder = sys.argv[1:]
        images = np.load(f"{folder}/images.npy")
        loaded = tf.saved_model.load(version)
        np.savez(
            f"{folder}/loaded.npz",
            **loaded.signatures["serving_default"](images=tf.constant(images)),
        )
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], version)
            signature = meta_graph.signature_def["serving_default"]
            fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
            feed = {signature.inputs["images"].name: images}
            np.savez(f"{folder}/session.npz", **session.run(fetches, feed))
        loaded_modules = [n for n in sys.modules if n.split(".")[0] in ("keras", "der_tf")]
        assert loaded_modules == ["keras", "der_tf"], loaded_modules
    """)
    # The timeout is also the check that batch threads do not hold up the end of the process.
    subprocess.run(
        [sys.executable, "-c", script, str(exported), str(tmp_path)],
        check=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    for loader in ("loaded", "session"):
        with np.load(tmp_path / f"{loader}.npz") as answer:
            check_prediction(dict(answer), logits_of(network, images))


def test_a_robust_classifier_is_exported_as_its_network(network, images, serve, tmp_path):
    version = export(der_tf.RobustClassifier(network, attack="fgsm"), tmp_path / "robust")
    check_prediction(serve(version)("predict", images), logits_of(network, images))


def test_half_precision_networks_answer_float32(serve, tmp_path):
    images = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(images)
    network = keras.Model(images, keras.layers.Dense(3, dtype="mixed_float16")(x))
    assert network.output.dtype == "float16"
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 4, 1)).astype(np.float32)
    served = serve(export(network, tmp_path / "half"))
    check_prediction(served("predict", pixels), logits_of(network, pixels).astype(np.float32))


def test_a_network_of_a_distribution_strategy(make_network, serve, images, tmp_path, two_replicas):
    with two_replicas().scope():
        network = make_network(seed=3)
    served = serve(export(network, tmp_path / "mirrored"))
    check_prediction(served("predict", images), logits_of(network, images))


def test_channels_that_no_image_file_has(make_network, serve, tmp_path):
    network = make_network(channels=4)
    served = serve(export(network, tmp_path / "four"))
    assert "predict_bytes" not in served.signatures
    images = np.random.default_rng(0).uniform(size=(2, 8, 6, 4)).astype(np.float32)
    check_prediction(served("predict", images), logits_of(network, images))


def test_gradient_attacks_take_the_logits_and_refuse_the_signature(exported, network, images):
    loaded = tf.saved_model.load(str(exported))
    labels = np.zeros(len(images), int)

    def served(pixels):
        return loaded.signatures["predict"](images=pixels)["logits"]

    attack = attacks.get("fgsm", epsilon=0.1)
    with pytest.raises(ValueError, match=r"one has none: attack .* `logits` .*BatchFunction"):
        attack(served, images, labels)
    with pytest.raises(ValueError, match=r"attack 'fgsm': .* `logits` .*BatchFunction"):
        evaluate(served, images, labels, {"fgsm": attack})
    np.testing.assert_allclose(
        attack(loaded.logits, images, labels), attack(network, images, labels), atol=1e-6
    )
