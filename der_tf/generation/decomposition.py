"""What starts are mixed from: means and principal components of classes and neighbourhoods."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors


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
    if not (images.min() >= 0 and images.max() <= 1):  # false for NaN too
        raise ValueError(
            "images are finite and in [0, 1]; received values from "
            f"{np.nanmin(images):g} to {np.nanmax(images):g}"
        )
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
    size = neighbors + 1
    found = np.zeros((len(rows), size), np.int32)
    mixtures = np.zeros((len(rows), size, neighbors), np.float32)
    kept = 1
    start = 0
    for part in parts:
        search = NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(part)
        near = search.kneighbors(return_distance=False)  # without the image itself
        near = np.concatenate([np.arange(len(part))[:, None], near], axis=1)
        found[start : start + len(part)] = start + near
        for row, indices in enumerate(near, start):
            neighborhood = part[indices]
            if not np.ptp(neighborhood, axis=0).any():
                continue  # copies of one image: nothing to mix
            pca = PCA(None if share == 1 else share, svd_solver="full")
            scores = pca.fit_transform(neighborhood.astype(np.float64))
            # The last of as many components as images is rounding error.
            rank = min(neighbors, int(np.count_nonzero(pca.singular_values_ > 1e-9)))
            mixture = scores[:, :rank] / pca.singular_values_[:rank] / np.sqrt(neighbors)
            mixtures[row, :, :rank] = mixture
            kept = max(kept, rank)
        start += len(part)
    return {"images": compact(rows), "neighbors": found, "mixtures": mixtures[..., :kept]}


def principal(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[D]`` and components ``[R, D]`` scaled to their standard deviations."""
    if not np.ptp(rows, axis=0).any():
        return rows[0], np.zeros((1, rows.shape[1]), np.float32)
    pca = PCA(None if share == 1 else share, svd_solver="full").fit(rows)
    return pca.mean_, np.sqrt(pca.explained_variance_)[:, None] * pca.components_


def stacked(models: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Models of :func:`principal` as arrays; missing components are zeros."""
    most = max(len(components) for _, components in models)
    padded = [np.pad(c, ((0, most - len(c)), (0, 0))) for _, c in models]
    return {
        "means": np.stack([mean for mean, _ in models]).astype(np.float32),
        "components": np.stack(padded).astype(np.float32),
    }
