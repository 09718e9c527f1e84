"""``--enable_batching``: what runs together, what is refused, and who fails."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from serve import config_files
from serve.batching import BatchingOptions, BatchScheduler
from serve.errors import ServingError, StatusCode
from tests.serve.grpc_calls import predict, predict_request
from tests.serve.processes import running_server, wait_for


class Recorder:
    """Stands for a model: doubles its rows, remembers the batches, fails on negative ones."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def __call__(self, feeds, arrays, fetches):
        self.gate.wait(10)
        with self._lock:
            self.batches.append([array.copy() for array in arrays])
        if any((array < 0).any() for array in arrays):
            raise tf.errors.InvalidArgumentError(None, None, "negative")
        return [arrays[0] * 2 for _ in fetches]


def submit(scheduler, model, requests):
    """Run requests at the same time; the answers or errors in their order."""

    def one(array):
        try:
            return scheduler.run(0, model, ["x"], [array], ["y"])[0]
        except (ServingError, tf.errors.OpError) as error:
            return error

    with ThreadPoolExecutor(max(len(requests), 1)) as pool:
        return list(pool.map(one, requests))


def rows(count, value=1.0, width=2):
    return np.full([count, width], value, np.float32)


def test_simultaneous_requests_run_as_one_and_get_their_own_rows():
    model = Recorder()
    scheduler = BatchScheduler(BatchingOptions(max_batch_size=16, timeout_seconds=0.5))
    requests = [rows(1 + i % 3, value=i) for i in range(8)]  # 15 rows
    answers = submit(scheduler, model, requests)
    assert len(model.batches) == 1
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer, request * 2)


def test_a_full_batch_does_not_wait():
    model = Recorder()
    scheduler = BatchScheduler(BatchingOptions(max_batch_size=4, timeout_seconds=30))
    answers = submit(scheduler, model, [rows(1, i) for i in range(8)])
    assert [len(batch[0]) for batch in model.batches] == [4, 4]
    assert [float(answer[0, 0]) for answer in answers] == [2.0 * i for i in range(8)]


def test_only_equal_shapes_and_dtypes_meet():
    model = Recorder()
    scheduler = BatchScheduler(BatchingOptions(max_batch_size=16, timeout_seconds=0.3))
    requests = [rows(1), rows(1, width=3), rows(1).astype(np.float64), rows(1), rows(1, width=3)]
    answers = submit(scheduler, model, requests)
    assert sorted(len(batch[0]) for batch in model.batches) == [1, 2, 2]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.dtype == request.dtype
        np.testing.assert_array_equal(answer, request * 2)


def test_only_the_guilty_request_fails():
    model = Recorder()
    scheduler = BatchScheduler(BatchingOptions(max_batch_size=16, timeout_seconds=0.3))
    requests = [rows(2, i) for i in range(5)]
    requests[3][1, 0] = -1
    answers = submit(scheduler, model, requests)
    assert len(model.batches[0][0]) == 10
    assert isinstance(answers[3], tf.errors.InvalidArgumentError)
    for i in (0, 1, 2, 4):
        np.testing.assert_array_equal(answers[i], requests[i] * 2)


def test_padding_to_allowed_sizes_repeats_a_real_row():
    model = Recorder()
    options = BatchingOptions(max_batch_size=8, timeout_seconds=0.2, allowed_batch_sizes=(4, 8))
    answers = submit(BatchScheduler(options), model, [rows(3, 5.0)])
    assert [len(batch[0]) for batch in model.batches] == [4]
    assert (model.batches[0][0] == 5.0).all()
    np.testing.assert_array_equal(answers[0], rows(3, 10.0))


def test_outputs_without_rows_are_answered_one_by_one():
    scheduler = BatchScheduler(BatchingOptions(max_batch_size=8, timeout_seconds=0.2))

    def total(feeds, arrays, fetches):
        return [arrays[0].sum()]

    assert submit(scheduler, total, [rows(1), rows(2)]) == [2.0, 4.0]


