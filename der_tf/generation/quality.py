"""The quality of samples: Inception Score, FID, KID (TF-GAN's functions), precision and recall.

Sources: Salimans et al. (NeurIPS 2016), Heusel et al. (NeurIPS 2017), Binkowski et al. (ICLR
2018), Kynkäänniemi et al. (NeurIPS 2019). The feature extractor is an argument: with another one
than Inception the scores are of that extractor, and say so.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics import pairwise_distances_argmin_min, pairwise_distances_chunked

from der_tf.attacks.checks import check_pixels
from der_tf.generation.extractors import Extractor, load_extractor
from der_tf.generation.tfgan import classifier_metrics


class BiasedScoreWarning(UserWarning):
    """A distance is estimated from too few images to be compared with published ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What an extractor says of a set of images.

    Attributes:
        extractor: its name.
        features: float32 ``[N, D]``.
        logits: float32 ``[N, C]``, or None.
        digest: the extractor's, None where it is not known.
    """

    extractor: str
    features: np.ndarray
    logits: np.ndarray | None
    digest: str | None = None

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.features)


@dataclasses.dataclass(frozen=True)
class Score:
    """A number with what it takes to read it; ``float(score)`` is the number.

    Attributes:
        name: such as ``"FID"``.
        value: the number.
        extractor: name of the feature extractor.
        num_samples: images that were scored.
        num_reference: images they were compared with; None for the Inception Score.
        standard_error: of the value, None where it is not estimated.
        digest: the extractor's, None where it is not known.
    """

    name: str
    value: float
    extractor: str
    num_samples: int
    num_reference: int | None = None
    standard_error: float | None = None
    digest: str | None = None

    def __float__(self) -> float:
        return self.value

    def __lt__(self, other: Score) -> bool:
        _require_same((self.extractor, self.digest), (other.extractor, other.digest))
        if self.name != other.name:
            raise ValueError(f"scores of one name are compared; received {self.name}, {other.name}")
        return self.value < other.value


def extract(images: Any, extractor: Any, *, batch_size: int = 64) -> Features:
    """Run an extractor over images, a batch in memory at a time.

    Args:
        images: ``[N, H, W, C]`` in [0, 1], or any iterable (such as a ``tf.data.Dataset``) of
            batches of images, or of pairs (images, labels).
        extractor: as :func:`der_tf.generation.load_extractor` takes it.
        batch_size: images at a time of an array; an iterable's own batches are kept. Default 64.

    Raises:
        ValueError: for no images, pixels outside [0, 1], or what the extractor does not take.
    """
    extractor = load_extractor(extractor)
    parts = [extractor(batch) for batch in _batches(images, batch_size)]
    if not parts:
        raise ValueError("scores are of at least one image; received none")
    logits = [part[1] for part in parts]
    return Features(
        extractor.name,
        np.concatenate([part[0] for part in parts]),
        None if any(part is None for part in logits) else np.concatenate(logits),
        extractor.digest,
    )


def inception_score(images: Any, extractor: Any = None, *, batch_size: int = 64) -> Score:
    """exp(mean KL(p(y|x) || p(y))): 1 for samples all alike, C for sure and balanced classes.

    Args:
        images: as :func:`extract` takes them, or its :class:`Features`.
        extractor: likewise; not needed with :class:`Features`.
        batch_size: likewise.

    Raises:
        ValueError: when the extractor has no logits, or as :func:`extract`.
        ImportError: TF-GAN is not installed.
    """
    found = _features(images, extractor, batch_size)
    if found.logits is None:
        raise ValueError(
            f"the Inception Score needs logits; the extractor {found.extractor} has features only"
        )
    value = classifier_metrics().classifier_score_from_logits(tf.constant(found.logits, tf.float64))
    return Score("IS", float(value), found.extractor, len(found), digest=found.digest)


def frechet_distance(
    samples: Any, reference: Any, extractor: Any = None, *, batch_size: int = 64
) -> Score:
    """FID: squared Fréchet distance of Gaussians fitted to the features, 0 for equal ones.

    Args:
        samples: images as :func:`extract` takes them, or its :class:`Features`.
        reference: real images, likewise.
        extractor: likewise; not needed where both are :class:`Features`.
        batch_size: likewise.

    Raises:
        ValueError: for features of two extractors, fewer than 2 images, or as :func:`extract`.
        ImportError: TF-GAN is not installed.

    Warns:
        BiasedScoreWarning: with fewer images than features, when the distance is too large; it
            says by how much, from two halves of the reference.
    """
    first, second = _pair(samples, reference, extractor, batch_size)
    value = _frechet(first.features, second.features)
    dimensions, count = first.features.shape[1], min(len(first), len(second))
    if count <= dimensions and len(second) >= 4:
        half = min(count, len(second) // 2)
        apart = _between_halves(second, half)
        warnings.warn(
            f"FID of {count} images on {dimensions} features is biased upwards: two halves of the "
            f"reference, {half} images each, are {apart:.3g} apart; compare it "
            f"only with scores of as many images, or take more than {dimensions}",
            BiasedScoreWarning,
            stacklevel=2,
        )
    return Score("FID", value, first.extractor, len(first), len(second), digest=first.digest)


def kernel_distance(
    samples: Any,
    reference: Any,
    extractor: Any = None,
    *,
    block_size: int = 1024,
    seed: int = 0,
    batch_size: int = 64,
) -> Score:
    """KID: squared maximum mean discrepancy under (x.y / D + 1)**3, unbiased for few images too.

    Args:
        samples: images as :func:`extract` takes them, or its :class:`Features`.
        reference: real images, likewise.
        extractor: likewise; not needed where both are :class:`Features`.
        block_size: images a block; the value is a mean over blocks. Default 1024.
        seed: of the order in which images come into blocks. Default 0.
        batch_size: as :func:`extract`.

    Raises:
        ValueError: as :func:`frechet_distance`.
        ImportError: TF-GAN is not installed.
    """
    first, second = _pair(samples, reference, extractor, batch_size)
    # Blocks must not be sorted, as images often are by class.
    rng = np.random.default_rng(seed)
    shuffled = [tf.constant(rng.permutation(part.features), tf.float64) for part in (first, second)]
    value, error = classifier_metrics().kernel_classifier_distance_and_std_from_activations(
        *shuffled, max_block_size=block_size
    )
    error = float(error) if np.isfinite(error) else None
    return Score("KID", float(value), first.extractor, len(first), len(second), error, first.digest)


def precision_recall(
    samples: Any,
    reference: Any,
    extractor: Any = None,
    *,
    neighbors: int = 3,
    batch_size: int = 64,
) -> tuple[Score, Score]:
    """Improved precision and recall: quality and variability of samples apart.

    Precision is the share of samples that lie in the manifold of the reference, the union of
    balls around its features that reach their ``neighbors``-th neighbour; recall the share of the
    reference in that of the samples. Both depend on the numbers of images: compare at equal ones.

    Args:
        samples: images as :func:`extract` takes them, or its :class:`Features`.
        reference: real images, likewise.
        extractor: likewise; not needed where both are :class:`Features`.
        neighbors: default 3, as in the paper.
        batch_size: as :func:`extract`.

    Raises:
        ValueError: for no more images than neighbors, or as :func:`frechet_distance`.
    """
    first, second = _pair(samples, reference, extractor, batch_size)
    if neighbors < 1 or min(len(first), len(second)) <= neighbors:
        raise ValueError(
            "neighbors is at least 1 and less than the number of images; received "
            f"{neighbors} and {min(len(first), len(second))} images"
        )
    precision = _share_inside(first.features, second.features, neighbors)
    recall = _share_inside(second.features, first.features, neighbors)
    made = (first.extractor, len(first), len(second), None, first.digest)
    return Score("precision", precision, *made), Score("recall", recall, *made)


def all_scores(samples: Features, reference: Features) -> tuple[list[Score], list[str]]:
    """IS (where there are logits), FID, KID, precision and recall, and the warnings as sentences.

    Raises:
        ValueError, ImportError: as each of them.
    """
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", BiasedScoreWarning)
        scores = [
            *([inception_score(samples)] if samples.logits is not None else []),
            frechet_distance(samples, reference),
            kernel_distance(samples, reference),
            *precision_recall(samples, reference),
        ]
    return scores, [
        str(one.message) for one in noticed if issubclass(one.category, BiasedScoreWarning)
    ]


def nearest_distances(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Euclidean distance of each image to the nearest training image: 0 is a copy.

    Args:
        images: ``[N, H, W, C]`` in [0, 1].
        training: ``[M, H, W, C]`` in [0, 1].

    Returns:
        float ``[N]``, the norm over all pixels and channels.

    Raises:
        ValueError: for images of two shapes.
    """
    if images.shape[1:] != training.shape[1:] or images.ndim != 4:
        raise ValueError(
            f"images of one shape are compared; received {images.shape} and {training.shape}"
        )
    rows, others = (part.reshape(len(part), -1) for part in (images, training))
    return pairwise_distances_argmin_min(rows, others)[1]


