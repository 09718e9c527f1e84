"""What starts are mixed from: means and principal components of classes and neighbourhoods."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from der_tf.attacks.checks import check_pixels

BLOCK = 64  # neighbourhoods that are decomposed at a time


def checked_images(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 ``[N, H, W, C]`` and labels ``[N]``.

    Raises:
        ValueError: for other shapes, negative labels, or pixels outside [0, 1].
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if (
        images.ndim != 4
        or labels.shape != images.shape[:1]
        or len(labels) == 0
        or not np.issubdtype(labels.dtype, np.integer)
        or labels.min() < 0
    ):
        raise ValueError(
            "images are [N, H, W, C] and labels integers [N] from 0, at least one; received images "
            f"of shape {images.shape} and {labels.dtype} labels of shape {labels.shape}"
        )
    check_pixels(images)
    return images.astype(np.float32, copy=False), labels


def check_counts(counts: np.ndarray, mode: str, neighbors: int) -> None:
    """Refuse classes with too few images.

    Args:
        counts: ``[K]`` images of each class.
        mode: of the starts; ``"local"`` needs more than ``neighbors`` a class, others 2.
        neighbors: of an anchor.

    Raises:
        ValueError: for a class without images, with one, or with no more than its neighbours.
    """
    needed = 1 + (neighbors if mode == "local" else 1)
    scarce = np.flatnonzero(counts < needed)
    if scarce.size == 0:
        return
    y = scarce[0]
    if mode != "local" or counts[y] < 2:
        raise ValueError(
            f"every class 0..{len(counts) - 1} has at least 2 images; received {counts[y]} of "
            f"class {y}"
        )
    raise ValueError(
        f"neighbors is less than the images of a class; received neighbors={neighbors} "
        f"and {counts[y]} images of class {y}"
    )


def as_float(stored: np.ndarray) -> np.ndarray:
    """float32 of what :func:`compact` gave."""
    return stored / np.float32(255) if stored.dtype == np.uint8 else stored.astype(np.float32)


def compact(rows: np.ndarray) -> np.ndarray:
    """Pixels of 8 bits as uint8, others as float16."""
    levels = np.rint(rows * 255)
    exact = np.abs(levels - rows * 255).max() < 1e-3
    return levels.astype(np.uint8) if exact else rows.astype(np.float16)


def neighborhoods(
    rows: np.ndarray, parts: list[np.ndarray], neighbors: int, share: float
) -> dict[str, np.ndarray]:
    """Each image's neighbourhood, itself included, and how to mix it.

    The PCA of n centred images Xc = U S V^T has s_i PC_i = (U[:, i] / sqrt(n - 1)) Xc: the
    mixtures U / sqrt(n - 1), n numbers a component, stand for components of a whole image each.
    """
    found = np.zeros((len(rows), neighbors + 1), np.int32)
    mixtures = np.zeros((len(rows), neighbors + 1, neighbors), np.float32)
    start = 0
    for part in parts:
        search = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(part)
        near = search.kneighbors(return_distance=False)  # without the image itself
        near = np.concatenate([np.arange(len(part))[:, None], near], axis=1)
        found[start : start + len(part)] = start + near
        for at in range(0, len(part), BLOCK):
            block = slice(start + at, start + at + len(near[at : at + BLOCK]))
            mixtures[block] = _mixtures(part[near[at : at + BLOCK]], share)
        start += len(part)
    kept = max(1, int(np.count_nonzero(mixtures.any(axis=(0, 1)))))
    return {"images": compact(rows), "neighbors": found, "mixtures": mixtures[..., :kept]}


def _mixtures(images: np.ndarray, share: float) -> np.ndarray:
    """U / sqrt(n - 1) of neighbourhoods ``[B, n, D]``: ``[B, n, n - 1]``, zero where not kept.

    U are the eigenvectors of Xc Xc^T, n x n. It is the decomposition of scikit-learn's PCA without
    its n x D components, which nobody reads here, in a quarter of the time.
    """
    centred = images.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    variances, vectors = np.linalg.eigh(centred @ centred.transpose(0, 2, 1))
    # Strongest first; the weakest of n centred images is rounding error.
    variances, vectors = variances[:, :0:-1], vectors[:, :, :0:-1]
    present = variances > np.maximum(1e-12 * variances[:, :1], 1e-18)
    variances = np.where(present, variances, 0.0)
    before = np.cumsum(variances, axis=1) - variances
    kept = present & ((share == 1) | (before <= share * variances.sum(axis=1, keepdims=True)))
    # A sign that does not depend on the machine.
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return np.where(kept[:, None], vectors * np.sign(largest), 0.0) / np.sqrt(images.shape[1] - 1)


def principal(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[D]`` and components ``[R, D]`` scaled to their standard deviations."""
    if not np.ptp(rows, axis=0).any():
        return rows[0], np.zeros((1, rows.shape[1]), np.float32)
    # Of many images the covariance is the smaller matrix, and twice as fast to decompose.
    solver = "covariance_eigh" if len(rows) >= rows.shape[1] else "full"
    pca = PCA(None if share == 1 else share, svd_solver=solver).fit(rows)
    return pca.mean_, np.sqrt(pca.explained_variance_)[:, None] * pca.components_


def stacked(models: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Models of :func:`principal` as arrays; missing components are zeros."""
    most = max(len(components) for _, components in models)
    padded = [np.pad(c, ((0, most - len(c)), (0, 0))) for _, c in models]
    return {
        "means": np.stack([mean for mean, _ in models]).astype(np.float32),
        "components": np.stack(padded).astype(np.float32),
    }
