"""The signature `defend`: what the library's defence does, in any company."""

import json
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf.defenses import EnergyDescent
from der_tf.export import export

DEFENSE = EnergyDescent(step_size=0.3, radius=0.5, steps=3)
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def version(smooth, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "defended"
    return export(smooth, path, defense=DEFENSE, max_batch_size=4)


@pytest.fixture(scope="module")
def served(version, serve):
    return serve(version)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(11, *SHAPE)).astype(np.float32)


def test_it_answers_what_the_library_answers(served, smooth, images):
    moved = DEFENSE.transform(smooth, images)
    assert np.abs(moved - images).max() > 0.05
    logits = DEFENSE.wrap(smooth)(images)
    answer = served("defend", images)
    assert set(answer) == {"images", "logits", "probabilities", "classes", "marginal_energy"}
    np.testing.assert_allclose(answer["images"], moved, atol=1e-5)
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-5)
    alone = served("defend", images[3:4])
    np.testing.assert_allclose(alone["images"], answer["images"][3:4], atol=1e-5)
    # `predict` sees the moved images as `defend` did.
    predicted = served("predict", answer["images"])
    for name in ("logits", "probabilities", "marginal_energy"):
        np.testing.assert_allclose(answer[name], predicted[name], atol=1e-5)
    assert answer["classes"].tolist() == predicted["classes"].tolist()


def test_no_rows_in_no_rows_out(served):
    answer = served("defend", np.zeros((0, *SHAPE), np.float32))
    assert {name: value.shape for name, value in answer.items()} == {
        "images": (0, *SHAPE),
        "logits": (0, 3),
        "probabilities": (0, 3),
        "classes": (0,),
        "marginal_energy": (0,),
    }


@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        (np.full((2, *SHAPE), 1.5, np.float32), "values from 1.5 to 1.5"),
        (np.full((2, *SHAPE), np.nan, np.float32), "32 values that are NaN or infinite"),
        (np.zeros((1, 4, 5, 1), np.float32), "shape [1, 4, 5, 1]"),
        (np.zeros(SHAPE, np.float32), "shape [4, 4, 1]"),
    ],
)
def test_a_bad_request_is_one_sentence(served, wrong, received):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        served("defend", wrong)
    assert "images must be float32 [B, 4, 4, 1] with values in [0, 1]; received " in str(
        caught.value
    )
    assert received in str(caught.value)


def test_good_and_bad_requests_at_once(served, smooth, images):
    """Requests of many threads are batched together, each the same as alone."""
    expected = DEFENSE.transform(smooth, images).numpy()
    outcomes = {}
    start = threading.Barrier(13)

    def call(i):
        wished = images[i : i + 2] if i < 10 else images[:2] + [np.nan, 1, -1][i - 10]
        start.wait()
        for _ in range(5):
            try:
                moved = served("defend", wished)["images"]
                outcomes[i] = np.abs(moved - expected[i : i + 2]).max() < 1e-5
            except tf.errors.InvalidArgumentError:
                outcomes[i] = "refused"

    threads = [threading.Thread(target=call, args=(i,)) for i in range(13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert outcomes == {i: True if i < 10 else "refused" for i in range(13)}


def test_card_and_settings(version, smooth, serve, images, tmp_path):
    card = json.loads((version / "assets.extra" / "model_card.json").read_text("utf-8"))
    assert card["defense"] == {"step_size": 0.3, "radius": 0.5, "steps": 3}
    plain = serve(export(smooth, tmp_path / "a", batching=False))
    moved = EnergyDescent().transform(smooth, images)
    np.testing.assert_allclose(plain("defend", images)["images"], moved, atol=1e-5)


def test_a_network_without_gradient_is_exported_without_the_signature(serve, tmp_path):
    class Hues(keras.layers.Layer):
        def call(self, images):
            hues = tf.image.adjust_hue(images, 0.1)  # has no gradient
            return tf.reduce_mean(hues, axis=[1, 2])

    inputs = keras.Input((4, 4, 3))
    network = keras.Model(inputs, Hues()(inputs))
    with pytest.raises(ValueError, match="model must have a gradient for the signature defend"):
        export(network, tmp_path / "m")
    served = serve(export(network, tmp_path / "m", defense=None))
    assert "defend" not in served.signatures
    card = json.loads((tmp_path / "m/1/assets.extra/model_card.json").read_text("utf-8"))
    assert card["defense"] is None