def _frechet(first: np.ndarray, second: np.ndarray) -> float:
    value = classifier_metrics().frechet_classifier_distance_from_activations(
        tf.constant(first, tf.float64), tf.constant(second, tf.float64)
    )
    return float(value)


@functools.lru_cache(maxsize=1)  # the same at every score against one reference
def _between_halves(reference: Features, half: int) -> float:
    shuffled = np.random.default_rng(0).permutation(len(reference))
    one, other = (reference.features[shuffled[part : part + half]] for part in (0, half))
    return _frechet(one, other)


def _share_inside(points: np.ndarray, manifold: np.ndarray, neighbors: int) -> float:
    radii = np.concatenate(
        list(
            pairwise_distances_chunked(
                manifold,
                # The nearest one is the point itself.
                reduce_func=lambda d, start: np.partition(d, neighbors, axis=1)[:, neighbors],
            )
        )
    )
    inside = pairwise_distances_chunked(
        points, manifold, reduce_func=lambda d, start: (d <= radii).any(axis=1)
    )
    return float(np.concatenate(list(inside)).mean())


def _pair(
    samples: Any, reference: Any, extractor: Any, batch_size: int
) -> tuple[Features, Features]:
    if extractor is not None:
        extractor = load_extractor(extractor)
    first = _features(samples, extractor, batch_size)
    second = _features(reference, extractor, batch_size)
    _require_same((first.extractor, first.digest), (second.extractor, second.digest))
    if first.features.shape[1] != second.features.shape[1]:
        raise ValueError(
            f"features of one extractor are compared; received {first.features.shape[1]} and "
            f"{second.features.shape[1]} of {first.extractor}"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"distances are between at least 2 images and 2; received {len(first)} and "
            f"{len(second)}"
        )
    return first, second


