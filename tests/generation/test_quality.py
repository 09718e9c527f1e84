"""Scores against direct computations and closed forms; extractors of every kind."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from der_tf.generation import (
    BiasedScoreWarning,
    Features,
    all_scores,
    extract,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_extractor,
    nearest_distances,
    precision_recall,
)


def features(rows, name="own", logits=None):
    return Features(name, np.asarray(rows, np.float32), logits)


def gaussians(count, mean=0.0, scale=1.0, size=6, seed=0):
    return mean + scale * np.random.default_rng(seed).normal(size=(count, size))


def pictures(count=10, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, 6, 6, channels)).astype(np.float32)


def test_frechet_distance_equals_a_direct_computation():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(80, 12)) @ rng.normal(size=(12, 12)) + 1
    other = rng.normal(size=(95, 12)) @ rng.normal(size=(12, 12))
    one, other = one.astype(np.float32), other.astype(np.float32)
    first, second = np.cov(one.T.astype(float)), np.cov(other.T.astype(float))
    expected = ((one.mean(0, dtype=float) - other.mean(0, dtype=float)) ** 2).sum()
    expected += np.trace(first + second - 2 * sqrtm(first @ second).real)
    score = frechet_distance(features(one), features(other))
    assert float(score) == pytest.approx(expected, rel=1e-3)
    assert (score.extractor, score.num_samples, score.num_reference) == ("own", 80, 95)
    assert frechet_distance(features(one), features(one)).value == pytest.approx(0, abs=1e-3)


def test_frechet_distance_of_gaussians_in_closed_form():
    """Exactly: rows whose sample mean and covariance are those of the Gaussians."""
    base = gaussians(200, size=3)
    base = (base - base.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(base.T))).T
    scales, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.0, -4.0])
    score = frechet_distance(features(base), features(base * scales + shift))
    assert float(score) == pytest.approx(25 + ((scales - 1) ** 2).sum(), rel=1e-4)


def test_inception_score_of_sure_and_balanced_classes_is_their_number():
    sure = 60.0 * np.eye(7, dtype=np.float32)[np.arange(70) % 7]
    assert float(inception_score(features(sure, logits=sure))) == pytest.approx(7, rel=1e-4)
    same = np.ones((10, 7), np.float32)
    assert float(inception_score(features(same, logits=same))) == pytest.approx(1, rel=1e-5)
    logits = gaussians(40, size=5)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    score = inception_score(features(logits, logits=logits))
    assert score.value == pytest.approx(expected, rel=1e-5)
    assert score.num_samples == 40


def test_kernel_distance_equals_a_direct_computation():
    one, other = gaussians(30), gaussians(40, mean=0.5, seed=1)

    def kernel(a, b):
        return (a @ b.T / 6 + 1) ** 3

    def without_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    expected = without_diagonal(kernel(one, one)) + without_diagonal(kernel(other, other))
    expected -= 2 * kernel(one, other).mean()
    score = kernel_distance(features(one), features(other))
    assert float(score) == pytest.approx(expected, rel=1e-4)
    assert score.standard_error is None
    assert kernel_distance(features(one), features(other), block_size=10).standard_error > 0


def test_precision_and_recall():
    one, other = gaussians(60, scale=0.3), gaussians(70, seed=1)
    precision, recall = precision_recall(features(one), features(other))
    radius = np.sort(cdist(other, other), axis=1)[:, 3]
    assert precision.value == pytest.approx((cdist(one, other) <= radius).any(1).mean())
    radius = np.sort(cdist(one, one), axis=1)[:, 3]
    assert recall.value == pytest.approx((cdist(other, one) <= radius).any(1).mean())
    assert precision.value > 0.9 > 0.3 > recall.value  # near the middle, and not varied
    same = precision_recall(features(other), features(other))
    assert [score.value for score in same] == [1.0, 1.0]
    far = precision_recall(features(one + 50), features(other))
    assert [score.value for score in far] == [0.0, 0.0]


def test_too_few_images_are_warned_of_with_a_number():
    one, other = gaussians(8, size=20), gaussians(40, size=20, seed=1)
    with pytest.warns(BiasedScoreWarning, match=r"8 images on 20 features.*halves.*8 images each"):
        score = frechet_distance(features(one), features(other))
    assert score.value > 1


def test_all_scores_are_those_of_each_with_warnings_as_sentences():
    one = features(gaussians(8, size=20), logits=gaussians(8, size=5))
    other = features(gaussians(40, size=20, seed=1))
    scores, notes = all_scores(one, other)
    assert [score.name for score in scores] == ["IS", "FID", "KID", "precision", "recall"]
    assert scores[0].value == inception_score(one).value
    assert scores[3].value == precision_recall(one, other)[0].value
    assert len(notes) == 1
    assert "8 images on 20 features" in notes[0]
    assert all_scores(other, other)[0][0].name == "FID"  # without logits


def test_the_nearest_training_image():
    training = pictures(50)
    distances = nearest_distances(pictures(5, seed=1), training)
    expected = cdist(pictures(5, seed=1).reshape(5, -1), training.reshape(50, -1)).min(1)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    assert nearest_distances(training[7:9], training).max() < 1e-3
    with pytest.raises(ValueError, match=r"one shape.*\(5, 6, 6, 1\)"):
        nearest_distances(pictures(5, channels=1), training)


def test_two_extractors_are_never_compared():
    one, other = features(gaussians(20), "a"), features(gaussians(20), "b")
    for compare in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(ValueError, match="two extractors cannot be compared; received a and b"):
            compare(one, other)
    with pytest.raises(ValueError, match="received a and mean"):
        frechet_distance(one, pictures(), load_extractor(lambda x: x, name="mean"))
    near, far = frechet_distance(one, one), frechet_distance(one, features(gaussians(20) + 1, "a"))
    assert near < far
    with pytest.raises(ValueError, match="cannot be compared"):
        assert near < frechet_distance(other, other)


def test_images_are_scored_in_batches_of_any_source():
    seen = []

    def moments(images):
        seen.append(len(images))
        return {"features": tf.reshape(images, [len(images), -1])[:, :4], "logits": images[:, 0, 0]}

    images = pictures(10)
    whole = extract(images, moments, batch_size=4)
    assert seen == [4, 4, 2]
    assert whole.extractor == "moments"
    np.testing.assert_array_equal(whole.features, images.reshape(10, -1)[:, :4])
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(10))).batch(3)
    np.testing.assert_array_equal(extract(batches, moments).features, whole.features)
    generated = (images[i : i + 5] for i in (0, 5))
    np.testing.assert_array_equal(extract(generated, moments).logits, whole.logits)
    assert inception_score(images, moments).value == inception_score(whole).value


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    images = keras.Input((6, 6, 3))
    hidden = keras.layers.Dense(5, activation="relu")(keras.layers.Flatten()(images))
    return keras.Model(images, keras.layers.Dense(4)(hidden), name="tiny")


def test_a_keras_classifier_by_its_penultimate_features(classifier, tmp_path):
    images = pictures()
    found = extract(images, classifier)
    assert found.extractor == "tiny"
    kernel, bias = classifier.layers[-1].get_weights()
    np.testing.assert_allclose(found.features @ kernel + bias, found.logits, atol=1e-5)
    np.testing.assert_allclose(found.logits, classifier(images, training=False), atol=1e-5)
    classifier.save(tmp_path / "saved.keras")
    again = extract(images, tmp_path / "saved.keras")
    assert again.extractor == "saved"
    np.testing.assert_allclose(again.features, found.features, atol=1e-6)


def test_two_networks_of_one_name_are_two_extractors(classifier, tmp_path):
    """A run's best.keras is called after the run, and a name that is given proves nothing."""
    images = pictures()
    other = keras.models.clone_model(classifier)  # with weights of its own
    for model, run in ((classifier, "one"), (other, "other")):
        (tmp_path / run).mkdir()
        model.save(tmp_path / run / "best.keras")
    files = [tmp_path / run / "best.keras" for run in ("one", "other")]
    assert [load_extractor(file).name for file in files] == ["one-best", "other-best"]

    first, second = (extract(images, load_extractor(file, name="own")) for file in files)
    with pytest.raises(ValueError, match="two of the name own, whose digests are"):
        frechet_distance(first, second)
    with pytest.raises(ValueError, match="two of the name own"):
        frechet_distance(first, images, load_extractor(files[1], name="own"))
    scores = [kernel_distance(features, features) for features in (first, second)]
    with pytest.raises(ValueError, match="two of the name own"):
        assert scores[0] < scores[1]
    # The same network, however it is given.
    again = extract(images, load_extractor(classifier, name="own"))
    assert frechet_distance(first, again).value == pytest.approx(0, abs=1e-3)


