"""Stratified choices: facts that hold for any labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from der_tf.data.splits import Sizes, split_by_position, stratified_order

labels = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)


@settings(max_examples=100, deadline=None)
@given(labels, st.integers(0, 2**31), st.data())
def test_every_prefix_holds_each_class_in_its_share(labels, seed, data):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    n = data.draw(st.integers(0, len(labels)))
    for label in np.unique(labels):
        fraction = np.mean(labels == label)
        off = abs(np.sum(labels[order[:n]] == label) - n * fraction)
        assert off < 1 + len(np.unique(labels)) * fraction


@pytest.mark.parametrize("n", [10, 50, 290])
def test_classes_of_one_size_come_out_equal(n):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
    counts = np.bincount(labels[stratified_order(labels, 7)[:n]], minlength=10)
    assert set(counts) == {n // 10}


def test_order_follows_the_seed():
    labels = np.repeat(np.arange(4), 25)
    assert np.array_equal(stratified_order(labels, 1), stratified_order(labels, 1))
    assert not np.array_equal(stratified_order(labels, 1), stratified_order(labels, 2))


@pytest.mark.parametrize(
    ("size", "expected"), [(2, 1), (1437, 143), (5000, 500), (50_000, 1000), (1_281_167, 5000)]
)
def test_default_validation_size(size, expected):
    assert Sizes(None, None, 0).counts(size) == (expected, size - expected)


@settings(max_examples=100, deadline=None)
@given(st.integers(10, 2000), st.booleans(), st.integers(0, 99), st.data())
def test_slices_of_records_never_overlap(size, has_test, seed, data):
    limit = data.draw(st.none() | st.integers(1, size // 2))
    train, validation, test = split_by_position(
        size, "test" if has_test else None, Sizes(None, limit, seed)
    )

    def records(split):
        assert split.startswith("train[")
        begin, end = split.removeprefix("train[").removesuffix("]").split(":")
        return set(range(int(begin or 0), int(end)))

    parts = [records(train), records(validation)] + ([] if has_test else [records(test)])
    assert all(part and max(part) < size for part in parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert limit is None or len(parts[0]) == limit
    assert (test == "test") == has_test