def test_refusals_of_the_batch_itself():
    scheduler = BatchScheduler(BatchingOptions(max_batch_size=4))
    refused = {
        "Task size 5 is larger than maximum input batch size 4": [rows(5)],
        "Batching Run() input tensors must have at least one dimension": [np.float32(1)],
        "Batching Run() input tensors must have equal 0th-dimension size": [rows(1), rows(2)],
    }
    for text, arrays in refused.items():
        with pytest.raises(ServingError) as caught:
            scheduler.run(0, Recorder(), ["a", "b"], [np.asarray(a) for a in arrays], ["y"])
        assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, text)


def test_a_full_queue_refuses_and_recovers():
    model = Recorder()
    model.gate.clear()
    options = BatchingOptions(max_batch_size=1, max_enqueued_batches=2, num_batch_threads=1)
    scheduler = BatchScheduler(options)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(submit, scheduler, model, [rows(1, i)]) for i in range(8)]
        wait_for(lambda: sum(future.done() for future in asked) >= 4)  # nothing runs: refused
        model.gate.set()
        answers = [future.result()[0] for future in asked]
    refused = [answer for answer in answers if isinstance(answer, ServingError)]
    assert {answer.code for answer in refused} == {StatusCode.UNAVAILABLE}
    assert 4 <= len(refused) <= 5  # one runs and two wait at the least
    np.testing.assert_array_equal(submit(scheduler, model, [rows(1)])[0], rows(1, 2.0))


def parameters(text):
    return BatchingOptions.from_proto(text_format.Parse(text, config_files.BatchingParameters()))


def test_the_parameters_file_is_read_as_tensorflow_serving_reads_it():
    options = parameters(
        """
        max_batch_size { value: 8 } batch_timeout_micros { value: 1500 }
        max_enqueued_batches { value: 3 } num_batch_threads { value: 2 }
        thread_pool_name { value: "pool" } allowed_batch_sizes: 4 allowed_batch_sizes: 8
        pad_variable_length_inputs: false
        """
    )
    assert options == BatchingOptions(8, 0.0015, 3, 2, (4, 8))
    assert parameters("").max_batch_size == 1000
    with pytest.raises(ServingError, match="must match max_batch_size; last entry was 4"):
        parameters("max_batch_size { value: 8 } allowed_batch_sizes: 4")
    with pytest.raises(ServingError, match="must be monotonically increasing"):
        parameters("max_batch_size { value: 8 } allowed_batch_sizes: 9 allowed_batch_sizes: 8")
    with pytest.raises(ServingError, match="num_batch_threads must be positive; was 0"):
        parameters("num_batch_threads { value: 0 }")


@pytest.fixture(scope="module")
def batching_server(tmp_path_factory, zoo):
    folder = tmp_path_factory.mktemp("batching")
    parameters = folder / "batching.config"
    parameters.write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 20000 } "
        "max_enqueued_batches { value: 100 } num_batch_threads { value: 2 }"
    )
    with running_server(
        folder,
        "--model_name=zoo",
        f"--model_base_path={zoo}",
        "--enable_batching=true",
        f"--batching_parameters_file={parameters}",
    ) as server:
        yield server


def test_answers_do_not_depend_on_the_batch(batching_server):
    images = np.random.default_rng(0).random([40, 1, 4], np.float32)

    def mean(image):
        reply = predict(batching_server, "zoo", "checked", images=image)
        return tf.make_ndarray(reply.outputs["mean"])[0]

    alone = [mean(image) for image in images]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(mean, images))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_bad_neighbours_fail_alone(batching_server):
    good = np.ones([1, 4], np.float32)
    nan = np.full([1, 4], np.nan, np.float32)
    wide = np.ones([1, 5], np.float32)
    images = [good, nan, good, wide, good, good, nan, good] * 4

    def ask(image):
        try:
            predict(batching_server, "zoo", "checked", images=image)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(ask, images))
    expected = [
        grpc.StatusCode.OK if image is good else grpc.StatusCode.INVALID_ARGUMENT
        for image in images
    ]
    assert codes == expected


def test_oversize_requests_are_refused_over_the_wire(batching_server):
    with pytest.raises(grpc.RpcError) as caught:
        predict(batching_server, "zoo", x=np.ones(5, np.float32))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "Task size 5 is larger than maximum input batch size 4"
    request = predict_request("zoo", x=np.zeros(0, np.float32))
    assert list(batching_server.prediction.Predict(request).outputs["y"].float_val) == []
