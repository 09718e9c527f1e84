"""Choosing examples: every class in its share, and the same examples at every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np

# Which images are for training, validation and test never depends on the seed of a run.
SPLIT_SEED = 0
TEST_FRACTION = 0.2  # where a data set comes without a test part


class Labelled(Protocol):
    """Examples whose labels are known without reading the images."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def size(self) -> int: ...

    def subset(self, indices: np.ndarray) -> Self: ...


S = TypeVar("S", bound=Labelled)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the examples of which every prefix holds each class in its share.

    scikit-learn's stratified splits refuse parts smaller than the number of classes and classes
    of a single example, both of which happen with a limit on the training set.

    Args:
        labels: ``[N]`` integers.
        seed: of the order.

    Returns:
        ``[N]`` indices. Among its first n, a class of N_c examples (of C classes) has its share
        n N_c / N, give or take less than 1 + C N_c / N; exactly its share where all classes have
        one size and n is a multiple of C.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # Spread evenly over [0, 1), every class from a random start of its own.
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


@dataclass(frozen=True)
class Sizes:
    """How many images to validate and train on, as the user asked; checked by use."""

    validation: int | None
    train_limit: int | None
    seed: int

    def counts(self, size: int) -> tuple[int, int]:
        """Validation and training images out of ``size``.

        Raises:
            ValueError: when that is not possible.
        """
        if size < 2:
            raise ValueError(
                f"training and validation take at least 2 images, received {size} beside the test"
            )
        default = max(1, min(max(size // 50, min(500, size // 10)), 5000))
        validation = default if self.validation is None else self.validation
        if not 1 <= validation < size:
            raise ValueError(
                f"validation_size is between 1 and {size - 1}, for {size} images are there to "
                f"train and validate on; received {validation}"
            )
        rest = size - validation
        train = rest if self.train_limit is None else self.train_limit
        if not 1 <= train <= rest:
            raise ValueError(
                f"limit_train is between 1 and {rest}, the training images left beside "
                f"{validation} for validation; received {train}"
            )
        return validation, train


def split_by_class(pool: S, test: S | None, sizes: Sizes) -> tuple[S, S, S]:
    """Train, validation and test, each class in its share; test is cut off if there is none."""
    order = stratified_order(pool.labels, SPLIT_SEED)
    if test is None:
        count = max(1, round(TEST_FRACTION * pool.size))
        test, order = pool.subset(np.sort(order[:count])), order[count:]
    validation, train = sizes.counts(len(order))
    rest = np.sort(order[validation:])
    kept = np.sort(stratified_order(pool.labels[rest], sizes.seed)[:train])
    return pool.subset(rest[kept]), pool.subset(np.sort(order[:validation])), test


def split_by_position(size: int, test: str | None, sizes: Sizes) -> tuple[str, str, str]:
    """The same of records too many to read for their classes, as TFDS slices of ``train``.

    Args:
        size: number of records in ``train``.
        test: the split to test on, None to cut it off.
    """
    start = 0
    if test is None:
        start = max(1, round(TEST_FRACTION * size))
        test = f"train[:{start}]"
    validation, train = sizes.counts(size - start)
    first = start + validation
    begin = int(np.random.default_rng(sizes.seed).integers(first, size - train + 1))
    return f"train[{begin}:{begin + train}]", f"train[{start}:{first}]", test
