"""The graph that is served: each signature checks its request, then joins the common batches.

The checks come first and the batching op is inside the graph, behind them, so that a bad request
fails alone. (TensorFlow Serving's own session batching joins requests before the graph sees them,
and one bad request fails its whole batch.)
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from der_tf import energy
from der_tf.defenses import EnergyDescent
from der_tf.export import checks
from der_tf.generation.langevin import LangevinSampler

# Rows that one request to `sample` may ask for: a row costs as much as hundreds of predictions.
MAX_SAMPLES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How rows of concurrent requests are joined (``tf.nondifferentiable_batch_function``).

    One thing that requests of a batch do share is the cancellation of the youngest: the op runs
    a batch in the step of the request that came last. If its deadline has passed before the
    batch starts, the others fail with it. Among clients of like deadlines those have expired
    already; a client with a far shorter deadline than the others' can cost them an answer.

    Args:
        max_batch_size: most rows the network runs on at once; larger requests are split.
        batch_timeout_micros: how long an incomplete batch waits for more rows once a batch
            thread is free. With 0 requests join only while all batch threads are busy, so that
            a lone request never waits.
        allowed_batch_sizes: sizes that batches are padded to, increasing, the last one equal to
            max_batch_size. Empty (default): 1, 2, 3, 4, 6, 8, 12, 16, 24 ... max_batch_size, so
            that at most a third of a batch is padding.
        num_batch_threads: batches that run at the same time. One (default) makes the largest
            batches and uses several cores through TensorFlow's own parallelism; more pay on hosts
            with more cores than a batch can keep busy.
        max_enqueued_batches: full batches that may wait; a request that finds no room is refused
            as UNAVAILABLE. One request may hold max_batch_size * max_enqueued_batches rows.

    Raises:
        ValueError: for a number out of its range.
    """

    max_batch_size: int = 64
    batch_timeout_micros: int = 0
    allowed_batch_sizes: Sequence[int] = ()
    num_batch_threads: int = 1
    max_enqueued_batches: int = 256

    def __post_init__(self):
        for name in ("max_batch_size", "num_batch_threads", "max_enqueued_batches"):
            _require_integer(name, getattr(self, name), at_least=1)
        _require_integer("batch_timeout_micros", self.batch_timeout_micros, at_least=0)
        sizes = tuple(self.allowed_batch_sizes) or _bucket_sizes(self.max_batch_size)
        for size in sizes:
            _require_integer("allowed_batch_sizes", size, at_least=1)
        if list(sizes) != sorted(set(sizes)) or sizes[-1] != self.max_batch_size:
            raise ValueError(
                f"allowed_batch_sizes must increase up to max_batch_size {self.max_batch_size}, "
                f"received {list(sizes)}"
            )
        object.__setattr__(self, "allowed_batch_sizes", sizes)

    @property
    def max_rows(self) -> int:
        """Most rows a single request may hold."""
        return self.max_batch_size * self.max_enqueued_batches

    def wrap(self, function: Callable, queue: str) -> Callable:
        """``function`` of tensors ``[B, ...]``, run on the joined rows of all its callers.

        TensorFlow finds a queue by its name within a process. The name is made unique here, so
        that another version or model loaded beside this one never gets its rows.
        """
        scope = f"{queue}_{uuid.uuid4().hex}"
        batched = tf.nondifferentiable_batch_function(
            num_batch_threads=self.num_batch_threads,
            # The op's limit on a request; batches are limited by the last allowed size.
            max_batch_size=self.max_rows,
            batch_timeout_micros=self.batch_timeout_micros,
            allowed_batch_sizes=list(self.allowed_batch_sizes),
            max_enqueued_batches=self.max_enqueued_batches,
            enable_large_batch_splitting=True,
        )(function)

        def joined(*arguments):
            with tf.name_scope(scope):
                return batched(*arguments)

        return joined


def _bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    steps = {base << i for base in (1, 3) for i in range(max_batch_size.bit_length())}
    return (*sorted(size for size in steps if size < max_batch_size), max_batch_size)