def test_versions_of_a_saved_model_are_two_extractors(tmp_path):
    class Scaled(tf.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = tf.Variable(scale)

        @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 3], tf.float32, "images")])
        def run(self, images):
            return {"features": self.scale * tf.reshape(images, [-1, 108])[:, :5]}

    found = []
    for version, scale in (("1", 1.0), ("2", 2.0)):
        module = Scaled(scale)
        tf.saved_model.save(module, str(tmp_path / "net" / version), signatures=module.run)
        found.append(load_extractor(tmp_path / "net" / version))
    assert [extractor.name for extractor in found] == ["net-1", "net-2"]
    assert found[0].digest != found[1].digest


def test_saved_models_with_and_without_features(classifier, tmp_path):
    def save(path, outputs):
        module = tf.Module()
        module.kernel = tf.Variable(classifier.layers[-1].kernel.numpy())

        @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 3], tf.float32, "images")])
        def run(images):
            features = tf.reshape(images, [-1, 108])[:, :5]
            return {
                k: v for k, v in zip(outputs, (features, features @ module.kernel), strict=True)
            }

        tf.saved_model.save(module, str(path), signatures=run)
        return path

    images = pictures()
    found = extract(images, save(tmp_path / "good", ("features", "logits")))
    assert found.extractor == "good"
    np.testing.assert_array_equal(found.features, images.reshape(10, -1)[:, :5])
    with pytest.raises(ValueError, match=r"no output `features`.*received logits, scores"):
        load_extractor(save(tmp_path / "bad", ("scores", "logits")))


