"""The signature `sample`: the library's images, in any company, and bad requests failing alone."""

import json
import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from der_tf.export import export
from der_tf.generation import LangevinSampler, LocalClasswisePCA

OPTIONS = {"step_size": 0.02, "noise": 0.02, "candidates": 2}
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def starts(smooth):
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(60, *SHAPE)).astype(np.float32), np.arange(60) % 3
    fitted = LocalClasswisePCA(neighbors=4).fit(images, labels)
    return fitted.set_reference_energies(smooth, images, labels, quantile=0.1)


@pytest.fixture(scope="module")
def version(smooth, starts, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "sampling"
    return export(
        smooth, path, initializer=starts, sampling=OPTIONS, max_batch_size=4, max_num_steps=30
    )


@pytest.fixture(scope="module")
def served(version, serve):
    return serve(version)


def ask(served, labels, seeds, num_steps):
    return served(
        "sample",
        np.array(labels, np.int32),
        np.array(num_steps, np.int32),
        np.array(seeds, np.int64),
    )


def test_it_answers_what_the_library_answers(served, smooth, starts):
    rng = np.random.default_rng(2)
    labels, seeds = rng.integers(0, 3, 11), rng.integers(-(2**62), 2**62, 11)
    steps = rng.integers(0, 31, 11)
    expected = LangevinSampler(smooth, starts.bank(), **OPTIONS).run(labels, seeds, steps)
    assert 0 < np.count_nonzero(expected.steps_taken < steps) < 11
    answer = ask(served, labels, seeds, steps)
    assert set(answer) == {"images", "joint_energy", "steps_taken"}
    np.testing.assert_allclose(answer["images"], expected.images, atol=1e-5)
    np.testing.assert_allclose(answer["joint_energy"], expected.joint_energy, atol=1e-4)
    assert answer["steps_taken"].dtype == np.int32
    assert answer["steps_taken"].tolist() == expected.steps_taken.tolist()
    alone = ask(served, labels[3:4], seeds[3:4], steps[3:4])
    np.testing.assert_allclose(alone["images"], answer["images"][3:4], atol=1e-5)
    # The other signatures are there, and see the sampled images as the chain did.
    energies = served("energy", answer["images"])["joint_energy"]
    np.testing.assert_allclose(energies[np.arange(11), labels], answer["joint_energy"], atol=1e-4)


def test_no_rows_in_no_rows_out(served):
    answer = ask(served, [], [], [])
    assert {name: value.shape for name, value in answer.items()} == {
        "images": (0, *SHAPE),
        "joint_energy": (0,),
        "steps_taken": (0,),
    }


@pytest.mark.parametrize(
    ("labels", "seeds", "num_steps", "sentence"),
    [
        ([0, 3], [0, 0], [1, 1], "labels must be int32 [B] in 0..2; received 3"),
        ([-1], [0], [1], "labels must be int32 [B] in 0..2; received -1"),
        ([0], [0], [-1], "num_steps must be int32 [B] in 0..30; received -1"),
        ([0], [0], [31], "num_steps must be int32 [B] in 0..30; received 31"),
        ([[0]], [0], [1], "labels must be int32 [B] in 0..2; received shape [1, 1]"),
        ([0], 0, [1], "seeds must be int64 [B]; received shape []"),
        ([0, 1], [0], [1, 1], "the same number of rows; received [2, 1, 2]"),
        ([0] * 257, [0] * 257, [1] * 257, "labels may hold at most 256 rows a request"),
    ],
)
def test_a_bad_request_is_one_sentence(served, labels, seeds, num_steps, sentence):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ask(served, labels, seeds, num_steps)
    assert sentence in str(caught.value)


def test_good_and_bad_requests_at_once(served):
    """Samples of many threads are batched together, each the same as alone."""
    alone = [ask(served, [i % 3], [i], [20])["images"] for i in range(12)]
    outcomes = {}
    start = threading.Barrier(16)

    def call(i):
        start.wait()
        for _ in range(3):
            try:
                answer = ask(served, [i % 3 if i < 12 else 5], [i], [20])
                outcomes[i] = np.abs(answer["images"] - alone[i]).max() < 1e-5
            except tf.errors.InvalidArgumentError:
                outcomes[i] = "refused"

    threads = [threading.Thread(target=call, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert outcomes == {i: True if i < 12 else "refused" for i in range(16)}


def test_card_warm_up_and_size(version, served, starts):
    card = json.loads((version / "assets.extra" / "model_card.json").read_text("utf-8"))
    assert card["sampling"]["max_num_steps"] == 30
    assert card["sampling"]["initializer"]["mode"] == "local"
    assert card["sampling"]["initializer"]["megabytes"] == round(starts.bank().megabytes, 3)
    np.testing.assert_allclose(card["sampling"]["reference_energies"], starts.reference_energies)
    assert card["signatures"]["sample"]["inputs"] == {
        "labels": {"shape": [None], "dtype": "int32"},
        "seeds": {"shape": [None], "dtype": "int64"},
        "num_steps": {"shape": [None], "dtype": "int32"},
    }
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    requests = [log.predict_log.request for log in logs]
    requests = [r for r in requests if r.model_spec.signature_name == "sample"]
    sizes = []
    for request in requests:
        values = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        sizes.append(len(values["labels"]))
        ask(served, values["labels"], values["seeds"], values["num_steps"])
    assert sizes == [1, 2, 3, 4]


def test_without_batching_and_without_an_initializer(smooth, starts, serve, tmp_path):
    plain = serve(
        export(smooth, tmp_path / "a", initializer=starts, sampling=OPTIONS, batching=False)
    )
    expected = LangevinSampler(smooth, starts.bank(), **OPTIONS).sample([2, 1], [5, 6], 8)
    np.testing.assert_allclose(ask(plain, [2, 1], [5, 6], [8, 8])["images"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="sampling needs an initializer"):
        export(smooth, tmp_path / "b", sampling=OPTIONS)
    with pytest.raises(ValueError, match=r"keyword arguments of LangevinSampler.*'steps'"):
        export(smooth, tmp_path / "b", initializer=starts, sampling={"steps": 3})
    with pytest.raises(ValueError, match=r"initializer must be a LocalClasswisePCA or None.* 3$"):
        export(smooth, tmp_path / "b", initializer=3)
    with pytest.raises(ValueError, match=r"defense must be an EnergyDescent or None.* 'x'$"):
        export(smooth, tmp_path / "b", defense="x")
    with pytest.raises(ValueError, match="max_num_steps must be an integer"):
        export(smooth, tmp_path / "b", initializer=starts, max_num_steps=0)
    assert not (tmp_path / "b").exists()