def _features(images: Any, extractor: Any, batch_size: int) -> Features:
    if not isinstance(images, Features):
        if extractor is None:
            raise ValueError("images need an extractor to be scored; received None")
        return extract(images, extractor, batch_size=batch_size)
    if isinstance(extractor, Extractor):
        _require_same((images.extractor, images.digest), (extractor.name, extractor.digest))
    return images


def _require_same(first: tuple[str, str | None], second: tuple[str, str | None]) -> None:
    """Of two extractors (name, digest)."""
    if first[0] != second[0]:
        raise ValueError(
            f"scores of two extractors cannot be compared; received {first[0]} and {second[0]}"
        )
    if None not in (first[1], second[1]) and first[1] != second[1]:
        raise ValueError(
            f"scores of two extractors cannot be compared; received two of the name {first[0]}, "
            f"whose digests are {first[1]} and {second[1]}"
        )


def _batches(images: Any, batch_size: int) -> Iterator[np.ndarray]:
    batches: Iterable[Any] = images
    if hasattr(images, "shape"):
        images = np.asarray(images)
        if images.ndim != 4:
            raise ValueError(f"images are [N, H, W, C]; received shape {images.shape}")
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    for batch in batches:
        pixels = np.asarray(batch[0] if isinstance(batch, tuple | list) else batch)
        if pixels.size == 0:
            continue
        check_pixels(pixels)
        yield pixels.astype(np.float32, copy=False)
