"""Rows of many requests run together, and no request notices the others."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from der_tf.export import export
from der_tf.export.signatures import Batching, Signatures


def at_once(calls):
    """Runs the calls in a thread each, started together; their answers or errors in order."""
    answers = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(index):
        start.wait()
        try:
            answers[index] = calls[index]()
        except tf.errors.OpError as error:
            answers[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return answers


def rows(count):
    return np.zeros((count, 4, 4, 1), np.float32)


def rows_together(served, signature, count):
    """Calls once; how many rows the network was run on, for each row."""
    answer = served(signature, rows(count))
    logits = answer["logits"] if signature == "predict" else -answer["joint_energy"]
    return logits[:, 0].astype(int).tolist()


def test_requests_run_together_across_signatures(rows_network, serve, tmp_path):
    served = serve(
        export(rows_network(1), tmp_path / "m", max_batch_size=8, batch_timeout_micros=2_000_000)
    )
    # Eight rows fill a batch: nobody waits for the two seconds, and all see eight.
    answers = at_once(
        [
            lambda s=signature: rows_together(served, s, 1)
            for signature in ["predict", "energy"]
            for _ in range(4)
        ]
    )
    assert answers == [[8]] * 8


def test_batches_have_the_allowed_sizes(rows_network, serve, tmp_path):
    network = rows_network(1)
    served = serve(export(network, tmp_path / "default", max_batch_size=20))
    seen = {count: rows_together(served, "predict", count)[0] for count in range(1, 21)}
    assert sorted(set(seen.values())) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert all(count <= size <= 1.5 * count for count, size in seen.items())

    sizes = [2, 5]
    served = serve(export(network, tmp_path / "own", max_batch_size=5, allowed_batch_sizes=sizes))
    assert rows_together(served, "predict", 1) == [2]
    assert rows_together(served, "predict", 3) == [5] * 3
    # A request larger than a batch is split, none of its batches being larger.
    assert rows_together(served, "predict", 12) == [5] * 10 + [2] * 2


def test_without_batching_a_request_runs_by_itself(rows_network, serve, tmp_path):
    version = export(rows_network(1), tmp_path / "m", batching=False, max_batch_size=2)
    served = serve(version)
    answers = at_once([lambda: rows_together(served, "predict", 3)] * 8)
    assert answers == [[3] * 3] * 8
    assert b"BatchFunction" not in (version / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("loader", ["session", "saved_model.load"])
def test_versions_do_not_get_each_others_rows(rows_network, serve, tmp_path, loader):
    """Two versions of one model in one process, full batches of each asked for at once."""
    loaded = []
    for identity in (1, 2):
        version = export(
            rows_network(identity),
            tmp_path / "m",
            max_batch_size=4,
            batch_timeout_micros=200_000,
        )
        if loader == "session":
            loaded.append(serve(version))
        else:
            predict = tf.saved_model.load(str(version)).signatures["predict"]
            loaded.append(lambda _, images, predict=predict: predict(images=tf.constant(images)))
    for _ in range(3):
        answers = at_once(
            [lambda v=version: v("predict", rows(1)) for version in loaded for _ in range(8)]
        )
        identities = [int(answer["logits"][0, 1]) for answer in answers]
        assert identities == [1] * 8 + [2] * 8


def test_queues_of_one_resource_manager_are_apart(rows_network):
    """Unlike loaded ones, functions traced in a process share it all but for the queue's name."""
    batching = Batching(max_batch_size=4, batch_timeout_micros=200_000)
    modules = [Signatures(rows_network(i), (4, 4, 1), 2, batching) for i in (1, 2)]
    answers = at_once(
        [lambda m=m: m.predict(tf.constant(rows(1))) for m in modules for _ in range(8)]
    )
    assert [int(answer["logits"][0, 1]) for answer in answers] == [1] * 8 + [2] * 8


def test_only_bad_requests_fail(served, network, encode):
    """Good and bad requests from 24 threads at once, again and again."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, 8, 6, 3), dtype=np.uint8)
    pixels = np.float32(images) / 255
    logits = keras.ops.convert_to_numpy(network(pixels, training=False))
    energies = -np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    nan = pixels[:1].copy()
    nan[0, 0, 0, 0] = np.nan
    bad = [
        ("predict", nan, "images"),
        ("predict", pixels[:2] * 2, "images"),
        ("energy", pixels[:1, :4], "images"),
        ("predict", pixels[0], "images"),
        ("predict_bytes", np.array([b"no image"], object), "image_bytes"),
        ("predict_bytes", np.array([encode(images[0])[:40]], object), "image_bytes"),
    ]

    def good(index, count):
        chosen = slice(index, index + count)
        kind = ("predict", "energy", "predict_bytes")[index % 3]
        files = np.array([encode(image) for image in images[chosen]], object)
        answer = served(kind, files if kind == "predict_bytes" else pixels[chosen])
        np.testing.assert_allclose(answer["marginal_energy"], energies[chosen], rtol=1e-5)
        if kind == "energy":
            np.testing.assert_allclose(-answer["joint_energy"], logits[chosen], rtol=1e-5)
        else:
            np.testing.assert_allclose(answer["logits"], logits[chosen], rtol=1e-5)
            assert answer["classes"].tolist() == logits[chosen].argmax(axis=1).tolist()
        return "good"

    outcomes = []

    def thread(index):
        for turn in range(25):
            if index % 4 == 0:
                signature, value, name = bad[(index // 4 + turn) % len(bad)]
                try:
                    outcomes.append(("bad", served(signature, value)))
                except tf.errors.InvalidArgumentError as error:
                    outcomes.append(("bad", name if f"[{name}" in str(error) else str(error)))
                    continue
            else:
                outcomes.append(("good", good(index, 1 + turn % 6)))

    answers = at_once([lambda i=index: thread(i) for index in range(24)])
    assert answers == [None] * 24
    assert len(outcomes) == 24 * 25
    assert {kind: {o for k, o in outcomes if k == kind} for kind in ("good", "bad")} == {
        "good": {"good"},
        "bad": {"images", "image_bytes"},
    }


def test_a_full_queue_refuses_at_once(serve, tmp_path):
    """Beyond capacity a request fails as UNAVAILABLE, which clients repeat; it does not hang."""
    images = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(keras.layers.UpSampling2D(64)(images))
    x = keras.layers.Dense(64)(keras.layers.Reshape((256, 256))(x))
    for _ in range(20):
        x = keras.layers.Dense(64)(x)
    slow = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    served = serve(
        export(slow, tmp_path / "m", max_batch_size=1, max_enqueued_batches=2, num_batch_threads=1)
    )
    answers = at_once([lambda: served("predict", rows(1))["classes"].shape] * 16)
    errors = [answer for answer in answers if isinstance(answer, tf.errors.OpError)]
    assert errors
    assert all(isinstance(error, tf.errors.UnavailableError) for error in errors)
    assert [answer for answer in answers if answer not in errors] == [(1,)] * (16 - len(errors))
    assert served("predict", rows(1))["classes"].shape == (1,)