def test_the_frozen_inception_graph(tmp_path):
    """A graph of the real one's tensors: its input is 299 x 299 in [-1, 1]."""
    with tf.Graph().as_default() as graph:
        inputs = tf.compat.v1.placeholder(tf.float32, [None, 299, 299, 3], name="Mul")
        pooled = tf.reduce_mean(inputs, [1, 2], keepdims=True, name="pool_3")
        tf.identity(tf.reshape(pooled, [-1, 3]) * 2.0, name="logits")
    path = tmp_path / "classify_image_graph_def.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    images = np.ones((2, 299, 299, 3), np.float32) * [[[[0.0, 0.5, 1.0]]]]
    found = extract(images, path)
    np.testing.assert_allclose(found.features, [[-1, 0, 1]] * 2, atol=1e-4)
    np.testing.assert_allclose(found.logits, [[-2, 0, 2]] * 2, atol=1e-4)
    assert extract(pictures(2), path).features.shape == (2, 3)
    (tmp_path / "other.pb").write_bytes(b"\xff no graph")
    with pytest.raises(ValueError, match="no frozen graph"):
        load_extractor(tmp_path / "other.pb")


def test_bad_input_is_one_sentence(classifier, tmp_path):
    with pytest.raises(ValueError, match=r"tiny takes images of 3 channel\(s\); .*images of 1"):
        inception_score(pictures(channels=1), classifier)
    with pytest.raises(ValueError, match=r"in \[0, 1\]; received values from"):
        inception_score(pictures() * 255, classifier)
    with pytest.raises(ValueError, match="has features only"):
        inception_score(features(gaussians(3)))
    with pytest.raises(ValueError, match="received None"):
        inception_score(pictures())
    with pytest.raises(ValueError, match="there is no such file"):
        load_extractor(tmp_path / "nothing")
    with pytest.raises(ValueError, match="new is a Sequential without fixed inputs"):
        load_extractor(keras.Sequential([keras.layers.Dense(2)], name="new"))
    nested = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Rescaling(2.0), classifier])
    with pytest.raises(ValueError, match="ends in a model within the model"):
        load_extractor(nested)
    with pytest.raises(ValueError, match="received a int"):
        load_extractor(3)
    with pytest.raises(ValueError, match="at least one image"):
        extract(pictures(0), classifier)
    with pytest.raises(ValueError, match="less than the number of images; received 3 and 3"):
        precision_recall(features(gaussians(3)), features(gaussians(9)))


def test_tf_gan_leaves_no_trace_of_its_import():
    inception_score(features([[0.0]], logits=np.zeros((1, 2), np.float32)))
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow_gan"]