def _require_integer(name: str, value: Any, at_least: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, received {value!r}")


class Signatures(tf.Module):
    """The signatures of a classifier, ready for ``tf.saved_model.save``.

    Args:
        network: Keras model, images ``[B, H, W, C]`` -> logits ``[B, K]``.
        image_shape: (H, W, C).
        num_classes: K.
        batching: None leaves the batching op out.
        defense: what ``defend`` does to images; None leaves that signature out.
        sampler: gives ``sample``; None leaves that signature out.
        max_num_steps: most Langevin steps that a request to ``sample`` may ask for.
    """

    def __init__(
        self,
        network: Any,
        image_shape: tuple[int, int, int],
        num_classes: int,
        batching: Batching | None,
        defense: EnergyDescent | None = None,
        sampler: LangevinSampler | None = None,
        max_num_steps: int = 200,
    ):
        super().__init__()
        # Only the variables are saved, none of Keras's own structure.
        self.network_variables = [variable.value for variable in network.variables]
        self._image_shape = image_shape
        self._num_classes = num_classes
        self._max_rows = batching.max_rows if batching else None

        def logits(images):
            values = network(tf.ensure_shape(images, [None, *image_shape]), training=False)
            return tf.ensure_shape(tf.cast(values, tf.float32), [None, num_classes])

        # For attacks on the SavedModel: without the batching op, which has no gradient.
        self.logits = tf.function(
            logits, input_signature=[tf.TensorSpec([None, *image_shape], tf.float32, "images")]
        )
        run = batching.wrap(logits, "logits") if batching else logits

        # A tf.function, so that all signatures hold the same batching op and share its queue.
        @tf.function(input_signature=[tf.TensorSpec([None, *image_shape], tf.float32)])
        def joined_logits(images):
            # The batching op has no answer for no rows.
            values = tf.cond(
                tf.shape(images)[0] > 0,
                lambda: run(images),
                lambda: tf.zeros([0, num_classes]),
            )
            return tf.ensure_shape(values, [None, num_classes])

        self._logits = joined_logits
        images = tf.TensorSpec([None, *image_shape], tf.float32, name="images")
        image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
        self.predict = tf.function(self._predict, input_signature=[images])
        self.energy = tf.function(self._energy, input_signature=[images])
        self.predict_bytes = tf.function(self._predict_bytes, input_signature=[image_bytes])
        self.defend = None
        if defense:
            self._prepare_defending(defense, batching)
        self.sample = None
        if sampler:
            self._prepare_sampling(sampler, batching, max_num_steps)

    def _prepare_defending(self, defense, batching) -> None:
        def moved_and_logits(images):
            moved = defense.transform(self.logits, images)
            return moved, self.logits(moved)

        # A queue of its own: slower images do not hold up predictions' batches.
        run = batching.wrap(moved_and_logits, "defend") if batching else moved_and_logits

        def defend(images):
            images = checks.check_images(images, self._image_shape, self._max_rows)
            moved, logits = tf.cond(
                tf.shape(images)[0] > 0,
                lambda: tuple(run(images)),
                lambda: (images, tf.zeros([0, self._num_classes])),
            )
            moved = tf.ensure_shape(moved, [None, *self._image_shape])
            logits = tf.ensure_shape(logits, [None, self._num_classes])
            return {**_prediction(logits), "images": moved}

        spec = tf.TensorSpec([None, *self._image_shape], tf.float32, name="images")
        self.defend = tf.function(defend, input_signature=[spec])

    def _prepare_sampling(self, sampler, batching, max_num_steps) -> None:
        self.sampler_variables = list(sampler.initializer.variables.values())
        self._max_num_steps = max_num_steps
        # A queue of its own: images that are being sampled do not hold up predictions' batches.
        run = batching.wrap(sampler.chain, "sample") if batching else sampler.chain

        def chains(labels, seeds, num_steps):
            images, energies, taken = tf.cond(
                tf.shape(labels)[0] > 0,
                lambda: tuple(run(labels, seeds, num_steps)),
                lambda: (
                    tf.zeros([0, *self._image_shape]),
                    tf.zeros([0]),
                    tf.zeros([0], tf.int32),
                ),
            )
            return {
                "images": tf.ensure_shape(images, [None, *self._image_shape]),
                "joint_energy": tf.ensure_shape(energies, [None]),
                "steps_taken": tf.ensure_shape(taken, [None]),
            }

        def sample(labels, seeds, num_steps):
            return chains(*self._checked_wishes(labels, seeds, num_steps))

        self.sample = tf.function(
            sample,
            input_signature=[
                tf.TensorSpec([None], tf.int32, name="labels"),
                tf.TensorSpec([None], tf.int64, name="seeds"),
                tf.TensorSpec([None], tf.int32, name="num_steps"),
            ],
        )

    def by_name(self) -> dict[str, Any]:
        """Signature name -> traced function.

        ``predict_bytes`` needs 1 or 3 channels, ``defend`` a defence, ``sample`` a sampler.
        """
        predict = self.predict.get_concrete_function()
        signatures = {"serving_default": predict, "predict": predict}
        if self._image_shape[2] in (1, 3):
            signatures["predict_bytes"] = self.predict_bytes.get_concrete_function()
        signatures["energy"] = self.energy.get_concrete_function()
        if self.defend is not None:
            signatures["defend"] = self.defend.get_concrete_function()
        if self.sample is not None:
            signatures["sample"] = self.sample.get_concrete_function()
        return signatures

    def _predict(self, images):
        return _prediction(self._checked_logits(images))

    def _predict_bytes(self, image_bytes):
        images = checks.decode_images(image_bytes, self._image_shape, self._max_rows)
        return _prediction(self._logits(images))

    def _energy(self, images):
        logits = self._checked_logits(images)
        return {
            "marginal_energy": energy.marginal_energy(logits),
            "joint_energy": energy.joint_energy(logits),
        }

    def _checked_wishes(self, labels, seeds, num_steps):
        labels = checks.check_integers(labels, "labels", 0, self._num_classes - 1, MAX_SAMPLES)
        num_steps = checks.check_integers(
            num_steps, "num_steps", 0, self._max_num_steps, MAX_SAMPLES
        )
        seeds = checks.check_batch(seeds, "seeds", "int64 [B]", (), MAX_SAMPLES)
        rows = [tf.shape(values)[0] for values in (labels, seeds, num_steps)]
        check = checks.require(
            (rows[0] == rows[1]) & (rows[0] == rows[2]),
            "labels, seeds and num_steps must have the same number of rows; received ",
            lambda: tf.stack(rows),
        )
        with tf.control_dependencies([check]):
            return tf.identity(labels), tf.identity(seeds), tf.identity(num_steps)

    def _checked_logits(self, images):
        return self._logits(checks.check_images(images, self._image_shape, self._max_rows))


def _prediction(logits: tf.Tensor) -> dict[str, tf.Tensor]:
    return {
        "logits": logits,
        "probabilities": tf.nn.softmax(logits),
        "classes": tf.argmax(logits, axis=-1, output_type=tf.int64),
        "marginal_energy": energy.marginal_energy(logits),
    }
