"""Clients in a hurry must not cost others their answers, also where a graph batches inside."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from serve.servable import Servable


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Doubles numbers, some milliseconds a batch, in batches of up to 4 inside the graph."""

    class Slow(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
        def double(self, x):
            @tf.nondifferentiable_batch_function(
                num_batch_threads=1,
                max_batch_size=4,
                batch_timeout_micros=0,
                allowed_batch_sizes=[4],
                max_enqueued_batches=256,
            )
            def batched(x):
                work = tf.while_loop(
                    lambda _: True,
                    lambda m: (tf.linalg.matmul(m, m) / 300,),
                    (tf.ones([300, 300]),),
                    maximum_iterations=20,
                )[0]
                return 2 * x + 0 * work[0, 0]

            return {"y": batched(x)}

    module = Slow()
    path = str(tmp_path_factory.mktemp("slow"))
    tf.saved_model.save(module, path, {"serving_default": module.double})
    servable = Servable("slow", 1, path)
    yield servable
    servable.close()


def test_deadlines_of_neighbours_do_not_cost_an_answer(slow):
    signature = slow.signatures["serving_default"]
    feed, fetch = signature.inputs["x"].name, signature.outputs["y"].name

    def call(number):
        x = np.full([1, 1], number, np.float32)
        (y,) = slow.run([feed], [x], [fetch], 0.002 if number % 3 == 0 else 60.0)
        return y.tolist() == [[2 * number]]

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(call, range(600)))
