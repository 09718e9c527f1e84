"""Where chains start: draws near the images of a class, by local class-wise PCA.

Source: Mirza et al., *Understanding Adversarial Training with Energy-based Models* (arXiv
2505.22486), section 5: an anchor image, its nearest neighbours of the same class, and a draw from
the principal components of that neighbourhood. One PCA a class is the start of the predecessor
(arXiv 2407.06315); a Gaussian a class that of Santurkar et al. (NeurIPS 2019).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf

from der_tf.attacks import streams
from der_tf.attacks.base import clean_logits
from der_tf.files import read_arrays, replacing
from der_tf.generation import seeds as sample_seeds
from der_tf.generation.decomposition import (
    as_float,
    check_counts,
    checked_images,
    neighborhoods,
    principal,
    stacked,
)

MODES = ("local", "class", "gaussian", "noise")
BANK_MEGABYTES = 40.0


class LocalClasswisePCA:
    """Starts of chains, fitted once to images and their classes.

    A start is x0 = clip(mean + sigma sum_i s_i n_i PC_i, 0, 1), n_i ~ N(0, 1), with the mean, the
    standard deviations s_i and the principal components PC_i of, by ``mode``:

    * ``"local"``: an image of the class drawn at random (the anchor) and its nearest neighbours
      of that class in Euclidean distance;
    * ``"class"``: all images of the class;
    * ``"gaussian"``: likewise with every component kept, the class's mean and covariance;
    * ``"noise"``: none; x0 is uniform in [0, 1].

    The draw of a sample depends on its (label, seed) alone.

    >>> starts = LocalClasswisePCA(neighbors=10).fit(images, labels)
    >>> starts.sample(labels=[3, 3, 7], seeds=[0, 1, 0])  # [3, H, W, C]

    Args:
        neighbors: nearest neighbours of an anchor; only ``"local"`` reads it. Default 10.
        variance: share of the variance that the kept components explain, in (0, 1]; only
            ``"local"`` and ``"class"`` read it. Default 0.95.
        sigma: scale of the draw; 1 gives the spread of the images themselves. Default 1.25, the
            best on validation images of CIFAR-10 (docs/generation.md).
        mode: see above. Default ``"local"``.

    Attributes:
        num_classes: K, once fitted.
        image_shape: (H, W, C), once fitted.
        reference_energies: float32 ``[K]`` at which chains of a class may stop, or None; see
            :meth:`set_reference_energies`.

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(
        self,
        neighbors: int = 10,
        variance: float = 0.95,
        sigma: float = 1.25,
        mode: str = "local",
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}; received {mode!r}")
        if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 1:
            raise ValueError(f"neighbors is an integer >= 1; received {neighbors!r}")
        if not 0 < variance <= 1:
            raise ValueError(f"variance is a share in (0, 1]; received {variance!r}")
        if not (np.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma is a finite number >= 0; received {sigma!r}")
        self.neighbors, self.variance, self.sigma, self.mode = neighbors, variance, sigma, mode
        self.num_classes = 0
        self.image_shape: tuple[int, int, int] = (0, 0, 0)
        self.reference_energies: np.ndarray | None = None
        # Class y owns the local models offsets[y] to offsets[y + 1].
        self._offsets = np.zeros(1, np.int32)
        self._arrays: dict[str, np.ndarray] = {}
        self._variables: dict[str, tf.Variable] | None = None
        self._drawn: Any = None

    def fit(self, images: Any, labels: Any) -> Self:
        """Learn the starts of every class; returns itself.

        Args:
            images: ``[N, H, W, C]`` floats in [0, 1].
            labels: ``[N]`` integers, each of 0..K-1 at least once.

        Raises:
            ValueError: for other images or labels, a class without images, with a single one, or
                with no more than ``neighbors``.
        """
        images, labels = checked_images(images, labels)
        self.image_shape = images.shape[1:]
        self.num_classes = int(labels.max()) + 1
        self._variables = self._drawn = self.reference_energies = None
        counts = np.bincount(labels)
        if self.mode != "noise":
            check_counts(counts, self.mode, self.neighbors)
        order = np.argsort(labels, kind="stable")
        rows = images.reshape(len(images), -1)[order]
        parts = np.split(rows, np.cumsum(counts)[:-1])
        self._offsets = np.arange(self.num_classes + 1, dtype=np.int32)
        if self.mode == "noise":
            self._arrays = {}
        elif self.mode == "local":
            self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            self._arrays = neighborhoods(rows, parts, self.neighbors, self.variance)
        else:
            share = 1.0 if self.mode == "gaussian" else self.variance
            self._arrays = stacked([principal(part, share) for part in parts])
        return self

    def sample(self, labels: Any, seeds: Any) -> tf.Tensor:
        """Starts of the given classes.

        Args:
            labels: ``[B]`` integers in 0..K-1.
            seeds: ``[B]`` integers.

        Returns:
            float32 ``[B, H, W, C]`` in [0, 1]; a row depends on its own label and seed alone.

        Raises:
            ValueError: for a class that does not exist, or before :meth:`fit`.
        """
        self._require_fitted()
        labels, seeds = sample_seeds.checked(labels, seeds, self.num_classes)
        if self._drawn is None:
            self._drawn = tf.function(
                lambda labels, seeds: self.draw(labels, sample_seeds.keys(labels, seeds)),
                input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)],
                jit_compile=False,
            )
        starts = range(0, max(len(labels), 1), 256)  # bounds the neighbourhoods held at a time
        return tf.concat([self._drawn(labels[i : i + 256], seeds[i : i + 256]) for i in starts], 0)

    def draw(self, labels: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """:meth:`sample` as graph code, from labels int32 ``[B]`` and keys uint32 ``[B]``."""
        if self.mode == "noise":
            return streams.uniform(streams.fold_in(keys, 1), self.image_shape)
        first, after = (tf.gather(self._offsets[i:], labels) for i in (0, 1))
        place = streams.uniform(streams.fold_in(keys, 2), ())
        index = first + tf.cast(tf.floor(place * tf.cast(after - first, tf.float32)), tf.int32)
        index = tf.minimum(index, after - 1)  # the product may be rounded up
        normal = streams.normal(streams.fold_in(keys, 3), (self.num_components,))
        weights = self.sigma * normal
        if self.mode == "local":
            rows = self._mix(index, weights)
        else:
            # One at a time: the components of a class may be thousands of images.
            rows = tf.map_fn(
                lambda item: self._mix(item[0][None], item[1][None])[0],
                (index, weights),
                fn_output_signature=tf.TensorSpec([int(np.prod(self.image_shape))], tf.float32),
            )
        return tf.reshape(tf.clip_by_value(rows, 0.0, 1.0), [-1, *self.image_shape])

    def _mix(self, index: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Means plus weighted components of local models, float32 ``[B, D]``."""
        arrays = self.variables
        if "means" in arrays:
            components = tf.cast(tf.gather(arrays["components"], index), tf.float32)
            means = tf.cast(tf.gather(arrays["means"], index), tf.float32)
            return means + tf.linalg.matvec(components, weights, transpose_a=True)
        # The components of a neighbourhood are mixtures of its centred images.
        found = tf.gather(arrays["images"], tf.gather(arrays["neighbors"], index))
        levels = 255.0 if arrays["images"].dtype == tf.uint8 else 1.0
        near = tf.cast(found, tf.float32) / levels
        means = tf.reduce_mean(near, axis=1)
        mixed = tf.reduce_sum(tf.gather(arrays["mixtures"], index) * weights[:, None], axis=2)
        return means + tf.reduce_sum(mixed[..., None] * (near - means[:, None]), axis=1)

    @property
    def num_components(self) -> int:
        """Most components that a draw mixes; 0 for noise."""
        for name in ("mixtures", "components"):
            if name in self._arrays:
                return self._arrays[name].shape[-1 if name == "mixtures" else 1]
        return 0

    @property
    def megabytes(self) -> float:
        """Size of the arrays that draws are made from, in 10**6 bytes."""
        return sum(array.nbytes for array in self._arrays.values()) / 1e6

    @property
    def is_bank(self) -> bool:
        """Whether this is what :meth:`bank` gives."""
        return self.mode == "noise" or self._arrays.get("means", np.zeros(0)).dtype == np.float16

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The arrays as TensorFlow variables, which an export has to save."""
        if self._variables is None:
            # Kept on the host: not every GPU kernel reads uint8 and float16.
            with tf.init_scope(), tf.device("CPU:0"):
                self._variables = {
                    name: tf.Variable(array, trainable=False, name=name)
                    for name, array in self._arrays.items()
                }
        return self._variables

    def bank(self, megabytes: float = BANK_MEGABYTES, seed: int = 0) -> LocalClasswisePCA:
        """The same starts in less memory: float16, and no more of them than fit.

        Of mode ``"local"`` it keeps, with their whole neighbourhoods, equally many anchors of each
        class drawn without replacement; of the other modes the strongest components.

        Args:
            megabytes: limit on :attr:`megabytes`. Default 40.
            seed: of the choice of anchors.

        Raises:
            ValueError: when the limit leaves no room for one anchor or component a class.
        """
        self._require_fitted()
        small = LocalClasswisePCA(self.neighbors, self.variance, self.sigma, self.mode)
        small.num_classes, small.image_shape = self.num_classes, self.image_shape
        small.reference_energies = self.reference_energies
        small._offsets = self._offsets
        if self.mode == "noise":
            return small
        image = 2 * int(np.prod(self.image_shape))
        images_per_class = int(megabytes * 1e6) // (self.num_classes * image)
        if "means" in self._arrays and np.diff(self._offsets).max() == 1:
            kept = min(self.num_components, images_per_class - 1)
            too_small = kept < 1
            small._arrays = {
                "means": self._arrays["means"].astype(np.float16),
                "components": self._arrays["components"][:, : max(kept, 0)].astype(np.float16),
            }
        else:
            anchors = images_per_class // (1 + self.num_components)
            too_small = anchors < 1
            small._offsets, small._arrays = self._local_models(anchors, seed)
        if too_small:
            raise ValueError(
                f"a bank of {self.num_classes} classes takes at least "
                f"{self.num_classes * image * 2 / 1e6:.3g} MB in mode {self.mode!r} (more with "
                f"more components); received megabytes={megabytes:g}"
            )
        return small

    def _local_models(self, anchors: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Means and components of some anchors of each class, and the offsets of the classes."""
        rng = np.random.default_rng(seed)
        chosen = []
        for first, after in zip(self._offsets[:-1], self._offsets[1:], strict=True):
            count = min(anchors, after - first)
            chosen.append(np.sort(rng.choice(np.arange(first, after), count, replace=False)))
        offsets = np.cumsum([0, *map(len, chosen)]).astype(np.int32)
        means = np.zeros((offsets[-1], int(np.prod(self.image_shape))), np.float16)
        components = np.zeros((offsets[-1], self.num_components, means.shape[1]), np.float16)
        for row, index in enumerate(np.concatenate(chosen)):
            if "means" in self._arrays:
                means[row] = self._arrays["means"][index]
                components[row] = self._arrays["components"][index]
                continue
            near = as_float(self._arrays["images"][self._arrays["neighbors"][index]])
            means[row] = near.mean(axis=0)
            components[row] = self._arrays["mixtures"][index].T @ (near - near.mean(axis=0))
        return offsets, {"means": means, "components": components}

    def set_reference_energies(
        self, model: Any, images: Any, labels: Any, quantile: float = 0.1, batch_size: int = 128
    ) -> Self:
        """Store the joint energies E(x, y) at which chains through ``model`` may stop.

        Args:
            model: the classifier that chains will descend; of another model these say nothing.
            images: ``[N, H, W, C]`` real images in [0, 1].
            labels: ``[N]`` their classes, each of 0..K-1 at least once.
            quantile: of a class's energies, in [0, 1]: 0.5 is their median, 0 the lowest. Default
                0.1.
            batch_size: images at a time. Default 128.

        Raises:
            ValueError: for images or labels that do not fit, or energies that are not finite.
        """
        self._require_fitted()
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile is in [0, 1]; received {quantile!r}")
        images, labels = checked_images(images, labels)
        if images.shape[1:] != self.image_shape or len(np.unique(labels)) != self.num_classes:
            raise ValueError(
                f"reference energies take images {self.image_shape} of all {self.num_classes} "
                f"classes; received {images.shape[1:]} of {len(np.unique(labels))}"
            )
        logits = clean_logits(model, images, batch_size)
        energies = -logits[np.arange(len(labels)), labels]
        if not np.isfinite(energies).all():
            raise ValueError("reference energies are finite; the model answers NaN or infinity")
        self.reference_energies = np.array(
            [np.quantile(energies[labels == y], quantile) for y in range(self.num_classes)],
            np.float32,
        )
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one ``.npz`` file, whole or not at all."""
        self._require_fitted()
        arrays: dict[str, Any] = {
            "mode": np.array(self.mode),
            "numbers": np.array([self.neighbors, self.variance, self.sigma], np.float64),
            "image_shape": np.array(self.image_shape),
            "offsets": self._offsets,
            **{f"array_{name}": array for name, array in self._arrays.items()},
        }
        if self.reference_energies is not None:
            arrays["reference_energies"] = self.reference_energies
        # A file object: given a name, numpy would add an ending of its own.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: when the file is something else.
            OSError: when it cannot be read.
        """
        try:
            stored = read_arrays(Path(path))
            neighbors, variance, sigma = stored["numbers"].tolist()
            loaded = cls(int(neighbors), variance, sigma, str(stored["mode"]))
            loaded.image_shape = tuple(stored["image_shape"].tolist())
            loaded._offsets = stored["offsets"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no fitted LocalClasswisePCA: {error}") from error
        loaded.num_classes = len(loaded._offsets) - 1
        loaded.reference_energies = stored.get("reference_energies")
        prefix = "array_"
        loaded._arrays = {
            name.removeprefix(prefix): array
            for name, array in stored.items()
            if name.startswith(prefix)
        }
        return loaded

    def _require_fitted(self) -> None:
        if not self.num_classes:
            raise ValueError("LocalClasswisePCA is not fitted yet: call fit(images, labels) first")
